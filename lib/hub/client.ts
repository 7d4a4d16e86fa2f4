import type { Dispatcher } from "undici";
import { EmbedderError, throwIfAborted } from "../errors.js";
import { proxyFor } from "./proxy.js";
import type { HubSettings } from "./settings.js";
import { Retries, TransferError } from "./transfer_error.js";

type Headers = Dispatcher.ResponseData["headers"];

/** A successful answer. */
export interface HubResponse {
  status: number;
  headers: Headers;
  /** The answer's bytes. Leaving the loop early drops the connection. @throws TransferError, AbortError */
  body: AsyncIterable<Buffer>;
}

/** What is asked for, as messages name it. */
export interface Subject {
  model: string;
  revision: string;
  /** Left out where the model itself is asked for. */
  file?: string;
}

const CONNECT_TIMEOUT_MS = 10_000;
const REDIRECTS = 5;
const ATTEMPTS = 5;
/** In bytes. The largest repositories' lists of files take a few megabytes; more would hold the event loop, too. */
const LONGEST_JSON = 10_000_000;

/**
 * HTTP with the Hub. Follows redirects itself, because the token is for the endpoint alone; reports what goes wrong as
 * `TransferError` (may be otherwise later) or as an `EmbedderError` that says what to do.
 *
 * Why not the official `@huggingface/hub`: its downloads into the cache (2.17.5) check no hash, resume and retry nothing,
 * have no timeout, lock or offline mode, and ask the network even for a commit that is there.
 */
export class HubClient {
  readonly #settings: HubSettings;
  readonly #signal: AbortSignal | undefined;
  readonly #dispatchers = new Map<string | undefined, Dispatcher>();

  constructor(settings: HubSettings, signal: AbortSignal | undefined) {
    this.#settings = settings;
    this.#signal = signal;
  }

  /** Drops the connections. */
  async close(): Promise<void> {
    await Promise.all([...this.#dispatchers.values()].map((dispatcher) => dispatcher.destroy()));
  }

  /** Attempts that a request gets, with waits between them. */
  retries(attempts = ATTEMPTS): Retries {
    return new Retries(attempts, this.#signal);
  }

  /** The JSON that the endpoint gives for a path. @throws EmbedderError */
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
          throw this.#noJson(path, "something else; is a login page before the Hub?", cause);
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
   * The successful answer for a path of the endpoint, wherever that redirects to. One attempt.
   *
   * @param headers Sent to every host on the way.
   * @throws EmbedderError
   */
  async get(path: string, subject: Subject, headers: Record<string, string> = {}): Promise<HubResponse> {
    const { endpoint, token } = this.#settings;
    let url = new URL(endpoint + path);
    const { origin } = url;
    for (let hop = 0; hop <= REDIRECTS; hop++) {
      const authorization = token && url.origin === origin ? { authorization: `Bearer ${token}` } : {};
      // Ranges and hashes are of the file's own bytes: nothing may be compressed on the way.
      const response = await this.#request(url, { ...headers, ...authorization, "accept-encoding": "identity" });
      const location = header(response.headers, "location");
      if (response.statusCode < 300) {
        return { status: response.statusCode, headers: response.headers, body: this.#bytes(response.body, url) };
      }
      // The connection is of no more use with a body that nobody reads.
      response.body.destroy();
      if (response.statusCode >= 400) throw refusal(response.statusCode, response.headers, subject, url, token);
      if (!location || !URL.canParse(location, url.href)) break;
      const next = new URL(location, url);
      if (next.protocol !== "https:" && next.protocol !== url.protocol) {
        throw new EmbedderError("DOWNLOAD_FAILED", `${url.origin} redirects to ${next.origin}, which is not encrypted`);
      }
      url = next;
    }
    throw new EmbedderError("DOWNLOAD_FAILED", `${url.origin} redirects without end or to no URL (${named(subject)})`);
  }

  async *#bytes(body: AsyncIterable<Buffer>, url: URL): AsyncGenerator<Buffer> {
    try {
      yield* body;
    } catch (cause) {
      throw this.#transferError(cause, url);
    }
  }

  /** What an error of a connection means. */
  #transferError(cause: unknown, { origin }: URL): EmbedderError {
    throwIfAborted(this.#signal);
    const { code = "", message } = cause as NodeJS.ErrnoException;
    if (/^UND_ERR_(HEADERS|BODY)_TIMEOUT$/.test(code)) {
      return new TransferError(`${origin} sent nothing for ${this.#settings.stallTimeoutMs / 1000} s`, { cause });
    }
    // Where a tunnel is asked for, undici has only words for it.
    if (/\b407\b/.test(message)) return refusedByProxy();
    const certificate = /CERT|^ERR_TLS|^UNABLE_TO_/.test(code);
    const advice = certificate
      ? "where a proxy opens connections, NODE_EXTRA_CA_CERTS names its certificate"
      : "HTTPS_PROXY names a proxy, HF_ENDPOINT a mirror, HF_HUB_OFFLINE=1 keeps to what is in the cache";
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
      // A body that is dropped reports that as an error, which nobody may be waiting for any more.
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

/** Loaded when first needed: whoever loads a folder pays nothing for it. */
function undici(): typeof import("undici") {
  return require("undici");
}

export function header(headers: Headers, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
}

function named({ model, revision, file }: Subject): string {
  return file === undefined ? `${model}@${revision}` : `${file} of ${model}@${revision}`;
}

function refusedByProxy(): EmbedderError {
  return new EmbedderError(
    "ACCESS_DENIED",
    "the proxy asks for a name and password, or for others: HTTPS_PROXY=http://name:password@host:port",
  );
}

/** The error of an answer that is none. `X-Error-Code` tells apart what the status alone does not. */
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
    return new EmbedderError(
      "ACCESS_DENIED",
      `${model} is a gated model: accept its conditions on ${origin}/${model} and set HF_TOKEN to a token of that account (${withToken})`,
    );
  }
  if (reason === "RevisionNotFound") {
    return new EmbedderError("MODEL_NOT_FOUND", `${model} has no branch, tag or commit ${JSON.stringify(revision)}`);
  }
  if (reason === "EntryNotFound") return new EmbedderError("MODEL_NOT_FOUND", `${origin} has no ${named(subject)}`);
  if (reason === "RepoNotFound" || (status === 404 && subject.file === undefined)) {
    return new EmbedderError(
      "MODEL_NOT_FOUND",
      `${origin} has no model ${model}, or it is private (${withToken}); a folder of this name is written ./${model}`,
    );
  }
  if (status === 404 || status === 410)
    return new EmbedderError("MODEL_NOT_FOUND", `${origin} has no ${named(subject)}`);
  if (status === 401 || status === 403) {
    return new EmbedderError(
      "ACCESS_DENIED",
      `${origin} refuses ${named(subject)} (${status}${said ? `: ${said}` : ""}): ${withToken}`,
    );
  }
  const retry = status === 408 || status === 429 || status >= 500;
  const retryAfterMs = retry ? waitAskedFor(headers) : undefined;
  const wait = retryAfterMs === undefined ? "" : `; it asks to wait ${Math.ceil(retryAfterMs / 1000)} s`;
  const limit = status === 429 && !token ? " (a token in HF_TOKEN raises the limit)" : "";
  return retry
    ? new TransferError(`${origin} answered ${status} for ${named(subject)}${wait}${limit}`, { retryAfterMs })
    : new EmbedderError(
        "DOWNLOAD_FAILED",
        `${origin} answered ${status} for ${named(subject)}${said ? `: ${said}` : ""}`,
      );
}

/** `Retry-After` in milliseconds: seconds or a date; or what is left of the Hub's own `RateLimit: "api";r=0;t=55`. */
function waitAskedFor(headers: Headers): number | undefined {
  const value = header(headers, "retry-after") ?? /\bt=(\d+)/.exec(header(headers, "ratelimit") ?? "")?.[1];
  if (value === undefined) return undefined;
  const wait = /^\s*\d+\s*$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isNaN(wait) ? undefined : Math.max(0, wait);
}
