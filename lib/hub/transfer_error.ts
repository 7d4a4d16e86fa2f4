import { setTimeout as delay } from "node:timers/promises";
import { AbortError, EmbedderError } from "../errors.js";

/** The Hub could not be reached, or could not answer: this may change at any moment. */
export class TransferError extends EmbedderError {
  /** Whether trying again soon makes sense. */
  readonly retry: boolean;
  /** How long the server asks to wait. */
  readonly retryAfterMs: number | undefined;

  constructor(message: string, options: { cause?: unknown; retry?: boolean; retryAfterMs?: number | undefined } = {}) {
    super("DOWNLOAD_FAILED", message, { cause: options.cause });
    this.retry = options.retry ?? true;
    this.retryAfterMs = options.retryAfterMs;
  }
}

const FIRST_WAIT_MS = 500;
/** If a server asks to wait longer, the call fails instead. */
const LONGEST_WAIT_MS = 60_000;

/** Waits between attempts: as long as the server asks, or else twice as long each time. */
export class Retries {
  #failures = 0;

  constructor(
    readonly attempts: number,
    readonly signal: AbortSignal | undefined,
  ) {}

  /** Forgets failures, after an attempt that made progress. */
  reset(): void {
    this.#failures = 0;
  }

  /** Resolves when it is time for another attempt. @throws the error if there is none left, or an AbortError */
  async after(error: unknown): Promise<void> {
    if (!(error instanceof TransferError) || !error.retry) throw error;
    this.#failures++;
    const { retryAfterMs } = error;
    if (this.#failures >= this.attempts || (retryAfterMs ?? 0) > LONGEST_WAIT_MS) throw error;
    // Randomized, so that processes that failed together do not retry together.
    const backoff = FIRST_WAIT_MS * 2 ** (this.#failures - 1) * (0.75 + Math.random() / 2);
    await pause(retryAfterMs ?? backoff, this.signal);
  }
}

/** @throws AbortError as soon as the signal is aborted. */
export async function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  try {
    await delay(milliseconds, undefined, { signal });
  } catch (error) {
    throw signal?.aborted ? new AbortError(signal) : error;
  }
}
