import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse, STATUS_CODES } from "node:http";
import { type AddressInfo, Server as NetServer } from "node:net";
import type { Duplex } from "node:stream";
import { type Admission, asHostname } from "./admission.js";
import { Exchange, requestTimedOut, type ServerLimits } from "./exchange.js";
import { CommandLineError } from "./failure.js";
import type { Metrics } from "./metrics.js";
import { ApiError } from "./request.js";

export interface Route {
  methods: readonly string[];
  /** Whether it needs no API key. */
  isPublic?: boolean;
  answer(exchange: Exchange): Promise<void>;
}

export interface ServerParts {
  /** By path; `/v1/models/:model` is any name of a model. */
  routes: Readonly<Record<string, Route>>;
  limits: ServerLimits;
  admission: Admission;
  metrics: Metrics;
  /** Called for failures that the client did not cause. */
  onFailure(error: unknown): void;
}

/** Between two requests of a connection. Longer than usual for clients, so that they close it, not the server. */
const KEEP_ALIVE_MS = 65_000;
/** How long kept connections may still send a request once the server is stopping. */
const FAREWELL_MS = 500;

/** An HTTP server that limits what clients can do to it, and that stops without cutting off requests in flight. */
export class HttpServer {
  readonly #parts: ServerParts;
  readonly #server: Server;
  readonly #inFlight = new Set<AbortController>();
  /** The answers that each connection still owes. */
  readonly #owed = new WeakMap<Duplex, Set<ServerResponse>>();

  constructor(parts: ServerParts) {
    this.#parts = parts;
    const { requestTimeoutMs, stallMs } = parts.limits;
    this.#server = createServer({
      requestTimeout: requestTimeoutMs,
      headersTimeout: stallMs,
      keepAliveTimeout: KEEP_ALIVE_MS,
      // `Admission` requires it, with an answer in JSON.
      requireHostHeader: false,
      connectionsCheckingInterval: Math.max(100, Math.min(2500, stallMs / 4)),
    });
    const handle = (request: IncomingMessage, response: ServerResponse) => {
      // An unforeseen error closes its connection, but not the server.
      this.#handle(request, response).catch((error) => {
        response.destroy();
        parts.onFailure(error);
      });
    };
    // One per request that waits for its turn on the connection.
    this.#server.on("connection", (socket) => socket.setMaxListeners(0));
    this.#server.on("request", handle);
    // Node.js would ask for the body before anything has been checked.
    this.#server.on("checkContinue", handle);
    this.#server.on("checkExpectation", handle);
    this.#server.on("clientError", (error, socket) => this.#refuseMalformed(error, socket));
  }

  /**
   * @param host As the user named it.
   * @param address The address of `host`.
   * @param port 0 for any free one.
   * @returns The URL.
   * @throws CommandLineError
   */
  async listen(host: string, address: string, port: number): Promise<string> {
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
   * Stops accepting connections, waits for requests in flight, and ends. From now on, every answer closes its connection.
   * A connection without a request is kept a moment longer: a request may be on its way, which closing would reset.
   *
   * @param graceMs How long to wait for requests in flight.
   * @returns How many of them had to be cut off.
   */
  async stop(graceMs: number): Promise<number> {
    this.#parts.limits.isStopping = true;
    const closed = once(this.#server, "close");
    // http.Server's own closes idle connections at once. Bun's is no net.Server.
    const { close } = this.#server instanceof NetServer ? NetServer.prototype : this.#server;
    close.call(this.#server);
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
    const { metrics, limits } = this.#parts;
    const start = performance.now();
    const { socket } = request;
    const controller = new AbortController();
    const [name, route] = this.#route(request);
    const owed = this.#owed.get(socket) ?? new Set();
    this.#owed.set(socket, owed.add(response));
    this.#inFlight.add(controller);
    metrics.requestsInFlight++;
    const end = () => {
      if (!this.#inFlight.delete(controller)) return;
      socket.off("close", end);
      const status = response.writableFinished ? `${response.statusCode}` : "aborted";
      metrics.requestsInFlight--;
      metrics.observe(name, status, (performance.now() - start) / 1000);
      controller.abort();
      owed.delete(response);
    };
    response.on("close", end);
    // An answer that waits for its turn on the connection (pipelining) does not notice that the connection ends.
    socket.on("close", end);
    const exchange = new Exchange(request, response, controller.signal, limits);
    try {
      this.#admit(request, route);
      await route.answer(exchange);
    } catch (error) {
      await exchange.refuse(error instanceof ApiError ? error : this.#asApiError(error, exchange));
    }
  }

  /** The route and its name, of which there are few. */
  #route({ url = "/" }: IncomingMessage): [string, Route] {
    const { routes } = this.#parts;
    const path = url.split("?", 1)[0] as string;
    const name = /^\/v1\/models\/./.test(path) ? "/v1/models/:model" : path;
    const route = Object.hasOwn(routes, name) ? routes[name] : undefined;
    if (route) return [name, route];
    const answer = async () => {
      const message = `there is no ${path} here; there are ${Object.keys(routes).join(", ")}`;
      throw new ApiError(404, "not_found", message);
    };
    return ["other", { methods: [], isPublic: true, answer }];
  }

  /** @throws ApiError for what can be told from a request's headers */
  #admit(request: IncomingMessage, { methods, isPublic }: Route): void {
    const { admission } = this.#parts;
    const { method = "", headers } = request;
    admission.checkOrigin(request);
    if (headers.expect !== undefined && !/^100-continue$/i.test(headers.expect)) {
      const message = `Expect: ${headers.expect} cannot be met; expected 100-continue`;
      throw new ApiError(417, "expectation_failed", message);
    }
    if (methods.length > 0 && !methods.includes(method)) {
      const message = `${method} is not possible here; expected ${methods.join(" or ")}`;
      throw new ApiError(405, "method_not_allowed", message, { headers: { allow: methods.join(", ") } });
    }
    if (!isPublic) admission.checkKey(request);
  }

  #asApiError(error: unknown, exchange: Exchange): ApiError {
    const { code, message } = error as { code?: unknown; message?: unknown };
    if (code === "CLOSED") return new ApiError(503, "stopping", "the server is stopping");
    // The only failure that a text causes.
    if (code === "TOKENIZATION_FAILED") return new ApiError(400, code, String(message), { param: "input" });
    if (!exchange.hasNoReader) this.#parts.onFailure(error);
    return new ApiError(500, typeof code === "string" ? code : "unexpected", String(message));
  }

  /** Answers what Node.js could not read as a request, or did not get in time. */
  #refuseMalformed({ code = "", message }: NodeJS.ErrnoException, socket: Duplex): void {
    const owed = [...(this.#owed.get(socket) ?? [])];
    const last = owed.at(-1);
    const isOwn = owed.length <= 1 && last?.headersSent !== true && last?.req.complete !== true;
    if (!socket.writable) return void socket.destroy();
    if (!isOwn) {
      // The refusal would end up inside another answer, or in its place.
      if (last?.headersSent === false) last.setHeader("connection", "close");
      return void last?.once("close", () => socket.destroy());
    }
    const refusal =
      code === "ERR_HTTP_REQUEST_TIMEOUT"
        ? requestTimedOut()
        : code === "HPE_HEADER_OVERFLOW"
          ? new ApiError(431, "headers_too_large", "the headers are too large")
          : new ApiError(400, "malformed_request", `this is not HTTP: ${message}`);
    const body = JSON.stringify(refusal);
    const head = [
      `HTTP/1.1 ${refusal.status} ${STATUS_CODES[refusal.status]}`,
      "content-type: application/json",
      `content-length: ${Buffer.byteLength(body)}`,
      "connection: close",
    ];
    socket.end(`${head.join("\r\n")}\r\n\r\n${body}`, () => socket.destroy());
  }
}
