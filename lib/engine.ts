/** What the public `Embedder` needs of a backend; `lib/native.ts` and `lib/fallback.ts` provide it. */
export interface Engine {
  readonly backend: BackendName;
  readonly isGpu: boolean;
  readonly dimension: number;
  readonly maxTokens: number;
  readonly fingerprint: string;
  readonly pooling: readonly PoolingMode[];
  /** Why a faster backend was not taken, if one was tried. */
  readonly fallbackReason: string | null;
  /** Memory that the backend manages itself; `null` where it leaves that to the system. */
  memory(): Promise<BackendMemory | null>;
  /** `texts` is the engine's own copy: the caller may change its array meanwhile. */
  embed(texts: readonly string[], isQuery: boolean): Promise<EngineResult>;
  close(): Promise<void>;
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
  /** [texts × dimension], row-major. */
  vectors: Float32Array;
  /** Indices of the texts that were cut to the length limit, ascending. */
  truncated: Uint32Array;
}

export type BackendName = "mlx" | "onnx" | "onnx-js";

export const POOLING_MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"] as const;
/** How token vectors become one vector, in the words of sentence-transformers. */
export type PoolingMode = (typeof POOLING_MODES)[number];

/** The options that decide numbers; both backends read them alike. */
export interface ModelOptions {
  pooling?: PoolingMode;
  queryPrompt?: string;
  documentPrompt?: string;
  maxTokens?: number;
  normalize?: boolean;
  dtype?: "auto" | "f32" | "f16" | "bf16" | "int8";
  threads?: number;
}

const SLICE_CHARACTERS = 1 << 20;

/**
 * Hands texts on in slices of about a million characters, one per turn of the event loop: copying strings out of the
 * JavaScript heap has to happen on its thread, and a hundred megabytes at once would be felt.
 */
export async function inSlices(texts: readonly string[], take: (slice: string[]) => void): Promise<void> {
  let start = 0;
  let characters = 0;
  for (let end = 0; end < texts.length; end++) {
    characters += (texts[end] ?? "").length;
    if (characters < SLICE_CHARACTERS) continue;
    take(texts.slice(start, end + 1));
    start = end + 1;
    characters = 0;
    await new Promise((resolve) => setImmediate(resolve));
  }
  if (start < texts.length) take(texts.slice(start));
}
