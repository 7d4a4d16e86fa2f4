import { BACKENDS, DTYPES, type EngineOptions, type ModelOptions, POOLING_MODES } from "./engine.js";
import type { PullProgress } from "./hub/pull_options.js";
import {
  atLeast,
  boolean,
  callback,
  checkOptions,
  invalid,
  oneOf,
  path,
  type Rule,
  signal,
  string,
} from "./option_rules.js";

/** Options of {@link Embedder.load}; all are optional. */
export interface LoadOptions extends ModelOptions {
  /**
   * Which backend computes. `"auto"` (default): the addon (MLX if it has a GPU, else ONNX Runtime or, in bfloat16 and int8,
   * its own kernels), and where it cannot be loaded ONNX Runtime in JavaScript. A backend named here never falls back to
   * another.
   * The environment variable `SEMANTIC_SEARCH_BACKEND` overrides `"auto"` only.
   */
  backend?: (typeof BACKENDS)[number];
  /** How many query vectors to cache, for queries that are repeated; 0 turns the cache off. Default 128. */
  queryCacheSize?: number;
  /**
   * Unload the weights after this many milliseconds without a call. The next call loads them again from the same folder
   * and takes longer; nothing else changes. Default: never.
   */
  idleTimeoutMs?: number;
  /** Stops loading with an `AbortError`. */
  signal?: AbortSignal;
  /** Called from time to time while a model is downloaded from the Hub. An error that it throws ends the call. */
  onProgress?: (progress: PullProgress) => void;
  /** Load models of the Hub from the cache only. Default: `HF_HUB_OFFLINE`. */
  offline?: boolean;
  /** Path of the ONNX Runtime library for the addon. Default: `ORT_DYLIB_PATH`, else the one that was installed. */
  onnxRuntimeLibrary?: string;
}

/** What a backend loads with. */
export type EngineLoadOptions = LoadOptions & EngineOptions;

const BACKEND = oneOf(...BACKENDS);
const count = atLeast(1);

/** Their rules. */
export const LOAD_RULES: Readonly<Record<keyof LoadOptions, Rule>> = {
  backend: BACKEND,
  pooling: oneOf(...POOLING_MODES),
  queryPrompt: string,
  documentPrompt: string,
  maxTokens: count,
  normalize: boolean,
  dimensions: count,
  layerNorm: boolean,
  dtype: oneOf(...DTYPES),
  threads: count,
  memoryBudget: atLeast(1, Number.MAX_SAFE_INTEGER),
  queryCacheSize: atLeast(0),
  idleTimeoutMs: count,
  signal,
  onProgress: callback,
  offline: boolean,
  onnxRuntimeLibrary: path,
};

/** Their names. */
export const LOAD_OPTIONS: readonly string[] = Object.keys(LOAD_RULES);

/** @throws EmbedderError `INVALID_ARGUMENT`, as `checkOptions`. */
export function checkLoadOptions(options: unknown): LoadOptions {
  const checked = checkOptions<LoadOptions>(options, LOAD_RULES);
  if (checked.layerNorm !== undefined && checked.dimensions === undefined) {
    throw invalid(
      "option layerNorm",
      "dimensions as well (only shortened vectors have a layer norm)",
      checked.layerNorm,
    );
  }
  return checked;
}

/**
 * The backend that was asked for, or if that is `"auto"`, the one that `SEMANTIC_SEARCH_BACKEND` names.
 *
 * @throws EmbedderError `INVALID_ARGUMENT`
 */
export function chosenBackend(backend: LoadOptions["backend"] = "auto"): NonNullable<LoadOptions["backend"]> {
  const name = process.env.SEMANTIC_SEARCH_BACKEND;
  if (backend !== "auto" || !name) return backend;
  if (!BACKEND.accepts(name)) throw invalid("SEMANTIC_SEARCH_BACKEND", BACKEND.expected, name);
  return name as (typeof BACKENDS)[number];
}
