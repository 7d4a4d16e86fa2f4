/**
 * Text and code embeddings inside a Node.js process.
 *
 * TypeScript decides what is asked; the Rust addon, or where it cannot be loaded the JavaScript fallback, decides
 * numbers.
 *
 * @packageDocumentation
 */
/// <reference lib="esnext.disposable" preserve="true" />

import * as path from "node:path";
import type { BackendMemory, BackendName, Engine, PoolingMode } from "./lib/engine.js";
import { EmbedderError, toEmbedderError } from "./lib/errors.js";
import { FallbackEngine } from "./lib/fallback.js";
import { addonOptions, loadAddon, NativeEngine } from "./lib/native.js";
import { BACKEND_RULE, checkLoadOptions, checkTexts, invalid, type LoadOptions, optionEntries } from "./lib/options.js";

export type { BackendMemory, BackendName, PoolingMode } from "./lib/engine.js";
export { EmbedderError, type EmbedderErrorCode } from "./lib/errors.js";
export type { LoadOptions } from "./lib/options.js";

/** Options of one `embed` call. */
export interface EmbedOptions {
  /** What the texts are, which chooses the model's prompt. Default `"document"`. */
  kind?: "query" | "document";
  /**
   * Called once before the promise resolves if texts were cut to `maxTokens`, with their indices in `texts`,
   * ascending. An error that it throws rejects the call.
   */
  onTruncated?: (indices: Uint32Array) => void;
}

/** See `Embedder.info`. */
export interface EmbedderInfo {
  backend: BackendName;
  isGpu: boolean;
  dimension: number;
  maxTokens: number;
  pooling: readonly PoolingMode[];
  fingerprint: string;
  fallbackReason: string | null;
  truncatedTexts: number;
  /** Memory that the backend manages itself; `null` where it leaves that to the system. */
  memory: BackendMemory | null;
}

// Node 20.0 to 20.4 do not have the symbol yet; `await using` cannot be used there, the rest can.
const asyncDispose: typeof Symbol.asyncDispose = Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose");

/**
 * A loaded model. A process may hold several, in worker threads too.
 *
 * ```js
 * const embedder = await Embedder.load("./models/CodeRankEmbed");
 * const vectors = await embedder.embed(["function add(a, b) { return a + b }"]);
 * const query = await embedder.embedQuery("where are two numbers added?");
 * await embedder.close();
 * ```
 */
export class Embedder {
  /** Why each faster backend was not taken that `"auto"` tried before; `null` where the first one works. */
  readonly fallbackReason: string | null;
  readonly #engine: Engine;
  #truncatedTexts = 0;
  #isClosed = false;

  private constructor(engine: Engine, fallbackReason: string | null) {
    this.#engine = engine;
    this.fallbackReason = fallbackReason;
  }

  /**
   * Loads a model folder of the sentence-transformers layout.
   *
   * @param modelDir Default: the environment variable `SEMANTIC_SEARCH_MODEL`.
   * @throws EmbedderError `INVALID_ARGUMENT`, `MODEL_NOT_FOUND`, `MODEL_INVALID`, `MODEL_UNSUPPORTED`,
   * `BACKEND_UNAVAILABLE` (with the reason of each backend that was tried) or `INFERENCE_FAILED`.
   */
  static async load(modelDir?: string, options?: LoadOptions): Promise<Embedder> {
    const { backend: chosen, ...modelOptions } = checkLoadOptions(options);
    const dir = checkModelDir(modelDir);
    const backend = backendFromEnvironment(chosen ?? "auto");
    if (backend === "onnx-js") return new Embedder(await loadFallback(dir, modelOptions), null);
    let unavailable: EmbedderError;
    try {
      const engine = await NativeEngine.load(dir, { ...modelOptions, backend });
      return new Embedder(engine, engine.fallbackReason);
    } catch (error) {
      // Only a backend that cannot run here is a reason to try the next; a wrong model is wrong for all of them.
      if (backend !== "auto" || !(error instanceof EmbedderError) || error.code !== "BACKEND_UNAVAILABLE") throw error;
      unavailable = error;
    }
    try {
      return new Embedder(await loadFallback(dir, modelOptions), unavailable.message);
    } catch (error) {
      const { code, message } = toEmbedderError(error);
      throw new EmbedderError(code, `${message} (tried before: ${unavailable.message})`, { cause: error });
    }
  }

  /**
   * Embeds texts. The result has one vector per text, in order; all are views of one buffer. The array is read before
   * the call returns: changing it afterwards has no effect. Equal texts are computed once.
   *
   * @param options Options, or `true` for `{ kind: "query" }`.
   * @throws EmbedderError `INVALID_ARGUMENT` (naming the index), `TOKENIZATION_FAILED`, `INFERENCE_FAILED` or `CLOSED`.
   */
  async embed(texts: readonly string[], options?: EmbedOptions | boolean): Promise<Float32Array[]> {
    const snapshot = checkTexts(texts);
    const { kind, onTruncated } = checkEmbedOptions(options);
    this.#checkOpen();
    if (snapshot.length === 0) return [];
    const { vectors, truncated } = await this.#engine.embed(snapshot, kind === "query");
    this.#truncatedTexts += truncated.length;
    if (truncated.length > 0) onTruncated?.(truncated);
    return rows(vectors, this.dimension);
  }

  /**
   * Embeds one query, with the model's prompt for queries.
   *
   * @throws EmbedderError as `embed`.
   */
  async embedQuery(text: string): Promise<Float32Array> {
    if (typeof text !== "string") throw invalid("text", "a string", text);
    const [vector] = await this.embed([text], { kind: "query" });
    return vector as Float32Array;
  }

  /** What the embedder is, and the memory of its backend at this moment. */
  async info(): Promise<EmbedderInfo> {
    this.#checkOpen();
    const { backend, isGpu, dimension, maxTokens, pooling, fingerprint } = this.#engine;
    const { fallbackReason, truncatedTexts } = this;
    const memory = await this.#engine.memory();
    return { backend, isGpu, dimension, maxTokens, pooling, fingerprint, fallbackReason, truncatedTexts, memory };
  }

  /** Frees the model's memory. Calls in flight and later ones are rejected with `CLOSED`; closing again does nothing. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#engine.close();
  }

  async [asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Length of a vector. */
  get dimension(): number {
    return this.#engine.dimension;
  }

  /** What computes: `"mlx"` or `"onnx"` in the addon, `"onnx-js"` in the JavaScript fallback. */
  get backend(): BackendName {
    return this.#engine.backend;
  }

  get isGpu(): boolean {
    return this.#engine.isGpu;
  }

  /** Longest text in tokens, prompt and special tokens included; longer ones are cut. */
  get maxTokens(): number {
    return this.#engine.maxTokens;
  }

  /**
   * Changes when anything does that decides what vectors come out: weights, tokenizer, configuration, pooling,
   * prompts, limits, number format. Store it with an index and refuse vectors of another.
   */
  get fingerprint(): string {
    return this.#engine.fingerprint;
  }

  /** How token vectors become one; several modes are concatenated. */
  get pooling(): readonly PoolingMode[] {
    return this.#engine.pooling;
  }

  /** How many texts were cut to `maxTokens` since loading. Which ones, each call tells by `onTruncated`. */
  get truncatedTexts(): number {
    return this.#truncatedTexts;
  }

  #checkOpen(): void {
    if (this.#isClosed) throw new EmbedderError("CLOSED", "the embedder is closed: load it again to embed more texts");
  }
}

/**
 * Loads the process-wide model of `embed` and `isGpu`. Synchronous: it blocks until the model is loaded. A second call
 * with the same arguments does nothing.
 *
 * @throws EmbedderError as `Embedder.load`, and `ALREADY_INITIALIZED` for another model or other options.
 */
export function init(
  modelDir?: string,
  options?: Omit<LoadOptions, "backend"> & { backend?: "auto" | "mlx" | "onnx" },
): void {
  const checked = checkLoadOptions(options);
  const dir = checkModelDir(modelDir);
  const backend = backendFromEnvironment(checked.backend ?? "auto");
  if (backend === "onnx-js") {
    throw invalid("option backend", '"auto", "mlx" or "onnx" (the fallback cannot be synchronous)', backend);
  }
  native((addon) => addon.init(dir, addonOptions({ ...checked, backend })));
}

/**
 * Embeds texts with the process-wide model. Synchronous: nothing else runs meanwhile. Use `Embedder` for anything but
 * scripts.
 *
 * @param isQuery Whether the texts are queries, which chooses the model's prompt.
 * @throws EmbedderError `INVALID_ARGUMENT`, `NOT_INITIALIZED`, `TOKENIZATION_FAILED`, `INFERENCE_FAILED` or
 * `BACKEND_UNAVAILABLE`.
 */
export function embed(texts: readonly string[], isQuery = false): Float32Array[] {
  const snapshot = checkTexts(texts);
  if (typeof isQuery !== "boolean") throw invalid("isQuery", "true or false", isQuery);
  const vectors = native((addon) => addon.embed(snapshot, isQuery));
  return snapshot.length === 0 ? [] : rows(vectors, vectors.length / snapshot.length);
}

/**
 * Whether the process-wide model computes on a GPU.
 *
 * @throws EmbedderError `NOT_INITIALIZED` or `BACKEND_UNAVAILABLE`.
 */
export function isGpu(): boolean {
  return native((addon) => addon.isGpu());
}

/**
 * Writes `semantic-search-native.onnx` into a model folder, for the JavaScript fallback: the graph only, its weights
 * stay in the folder's safetensors files. With `dtype: "int8"` it writes `semantic-search-native.int8.onnx`, which holds
 * the quantized weights.
 *
 * @returns The path of the file.
 * @throws EmbedderError as `Embedder.load`.
 */
export async function exportOnnx(modelDir?: string, options?: LoadOptions): Promise<string> {
  const checked = checkLoadOptions(options);
  const dir = checkModelDir(modelDir);
  const addon = loadAddon();
  try {
    return await addon.exportOnnx(dir, addonOptions(checked));
  } catch (error) {
    throw toEmbedderError(error);
  }
}

function native<T>(call: (addon: ReturnType<typeof loadAddon>) => T): T {
  const addon = loadAddon();
  try {
    return call(addon);
  } catch (error) {
    throw toEmbedderError(error);
  }
}

function loadFallback(dir: string, options: LoadOptions): Promise<Engine> {
  // The library's path is the addon's affair: onnxruntime-node brings its own.
  const { onnxRuntimeLibrary: _, ...modelOptions } = options;
  return FallbackEngine.load(dir, modelOptions);
}

function checkModelDir(modelDir: unknown): string {
  const dir = modelDir ?? process.env.SEMANTIC_SEARCH_MODEL;
  if (typeof dir === "string" && dir !== "") return path.resolve(dir);
  throw invalid("modelDir", "the path of a model folder (or SEMANTIC_SEARCH_MODEL set to it)", dir);
}

function backendFromEnvironment(chosen: NonNullable<LoadOptions["backend"]>): NonNullable<LoadOptions["backend"]> {
  const name = process.env.SEMANTIC_SEARCH_BACKEND;
  if (chosen !== "auto" || !name) return chosen;
  if (!BACKEND_RULE.accepts(name)) throw invalid("SEMANTIC_SEARCH_BACKEND", BACKEND_RULE.expected, name);
  return name as NonNullable<LoadOptions["backend"]>;
}

function checkEmbedOptions(options: unknown): EmbedOptions {
  if (typeof options === "boolean") return { kind: options ? "query" : "document" };
  const checked = Object.fromEntries(optionEntries("options", options, ["kind", "onTruncated"]));
  const { kind = "document", onTruncated } = checked;
  if (kind !== "query" && kind !== "document") throw invalid("option kind", '"query" or "document"', kind);
  if (onTruncated !== undefined && typeof onTruncated !== "function") {
    throw invalid("option onTruncated", "a function", onTruncated);
  }
  return checked;
}

/** Views of the rows of a row-major matrix. */
function rows(matrix: Float32Array, dimension: number): Float32Array[] {
  return Array.from({ length: matrix.length / dimension }, (_, row) =>
    matrix.subarray(row * dimension, (row + 1) * dimension),
  );
}
