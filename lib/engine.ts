import { EmbedderError, throwIfAborted } from "./errors.js";

/**
 * A text, or its token ids: those of the model's own tokenizer, special tokens included. They are taken as they are, without
 * a prompt; beyond `maxTokens` they are cut like a text.
 */
export type TextOrTokens = string | Uint32Array;

/** What the public `Embedder` needs of a backend; `lib/native.ts` and `lib/fallback/` provide it. */
export interface Engine {
  readonly backend: BackendName;
  readonly isGpu: boolean;
  readonly description: Description;
  /** Memory that the backend manages itself; `null` where it leaves that to the system. */
  memory(): Promise<BackendMemory | null>;
  /** What it has done since it was loaded, and what is before it. */
  activity(): Activity;
  /**
   * `texts` is the engine's own copy: the caller may change its array meanwhile, but not the token ids in it.
   *
   * @throws EmbedderError, with the code `ABORT_ERR` once the call's signal is aborted.
   */
  embed(texts: readonly TextOrTokens[], call: EngineCall): Promise<EngineResult>;
  /**
   * The same, but each vector is given as soon as it is ready. Resolves after the last.
   *
   * @throws EmbedderError as `embed`.
   */
  stream(texts: readonly TextOrTokens[], call: EngineCall, take: (rows: EngineRows) => void): Promise<void>;
  close(): Promise<void>;
}

/** What a model folder and the options come to. Both readers give the same: `src/model_dir.rs` and `model_dir.ts`. */
export interface Description {
  /** Length of a vector. */
  dimension: number;
  /** Longest text in tokens, prompt and special tokens included. */
  maxTokens: number;
  pooling: readonly PoolingMode[];
  queryPrompt: string;
  documentPrompt: string;
  /** Whether vectors are scaled to length 1. */
  normalize: boolean;
  /** Where vectors are cut: whether a layer norm comes before. */
  layerNorm?: boolean;
  /** Whether texts are lower-cased before tokenization. */
  lowerCase: boolean;
  /** The side on which a text that is too long loses tokens. */
  truncationSide: "left" | "right";
  /** Rows of the embedding table: token ids are below. */
  vocabularySize: number;
  /** A name for everything that decides what vectors the model gives. */
  fingerprint: string;
}

/** How an engine is asked to embed. */
export interface EngineCall {
  isQuery: boolean;
  encoding: Encoding;
  signal: AbortSignal;
  /** Called now and then, never after the call has settled. */
  onProgress?: ((progress: EngineProgress) => void) | undefined;
}

export interface EngineProgress {
  /** Texts whose vectors are there. */
  done: number;
  /** Tokens computed. */
  tokens: number;
}

/** What an engine has done and what is before it. */
export interface Activity {
  /** Calls that are queued or being computed. */
  calls: number;
  /** Texts computed; a repetition within a call does not count. */
  texts: number;
  /** Tokens computed. */
  tokens: number;
  /** Runs of the model. */
  batches: number;
}

/** Memory of a backend, in bytes. MLX counts all its models of the process together. */
export interface BackendMemory {
  /** In use: weights and running batches. */
  activeBytes: number;
  /** Freed, and kept for reuse. */
  cacheBytes: number;
  /** Most that was ever in use. */
  peakBytes: number;
}

export interface EngineResult {
  /** One row per text, row-major. */
  vectors: EncodedVector[Encoding];
  /** Indices of the texts that were cut to the length limit, ascending. */
  truncated: Uint32Array;
  /** Tokens computed; equal texts count once. */
  tokens: number;
}

/** Vectors of a call that were ready together. */
export interface EngineRows {
  /** The texts that they are of, by index in the call: a text that occurs again is there again. */
  indices: Uint32Array;
  /** A row per index, row-major. */
  vectors: EncodedVector[Encoding];
  /** Those of `indices` whose texts were cut to the length limit. */
  truncated: Uint32Array;
}

/**
 * Compares the fingerprint of a model that was loaded once more with that of before.
 *
 * @throws EmbedderError `MODEL_INVALID`
 */
export function checkFingerprint(found: string, expected: string): void {
  if (found === expected) return;
  throw new EmbedderError(
    "MODEL_INVALID",
    "the model folder has changed since it was loaded: load it again, and embed again what other vectors are compared with",
  );
}

/** Views of rows of a row-major matrix. */
export function rowsOf<V extends EncodedVector[Encoding]>(matrix: V, count: number, first = 0, end = count): V[] {
  const length = matrix.length / count;
  return Array.from({ length: end - first }, (_, index) => {
    const row = first + index;
    return matrix.subarray(row * length, (row + 1) * length) as V;
  });
}

/** As `rowsOf`, with turns of the event loop between: a million of them take a second. */
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

/** What holds a vector in each encoding. */
export interface EncodedVector {
  /** The numbers themselves. */
  float32: Float32Array;
  /** A byte per dimension: x ≈ value / 127. */
  int8: Int8Array;
  /** A bit per dimension, 1 where x > 0, most significant bit first, filled up with zeros to whole bytes. */
  binary: Uint8Array;
}

/** How the numbers of a vector are stored. */
export type Encoding = keyof EncodedVector;
export const ENCODINGS = ["float32", "int8", "binary"] as const satisfies Encoding[];

/** What may be asked for; `"auto"` is the fastest that works. */
export const BACKENDS = ["auto", "mlx", "onnx", "onnx-js"] as const;
export type BackendName = Exclude<(typeof BACKENDS)[number], "auto">;

export const POOLING_MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"] as const;
/** How token vectors become one vector, in the words of sentence-transformers. */
export type PoolingMode = (typeof POOLING_MODES)[number];

export const DTYPES = ["auto", "f32", "f16", "bf16", "int8"] as const;

/** The options that determine the vectors and how they are computed; both backends read them alike. */
export interface ModelOptions {
  /** Pooling, if the model folder does not declare it or declares it wrongly. */
  pooling?: PoolingMode;
  /** Put before every query instead of the model's own prompt. */
  queryPrompt?: string;
  /** Put before every document instead of the model's own prompt. */
  documentPrompt?: string;
  /** Longest text in tokens, special tokens included; limited to what the model takes. Default 512. */
  maxTokens?: number;
  /** Scale vectors to length 1. Default true. */
  normalize?: boolean;
  /** Keep only this many of the first components of each vector, for models trained for it (Matryoshka). Default: all. */
  dimensions?: number;
  /**
   * With `dimensions`: whether to apply a layer norm to the full vector first, as nomic-embed-text-v1.5 requires.
   * Default: what the model is known to require; needed for nomic_bert folders that do not name their model.
   */
  layerNorm?: boolean;
  /**
   * Number format of the weights. `"auto"` (default) is float16 on a GPU and float32 elsewhere; `"f16"` and `"bf16"` are
   * for MLX. `"int8"` computes the linear layers in integers, on the CPU: faster, with nearly the same vectors. Quantized
   * weights are kept in the cache folder; `onnx-js` needs a quantized ONNX file (`exportOnnx` with this option writes one).
   */
  dtype?: (typeof DTYPES)[number];
  /** Threads that compute. Default: the processors that this process may use. */
  threads?: number;
  /**
   * Most bytes that the activations of one batch may take. Long texts are then computed fewer at a time; a single text is
   * always computed. Default 1 GiB.
   */
  memoryBudget?: number;
}

/** How often a call's progress is reported. */
export const PROGRESS_INTERVAL_MS = 50;

const SLICE_CHARACTERS = 1 << 20;
/** Handing a text on takes about as long as copying so many characters, or token ids. */
const CHARACTERS_PER_TEXT = 512;
const SLICE_ROWS = 1024;

/**
 * Hands texts on in slices, one per turn of the event loop: copying them out of the JavaScript heap has to happen on
 * its thread, and a hundred megabytes or a million strings at once would be felt.
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
 * A copy of token ids, whatever object they are in: its memory may be shared with a thread that writes.
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

/** Lets everything else have its turn of the event loop. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
