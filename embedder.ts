/**
 * Text and code embeddings inside a Node.js process.
 *
 * TypeScript decides what is asked; the Rust addon, or where it cannot be loaded the JavaScript fallback, decides
 * numbers.
 *
 * @packageDocumentation
 */
/// <reference lib="esnext.disposable" preserve="true" />

import { unlessAborted } from "./lib/abort.js";
import {
  type BackendMemory,
  type BackendName,
  copyOfTokens,
  type EncodedVector,
  type Encoding,
  type Engine,
  type EngineProgress,
  type EngineResult,
  type PoolingMode,
  rowsInSlices,
  rowsOf,
  type TextOrTokens,
} from "./lib/engine.js";
import {
  AbortError,
  closedError,
  coded,
  codedSync,
  EmbedderError,
  ThrownByCaller,
  throwIfAborted,
  toEmbedderError,
} from "./lib/errors.js";
import { FallbackEngine } from "./lib/fallback/engine.js";
import { keepBesideWeights } from "./lib/fallback/onnx_file.js";
import { IdleEngine } from "./lib/idle_engine.js";
import { locate, type ModelSource, modelSource } from "./lib/model_source.js";
import { addonOptions, loadAddon, NativeEngine } from "./lib/native.js";
import {
  BACKEND_RULE,
  checkCallOptions,
  checkLoadOptions,
  checkText,
  checkTexts,
  invalid,
  type LoadOptions,
  readArgument,
} from "./lib/options.js";
import { QueryCache } from "./lib/query_cache.js";
import { type StreamedVector, streamVectors } from "./lib/stream.js";

export type { BackendMemory, BackendName, EncodedVector, Encoding, PoolingMode, TextOrTokens } from "./lib/engine.js";
export { AbortError, EmbedderError, type EmbedderErrorCode } from "./lib/errors.js";
export { type PullOptions, type PullProgress, pull } from "./lib/hub/pull.js";
export { KNOWN_MODELS, type KnownModel } from "./lib/known_models.js";
export type { LoadOptions } from "./lib/options.js";
export type { StreamedVector } from "./lib/stream.js";

/** Options of one `embed` call. */
export interface EmbedOptions<E extends Encoding = "float32"> {
  /** What the texts are, which chooses the model's prompt. Default `"document"`. */
  kind?: "query" | "document";
  /**
   * How vectors are stored: `"float32"` (default), `"int8"` (x ≈ value / 127; not with `normalize: false`) or `"binary"`
   * (signs, eight to a byte). Vectors of one encoding are compared with each other only.
   */
  encoding?: E;
  /**
   * Called once before the promise resolves if texts were cut to `maxTokens`, with their indices in `texts`,
   * ascending. An error that it throws rejects the call.
   */
  onTruncated?: (indices: Uint32Array) => void;
  /** Ends the call with an `AbortError`; what is not computed yet is dropped. */
  signal?: AbortSignal;
  /** Called now and then, and once when all is done, before the promise resolves. An error that it throws ends the call. */
  onProgress?: (progress: EmbedProgress) => void;
}

/** How far an `embed` call is. */
export interface EmbedProgress {
  /** Texts whose vectors are there. */
  done: number;
  /** Texts of the call. */
  total: number;
  /** Tokens of these texts; equal texts count once, and a query from the cache as when it was computed. */
  tokens: number;
}

/** Options of `Embedder.stream`. */
export type StreamOptions<E extends Encoding = "float32"> = Pick<EmbedOptions<E>, "kind" | "encoding" | "signal">;

/** Options of one `embedQuery` call. */
export type QueryOptions<E extends Encoding = "float32"> = Omit<EmbedOptions<E>, "kind">;

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
  /** Calls that are queued or being computed. */
  calls: number;
  /** Texts computed since loading; repetitions within a call and queries from the cache do not count. */
  texts: number;
  /** Tokens computed since loading. */
  tokens: number;
  /** Runs of the model since loading. */
  batches: number;
  /** Queries that were answered from the cache. */
  queryCacheHits: number;
  /** Memory that the backend manages itself; `null` where it leaves that to the system. */
  memory: BackendMemory | null;
}

const QUERY_CACHE_SIZE = 128;

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
  readonly #queries: QueryCache;
  /** Whether vectors have length 1. */
  readonly #normalize: boolean;
  #truncatedTexts = 0;
  #isClosed = false;

  private constructor(engine: Engine, fallbackReason: string | null, queries: QueryCache, normalize: boolean) {
    this.#engine = engine;
    this.fallbackReason = fallbackReason;
    this.#queries = queries;
    this.#normalize = normalize;
  }

  /**
   * Loads a model: a folder of the sentence-transformers layout, or by its name on the Hugging Face Hub (`"org/name"` or
   * `"org/name@revision"`), from where it is downloaded as `pull` does unless it is in the cache. A name that is also a
   * folder is the folder; `./org/name` always is. Known models (`KNOWN_MODELS`) come with the prompts of their authors
   * where their folder has none.
   *
   * @param model Default: the environment variable `SEMANTIC_SEARCH_MODEL`.
   * @throws EmbedderError `INVALID_ARGUMENT`, `MODEL_NOT_FOUND`, `MODEL_INVALID`, `MODEL_UNSUPPORTED`,
   * `BACKEND_UNAVAILABLE` (with the reason of each backend that was tried), `INFERENCE_FAILED` or `RESOURCE_EXHAUSTED`;
   * while downloading `ACCESS_DENIED` or `DOWNLOAD_FAILED`.
   */
  static async load(model?: string, options?: LoadOptions): Promise<Embedder> {
    return coded(async () => {
      const { backend, queryCacheSize, idleTimeoutMs, ...modelOptions } = checkLoadOptions(options);
      const source = modelSource(model);
      const { signal } = modelOptions;
      throwIfAborted(signal);
      const opening = openEngine(source, backendFromEnvironment(backend ?? "auto"), modelOptions);
      const opened = await unlessAborted(opening, signal).catch((error) => {
        // A load that nobody waits for any more still ends, and must not leave its weights behind.
        if (error instanceof AbortError) opening.then(({ engine }) => engine.close()).catch(() => {});
        throw error;
      });
      const { fallbackReason, reload } = opened;
      let { engine } = opened;
      if (idleTimeoutMs !== undefined) {
        engine = new IdleEngine(engine, reload, idleTimeoutMs);
      }
      const queries = new QueryCache(queryCacheSize ?? QUERY_CACHE_SIZE);
      return new Embedder(engine, fallbackReason, queries, modelOptions.normalize ?? true);
    });
  }

  /**
   * Embeds texts. The result has one vector per text, in order; all are views of one buffer. The array is read before
   * the call returns: changing it afterwards has no effect. Equal texts are computed once.
   *
   * Instead of a text, its token ids may be passed as a `Uint32Array`, for callers that tokenize themselves: at least one,
   * of the model's own tokenizer, below `vocabularySize`, with the special tokens that the model wants. Neither these nor a
   * prompt are added, whatever the `kind`. What is beyond `maxTokens` is cut off on the model's side, and reported, as of a
   * text. Do not change the ids before the promise is settled: many are read little by little.
   *
   * @param options Options, or `true` for `{ kind: "query" }`.
   * @throws EmbedderError `INVALID_ARGUMENT` (naming the index), `TOKENIZATION_FAILED`, `INFERENCE_FAILED`,
   * `RESOURCE_EXHAUSTED`, `CLOSED`, or `ABORT_ERR` (an `AbortError`).
   */
  async embed<E extends Encoding = "float32">(
    texts: readonly TextOrTokens[],
    options?: EmbedOptions<E> | boolean,
  ): Promise<EncodedVector[E][]> {
    return coded(async () => this.#embed<E>(checkTexts(texts), checkEmbedOptions(options)));
  }

  /**
   * Embeds texts, or their token ids, as they come, from an array, a generator or anything else that can be iterated, also
   * asynchronously.
   * Reads ahead a little and no further while the vectors are not taken, so that any number of texts passes through in
   * bounded memory. Leaving the loop early drops what is not computed yet.
   *
   * ```js
   * for await (const { index, vector } of embedder.stream(readTexts())) await save(index, vector);
   * ```
   *
   * @throws EmbedderError as `embed`; what the source throws.
   */
  stream<E extends Encoding = "float32">(
    source: Iterable<TextOrTokens> | AsyncIterable<TextOrTokens>,
    options?: StreamOptions<E>,
  ): AsyncGenerator<StreamedVector<E>> {
    return codedSync(() => {
      if (typeof source === "string" || !readArgument("source", () => isIterable(source))) {
        throw invalid("source", "an iterable or async iterable of texts", source);
      }
      const checked: StreamOptions<Encoding> = checkCallOptions(options, ["kind", "encoding", "signal"]);
      this.#checkEncoding(checked.encoding);
      this.#checkOpen();
      const { kind, encoding = "float32" } = checked;
      return streamVectors<E>(source, checked.signal, this.vocabularySize, async (texts, signal, take) => {
        this.#checkOpen();
        await this.#engine.stream(texts, { isQuery: kind === "query", encoding, signal }, (rows) => {
          this.#truncatedTexts += rows.truncated.length;
          take(rows);
        });
      });
    });
  }

  /**
   * Embeds one query, with the model's prompt for queries. Token ids are taken as they are, and not kept in the cache.
   *
   * @throws EmbedderError as `embed`.
   */
  async embedQuery<E extends Encoding = "float32">(
    text: TextOrTokens,
    options?: QueryOptions<E>,
  ): Promise<EncodedVector[E]> {
    return coded(async () => {
      const query = checkText("text", text);
      const checked = checkCallOptions(options, QUERY_OPTIONS);
      const [vector] = await this.#embed<E>([query], { ...checked, kind: "query" });
      return vector as EncodedVector[E];
    });
  }

  /** What the embedder is, and the memory of its backend at this moment. */
  async info(): Promise<EmbedderInfo> {
    return coded(async () => {
      this.#checkOpen();
      const { backend, isGpu, description } = this.#engine;
      const { dimension, maxTokens, pooling, fingerprint } = description;
      const { fallbackReason, truncatedTexts } = this;
      return {
        ...{ backend, isGpu, dimension, maxTokens, pooling, fingerprint, fallbackReason, truncatedTexts },
        ...this.#engine.activity(),
        queryCacheHits: this.#queries.hits,
        memory: await this.#engine.memory(),
      };
    });
  }

  /** Frees the model's memory. Calls in flight and later ones are rejected with `CLOSED`; closing again does nothing. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#queries.clear();
    await coded(() => this.#engine.close());
  }

  async [asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Length of a vector. */
  get dimension(): number {
    return this.#engine.description.dimension;
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
    return this.#engine.description.maxTokens;
  }

  /** The model's token ids are whole numbers below it. */
  get vocabularySize(): number {
    return this.#engine.description.vocabularySize;
  }

  /**
   * Changes when anything does that decides what vectors come out: weights, tokenizer, configuration, pooling,
   * prompts, limits, number format. Store it with an index and refuse vectors of another.
   */
  get fingerprint(): string {
    return this.#engine.description.fingerprint;
  }

  /** How token vectors become one; several modes are concatenated. */
  get pooling(): readonly PoolingMode[] {
    return this.#engine.description.pooling;
  }

  /** How many texts were cut to `maxTokens` since loading. Which ones, each call tells by `onTruncated`. */
  get truncatedTexts(): number {
    return this.#truncatedTexts;
  }

  async #embed<E extends Encoding>(
    texts: TextOrTokens[],
    options: EmbedOptions<Encoding>,
  ): Promise<EncodedVector[E][]> {
    const { encoding, signal, onTruncated } = options;
    this.#checkEncoding(encoding);
    this.#checkOpen();
    throwIfAborted(signal);
    if (texts.length === 0) return [];
    const { vectors, truncated } = await this.#compute(texts, options);
    if (truncated.length > 0) onTruncated?.(truncated);
    return rowsInSlices(vectors as EncodedVector[E], texts.length, signal);
  }

  async #compute(texts: TextOrTokens[], options: EmbedOptions<Encoding>): Promise<EngineResult> {
    const { kind, encoding = "float32" } = options;
    const [text] = texts;
    const isKept = kind === "query" && texts.length === 1 && typeof text === "string";
    const query = isKept ? `${encoding} ${text}` : undefined;
    let result = query === undefined ? undefined : this.#queries.get(query);
    if (result) {
      options.onProgress?.({ done: 1, total: 1, tokens: result.tokens });
    } else {
      result = await run(this.#engine, texts, options);
      if (query !== undefined && !this.#isClosed) this.#queries.set(query, result);
    }
    this.#truncatedTexts += result.truncated.length;
    return result;
  }

  #checkEncoding(encoding: Encoding | undefined): void {
    if (encoding !== "int8" || this.#normalize) return;
    throw invalid("option encoding", '"float32" or "binary" with normalize: false (numbers of any size)', encoding);
  }

  #checkOpen(): void {
    if (this.#isClosed) throw closedError();
  }
}

/**
 * Loads the process-wide model of `embed` and `isGpu`. Synchronous: it blocks until the model is loaded. A second call
 * with the same arguments does nothing.
 *
 * @param modelDir A folder: what must not wait cannot download. `pull` gives the folder of a model on the Hub.
 * @throws EmbedderError as `Embedder.load`, and `ALREADY_INITIALIZED` for another model or other options.
 */
export function init(
  modelDir?: string,
  options?: Omit<LoadOptions, "backend" | "signal" | "idleTimeoutMs" | "queryCacheSize" | "onProgress" | "offline"> & {
    backend?: "auto" | "mlx" | "onnx";
  },
): void {
  codedSync(() => {
    const checked = checkLoadOptions(options);
    const dir = checkFolder(modelDir);
    const backend = backendFromEnvironment(checked.backend ?? "auto");
    if (backend === "onnx-js") {
      throw invalid("option backend", '"auto", "mlx" or "onnx" (the fallback cannot be synchronous)', backend);
    }
    loadAddon().init(dir, addonOptions({ ...checked, backend }));
  });
}

/**
 * Embeds texts, or their token ids, with the process-wide model. Synchronous: nothing else runs meanwhile. Use `Embedder`
 * for anything but scripts.
 *
 * @param isQuery Whether the texts are queries, which chooses the model's prompt.
 * @throws EmbedderError `INVALID_ARGUMENT`, `NOT_INITIALIZED`, `TOKENIZATION_FAILED`, `INFERENCE_FAILED`,
 * `RESOURCE_EXHAUSTED` or `BACKEND_UNAVAILABLE`.
 */
export function embed(texts: readonly TextOrTokens[], isQuery = false): Float32Array[] {
  return codedSync(() => {
    const snapshot = checkTexts(texts);
    if (typeof isQuery !== "boolean") throw invalid("isQuery", "true or false", isQuery);
    const own = snapshot.map((text) => (typeof text === "string" ? text : copyOfTokens("texts", text)));
    return rowsOf(loadAddon().embed(own, isQuery), snapshot.length);
  });
}

/**
 * Whether the process-wide model computes on a GPU.
 *
 * @throws EmbedderError `NOT_INITIALIZED` or `BACKEND_UNAVAILABLE`.
 */
export function isGpu(): boolean {
  return codedSync(() => loadAddon().isGpu());
}

/**
 * Writes `semantic-search-native.onnx` into a model folder, for the JavaScript fallback: the graph only, its weights
 * stay in the folder's safetensors files. With `dtype: "int8"` it writes `semantic-search-native.int8.onnx`, which holds
 * the quantized weights.
 *
 * @param model As for `Embedder.load`; the file of a model on the Hub is written into its snapshot in the cache.
 * @returns The path of the file.
 * @throws EmbedderError as `Embedder.load`.
 */
export async function exportOnnx(model?: string, options?: LoadOptions): Promise<string> {
  return coded(async () => {
    const checked = checkLoadOptions(options);
    const source = modelSource(model);
    const addon = loadAddon();
    const { dir, options: located } = await locate(source, { safetensors: true }, checked);
    const graph = await addon.exportOnnx(dir, addonOptions(located));
    keepBesideWeights(graph);
    return graph;
  });
}

/** An engine, why an earlier one was not taken, and how to open the same again. */
interface Opened {
  engine: Engine;
  fallbackReason: string | null;
  reload: () => Promise<Engine>;
}

/** The engine of the first backend that works. */
async function openEngine(
  source: ModelSource,
  backend: NonNullable<LoadOptions["backend"]>,
  options: LoadOptions,
): Promise<Opened> {
  if (backend === "onnx-js") return openFallback(source, options, null);
  let unavailable: EmbedderError;
  try {
    return await openNative(source, backend, options);
  } catch (error) {
    // Only a backend that cannot run here is a reason to try the next; a wrong model is wrong for all of them.
    if (backend !== "auto" || !(error instanceof EmbedderError) || error.code !== "BACKEND_UNAVAILABLE") throw error;
    unavailable = error;
  }
  try {
    return await openFallback(source, options, unavailable.message);
  } catch (error) {
    if (error instanceof AbortError || error instanceof ThrownByCaller) throw error;
    const { code, message } = toEmbedderError(error);
    throw new EmbedderError(code, `${message} (tried before: ${unavailable.message})`, { cause: error });
  }
}

async function openNative(
  source: ModelSource,
  backend: "auto" | "mlx" | "onnx",
  options: LoadOptions,
): Promise<Opened> {
  // First: nothing is downloaded for an addon that cannot be loaded.
  loadAddon();
  const { dir, options: located } = await locate(source, { safetensors: true }, options);
  const load = (chosen: BackendName | "auto") => NativeEngine.load(dir, { ...withoutSignal(located), backend: chosen });
  const engine = await load(backend);
  return { engine, fallbackReason: engine.fallbackReason, reload: () => load(engine.backend) };
}

async function openFallback(source: ModelSource, options: LoadOptions, reason: string | null): Promise<Opened> {
  const onnx = options.dtype === "int8" ? "int8" : "f32";
  const { dir, options: located } = await locate(source, { safetensors: false, onnx }, options);
  // The library's path is the addon's affair: onnxruntime-node brings its own.
  const { onnxRuntimeLibrary: _, ...modelOptions } = withoutSignal(located);
  const load = () => FallbackEngine.load(dir, modelOptions);
  return { engine: await load(), fallbackReason: reason, reload: load };
}

/** Engines are loaded to the end; giving up is the caller's affair. */
function withoutSignal({ signal: _, ...options }: LoadOptions): LoadOptions {
  return options;
}

/** One call of the engine. An aborted signal, or an error that `onProgress` throws, rejects it at once and cancels it. */
async function run(
  engine: Engine,
  texts: TextOrTokens[],
  { kind, encoding = "float32", signal, onProgress }: EmbedOptions<Encoding>,
): Promise<EngineResult> {
  const stop = new AbortController();
  const call = { isQuery: kind === "query", encoding, signal: stop.signal };
  if (!signal && !onProgress) return engine.embed(texts, call);
  let fail: (error: unknown) => void = () => {};
  const failed = new Promise<never>((_, reject) => {
    fail = reject;
  });
  const report = (progress: EngineProgress) => {
    // A report may be on its way while the call ends.
    if (stop.signal.aborted) return;
    try {
      onProgress?.({ ...progress, total: texts.length });
    } catch (error) {
      fail(error);
    }
  };
  try {
    const embedded = engine.embed(texts, { ...call, onProgress: onProgress && report });
    const result = await Promise.race([unlessAborted(embedded, signal), failed]);
    onProgress?.({ done: texts.length, total: texts.length, tokens: result.tokens });
    return result;
  } finally {
    stop.abort();
  }
}

/** The folder that a function takes which cannot wait for a download. */
function checkFolder(modelDir: unknown): string {
  const source = modelSource(modelDir);
  if ("folder" in source) return source.folder;
  throw new EmbedderError(
    "MODEL_NOT_FOUND",
    `there is no folder ${source.hub.id}, and init cannot wait for a download: pull gives the folder of a model on the Hub`,
  );
}

function backendFromEnvironment(chosen: NonNullable<LoadOptions["backend"]>): NonNullable<LoadOptions["backend"]> {
  const name = process.env.SEMANTIC_SEARCH_BACKEND;
  if (chosen !== "auto" || !name) return chosen;
  if (!BACKEND_RULE.accepts(name)) throw invalid("SEMANTIC_SEARCH_BACKEND", BACKEND_RULE.expected, name);
  return name as NonNullable<LoadOptions["backend"]>;
}

const QUERY_OPTIONS = ["encoding", "onTruncated", "signal", "onProgress"] as const;

function checkEmbedOptions(options: unknown): EmbedOptions<Encoding> {
  if (typeof options === "boolean") return { kind: options ? "query" : "document" };
  return checkCallOptions(options, ["kind", ...QUERY_OPTIONS]);
}

function isIterable(value: unknown): boolean {
  return typeof value === "object" && value !== null && (Symbol.iterator in value || Symbol.asyncIterator in value);
}
