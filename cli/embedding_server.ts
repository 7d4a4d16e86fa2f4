/** The HTTP server of `serve`: routes, limits, and its end. What requests say is `openai_api.ts`'s matter. */

import { createHash, timingSafeEqual } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse, STATUS_CODES } from "node:http";
import { type AddressInfo, isIP, Server as NetServer } from "node:net";
import type { Duplex } from "node:stream";
import { setImmediate } from "node:timers/promises";
import type { Embedder } from "../embedder.js";
import { finish } from "../lib/fallback/vector.js";
import type { Matryoshka } from "../lib/model_dir.js";
import { CommandLineError } from "./failure.js";
import { Metrics } from "./metrics.js";
import { ApiError, checkModel, embeddingsResponse, parseEmbeddingsRequest } from "./openai_api.js";

export interface ServerSettings {
  /** As the user named it. */
  host: string;
  /** The address that `host` is. */
  address: string;
  /** 0 takes a free one. */
  port: number;
  /** The name that requests call the model by. */
  model: string;
  version: string;
  /** Asked for under /v1 and /metrics if set. */
  apiKey: string | undefined;
  /** Names that the Host and Origin headers may have besides those of this machine. */
  allowedHosts: readonly string[];
  maxBodyBytes: number;
  /** Texts of a request. */
  maxBatch: number;
  /** Requests at a time; others are asked to come back. */
  maxRequests: number;
  /** The same for one client's address. */
  maxRequestsPerClient: number;
  /** For a request to arrive, and for its answer to be taken. */
  requestTimeoutMs: number;
  /** Set if requests may ask for fewer dimensions. */
  matryoshka: Pick<Matryoshka, "layerNorm"> | undefined;
  /** Told about failures that are not the client's. */
  onFailure(error: unknown): void;
}

/** Between two requests of a connection. Longer than clients keep theirs, so that it is they who close. */
const KEEP_ALIVE_MS = 65_000;
/** How long a request may stop arriving, or its answer stop being taken. */
const STALL_MS = 10_000;
/** How long kept connections may still bring a request once the server is to stop. */
const FAREWELL_MS = 500;
/** How long the rest of a body that is too large is still read, so that its sender comes to read the answer. */
const LINGER_MS = 1000;
const LOCAL_NAMES = ["localhost", "127.0.0.1", "[::1]"];

/** A request on its way, and what the routes need of it. */
interface Exchange {
  request: IncomingMessage;
  response: ServerResponse;
  /** Aborted when nobody waits for the answer any more. */
  signal: AbortSignal;
}

interface Route {
  methods: readonly string[];
  isPublic?: boolean;
  answer(exchange: Exchange): Promise<void>;
}

export class EmbeddingServer {
  readonly #embedder: Embedder;
  readonly #settings: ServerSettings;
  readonly #server: Server;
  readonly #metrics = new Metrics();
  readonly #started = Math.floor(Date.now() / 1000);
  readonly #inFlight = new Set<AbortController>();
  /** The answers that a connection still owes. */
  readonly #owed = new WeakMap<Duplex, Set<ServerResponse>>();
  readonly #routes: Readonly<Record<string, Route>>;
  #embeddingRequests = 0;
  readonly #embeddingRequestsByClient = new Map<string, number>();
  #isStopping = false;

  constructor(embedder: Embedder, settings: ServerSettings) {
    this.#embedder = embedder;
    this.#settings = settings;
    const get = ["GET", "HEAD"];
    this.#routes = {
      "/v1/embeddings": { methods: ["POST"], answer: (exchange) => this.#embeddings(exchange) },
      "/v1/models": { methods: get, answer: (exchange) => this.#models(exchange) },
      "/v1/models/:model": { methods: get, answer: (exchange) => this.#modelByName(exchange) },
      "/health": { methods: get, isPublic: true, answer: (exchange) => this.#health(exchange) },
      "/metrics": { methods: get, answer: (exchange) => this.#metricsPage(exchange) },
    };
    const { requestTimeoutMs } = settings;
    this.#server = createServer({
      requestTimeout: requestTimeoutMs,
      headersTimeout: this.#stallMs,
      keepAliveTimeout: KEEP_ALIVE_MS,
      // Missed below, with an answer in JSON.
      requireHostHeader: false,
      connectionsCheckingInterval: Math.max(100, Math.min(2500, this.#stallMs / 4)),
    });
    const handle = (request: IncomingMessage, response: ServerResponse) => {
      // Whatever a handler did not foresee ends its connection, not the server.
      this.#handle(request, response).catch((error) => {
        response.destroy();
        settings.onFailure(error);
      });
    };
    // As many as requests that wait for their turn on the connection.
    this.#server.on("connection", (socket) => socket.setMaxListeners(0));
    this.#server.on("request", handle);
    // Node.js would ask for the body before anybody has looked whether it is wanted.
    this.#server.on("checkContinue", handle);
    this.#server.on("checkExpectation", handle);
    this.#server.on("clientError", (error, socket) => this.#refuseMalformed(error, socket));
  }

  /** Resolves to the URL. */
  async listen(): Promise<string> {
    const { host, address, port } = this.#settings;
    this.#server.listen(port, address);
    try {
      await once(this.#server, "listening");
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== "EADDRINUSE") throw error;
      const advice = "choose another with --port, where 0 takes a free one";
      throw new CommandLineError(code, `port ${port} of ${host} is in use: ${advice}`, { cause: error });
    }
    const { port: actual } = this.#server.address() as AddressInfo;
    return `http://${asHostname(host)}:${actual}`;
  }

  /**
   * Takes no more connections, lets requests in flight finish for so long, and ends. Resolves to how many had to be cut
   * off. Every answer from now on closes its connection. One that is kept without a request may have one on its way,
   * which closing it would reset, and is kept for a moment more.
   */
  async stop(graceMs: number): Promise<number> {
    this.#isStopping = true;
    const closed = once(this.#server, "close");
    // That of http.Server closes idle connections at once.
    NetServer.prototype.close.call(this.#server);
    const farewell = setInterval(
      () => {
        if (this.#inFlight.size > 0) this.#server.closeIdleConnections();
        else this.#server.closeAllConnections();
      },
      Math.min(FAREWELL_MS, graceMs),
    );
    let expiry: NodeJS.Timeout | undefined;
    const expired = new Promise<void>((resolve) => {
      expiry = setTimeout(resolve, graceMs);
    });
    await Promise.race([closed, expired]);
    clearInterval(farewell);
    clearTimeout(expiry);
    const cutOff = this.#inFlight.size;
    for (const controller of this.#inFlight) controller.abort();
    this.#server.closeAllConnections();
    await closed;
    return cutOff;
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const start = performance.now();
    const { socket } = request;
    const controller = new AbortController();
    const [name, route] = this.#route(request);
    const owed = this.#owed.get(socket) ?? new Set();
    this.#owed.set(socket, owed.add(response));
    this.#inFlight.add(controller);
    this.#metrics.requestsInFlight++;
    const end = () => {
      if (!this.#inFlight.delete(controller)) return;
      socket.off("close", end);
      const status = response.writableFinished ? `${response.statusCode}` : "aborted";
      this.#metrics.requestsInFlight--;
      this.#metrics.observe(name, status, (performance.now() - start) / 1000);
      controller.abort();
      owed.delete(response);
    };
    response.on("close", end);
    // An answer that waits for its turn on the connection (pipelining) does not hear of the connection's end.
    socket.on("close", end);
    const exchange = { request, response, signal: controller.signal };
    try {
      this.#admit(request, route);
      await route.answer(exchange);
    } catch (error) {
      await this.#refuse(exchange, error);
    }
  }

  /** The route's name, which has few values, and the route. */
  #route({ url = "/" }: IncomingMessage): [string, Route] {
    const path = url.split("?", 1)[0] as string;
    const name = /^\/v1\/models\/./.test(path) ? "/v1/models/:model" : path;
    const route = Object.hasOwn(this.#routes, name) ? this.#routes[name] : undefined;
    if (route) return [name, route];
    const answer = async () => {
      throw new ApiError(404, `there is no ${path} here; there are ${Object.keys(this.#routes).join(", ")}`, {
        code: "not_found",
      });
    };
    return ["other", { methods: [], isPublic: true, answer }];
  }

  /** @throws ApiError for whatever the head of a request tells */
  #admit(request: IncomingMessage, { methods, isPublic }: Route): void {
    const { method = "", headers } = request;
    this.#checkOrigin(request);
    if (headers.expect !== undefined && !/^100-continue$/i.test(headers.expect)) {
      throw new ApiError(417, `Expect: ${headers.expect} cannot be met; expected 100-continue`, {
        code: "expectation_failed",
      });
    }
    if (methods.length > 0 && !methods.includes(method)) {
      throw new ApiError(405, `${method} is not possible here; expected ${methods.join(" or ")}`, {
        code: "method_not_allowed",
        headers: { allow: methods.join(", ") },
      });
    }
    if (!isPublic) this.#checkKey(headers.authorization);
  }

  /**
   * Keeps web pages out. A page can have its own name point to this machine, and a browser would then let it read
   * answers: it shows by the Host header. And a browser names the page that a request comes from as the Origin.
   */
  #checkOrigin({ httpVersion, headers: { host, origin } }: IncomingMessage): void {
    const { address, apiKey } = this.#settings;
    if (host === undefined && httpVersion !== "1.0") {
      throw new ApiError(400, "the request has no Host header", { code: "malformed_request" });
    }
    if (isLoopback(address) && !this.#isExpected(`http://${host}`)) {
      throw new ApiError(403, `the host ${JSON.stringify(host ?? "")} is not served; see --allow-host`, {
        code: "host_not_allowed",
      });
    }
    // A page does not know the key.
    if (origin === undefined || apiKey !== undefined) return;
    if (this.#isExpected(origin) && new URL(origin).host === new URL(`http://${host}`).host) return;
    throw new ApiError(
      403,
      `requests of web pages (here of ${JSON.stringify(origin)}) are not served without an API key`,
      {
        code: "origin_not_allowed",
      },
    );
  }

  #isExpected(url: string): boolean {
    if (!URL.canParse(url)) return false;
    const { host, address, allowedHosts } = this.#settings;
    return [...LOCAL_NAMES, asHostname(host), asHostname(address), ...allowedHosts].includes(new URL(url).hostname);
  }

  #checkKey(authorization: string | undefined): void {
    const { apiKey } = this.#settings;
    if (apiKey === undefined) return;
    const [, given] = /^Bearer\s+(.*)$/i.exec(authorization ?? "") ?? [];
    // Of equal length whatever was given, and compared in a time that tells nothing.
    const digest = (key: string) => createHash("sha256").update(key).digest();
    if (given !== undefined && timingSafeEqual(digest(given), digest(apiKey))) return;
    const message = given === undefined ? "this server wants an API key: Authorization: Bearer …" : "wrong API key";
    throw new ApiError(401, message, { code: "invalid_api_key", headers: { "www-authenticate": "Bearer" } });
  }

  async #embeddings({ request, response, signal }: Exchange): Promise<void> {
    const { maxBatch, model, matryoshka } = this.#settings;
    const leave = this.#enter(request);
    try {
      const body = await this.#readJson(request, response);
      const { dimension, vocabularySize } = this.#embedder;
      const parsed = parseEmbeddingsRequest(body, {
        model,
        dimension,
        vocabularySize,
        isMatryoshka: matryoshka !== undefined,
        maxBatch,
      });
      let tokens = 0;
      let truncated: Uint32Array = new Uint32Array();
      const embedded = await this.#embedder.embed(parsed.texts, {
        kind: parsed.kind,
        signal,
        onProgress: (progress) => {
          tokens = progress.tokens;
        },
        onTruncated: (indices) => {
          truncated = indices;
        },
      });
      if (truncated.length > 0 && !parsed.truncation) {
        const { maxTokens } = this.#embedder;
        const which = parsed.texts.length === 1 ? "input" : `input[${truncated[0]}]`;
        throw new ApiError(400, `${which} is longer than ${maxTokens} tokens`, {
          param: "input",
          code: "context_length_exceeded",
        });
      }
      const { dimensions } = parsed;
      const vectors =
        dimensions === undefined || !matryoshka
          ? embedded
          : embedded.map((vector) => finish(vector, { dimensions, ...matryoshka }, true));
      // OpenAI's answer has no place for it, and what was cut must not go unsaid.
      if (truncated.length > 0) response.setHeader("x-truncated-inputs", truncated.subarray(0, 100).join());
      await this.#send(response, 200, embeddingsResponse(vectors, parsed, model, tokens), signal);
    } finally {
      leave();
    }
  }

  /**
   * Takes a place among the requests that are answered at a time, and gives what returns it.
   *
   * @throws ApiError 429
   */
  #enter({ socket }: IncomingMessage): () => void {
    const { maxRequests, maxRequestsPerClient } = this.#settings;
    const byClient = this.#embeddingRequestsByClient;
    const client = socket.remoteAddress ?? "";
    const own = byClient.get(client) ?? 0;
    const refusal = (message: string) => new ApiError(429, message, { code: "too_many_requests" });
    if (this.#embeddingRequests >= maxRequests) {
      throw refusal(`${maxRequests} requests are being answered already; try again later`);
    }
    if (own >= maxRequestsPerClient) {
      throw refusal(`${own} requests from ${client} are being answered already; try again later`);
    }
    this.#embeddingRequests++;
    byClient.set(client, own + 1);
    return () => {
      this.#embeddingRequests--;
      const left = (byClient.get(client) ?? 1) - 1;
      if (left > 0) byClient.set(client, left);
      else byClient.delete(client);
    };
  }

  /** @throws ApiError 400, 413 or 415 */
  async #readJson(request: IncomingMessage, response: ServerResponse): Promise<unknown> {
    const { headers } = request;
    // Also what keeps web pages out: a browser asks first before it sends this type to another site.
    if (!/^application\/json\s*(;|$)/i.test(headers["content-type"] ?? "")) {
      throw new ApiError(415, "expected the content type application/json", { code: "unsupported_media_type" });
    }
    if ((headers["content-encoding"] ?? "identity") !== "identity") {
      throw new ApiError(415, "compressed bodies are not taken", { code: "unsupported_media_type" });
    }
    const bytes = await this.#readBody(request, response);
    let text: string;
    try {
      text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    } catch {
      throw new ApiError(400, "the body is not UTF-8", { code: "invalid_json" });
    }
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new ApiError(400, `the body is not JSON: ${(error as Error).message}`, { code: "invalid_json" });
    }
  }

  async #readBody(request: IncomingMessage, response: ServerResponse): Promise<Buffer> {
    const { maxBodyBytes } = this.#settings;
    const tooLarge = () =>
      new ApiError(413, `the body is larger than ${maxBodyBytes} bytes (--max-body)`, { code: "body_too_large" });
    if (Number(request.headers["content-length"]) > maxBodyBytes) throw tooLarge();
    if (request.headers.expect !== undefined) response.writeContinue();
    // One buffer: a body in chunks of a byte each must not become as many objects.
    let body = Buffer.alloc(0);
    let length = 0;
    let stall: NodeJS.Timeout | undefined;
    // By events: leaving an iteration early would destroy the connection before the answer.
    try {
      await new Promise<void>((resolve, reject) => {
        stall = setTimeout(() => reject(this.#timedOut()), this.#stallMs);
        request.on("data", (chunk: Buffer) => {
          stall?.refresh();
          const end = length + chunk.length;
          if (end > maxBodyBytes) return reject(tooLarge());
          if (end > body.length) {
            const grown = Buffer.allocUnsafe(Math.min(maxBodyBytes, Math.max(end, 2 * body.length)));
            body.copy(grown, 0, 0, length);
            body = grown;
          }
          chunk.copy(body, length);
          length = end;
        });
        request.on("end", resolve);
        const left = () =>
          reject(new ApiError(400, "the client left before its request was whole", { code: "incomplete_request" }));
        request.on("error", left);
        request.on("close", left);
      });
    } finally {
      clearTimeout(stall);
    }
    return body.subarray(0, length);
  }

  /** How long a client may stop sending or taking. */
  get #stallMs(): number {
    return Math.min(STALL_MS, this.#settings.requestTimeoutMs);
  }

  #timedOut(): ApiError {
    return new ApiError(408, "the request did not arrive in time", { code: "request_timeout" });
  }

  async #models({ response }: Exchange): Promise<void> {
    sendJson(this.#prepared(response), 200, { object: "list", data: [this.#model()] });
  }

  async #modelByName({ request, response }: Exchange): Promise<void> {
    const [, encoded = ""] = /^\/v1\/models\/([^?]*)/.exec(request.url ?? "") ?? [];
    let name = encoded;
    try {
      name = decodeURIComponent(encoded);
    } catch {
      // Is no model's name either.
    }
    checkModel(name, this.#settings.model);
    sendJson(this.#prepared(response), 200, this.#model());
  }

  #model(): object {
    return { id: this.#settings.model, object: "model", created: this.#started, owned_by: "semantic-search-native" };
  }

  async #health({ response }: Exchange): Promise<void> {
    const { model, version } = this.#settings;
    const { backend, isGpu, dimension, maxTokens, fingerprint, fallbackReason } = this.#embedder;
    const facts = { backend, isGpu, dimension, maxTokens, fingerprint, fallbackReason };
    // To a load balancer that asks on a kept connection.
    if (this.#isStopping) throw new ApiError(503, "the server is stopping", { code: "stopping" });
    sendJson(this.#prepared(response), 200, { status: "ok", model, version, ...facts });
  }

  async #metricsPage({ response }: Exchange): Promise<void> {
    const { model, version } = this.#settings;
    const { backend, fingerprint } = this.#embedder;
    const page = await this.#metrics.page(this.#embedder, { model, backend, fingerprint, version });
    this.#prepared(response).writeHead(200, { "content-type": "text/plain; version=0.0.4; charset=utf-8" }).end(page);
  }

  /** Answers in pieces, at the speed at which they are taken. */
  async #send(response: ServerResponse, status: number, pieces: Iterable<string>, signal: AbortSignal): Promise<void> {
    this.#prepared(response).writeHead(status, { "content-type": "application/json" });
    for (const piece of pieces) {
      signal.throwIfAborted();
      if (response.write(piece)) await setImmediate();
      else await once(response, "drain", { signal });
    }
    response.end();
  }

  /** Answers with an error, if anybody still waits for an answer. */
  async #refuse({ request, response, signal }: Exchange, error: unknown): Promise<void> {
    const hasNoReader = () => signal.aborted || response.headersSent || (response.socket?.destroyed ?? true);
    if (hasNoReader()) return void response.destroy();
    const refusal = error instanceof ApiError ? error : this.#asApiError(error);
    const { headers } = request;
    const hasBody = Number(headers["content-length"] ?? 0) > 0 || headers["transfer-encoding"] !== undefined;
    if (hasBody && !request.complete) {
      // A client that waits for "100 Continue" sends nothing before the answer.
      if (headers.expect === undefined) await discard(request);
      if (hasNoReader()) return void response.destroy();
      if (!request.complete) response.setHeader("connection", "close");
    }
    for (const [name, value] of Object.entries(refusal.headers)) response.setHeader(name, value);
    sendJson(this.#prepared(response), refusal.status, refusal);
  }

  #asApiError(error: unknown): ApiError {
    const { code, message } = error as { code?: unknown; message?: unknown };
    if (code === "CLOSED") return new ApiError(503, "the server is stopping", { code: "stopping" });
    // The one failure that lies in a text.
    if (code === "TOKENIZATION_FAILED") return new ApiError(400, String(message), { param: "input", code });
    this.#settings.onFailure(error);
    return new ApiError(500, String(message), { code: typeof code === "string" ? code : "unexpected" });
  }

  /** Answers what Node.js could not read as a request, or did not get in time. */
  #refuseMalformed({ code = "", message }: NodeJS.ErrnoException, socket: Duplex): void {
    const owed = [...(this.#owed.get(socket) ?? [])];
    const last = owed.at(-1);
    const isOwn = owed.length <= 1 && last?.headersSent !== true && last?.req.complete !== true;
    if (!socket.writable) return void socket.destroy();
    if (!isOwn) {
      // It would stand in the middle of another answer, or in its place.
      if (last?.headersSent === false) last.setHeader("connection", "close");
      return void last?.once("close", () => socket.destroy());
    }
    const refusal =
      code === "ERR_HTTP_REQUEST_TIMEOUT"
        ? this.#timedOut()
        : code === "HPE_HEADER_OVERFLOW"
          ? new ApiError(431, "the headers are too large", { code: "headers_too_large" })
          : new ApiError(400, `this is not HTTP: ${message}`, { code: "malformed_request" });
    const body = JSON.stringify(refusal);
    const head = [
      `HTTP/1.1 ${refusal.status} ${STATUS_CODES[refusal.status]}`,
      "content-type: application/json",
      `content-length: ${Buffer.byteLength(body)}`,
      "connection: close",
    ];
    socket.end(`${head.join("\r\n")}\r\n\r\n${body}`, () => socket.destroy());
  }

  /** Before an answer begins: its client is not waited for without end, and its connection does not outlive the server. */
  #prepared(response: ServerResponse): ServerResponse {
    const { socket } = response.req;
    const timer = setTimeout(() => socket.destroy(), this.#settings.requestTimeoutMs).unref();
    response.once("close", () => clearTimeout(timer));
    // Begins anew whenever a part of the answer is taken; Node.js then closes the connection.
    socket.setTimeout(this.#stallMs);
    // Before Node.js sets its own, for the next request.
    response.prependOnceListener("finish", () => socket.setTimeout(0));
    if (this.#isStopping) response.setHeader("connection", "close");
    return response;
  }
}

/** Whether only this machine can connect to it. */
export function isLoopback(address: string): boolean {
  return address.startsWith("127.") || address === "::1" || address.startsWith("::ffff:127.");
}

/** As it stands in a URL. */
function asHostname(host: string): string {
  return isIP(host) === 6 ? `[${host}]` : host;
}

function sendJson(response: ServerResponse, status: number, value: object): void {
  const body = Buffer.from(JSON.stringify(value));
  response.writeHead(status, { "content-type": "application/json", "content-length": body.length }).end(body);
}

/** Reads what comes and keeps nothing of it, for a while. */
async function discard(request: IncomingMessage): Promise<void> {
  request.removeAllListeners("data");
  request.resume();
  const patience = new Promise((resolve) => setTimeout(resolve, LINGER_MS).unref());
  // A client that leaves meanwhile has only itself to answer to.
  await Promise.race([once(request, "end"), once(request, "close"), patience]).catch(() => {});
}
