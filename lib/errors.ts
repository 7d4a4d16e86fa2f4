/**
 * What went wrong, for programs: stable across versions. `docs/troubleshooting.md` says what to do about each.
 *
 * @useDeclaredType
 */
export type EmbedderErrorCode = (typeof ERROR_CODES)[number];

const ERROR_CODES = [
  /** An argument or option is of the wrong type, out of range or misspelt. */
  "INVALID_ARGUMENT",
  /** The model, or a file that it needs, does not exist: in its folder, in the cache or on the Hub. */
  "MODEL_NOT_FOUND",
  /** A file of the model folder is malformed or contradicts another file. */
  "MODEL_INVALID",
  /** The folder is valid, but needs something that this version does not support. */
  "MODEL_UNSUPPORTED",
  /** The Hub requires a token, or that the account accepts the model's conditions. */
  "ACCESS_DENIED",
  /** A model could not be downloaded: the network, the server, a wrong hash or the disk. */
  "DOWNLOAD_FAILED",
  /** The tokenizer failed on a text. */
  "TOKENIZATION_FAILED",
  /** The addon or ONNX Runtime could not be loaded. */
  "BACKEND_UNAVAILABLE",
  /** The model failed to run, or returned numbers that are not finite. */
  "INFERENCE_FAILED",
  /** The GPU failed: its driver was reset, the machine slept, or a batch did not fit. The next call loads the model again. */
  "DEVICE_LOST",
  /** The operating system could not provide memory or a thread. */
  "RESOURCE_EXHAUSTED",
  /** The process-wide `embed` or `isGpu` was called before `init`. */
  "NOT_INITIALIZED",
  /** `init` was called again with another model or other options. */
  "ALREADY_INITIALIZED",
  /** The `signal` of the call was aborted; the error is an `AbortError`. */
  "ABORT_ERR",
  /** The embedder or reranker has been closed. */
  "CLOSED",
] as const;

/** Any error of this package. `code` is for programs; `message` says what was wrong, what was expected and what to do. */
export class EmbedderError extends Error {
  /** Name of the class. */
  override readonly name: string = "EmbedderError";
  /** What went wrong, for programs. */
  readonly code: EmbedderErrorCode;

  constructor(code: EmbedderErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.code = code;
  }
}

/** A call rejects with it if its `signal` is aborted; `cause` is the signal's reason. Name and code are those of Node.js. */
export class AbortError extends EmbedderError {
  override readonly name = "AbortError";

  constructor(signal: AbortSignal) {
    super("ABORT_ERR", "the call was aborted", { cause: signal.reason });
  }
}

export function closedError(): EmbedderError {
  return new EmbedderError("CLOSED", "the model is closed: load it again");
}

/** @throws AbortError if the signal is aborted. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new AbortError(signal);
}

/** Restores the class of an error that crossed a boundary (the addon, the fallback's process). */
export function toEmbedderError(error: unknown): EmbedderError {
  let [code, message]: [unknown, string] = [undefined, "something was thrown that cannot be read"];
  try {
    if (error instanceof EmbedderError) return error;
    const properties = (error ?? {}) as { code?: unknown; message?: unknown };
    message = String(properties.message ?? error);
    code = properties.code;
  } catch {
    // The caller's code may throw anything, also an object that throws when it is inspected.
  }
  const known = ERROR_CODES.find((candidate) => candidate === code);
  // An error without one of our codes was not foreseen, such as a panic in the addon.
  return new EmbedderError(known ?? "INFERENCE_FAILED", message, { cause: error });
}

/** Something that the caller's own code threw (a callback, the source of a stream); the caller gets it back unchanged. */
export class ThrownByCaller {
  readonly #isOne = true;

  constructor(readonly thrown: unknown) {}

  /** Without reading properties of the value, which may be a proxy that throws. */
  static [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === "object" && value !== null && #isOne in value;
  }
}

/** Runs the caller's own code. @throws ThrownByCaller */
export function callersCode<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw error instanceof ThrownByCaller ? error : new ThrownByCaller(error);
  }
}

/** What a public function throws for an error: an `EmbedderError`, or what the caller's code threw. */
export function outward(error: unknown): unknown {
  return error instanceof ThrownByCaller ? error.thrown : toEmbedderError(error);
}

/** Runs a public function: it throws errors with a `code`, or what the caller's own code threw. */
export async function coded<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw outward(error);
  }
}

/** As `coded`, for synchronous functions. */
export function codedSync<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw outward(error);
  }
}

/** A value as error messages show it: short, or only its type. */
export function describeValue(value: unknown): string {
  try {
    if (typeof value === "string") return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value);
    if (Array.isArray(value)) return `an array of ${value.length}`;
    if (typeof value === "function") return "a function";
    if (typeof value === "object" && value !== null) return `an object (${value.constructor?.name ?? "no prototype"})`;
    return String(value);
  } catch {
    return "an object that cannot be read";
  }
}
