/** What went wrong, for programs: stable across versions. `docs/troubleshooting.md` says what to do about each. */
export type EmbedderErrorCode = (typeof ERROR_CODES)[number];

const ERROR_CODES = [
  /** An argument or option is of the wrong kind, out of range or misspelt. */
  "INVALID_ARGUMENT",
  /** The model, or a file it must hold, does not exist: in its folder, in the cache or on the Hub. */
  "MODEL_NOT_FOUND",
  /** A file of the model folder contradicts its format or another file. */
  "MODEL_INVALID",
  /** The folder is sound, but asks for something this version does not do. */
  "MODEL_UNSUPPORTED",
  /** The Hub wants a token, or the account's consent to a model's conditions. */
  "ACCESS_DENIED",
  /** A model could not be downloaded: the network, the server, a wrong hash or the disk. */
  "DOWNLOAD_FAILED",
  /** The tokenizer failed on a text. */
  "TOKENIZATION_FAILED",
  /** The addon or ONNX Runtime could not be loaded. */
  "BACKEND_UNAVAILABLE",
  /** The model failed to run, or returned numbers that are not finite. */
  "INFERENCE_FAILED",
  /** The operating system gave no memory or no thread. */
  "RESOURCE_EXHAUSTED",
  /** The process-wide `embed` or `isGpu` was called before `init`. */
  "NOT_INITIALIZED",
  /** `init` was called again with another model or other options. */
  "ALREADY_INITIALIZED",
  /** The `signal` of the call was aborted; the error is an `AbortError`. */
  "ABORT_ERR",
  /** The embedder has been closed. */
  "CLOSED",
] as const;

/** Every error of this package. `code` is for programs, `message` says what was wrong, what was expected and what to do. */
export class EmbedderError extends Error {
  override readonly name: string = "EmbedderError";
  readonly code: EmbedderErrorCode;

  constructor(code: EmbedderErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.code = code;
  }
}

/** What a call is rejected with whose `signal` was aborted; `cause` is the signal's reason. Named as Node.js names its own. */
export class AbortError extends EmbedderError {
  override readonly name = "AbortError";

  constructor(signal: AbortSignal) {
    super("ABORT_ERR", "the call was aborted", { cause: signal.reason });
  }
}

export function closedError(): EmbedderError {
  return new EmbedderError("CLOSED", "the embedder is closed: load it again to embed more texts");
}

/** @throws AbortError if the signal is aborted. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new AbortError(signal);
}

/** Gives an error that crossed a boundary (the addon, the fallback's process) its class back. */
export function toEmbedderError(error: unknown): EmbedderError {
  let [code, message]: [unknown, string] = [undefined, "something was thrown that cannot be read"];
  try {
    if (error instanceof EmbedderError) return error;
    const properties = (error ?? {}) as { code?: unknown; message?: unknown };
    message = String(properties.message ?? error);
    code = properties.code;
  } catch {
    // Code of the caller may throw anything, also what throws again when it is looked at.
  }
  const known = ERROR_CODES.find((candidate) => candidate === code);
  // An error without one of our codes is a failure nobody foresaw, such as a panic in the addon.
  return new EmbedderError(known ?? "INFERENCE_FAILED", message, { cause: error });
}

/** What code of the caller threw (a callback, the source of a stream), on its way out: it leaves as it is. */
export class ThrownByCaller {
  readonly #isOne = true;

  constructor(readonly thrown: unknown) {}

  /** Without asking the value, which may be a proxy that throws. */
  static [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === "object" && value !== null && #isOne in value;
  }
}

/** Runs code of the caller. @throws ThrownByCaller */
export function callersCode<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw error instanceof ThrownByCaller ? error : new ThrownByCaller(error);
  }
}

/** What a public function throws instead of an error that reached it: an `EmbedderError`, or what the caller's code threw. */
export function outward(error: unknown): unknown {
  return error instanceof ThrownByCaller ? error.thrown : toEmbedderError(error);
}

/** The work of a public function: nothing without a `code` leaves it, but what the caller's own code threw. */
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

/** A value as an error message shows it: short, and with its kind where the value alone would not tell. */
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
