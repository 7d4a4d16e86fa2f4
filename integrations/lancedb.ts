/** LanceDB: an embedding function in its registry. */

import { type Embedder, EmbedderError } from "../embedder.js";

/** What is used of `embedding` of `@lancedb/lancedb`; `F` is its `TextEmbeddingFunction`. */
export interface EmbeddingModule<F> {
  TextEmbeddingFunction: abstract new () => F;
  register(alias: string): (embeddingFunction: new (config?: Config) => F) => unknown;
}

/** What LanceDB stores with a table, besides the name of the function. */
interface Config {
  fingerprint?: string;
}

/**
 * Registers an embedding function, which LanceDB looks up by its name when a table is opened again. It embeds rows and
 * searches by text, each with the model's prompt for them. Errors are those of `Embedder.embed`.
 *
 * A table stores the embedder's fingerprint. Using it with another model throws an `EmbedderError` `INVALID_ARGUMENT`.
 *
 * @param lancedb `embedding` of `@lancedb/lancedb`.
 * @param name One for each embedder of the process.
 * @returns The function, for `LanceSchema` and for `embeddingFunction` of `createTable`.
 * @throws Error of LanceDB if the name is taken.
 */
export function registerEmbedder<F extends object>(
  lancedb: EmbeddingModule<F>,
  embedder: Embedder,
  name = "semantic-search-native",
): F {
  const { fingerprint, dimension } = embedder;
  // TypeScript cannot check overriding the methods of a type parameter.
  const Base = lancedb.TextEmbeddingFunction as abstract new () => object;
  class Registered extends Base {
    constructor(config: Config = {}) {
      super();
      const stored = config.fingerprint ?? fingerprint;
      if (stored === fingerprint) return;
      const message =
        `embedder: expected the fingerprint ${stored}, with which the table was made, found ${fingerprint}; register the ` +
        "embedder of the table (the same model and options), or make the table anew";
      throw new EmbedderError("INVALID_ARGUMENT", message);
    }

    toJSON(): Config {
      return { fingerprint };
    }

    ndims(): number {
      return dimension;
    }

    generateEmbeddings(texts: string[]): Promise<Float32Array[]> {
      return embedder.embed(texts);
    }

    computeQueryEmbeddings(text: string): Promise<Float32Array> {
      return embedder.embedQuery(text);
    }
  }
  const Registrable = Registered as unknown as new () => F;
  lancedb.register(name)(Registrable);
  return new Registrable();
}
