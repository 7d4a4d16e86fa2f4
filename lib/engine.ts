import { EmbedderError } from "./errors.js";

/**
 * A text, or its token ids from the model's own tokenizer, special tokens included. They are used as they are, without a
 * prompt, and truncated to `maxTokens` like a text.
 */
export type TextOrTokens = string | Uint32Array;

/** What `Embedder` needs from a backend: `NativeEngine` and `FallbackEngine`. */
export interface Engine {
  readonly backend: BackendName;
  readonly isGpu: boolean;
  /** The GPU, if WebGPU computes on one that can be named. */
  readonly adapter: Adapter | null;
  readonly description: Description;
  /** Memory that the backend manages itself; `null` if it leaves that to the system. */
  memory(): Promise<BackendMemory | null>;
  /** What it has done since it was loaded, and what is queued. */
  activity(): Activity;
  /**
   * `texts` is the engine's own array: the caller may change its array meanwhile, but not the token ids in it.
   *
   * @throws EmbedderError, or the addon's error with the same `code`: `ABORT_ERR` once the call's signal is aborted.
   */
  embed(texts: readonly TextOrTokens[], call: EngineCall): Promise<EngineResult>;
  /**
   * As `embed`, but delivers each vector as soon as it is ready. Resolves after the last.
   *
   * @throws EmbedderError as `embed`.
   */
  stream(texts: readonly TextOrTokens[], call: EngineCall, take: (rows: EngineRows) => void): Promise<void>;
  close(): Promise<void>;
}

/** What a model is loaded for. */
export type Task = "embed" | "rerank";

/** A model as its folder and the options define it. `src/model_dir.rs` and `model_dir.ts` give the same. */
export interface Description {
  task: Task;
  /** Length of a vector; 1 of a reranker, whose vector of a text is the score. */
  dimension: number;
  /** Longest text in tokens, prompt and special tokens included. */
  maxTokens: number;
  pooling: readonly PoolingMode[];
  queryPrompt: string;
  documentPrompt: string;
  /** Whether vectors are scaled to length 1. */
  normalize: boolean;
  /** With `dimensions`: whether a layer norm is applied before. */
  layerNorm?: boolean;
  /** Whether texts are lower-cased before tokenization. */
  lowerCase: boolean;
  /** The side from which tokens of a text that is too long are removed. */
  truncationSide: "left" | "right";
  /** Rows of the embedding table: token ids are below this. */
  vocabularySize: number;
  /** A hash of everything that determines the vectors. */
  fingerprint: string;
}

/** Options of one call of an engine. */
export interface EngineCall {
  /** For rerankers: the query that each text is paired with. */
  query?: string | undefined;
  isQuery: boolean;
  encoding: Encoding;
  signal: AbortSignal;
  /** Called from time to time, never after the call has settled. */
  onProgress?: ((progress: EngineProgress) => void) | undefined;
}

export interface EngineProgress {
  /** Texts whose vectors are ready. */
  done: number;
  /** Tokens computed. */
  tokens: number;
}

/** What an engine has done since it was loaded, and what is queued. */
export interface Activity {
  /** Calls that are queued or being computed. */
  calls: number;
  /** Texts computed; repetitions within a call and cached queries do not count. */
  texts: number;
  /** Tokens computed. */
  tokens: number;
  /** Runs of the model. */
  batches: number;
}

/** Memory of a backend, in bytes. MLX counts all models of the process together. */
export interface BackendMemory {
  /** In use: weights and running batches. */
  activeBytes: number;
  /** Freed, but kept for reuse. */
  cacheBytes: number;
  /** Most that was in use at any time. */
  peakBytes: number;
}

/** A GPU as WebGPU sees it. */
export interface Adapter {
  /** Its name. */
  name: string;
  /** Its driver, with its version. */
  driver: string;
  /** Its memory in bytes; that of the whole machine if it has none of its own. */
  memoryBytes: number;
  /** Most bytes of one array. */
  arrayBytes: number;
}

export interface EngineResult {
  /** One row per text, row-major. */
  vectors: EncodedVector[Encoding];
  /** Indices of the texts that were truncated, ascending. */
  truncated: Uint32Array;
  /** Tokens computed; equal texts count once. */
  tokens: number;
}

/** Vectors of a call that became ready together. */
export interface EngineRows {
  /** The indices of their texts in the call, repetitions included. */
  indices: Uint32Array;
  /** One row per index, row-major. */
  vectors: EncodedVector[Encoding];
  /** Those of `indices` whose texts were truncated. */
  truncated: Uint32Array;
}

/**
 * Compares the fingerprint of a model that was loaded again with the one from before.
 *
 * @throws EmbedderError `MODEL_INVALID`
 */
export function checkFingerprint(found: string, expected: string): void {
  if (found === expected) return;
  const message =
    "the model folder has changed since it was loaded: load it again, and embed again what other vectors are compared with";
  throw new EmbedderError("MODEL_INVALID", message);
}

/** The type of a vector in each encoding. For JSON, convert it by `Array.from`: `JSON.stringify` makes an object of it. */
export interface EncodedVector {
  /** The numbers themselves. */
  float32: Float32Array;
  /** One byte per dimension: x ≈ value / 127. */
  int8: Int8Array;
  /** One bit per dimension, 1 if x > 0, most significant bit first, padded with zeros to whole bytes. */
  binary: Uint8Array;
}

/** How the numbers of a vector are stored. */
export type Encoding = keyof EncodedVector;
export const ENCODINGS = ["float32", "int8", "binary"] as const satisfies Encoding[];

const BACKEND_NAMES = ["mlx", "webgpu", "onnx", "cpu", "onnx-js"] as const;
/** What may be asked for; `"auto"` is the fastest that works. */
export const BACKENDS = ["auto", ...BACKEND_NAMES] as const;
/**
 * What computes: the addon with MLX, with ONNX Runtime on a GPU (`"webgpu"`) or on the CPU (`"onnx"`), or with kernels of its
 * own (`"cpu"`); or the JavaScript fallback.
 *
 * @useDeclaredType
 */
export type BackendName = (typeof BACKEND_NAMES)[number];

export const POOLING_MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"] as const;
/**
 * How token vectors become one vector, in the words of sentence-transformers.
 *
 * @useDeclaredType
 */
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
   * Number format of the weights. `"auto"` (default) is float16 on a GPU of MLX, or bfloat16 for models whose numbers
   * exceed it, and float32 elsewhere; `"f16"` is for MLX. `"bf16"` computes in bfloat16, on the CPU only where the processor has
   * instructions for it; `"int8"` computes the linear layers in integers, on the CPU. Both are faster, with nearly the same
   * vectors. `onnx-js` needs a quantized ONNX file for int8 (`exportOnnx` with this option writes one).
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

/** With what the model is loaded for; default `"embed"`. */
export interface EngineOptions extends ModelOptions {
  task?: Task;
}

/** How often a call's progress is reported. */
export const PROGRESS_INTERVAL_MS = 50;
