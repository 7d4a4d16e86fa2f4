/** The HTTP server of `serve`: routes, limits, and its end. What requests say is `openai_api.ts`'s matter. */

import { createHash, timingSafeEqual } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { type AddressInfo, isIP } from "node:net";
import { setImmediate } from "node:timers/promises";
import type { Embedder } from "../../embedder.js";
import { finish } from "../vector.js";
import { CommandLineError } from "./failure.js";
import { Metrics } from "./metrics.js";
import { ApiError, checkModel, embeddingsResponse, parseEmbeddingsRequest } from "./openai_api.js";

export interface ServerSettings {
  host: string;
  /** 0 takes a free one. */
  port: number;
  /** The name that requests call the model by. */
  model: string;
  version: string;
  /** Asked for under /v1 and /metrics if set. */
  apiKey: string | undefined;
  /** Names that the Host header may have besides those of this machine, where only this machine is listened to. */
  allowedHosts: readonly string[];
  maxBodyBytes: number;
  /** Texts of a request. */
  maxBatch: number;
  /** Requests at a time; others are asked to come back. */
  maxRequests: number;
  /** For a request to arrive, and for its answer to be taken. */
  requestTimeoutMs: number;
  /** Whether requests may have vectors cut, and how that is done; see `Cut`. */
  matryoshka: { layerNorm: boolean } | undefined;
  /** Told about failures that are not the client's. */
  onFailure(error: unknown): void;
}

/** Between two requests of a connection. Longer than clients keep theirs, so that it is they who close. */
const KEEP_ALIVE_MS = 65_000;
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
  readonly #routes: Readonly<Record<string, Route>>;
  #embeddingRequests = 0;
  #isStopping = false;
  #onIdle = () => {};
  #isLoopback = true;

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
      headersTimeout: requestTimeoutMs,
      keepAliveTimeout: KEEP_ALIVE_MS,
      connectionsCheckingInterval: Math.max(100, Math.min(5000, requestTimeoutMs / 4)),
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
  }

  /** Resolves to the URL. */
  async listen(): Promise<string> {
    const { host, port } = this.#settings;
    this.#server.listen(port, host);
    try {
      await once(this.#server, "listening");
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== "EADDRINUSE") throw error;
      const advice = "choose another with --port, where 0 takes a free one";
      throw new CommandLineError(code, `port ${port} of ${host} is in use: ${advice}`, { cause: error });
    }
    const { address, port: actual } = this.#server.address() as AddressInfo;
    this.#isLoopback = address.startsWith("127.") || address === "::1" || address.startsWith("::ffff:127.");
    return `http://${isIP(host) === 6 ? `[${host}]` : host}:${actual}`;
  }

  /** Whether only this machine can connect. */
  get isLoopback(): boolean {
    return this.#isLoopback;
  }

  /** Takes no more requests, lets those in flight finish for so long, and ends. Resolves to how many had to be cut off. */
  async stop(graceMs: number): Promise<number> {
    this.#isStopping = true;
    const closed = once(this.#server, "close");
    this.#server.close();
    if (this.#inFlight.size > 0) {
      let timer: NodeJS.Timeout | undefined;
      await new Promise<void>((resolve) => {
        this.#onIdle = resolve;
        timer = setTimeout(resolve, graceMs);
      });
      clearTimeout(timer);
    }
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
    this.#inFlight.add(controller);
    this.#metrics.requestsInFlight++;
    const end = () => {
      if (!this.#inFlight.delete(controller)) return;
      socket.off("close", end);
      const status = response.writableFinished ? `${response.statusCode}` : "aborted";
      this.#metrics.requestsInFlight--;
      this.#metrics.observe(name, status, (performance.now() - start) / 1000);
      controller.abort();
      if (this.#inFlight.size === 0) this.#onIdle();
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
      throw new ApiError(404, `there is no ${path} here; there are ${Object.keys(this.#routes).join(", ")}`);
    };
    return ["other", { methods: [], isPublic: true, answer }];
  }

  /** @throws ApiError for whatever the head of a request tells */
  #admit(request: IncomingMessage, { methods, isPublic }: Route): void {
    const { method = "", headers } = request;
    if (this.#isStopping) throw new ApiError(503, "the server is stopping", { code: "stopping" });
    if (!this.#isExpectedHost(headers.host)) {
      // A page on the web can have its own name point to this machine, and a browser would then let it read answers.
      throw new ApiError(403, `the host ${JSON.stringify(headers.host ?? "")} is not served; see --allow-host`, {
        code: "host_not_allowed",
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

  #isExpectedHost(host: string | undefined): boolean {
    if (!this.#isLoopback) return true;
    if (host === undefined || !URL.canParse(`http://${host}`)) return false;
    const { hostname } = new URL(`http://${host}`);
    return [...LOCAL_NAMES, this.#settings.host, ...this.#settings.allowedHosts].includes(hostname);
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
    const { maxRequests, maxBatch, model, matryoshka } = this.#settings;
    if (this.#embeddingRequests >= maxRequests) {
      throw new ApiError(429, `${maxRequests} requests are being answered already; try again later`, {
        code: "too_many_requests",
        headers: { "retry-after": "1" },
      });
    }
    this.#embeddingRequests++;
    try {
      const body = await this.#readJson(request, response);
      const { dimension } = this.#embedder;
      const parsed = parseEmbeddingsRequest(body, {
        model,
        dimension,
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
        throw new ApiError(400, `input[${truncated[0]}] is longer than ${maxTokens} tokens`, {
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
      this.#embeddingRequests--;
    }
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
    const chunks: Buffer[] = [];
    let length = 0;
    // By events: leaving an iteration early would destroy the connection before the answer.
    await new Promise<void>((resolve, reject) => {
      request.on("data", (chunk: Buffer) => {
        length += chunk.length;
        if (length <= maxBodyBytes) chunks.push(chunk);
        else resolve();
      });
      request.on("end", resolve);
      const left = () => reject(new ApiError(400, "the client left before its request was whole"));
      request.on("error", left);
      request.on("close", left);
    });
    if (length > maxBodyBytes) throw tooLarge();
    return Buffer.concat(chunks);
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

  /** Before an answer begins: its client is not waited for without end, and its connection does not outlive the server. */
  #prepared(response: ServerResponse): ServerResponse {
    const { socket } = response.req;
    const timer = setTimeout(() => socket.destroy(), this.#settings.requestTimeoutMs).unref();
    response.once("close", () => clearTimeout(timer));
    if (this.#isStopping) response.setHeader("connection", "close");
    return response;
  }
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
