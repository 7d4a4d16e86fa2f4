import type { Dispatcher } from "undici";
import { EmbedderError, throwIfAborted } from "../errors.js";
import { proxyFor } from "./proxy.js";
import type { HubSettings } from "./settings.js";
import { Retries, TransferError } from "./transfer_error.js";

type Headers = Dispatcher.ResponseData["headers"];

/** A successful response. */
export interface HubResponse {
  status: number;
  headers: Headers;
  /** The response's bytes. Leaving the loop early closes the connection. @throws TransferError, AbortError */
  body: AsyncIterable<Buffer>;
}

/** What a request is for, as error messages name it. */
export interface Subject {
  model: string;
  revision: string;
  /** Absent if the request is for the model itself. */
  file?: string;
}

const CONNECT_TIMEOUT_MS = 10_000;
const REDIRECTS = 5;
const ATTEMPTS = 5;
/** In bytes. The file lists of the largest repositories take a few megabytes; parsing more would block the event loop. */
const LONGEST_JSON = 10_000_000;

/**
 * HTTP requests to the Hub. Follows redirects itself, because the token is for the endpoint only. Throws a `TransferError`
 * for what may work later, and otherwise an `EmbedderError` that says what to do.
 *
 * Why not the official `@huggingface/hub`: its downloads into the cache (2.17.5) check no hashes, do not resume or retry,
 * have no timeout, lock or offline mode, and use the network even for a commit that is in the cache.
 */
export class HubClient {
  readonly #settings: HubSettings;
  readonly #signal: AbortSignal | undefined;
  readonly #dispatchers = new Map<string | undefined, Dispatcher>();

  constructor(settings: HubSettings, signal: AbortSignal | undefined) {
    this.#settings = settings;
    this.#signal = signal;
  }

  /** Closes the connections. */
  async close(): Promise<void> {
    await Promise.all([...this.#dispatchers.values()].map((dispatcher) => dispatcher.destroy()));
  }

  /** The attempts for a request, with waits between them. */
  retries(attempts = ATTEMPTS): Retries {
    return new Retries(attempts, this.#signal);
  }

  /** The endpoint's JSON for a path. @throws EmbedderError */
  async json(path: string, subject: Subject, attempts?: number): Promise<unknown> {
    const retries = this.retries(attempts);
    for (;;) {
      try {
        const { body } = await this.get(path, subject);
        const chunks: Buffer[] = [];
        let length = 0;
        for await (const chunk of body) {
          chunks.push(chunk);
          length += chunk.length;
          if (length > LONGEST_JSON) throw this.#noJson(path, `more than ${LONGEST_JSON} bytes`);
        }
        try {
          return JSON.parse(Buffer.concat(chunks).toString());
        } catch (cause) {
          throw this.#noJson(path, "something else; is there a login page in front of the Hub?", cause);
        }
      } catch (error) {
        await retries.after(error);
      }
    }
  }

  #noJson(path: string, found: string, cause?: unknown): EmbedderError {
    const message = `${this.#settings.endpoint}${path}: expected a short JSON text, found ${found}`;
    return new EmbedderError("DOWNLOAD_FAILED", message, { cause });
  }

  /**
   * The successful response for a path of the endpoint, following redirects. One attempt.
   *
   * @param headers Sent to every host, also after redirects.
   * @throws EmbedderError
   */
  async get(path: string, subject: Subject, headers: Record<string, string> = {}): Promise<HubResponse> {
    const { endpoint, token } = this.#settings;
    let url = new URL(endpoint + path);
    const { origin } = url;
    for (let hop = 0; hop <= REDIRECTS; hop++) {
      const authorization = token && url.origin === origin ? { authorization: `Bearer ${token}` } : {};
      // Ranges and hashes are those of the file's own bytes, so the response must not be compressed.
      const response = await this.#request(url, { ...headers, ...authorization, "accept-encoding": "identity" });
      const location = header(response.headers, "location");
      if (response.statusCode < 300) {
        return { status: response.statusCode, headers: response.headers, body: this.#bytes(response.body, url) };
      }
      // A body that nobody reads would block the connection.
      response.body.destroy();
      if (response.statusCode >= 400) throw refusal(response.statusCode, response.headers, subject, url, token);
      if (!location || !URL.canParse(location, url.href)) break;
      const next = new URL(location, url);
      if (next.protocol !== "https:" && next.protocol !== url.protocol) {
        throw new EmbedderError("DOWNLOAD_FAILED", `${url.origin} redirects to ${next.origin}, which is not encrypted`);
      }
      url = next;
    }
    const message = `${url.origin} redirects endlessly or to an invalid URL (${named(subject)})`;
    throw new EmbedderError("DOWNLOAD_FAILED", message);
  }

  async *#bytes(body: AsyncIterable<Buffer>, url: URL): AsyncGenerator<Buffer> {
    try {
      yield* body;
    } catch (cause) {
      throw this.#transferError(cause, url);
    }
  }

  /** The error to throw for a failed connection. */
  #transferError(cause: unknown, { origin }: URL): EmbedderError {
    throwIfAborted(this.#signal);
    const { code = "", message } = cause as NodeJS.ErrnoException;
    if (/^UND_ERR_(HEADERS|BODY)_TIMEOUT$/.test(code)) {
      return new TransferError(`${origin} sent nothing for ${this.#settings.stallTimeoutMs / 1000} s`, { cause });
    }
    // If the proxy refuses a tunnel, undici reports the status in its message only.
    if (/\b407\b/.test(message)) return refusedByProxy();
    const certificate = /CERT|^ERR_TLS|^UNABLE_TO_/.test(code);
    const advice = certificate
      ? "if a proxy inspects connections, set NODE_EXTRA_CA_CERTS to its certificate"
      : "HTTPS_PROXY sets a proxy, HF_ENDPOINT a mirror, HF_HUB_OFFLINE=1 uses the cache only";
    return new TransferError(`the connection to ${origin} failed: ${message || code}; ${advice}`, {
      cause,
      retry: !certificate && code !== "ENOTFOUND",
    });
  }

  async #request(url: URL, headers: Record<string, string>): Promise<Dispatcher.ResponseData> {
    throwIfAborted(this.#signal);
    const dispatcher = this.#dispatcher(proxyFor(url));
    try {
      const response = await undici().request(url, {
        dispatcher,
        headers: { "user-agent": "semantic-search-native", ...headers },
        headersTimeout: this.#settings.stallTimeoutMs,
        bodyTimeout: this.#settings.stallTimeoutMs,
        signal: this.#signal ?? null,
      });
      // Destroying a body emits an error, which nobody may be listening for any more.
      response.body.on("error", () => {});
      return response;
    } catch (cause) {
      throw this.#transferError(cause, url);
    }
  }

  #dispatcher(proxy: string | undefined): Dispatcher {
    let dispatcher = this.#dispatchers.get(proxy);
    if (!dispatcher) {
      const { Agent, ProxyAgent } = undici();
      const connect = { timeout: CONNECT_TIMEOUT_MS };
      dispatcher = proxy === undefined ? new Agent({ connect }) : new ProxyAgent({ uri: proxy, proxyTunnel: false });
      this.#dispatchers.set(proxy, dispatcher);
    }
    return dispatcher;
  }
}

/**
 * Loaded when first needed: loading a model folder does not need it. By the name of its file, because Bun has a partial
 * `undici` of its own.
 */
function undici(): typeof import("undici") {
  return require("undici/index.js");
}

export function header(headers: Headers, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
}

function named({ model, revision, file }: Subject): string {
  return file === undefined ? `${model}@${revision}` : `${file} of ${model}@${revision}`;
}

function refusedByProxy(): EmbedderError {
  const message =
    "the proxy requires a name and password, or rejects those that were sent: HTTPS_PROXY=http://name:password@host:port";
  return new EmbedderError("ACCESS_DENIED", message);
}

/** The error for an unsuccessful response. `X-Error-Code` distinguishes cases with the same status. */
function refusal(
  status: number,
  headers: Headers,
  subject: Subject,
  { origin }: URL,
  token: string | undefined,
): EmbedderError {
  const { model, revision } = subject;
  const reason = header(headers, "x-error-code");
  const said = header(headers, "x-error-message");
  const withToken = token ? "the token that was sent does not allow it" : "no token was sent: set HF_TOKEN";
  if (reason === "GatedRepo") {
    const message = `${model} is a gated model: accept its conditions on ${origin}/${model} and set HF_TOKEN to a token of that account (${withToken})`;
    return new EmbedderError("ACCESS_DENIED", message);
  }
  if (reason === "RevisionNotFound") {
    return new EmbedderError("MODEL_NOT_FOUND", `${model} has no branch, tag or commit ${JSON.stringify(revision)}`);
  }
  if (reason === "EntryNotFound") return new EmbedderError("MODEL_NOT_FOUND", `${origin} has no ${named(subject)}`);
  if (reason === "RepoNotFound" || (status === 404 && subject.file === undefined)) {
    const message = `${origin} has no model ${model}, or it is private (${withToken}); to load a folder of this name, write ./${model}`;
    return new EmbedderError("MODEL_NOT_FOUND", message);
  }
  if (status === 404 || status === 410)
    return new EmbedderError("MODEL_NOT_FOUND", `${origin} has no ${named(subject)}`);
  if (status === 401 || status === 403) {
    const message = `${origin} refuses ${named(subject)} (${status}${said ? `: ${said}` : ""}): ${withToken}`;
    return new EmbedderError("ACCESS_DENIED", message);
  }
  const retry = status === 408 || status === 429 || status >= 500;
  const retryAfterMs = retry ? requestedWaitMs(headers) : undefined;
  const wait = retryAfterMs === undefined ? "" : `; retry in ${Math.ceil(retryAfterMs / 1000)} s`;
  const limit = status === 429 && !token ? " (a token in HF_TOKEN raises the limit)" : "";
  return retry
    ? new TransferError(`${origin} answered ${status} for ${named(subject)}${wait}${limit}`, { retryAfterMs })
    : new EmbedderError(
        "DOWNLOAD_FAILED",
        `${origin} answered ${status} for ${named(subject)}${said ? `: ${said}` : ""}`,
      );
}

/** `Retry-After` (seconds or a date) in milliseconds, or the rest of the Hub's own `RateLimit: "api";r=0;t=55`. */
function requestedWaitMs(headers: Headers): number | undefined {
  const value = header(headers, "retry-after") ?? /\bt=(\d+)/.exec(header(headers, "ratelimit") ?? "")?.[1];
  if (value === undefined) return undefined;
  const wait = /^\s*\d+\s*$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isNaN(wait) ? undefined : Math.max(0, wait);
}
