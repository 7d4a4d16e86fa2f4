/** LangChain.js: `Embeddings`, and a document compressor. */

import type { Embedder, RankOptions, Reranker } from "../embedder.js";
import { asNumbers } from "./numbers.js";

/** `EmbeddingsInterface` of `@langchain/core/embeddings`, which vector stores take. */
export interface Embeddings {
  embedDocuments(texts: string[]): Promise<number[][]>;
  embedQuery(text: string): Promise<number[]>;
}

/** `DocumentInterface` of `@langchain/core/documents`. */
export interface Document {
  pageContent: string;
  metadata: Record<string, unknown>;
  id?: string;
}

/** `BaseDocumentCompressor` of `@langchain/core/retrievers/document_compressors`. */
export interface DocumentCompressor {
  compressDocuments(documents: Document[], query: string): Promise<Document[]>;
}

/** Embeds documents and queries, each with the model's prompt for them. Errors are those of `Embedder.embed`. */
export function embeddings(embedder: Embedder): Embeddings {
  return {
    embedDocuments: async (texts) => asNumbers(await embedder.embed(texts)),
    embedQuery: async (text) => Array.from(await embedder.embedQuery(text)),
  };
}

/**
 * Sorts documents by their scores for a query, best first, and adds the score to their metadata as `relevanceScore`.
 * Errors are those of `Reranker.rank`.
 *
 * @param options Of `Reranker.rank`, such as `topK`, how many documents are kept.
 */
export function documentCompressor(reranker: Reranker, options?: RankOptions): DocumentCompressor {
  return {
    compressDocuments: async (documents, query) => {
      const texts = documents.map(({ pageContent }) => pageContent);
      const ranked = await reranker.rank(query, texts, options);
      return ranked.map(({ index, score }) => {
        const document = documents[index] as Document;
        return { ...document, metadata: { ...document.metadata, relevanceScore: score } };
      });
    },
  };
}
