/** Passes large inputs and results through in several turns of the event loop. */

import type { EncodedVector, Encoding, TextOrTokens } from "./engine.js";
import { EmbedderError, throwIfAborted } from "./errors.js";

const SLICE_CHARACTERS = 1 << 20;
/** Passing on a text takes about as long as copying this many characters, or token ids. */
const CHARACTERS_PER_TEXT = 512;
const SLICE_ROWS = 1024;

/**
 * Passes texts on in slices, one per turn of the event loop: they have to be copied out of the JavaScript heap on its
 * thread, which a hundred megabytes or a million strings at once would block noticeably.
 */
export async function inSlices(
  texts: readonly TextOrTokens[],
  take: (slice: TextOrTokens[]) => void,
  signal?: AbortSignal,
): Promise<void> {
  let slice: TextOrTokens[] = [];
  let cost = 0;
  for (const text of texts) {
    const own = typeof text === "string" ? text : copyOfTokens("texts", text);
    slice.push(own);
    cost += CHARACTERS_PER_TEXT + own.length;
    if (cost < SLICE_CHARACTERS) continue;
    take(slice);
    slice = [];
    cost = 0;
    await turn();
    throwIfAborted(signal);
  }
  if (slice.length > 0) take(slice);
}

/**
 * A copy of token ids: their memory may be shared with a thread that writes.
 *
 * @throws EmbedderError `INVALID_ARGUMENT` if their memory was transferred to another thread, or `RESOURCE_EXHAUSTED`
 */
export function copyOfTokens(what: string, tokens: Uint32Array): Uint32Array {
  try {
    return new Uint32Array(tokens);
  } catch (cause) {
    const code = cause instanceof RangeError ? "RESOURCE_EXHAUSTED" : "INVALID_ARGUMENT";
    throw new EmbedderError(code, `${what}: cannot be read: ${(cause as Error).message}`, { cause });
  }
}

/** Views of rows of a row-major matrix. */
export function rowsOf<V extends EncodedVector[Encoding]>(matrix: V, count: number, first = 0, end = count): V[] {
  const length = matrix.length / count;
  return Array.from({ length: end - first }, (_, index) => {
    const row = first + index;
    return matrix.subarray(row * length, (row + 1) * length) as V;
  });
}

/** As `rowsOf`, in several turns of the event loop: a million rows take a second. */
export async function rowsInSlices<V extends EncodedVector[Encoding]>(
  matrix: V,
  count: number,
  signal: AbortSignal | undefined,
): Promise<V[]> {
  if (count <= SLICE_ROWS) return rowsOf(matrix, count);
  const rows = new Array<V>(count);
  for (let first = 0; first < count; first += SLICE_ROWS) {
    const end = Math.min(first + SLICE_ROWS, count);
    for (const [index, row] of rowsOf(matrix, count, first, end).entries()) rows[first + index] = row;
    await turn();
    throwIfAborted(signal);
  }
  return rows;
}

/** Lets the event loop run. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
