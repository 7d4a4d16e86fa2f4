/** Vercel's AI SDK: an embedding model and a reranking model of its specification 3, which `ai` 6 and 7 take. */

import type { Embedder, EmbedOptions, Reranker, ScoreOptions } from "../embedder.js";
import { asNumbers } from "./numbers.js";

const PROVIDER = "semantic-search-native";

/** `EmbeddingModelV3` of `@ai-sdk/provider`. */
export interface EmbeddingModel {
  readonly specificationVersion: "v3";
  readonly provider: string;
  /** The embedder's fingerprint. */
  readonly modelId: string;
  readonly maxEmbeddingsPerCall: number;
  readonly supportsParallelCalls: boolean;
  doEmbed(call: EmbedCall): Promise<{ embeddings: number[][]; usage: { tokens: number }; warnings: Warning[] }>;
}

/** `RerankingModelV3` of `@ai-sdk/provider`. */
export interface RerankingModel {
  readonly specificationVersion: "v3";
  readonly provider: string;
  /** The reranker's fingerprint. */
  readonly modelId: string;
  doRerank(call: RerankCall): Promise<{ ranking: { index: number; relevanceScore: number }[]; warnings: Warning[] }>;
}

interface Call {
  abortSignal?: AbortSignal | undefined;
  /** Options of the call by provider. */
  providerOptions?: Record<string, Record<string, unknown>> | undefined;
}

export interface EmbedCall extends Call {
  values: string[];
  /** Of `ai` 7: how many components vectors should have. */
  dimensions?: number | undefined;
}

export interface RerankCall extends Call {
  query: string;
  documents: { type: "text"; values: string[] } | { type: "object"; values: object[] };
  topN?: number | undefined;
}

/** What the caller of the AI SDK should know; it logs them. */
export type Warning =
  | { type: "unsupported" | "compatibility"; feature: string; details: string }
  | { type: "other"; message: string };

/**
 * A model for `embed` and `embedMany`. Errors are those of `Embedder.embed`; truncated texts are a warning.
 *
 * The AI SDK does not tell queries from documents: `kind` does, here or in the `providerOptions` of a call, as in
 * `{ "semantic-search-native": { kind: "query" } }`.
 */
export function embeddingModel(embedder: Embedder, options: Pick<EmbedOptions, "kind"> = {}): EmbeddingModel {
  return {
    specificationVersion: "v3",
    provider: PROVIDER,
    modelId: embedder.fingerprint,
    maxEmbeddingsPerCall: Number.POSITIVE_INFINITY,
    supportsParallelCalls: true,
    doEmbed: async ({ values, dimensions, abortSignal, providerOptions }) => {
      const { dimension, maxTokens } = embedder;
      const warnings: Warning[] = [];
      if (dimensions !== undefined && dimensions !== dimension) {
        const details = `vectors have ${dimension} components: load the model with the option dimensions`;
        warnings.push({ type: "unsupported", feature: "dimensions", details });
      }
      let tokens = 0;
      const vectors = await embedder.embed(values, {
        ...options,
        ...providerOptions?.[PROVIDER],
        ...(abortSignal && { signal: abortSignal }),
        onProgress: (progress) => {
          tokens = progress.tokens;
        },
        onTruncated: (indices) => warnings.push(truncation("values", indices, maxTokens)),
      });
      return { embeddings: asNumbers(vectors), usage: { tokens }, warnings };
    },
  };
}

/**
 * A model for `rerank`. Errors are those of `Reranker.rank`; truncated texts are a warning. Documents that are objects are
 * read as JSON. The `activation` of scores is chosen here or in the `providerOptions` of a call.
 */
export function rerankingModel(reranker: Reranker, options: Pick<ScoreOptions, "activation"> = {}): RerankingModel {
  return {
    specificationVersion: "v3",
    provider: PROVIDER,
    modelId: reranker.fingerprint,
    doRerank: async ({ query, documents, topN, abortSignal, providerOptions }) => {
      const warnings: Warning[] = [];
      if (documents.type === "object") {
        const details = "documents that are objects are read as JSON";
        warnings.push({ type: "compatibility", feature: "object documents", details });
      }
      const texts = documents.type === "text" ? documents.values : documents.values.map((one) => JSON.stringify(one));
      const ranked = await reranker.rank(query, texts, {
        ...options,
        ...providerOptions?.[PROVIDER],
        ...(topN !== undefined && { topK: topN }),
        ...(abortSignal && { signal: abortSignal }),
        onTruncated: (indices) => warnings.push(truncation("documents", indices, reranker.maxTokens)),
      });
      return { ranking: ranked.map(({ index, score }) => ({ index, relevanceScore: score })), warnings };
    },
  };
}

function truncation(what: string, indices: Uint32Array, maxTokens: number): Warning {
  const first = `${indices.subarray(0, 100).join(", ")}${indices.length > 100 ? ", …" : ""}`;
  return { type: "other", message: `truncated to ${maxTokens} tokens: ${indices.length} of the ${what} (${first})` };
}
