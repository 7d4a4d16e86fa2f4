import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { setImmediate } from "node:timers/promises";
import { ApiError } from "./request.js";

/** What applies to every request of a server. */
export interface ServerLimits {
  maxBodyBytes: number;
  /** For a request to arrive, and for its answer to be received. */
  requestTimeoutMs: number;
  /** How long a client may stop sending or receiving. */
  stallMs: number;
  /** Whether answers close their connections. */
  isStopping: boolean;
}

/** How long the rest of a body that is too large is read, so that the client comes to read the answer. */
const LINGER_MS = 1000;

/** A request and its answer, within the limits of the server. */
export class Exchange {
  constructor(
    readonly request: IncomingMessage,
    readonly response: ServerResponse,
    /** Aborted when nobody waits for the answer any more. */
    readonly signal: AbortSignal,
    private readonly limits: ServerLimits,
  ) {}

  /** @throws ApiError 400, 408, 413 or 415 */
  async readJson(): Promise<unknown> {
    const { headers } = this.request;
    // This also keeps web pages out: before a browser sends this type to another site, it asks for permission.
    if (!/^application\/json\s*(;|$)/i.test(headers["content-type"] ?? "")) {
      throw new ApiError(415, "unsupported_media_type", "expected the content type application/json");
    }
    if ((headers["content-encoding"] ?? "identity") !== "identity") {
      throw new ApiError(415, "unsupported_media_type", "compressed bodies are not supported");
    }
    const bytes = await this.#readBody();
    let text: string;
    try {
      text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    } catch {
      throw new ApiError(400, "invalid_json", "the body is not UTF-8");
    }
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new ApiError(400, "invalid_json", `the body is not JSON: ${(error as Error).message}`);
    }
  }

  async #readBody(): Promise<Buffer> {
    const { request, response } = this;
    const { maxBodyBytes, stallMs } = this.limits;
    const tooLarge = () =>
      new ApiError(413, "body_too_large", `the body is larger than ${maxBodyBytes} bytes (--max-body)`);
    if (Number(request.headers["content-length"]) > maxBodyBytes) throw tooLarge();
    if (request.headers.expect !== undefined) response.writeContinue();
    // One buffer: a body in chunks of one byte must not become as many objects.
    let body = Buffer.alloc(0);
    let length = 0;
    let stall: NodeJS.Timeout | undefined;
    // With events: leaving an iteration early would close the connection before the answer.
    try {
      await new Promise<void>((resolve, reject) => {
        stall = setTimeout(() => reject(requestTimedOut()), stallMs);
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
          reject(new ApiError(400, "incomplete_request", "the client left before its request was complete"));
        request.on("error", left);
        request.on("close", left);
      });
    } finally {
      clearTimeout(stall);
    }
    return body.subarray(0, length);
  }

  sendJson(status: number, value: object): void {
    this.#send(status, "application/json", Buffer.from(JSON.stringify(value)));
  }

  sendText(type: string, text: string): void {
    this.#send(200, type, Buffer.from(text));
  }

  #send(status: number, type: string, body: Buffer): void {
    this.#prepare();
    this.response.writeHead(status, { "content-type": type, "content-length": body.length }).end(body);
  }

  /** Sends JSON in pieces, as fast as the client receives them. */
  async sendJsonPieces(pieces: Iterable<string>): Promise<void> {
    const { response, signal } = this;
    this.#prepare();
    response.writeHead(200, { "content-type": "application/json" });
    for (const piece of pieces) {
      signal.throwIfAborted();
      if (response.write(piece)) await setImmediate();
      else await once(response, "drain", { signal });
    }
    response.end();
  }

  /** Answers with an error, if anybody still waits for an answer. */
  async refuse(refusal: ApiError): Promise<void> {
    const { request, response } = this;
    if (this.hasNoReader) return void response.destroy();
    const { headers } = request;
    const hasBody = Number(headers["content-length"] ?? 0) > 0 || headers["transfer-encoding"] !== undefined;
    if (hasBody && !request.complete) {
      // A client that waits for "100 Continue" sends nothing before the answer.
      if (headers.expect === undefined) await discard(request);
      if (this.hasNoReader) return void response.destroy();
      if (!request.complete) response.setHeader("connection", "close");
    }
    for (const [name, value] of Object.entries(refusal.headers)) response.setHeader(name, value);
    // Ollama's clients expect a text.
    const isOllama = request.url?.startsWith("/api/");
    this.sendJson(refusal.status, isOllama ? { error: refusal.message } : refusal);
  }

  get hasNoReader(): boolean {
    return this.signal.aborted || this.response.headersSent || (this.response.socket?.destroyed ?? true);
  }

  /** Before an answer begins: limits the time for receiving it, and closes the connection if the server is stopping. */
  #prepare(): void {
    const { response } = this;
    const { socket } = this.request;
    const { requestTimeoutMs, stallMs, isStopping } = this.limits;
    const timer = setTimeout(() => socket.destroy(), requestTimeoutMs).unref();
    response.once("close", () => clearTimeout(timer));
    // Restarts whenever a part of the answer is received; on expiry Node.js closes the connection.
    socket.setTimeout(stallMs);
    // Before Node.js sets its own, for the next request.
    response.prependOnceListener("finish", () => socket.setTimeout(0));
    if (isStopping) response.setHeader("connection", "close");
  }
}

export function requestTimedOut(): ApiError {
  return new ApiError(408, "request_timeout", "the request did not arrive in time");
}

/** Reads and drops the rest of a request, for a while. */
async function discard(request: IncomingMessage): Promise<void> {
  request.removeAllListeners("data");
  request.resume();
  const patience = new Promise((resolve) => setTimeout(resolve, LINGER_MS).unref());
  // The client may leave meanwhile.
  await Promise.race([once(request, "end"), once(request, "close"), patience]).catch(() => {});
}
