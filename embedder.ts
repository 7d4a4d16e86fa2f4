/**
 * Text and code embeddings, and rerankers, inside a Node.js process.
 *
 * TypeScript checks arguments and chooses a backend; the Rust addon computes, or the JavaScript fallback where the addon
 * cannot be loaded.
 *
 * @packageDocumentation
 */
/// <reference lib="esnext.disposable" preserve="true" />

import { asyncDispose } from "./lib/async_dispose.js";
import { loadEngine } from "./lib/backend.js";
import { call } from "./lib/call.js";
import {
  checkEmbedOptions,
  checkQueryOptions,
  checkStreamOptions,
  checkText,
  checkTexts,
  type EmbedOptions,
  type QueryOptions,
  type StreamOptions,
} from "./lib/call_options.js";
import type {
  Activity,
  Adapter,
  BackendMemory,
  BackendName,
  EncodedVector,
  Encoding,
  Engine,
  EngineResult,
  PoolingMode,
  TextOrTokens,
} from "./lib/engine.js";
import { closedError, coded, codedSync, throwIfAborted } from "./lib/errors.js";
import { checkLoadOptions, type LoadOptions } from "./lib/load_options.js";
import { modelSource } from "./lib/model_source.js";
import { invalid } from "./lib/option_rules.js";
import { QueryCache } from "./lib/query_cache.js";
import { rowsInSlices } from "./lib/slices.js";
import { checkSource, type StreamedVector, streamVectors } from "./lib/stream.js";

export type { Activation } from "./lib/activation.js";
export { packageCacheFolder } from "./lib/cache_folder.js";
export type { EmbedOptions, EmbedProgress, QueryOptions, StreamOptions } from "./lib/call_options.js";
export type {
  Adapter,
  BackendMemory,
  BackendName,
  EncodedVector,
  Encoding,
  PoolingMode,
  TextOrTokens,
} from "./lib/engine.js";
export { AbortError, EmbedderError, type EmbedderErrorCode } from "./lib/errors.js";
export { pull } from "./lib/hub/pull.js";
export type { PullOptions, PullProgress } from "./lib/hub/pull_options.js";
export { KNOWN_MODELS, type KnownEmbedder, type KnownModel, type KnownReranker } from "./lib/known_models.js";
export type { LoadOptions } from "./lib/load_options.js";
export { exportOnnx } from "./lib/onnx_export.js";
export { embed, init, isGpu } from "./lib/process_model.js";
export type { RankOptions, RerankerOptions, ScoreOptions } from "./lib/rerank_options.js";
export type { StreamedVector } from "./lib/stream.js";
export { type RankedText, Reranker, type RerankerInfo } from "./reranker.js";

/** See {@link Embedder.info}. */
export interface EmbedderInfo extends Activity {
  /** {@inheritDoc Embedder.backend} */
  backend: BackendName;
  /** {@inheritDoc Embedder.isGpu} */
  isGpu: boolean;
  /** {@inheritDoc Embedder.dimension} */
  dimension: number;
  /** {@inheritDoc Embedder.maxTokens} */
  maxTokens: number;
  /** {@inheritDoc Embedder.pooling} */
  pooling: readonly PoolingMode[];
  /** {@inheritDoc Embedder.fingerprint} */
  fingerprint: string;
  /** {@inheritDoc Embedder.fallbackReason} */
  fallbackReason: string | null;
  /** {@inheritDoc Embedder.truncatedTexts} */
  truncatedTexts: number;
  /** Queries that were answered from the cache. */
  queryCacheHits: number;
  /** Memory that the backend manages itself; `null` if it leaves that to the system. */
  memory: BackendMemory | null;
  /** The GPU, if WebGPU computes on one that can be named. */
  adapter: Adapter | null;
}

const QUERY_CACHE_SIZE = 128;

/**
 * A loaded model. A process may hold several, also in worker threads.
 *
 * ```js
 * const embedder = await Embedder.load("./models/CodeRankEmbed");
 * const vectors = await embedder.embed(["function add(a, b) { return a + b }"]);
 * const query = await embedder.embedQuery("where are two numbers added?");
 * await embedder.close();
 * ```
 */
export class Embedder {
  /** Why each faster backend that `"auto"` tried was not taken; `null` if the first one works. */
  readonly fallbackReason: string | null;
  readonly #engine: Engine;
  readonly #queries: QueryCache;
  #truncatedTexts = 0;
  #isClosed = false;

  private constructor(engine: Engine, fallbackReason: string | null, queries: QueryCache) {
    this.#engine = engine;
    this.fallbackReason = fallbackReason;
    this.#queries = queries;
  }

  /**
   * Loads a model: a folder in the layout of sentence-transformers, or a name on the Hugging Face Hub (`"org/name"` or
   * `"org/name@revision"`), which is downloaded as by `pull` unless it is in the cache. If there is a folder of that name,
   * the folder is loaded; `./org/name` always is a folder. Known models (`KNOWN_MODELS`) get the prompts of their authors
   * if their folder has none.
   *
   * @param model Default: the environment variable `SEMANTIC_SEARCH_MODEL`.
   * @throws EmbedderError `INVALID_ARGUMENT`, `MODEL_NOT_FOUND`, `MODEL_INVALID`, `MODEL_UNSUPPORTED`,
   * `BACKEND_UNAVAILABLE` (with the reason of each backend that was tried), `INFERENCE_FAILED` or `RESOURCE_EXHAUSTED`;
   * while downloading `ACCESS_DENIED` or `DOWNLOAD_FAILED`.
   */
  static async load(model?: string, options?: LoadOptions): Promise<Embedder> {
    return coded(async () => {
      const { queryCacheSize, ...rest } = checkLoadOptions(options);
      const source = modelSource(model);
      throwIfAborted(rest.signal);
      const { engine, fallbackReason } = await loadEngine(source, rest);
      return new Embedder(engine, fallbackReason, new QueryCache(queryCacheSize ?? QUERY_CACHE_SIZE));
    });
  }

  /**
   * Embeds texts. The result has one vector per text, in order; all are views of one buffer. The array is read before
   * the call returns: changing it afterwards has no effect. Equal texts are computed once.
   *
   * Callers that tokenize themselves may pass token ids as a `Uint32Array` instead of a text: at least one, from the
   * model's own tokenizer, below `vocabularySize`, including the special tokens that the model needs. Neither these nor a
   * prompt are added, whatever the `kind`. Ids beyond `maxTokens` are truncated and reported like those of a text. Do not
   * change the ids before the promise settles: large inputs are read bit by bit.
   *
   * @param options Options, or `true` for `{ kind: "query" }`.
   * @throws EmbedderError `INVALID_ARGUMENT` (naming the index), `TOKENIZATION_FAILED`, `INFERENCE_FAILED`,
   * `DEVICE_LOST`, `RESOURCE_EXHAUSTED`, `CLOSED`, or `ABORT_ERR` (an `AbortError`).
   */
  async embed<E extends Encoding = "float32">(
    texts: readonly TextOrTokens[],
    options?: EmbedOptions<E> | boolean,
  ): Promise<EncodedVector[E][]> {
    return coded(async () => this.#embed<E>(checkTexts(texts), checkEmbedOptions(options)));
  }

  /**
   * Embeds texts, or their token ids, as they arrive from any iterable or async iterable. Reads only a little ahead while
   * the vectors are not consumed, so that any number of texts passes through in bounded memory. Leaving the loop early
   * drops whatever has not been computed yet.
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
      checkSource(source);
      const { kind, encoding = "float32", signal } = checkStreamOptions(options);
      this.#checkEncoding(encoding);
      this.#checkOpen();
      return streamVectors<E>(source, signal, this.vocabularySize, async (texts, signal, take) => {
        this.#checkOpen();
        await this.#engine.stream(texts, { isQuery: kind === "query", encoding, signal }, (rows) => {
          this.#truncatedTexts += rows.truncated.length;
          take(rows);
        });
      });
    });
  }

  /**
   * Embeds one query, with the model's prompt for queries. Token ids are used as they are, and not cached.
   *
   * @throws EmbedderError as `embed`.
   */
  async embedQuery<E extends Encoding = "float32">(
    text: TextOrTokens,
    options?: QueryOptions<E>,
  ): Promise<EncodedVector[E]> {
    return coded(async () => {
      const query = checkText("text", text);
      const [vector] = await this.#embed<E>([query], { ...checkQueryOptions(options), kind: "query" });
      return vector as EncodedVector[E];
    });
  }

  /** Properties of the embedder, what it has done, and the memory of its backend at this moment. */
  async info(): Promise<EmbedderInfo> {
    return coded(async () => {
      this.#checkOpen();
      const { adapter, backend, isGpu, description } = this.#engine;
      const { dimension, maxTokens, pooling, fingerprint } = description;
      const { fallbackReason, truncatedTexts } = this;
      return {
        ...{ backend, isGpu, dimension, maxTokens, pooling, fingerprint, fallbackReason, truncatedTexts },
        ...this.#engine.activity(),
        queryCacheHits: this.#queries.hits,
        memory: await this.#engine.memory(),
        adapter,
      };
    });
  }

  /** Frees the model's memory. Calls in flight and later ones reject with `CLOSED`; closing again does nothing. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#queries.clear();
    await coded(() => this.#engine.close());
  }

  /** Calls `close`, for `await using`. */
  async [asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Length of a vector. */
  get dimension(): number {
    return this.#engine.description.dimension;
  }

  /** What computes: `"mlx"`, `"webgpu"`, `"onnx"` or `"cpu"` in the addon, `"onnx-js"` in the JavaScript fallback. */
  get backend(): BackendName {
    return this.#engine.backend;
  }

  /** Whether it computes on a GPU. */
  get isGpu(): boolean {
    return this.#engine.isGpu;
  }

  /** Longest text in tokens, prompt and special tokens included; longer ones are truncated. */
  get maxTokens(): number {
    return this.#engine.description.maxTokens;
  }

  /** The model's token ids are whole numbers below this. */
  get vocabularySize(): number {
    return this.#engine.description.vocabularySize;
  }

  /**
   * Changes whenever anything changes that determines the vectors: weights, tokenizer, configuration, pooling, prompts,
   * limits, number format. Store it with an index, and do not mix vectors with different fingerprints.
   */
  get fingerprint(): string {
    return this.#engine.description.fingerprint;
  }

  /** How token vectors become one vector; several modes are concatenated. */
  get pooling(): readonly PoolingMode[] {
    return this.#engine.description.pooling;
  }

  /** How many texts were truncated to `maxTokens` since loading. Each call reports which ones by `onTruncated`. */
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
    this.#truncatedTexts += truncated.length;
    if (truncated.length > 0) onTruncated?.(truncated);
    return rowsInSlices(vectors as EncodedVector[E], texts.length, signal);
  }

  /** From the cache, if it is one query that is there. */
  async #compute(texts: TextOrTokens[], options: EmbedOptions<Encoding>): Promise<EngineResult> {
    const [text] = texts;
    if (options.kind !== "query" || texts.length > 1 || typeof text !== "string") {
      return call(this.#engine, texts, options);
    }
    const key = `${options.encoding ?? "float32"} ${text}`;
    const cached = this.#queries.get(key);
    if (cached) {
      options.onProgress?.({ done: 1, total: 1, tokens: cached.tokens });
      return cached;
    }
    const result = await call(this.#engine, texts, options);
    if (!this.#isClosed) this.#queries.set(key, result);
    return result;
  }

  #checkEncoding(encoding: Encoding | undefined): void {
    if (encoding !== "int8" || this.#engine.description.normalize) return;
    throw invalid("option encoding", '"float32" or "binary" with normalize: false (numbers of any size)', encoding);
  }

  #checkOpen(): void {
    if (this.#isClosed) throw closedError();
  }
}
