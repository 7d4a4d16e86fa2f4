/** Requests and answers of Ollama's `/api/embed`. */

import {
  checkEmbedder,
  type EmbeddingRequest,
  parseDimensions,
  parseTruncation,
  type RequestLimits,
  vectorsInPieces,
} from "./embedding_request.js";
import { checkBatch, expected, fieldsOf } from "./request.js";

/** `keep_alive` and `options` are about how Ollama runs models: they are ignored. */
const FIELDS = ["model", "input", "truncate", "dimensions", "keep_alive", "options"];

/**
 * Checks the body of a request.
 *
 * @throws ApiError 400, 404 for another model, 413 for too many texts
 */
export function parseOllamaRequest(body: unknown, limits: RequestLimits): EmbeddingRequest {
  const { model, input, truncate, dimensions } = fieldsOf(body, FIELDS, "input and model");
  const { name, isForQueries } = checkEmbedder(model, limits);
  return {
    texts: parseInput(input, limits.maxBatch),
    kind: isForQueries ? "query" : "document",
    dimensions: parseDimensions(dimensions, limits),
    truncation: parseTruncation("truncate", truncate),
    answer: (vectors, { tokens, milliseconds }) => {
      // Nanoseconds.
      const durations = { total_duration: Math.round(milliseconds * 1e6), load_duration: 0 };
      const rest = JSON.stringify({ ...durations, prompt_eval_count: tokens }).slice(1);
      const before = `{"model":${JSON.stringify(name)},"embeddings":[`;
      return vectorsInPieces(before, vectors, (vector) => Array.from(vector), `],${rest}`);
    },
  };
}

function parseInput(input: unknown, maxBatch: number): string[] {
  if (typeof input === "string") return [input];
  if (!Array.isArray(input)) throw expected("input", "a string or an array of strings", input);
  if (input.length === 0) throw expected("input", "at least one text", input);
  checkBatch("input", input.length, maxBatch);
  const index = input.findIndex((text) => typeof text !== "string");
  if (index >= 0) throw expected(`input[${index}]`, "a string", input[index], "input");
  return input;
}
