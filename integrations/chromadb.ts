/** ChromaDB: an embedding function for collections. */

import type { Embedder } from "../embedder.js";
import { asNumbers } from "./numbers.js";

/** `EmbeddingFunction` of `chromadb`. */
export interface EmbeddingFunction {
  readonly name: string;
  generate(texts: string[]): Promise<number[][]>;
  generateForQueries(texts: string[]): Promise<number[][]>;
  defaultSpace(): "cosine";
  supportedSpaces(): ("cosine" | "l2" | "ip")[];
}

/**
 * Embeds documents and the `queryTexts` of queries, each with the model's prompt for them. Errors are those of
 * `Embedder.embed`. Chroma does not store the function: give it to `getCollection` as well.
 */
export function embeddingFunction(embedder: Embedder): EmbeddingFunction {
  return {
    name: "semantic-search-native",
    generate: async (texts) => asNumbers(await embedder.embed(texts)),
    generateForQueries: async (texts) => asNumbers(await embedder.embed(texts, { kind: "query" })),
    defaultSpace: () => "cosine",
    supportedSpaces: () => ["cosine", "l2", "ip"],
  };
}
