import { type Activation, activated, declaredActivation } from "./lib/activation.js";
import { asyncDispose } from "./lib/async_dispose.js";
import { loadEngine } from "./lib/backend.js";
import { call } from "./lib/call.js";
import type { Activity, Adapter, BackendMemory, BackendName, Engine } from "./lib/engine.js";
import { closedError, coded, throwIfAborted } from "./lib/errors.js";
import { modelSource } from "./lib/model_source.js";
import { invalid } from "./lib/option_rules.js";
import {
  checkPairs,
  checkRankOptions,
  checkRerankerOptions,
  checkScoreOptions,
  type RankOptions,
  type RerankerOptions,
  type ScoreOptions,
} from "./lib/rerank_options.js";

/** See {@link Reranker.info}. */
export interface RerankerInfo extends Activity {
  /** {@inheritDoc Reranker.backend} */
  backend: BackendName;
  /** {@inheritDoc Reranker.isGpu} */
  isGpu: boolean;
  /** {@inheritDoc Reranker.maxTokens} */
  maxTokens: number;
  /** {@inheritDoc Reranker.activation} */
  activation: Activation;
  /** {@inheritDoc Reranker.fingerprint} */
  fingerprint: string;
  /** {@inheritDoc Reranker.fallbackReason} */
  fallbackReason: string | null;
  /** {@inheritDoc Reranker.truncatedTexts} */
  truncatedTexts: number;
  /** Memory that the backend manages itself; `null` if it leaves that to the system. */
  memory: BackendMemory | null;
  /** The GPU, if WebGPU computes on one that can be named. */
  adapter: Adapter | null;
}

/** A text and its score. */
export interface RankedText {
  /** Index of the text in the call. */
  index: number;
  /** The higher, the more relevant. */
  score: number;
}

/**
 * A loaded reranker (cross-encoder): it reads a query and a text together and gives a score, the higher the more relevant.
 * Slower than comparing vectors, and better: for the few best texts of a search.
 *
 * ```js
 * const reranker = await Reranker.load("BAAI/bge-reranker-v2-m3");
 * const best = await reranker.rank("how do I parse a date?", texts, { topK: 5 });
 * await reranker.close();
 * ```
 */
export class Reranker {
  /** Why each faster backend that `"auto"` tried was not taken; `null` if the first one works. */
  readonly fallbackReason: string | null;
  /** What is applied to scores by default: what the option or the model folder says. */
  readonly activation: Activation;
  readonly #engine: Engine;
  #truncatedTexts = 0;
  #isClosed = false;

  private constructor(engine: Engine, fallbackReason: string | null, activation: Activation) {
    this.#engine = engine;
    this.fallbackReason = fallbackReason;
    this.activation = activation;
  }

  /**
   * Loads a reranker: a folder, or a name on the Hugging Face Hub, as `Embedder.load` does. It is a model for sequence
   * classification with one label, as `CrossEncoder` of sentence-transformers loads it.
   *
   * @throws EmbedderError as `Embedder.load`; `MODEL_UNSUPPORTED` also for an embedder and for a model with several labels.
   */
  static async load(model: string, options?: RerankerOptions): Promise<Reranker> {
    return coded(async () => {
      const { activation, ...rest } = checkRerankerOptions(options);
      if (model === undefined) throw invalid("model", "the path of a model folder or a name on the Hub", model);
      const source = modelSource(model);
      throwIfAborted(rest.signal);
      const { engine, fallbackReason, dir } = await loadEngine(source, { ...rest, task: "rerank" });
      try {
        return new Reranker(engine, fallbackReason, activation ?? declaredActivation(dir));
      } catch (error) {
        await engine.close();
        throw error;
      }
    });
  }

  /**
   * Scores texts for a query: one number per text, in order. The array is read before the call returns. Equal texts are
   * computed once. If a query and a text together are longer than `maxTokens`, the text is truncated; a query that leaves
   * no room for a text is an error.
   *
   * @throws EmbedderError `INVALID_ARGUMENT`, `TOKENIZATION_FAILED`, `INFERENCE_FAILED`, `DEVICE_LOST`,
   * `RESOURCE_EXHAUSTED`, `CLOSED` or `ABORT_ERR` (an `AbortError`).
   */
  async score(query: string, texts: readonly string[], options?: ScoreOptions): Promise<Float32Array> {
    return coded(async () => {
      const checked = checkScoreOptions(options);
      const logits = await this.#logits(checkPairs(query, texts), checked);
      return activated(logits, checked.activation ?? this.activation);
    });
  }

  /**
   * Sorts texts by their scores, best first; of equal ones, the first in `texts` comes first. Texts are compared before the
   * activation: where a sigmoid rounds two scores to the same number, their order is still right.
   *
   * @throws EmbedderError as `score`.
   */
  async rank(query: string, texts: readonly string[], options?: RankOptions): Promise<RankedText[]> {
    return coded(async () => {
      const { topK, ...checked } = checkRankOptions(options);
      const logits = await this.#logits(checkPairs(query, texts), checked);
      const scores = activated(logits, checked.activation ?? this.activation);
      const order = [...logits.keys()].sort((a, b) => (logits[b] as number) - (logits[a] as number) || a - b);
      return order.slice(0, topK).map((index) => ({ index, score: scores[index] as number }));
    });
  }

  /** Properties of the reranker, what it has done, and the memory of its backend at this moment. */
  async info(): Promise<RerankerInfo> {
    return coded(async () => {
      this.#checkOpen();
      const { backend, isGpu, maxTokens, activation, fingerprint, fallbackReason, truncatedTexts } = this;
      return {
        ...{ backend, isGpu, maxTokens, activation, fingerprint, fallbackReason, truncatedTexts },
        ...this.#engine.activity(),
        memory: await this.#engine.memory(),
        adapter: this.#engine.adapter,
      };
    });
  }

  /** Frees the model's memory. Calls in flight and later ones reject with `CLOSED`; closing again does nothing. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await coded(() => this.#engine.close());
  }

  /** Calls `close`, for `await using`. */
  async [asyncDispose](): Promise<void> {
    await this.close();
  }

  /** What computes: `"mlx"`, `"webgpu"`, `"onnx"` or `"cpu"` in the addon, `"onnx-js"` in the JavaScript fallback. */
  get backend(): BackendName {
    return this.#engine.backend;
  }

  /** Whether it computes on a GPU. */
  get isGpu(): boolean {
    return this.#engine.isGpu;
  }

  /** Most tokens of a query and a text together, special tokens included. */
  get maxTokens(): number {
    return this.#engine.description.maxTokens;
  }

  /** Changes whenever anything changes that determines the scores before the activation. */
  get fingerprint(): string {
    return this.#engine.description.fingerprint;
  }

  /** How many texts were truncated since loading. Each call reports which ones by `onTruncated`. */
  get truncatedTexts(): number {
    return this.#truncatedTexts;
  }

  async #logits(pairs: { query: string; texts: string[] }, options: ScoreOptions): Promise<Float32Array> {
    const { query, texts } = pairs;
    const { signal, onProgress, onTruncated } = options;
    this.#checkOpen();
    throwIfAborted(signal);
    if (texts.length === 0) return new Float32Array();
    const { vectors, truncated } = await call(this.#engine, texts, {
      query,
      ...(signal && { signal }),
      ...(onProgress && { onProgress }),
    });
    this.#truncatedTexts += truncated.length;
    if (truncated.length > 0) onTruncated?.(truncated);
    return vectors as Float32Array;
  }

  #checkOpen(): void {
    if (this.#isClosed) throw closedError();
  }
}
