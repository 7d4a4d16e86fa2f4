/** What is known of a static model without its numbers; `src/arch/static_table.rs` reads the same. */

import * as path from "node:path";
import { EmbedderError } from "./errors.js";
import type { JsonFile } from "./json_file.js";
import type { EncoderFacts } from "./model_dir.js";
import { readTensorShapes } from "./safetensors.js";

/**
 * Which tokens a static model takes the mean of: all that a text has, or all but the unknown token. Special tokens are not
 * added. A text that has none of these tokens has a vector of zeros.
 */
export type StaticTokens = "all" | "known";

/** The `model_type` of Model2Vec's `config.json`. */
export const MODEL2VEC = "model2vec";

/** The names of the table: in checkpoints of sentence-transformers, and in those of Model2Vec. */
const TABLES = ["embedding.weight", "embeddings"] as const;
/** No position limits a text. */
const NO_LIMIT = 2 ** 32 - 1;

/** @throws EmbedderError `MODEL_NOT_FOUND` or `MODEL_INVALID`, naming file and tensor. */
export function readStaticFacts(folder: string, config: JsonFile): EncoderFacts {
  const file = path.join(folder, "model.safetensors");
  const shapes = readTensorShapes(file);
  const table = TABLES.find((name) => shapes.has(name)) ?? TABLES[1];
  const shape = shapes.get(table) ?? [];
  const [rows, width] = shape;
  if (rows === undefined || width === undefined || shape.length > 2) {
    const found = shape.length > 0 ? `shape ${JSON.stringify(shape)}` : "no such tensor";
    const message = `${file}: tensor ${table}: expected a table of two dimensions, a row for each token, found ${found}`;
    throw new EmbedderError("MODEL_INVALID", message);
  }
  // Tokens of Model2Vec may share rows.
  const mapping = table === TABLES[1] ? shapes.get("mapping") : undefined;
  const limit = config.json.model_type === MODEL2VEC ? config.count("max_length") : undefined;
  return {
    width,
    vocabulary: mapping?.reduce((product, size) => product * size, 1) ?? rows,
    positions: limit ?? NO_LIMIT,
    layerNormBeforeTruncation: false,
  };
}
