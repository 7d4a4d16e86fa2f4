/** What requests for embeddings have in common, in the form of OpenAI and in that of Ollama. */

import type { EmbedOptions, TextOrTokens } from "../embedder.js";
import { ApiError, checkModel, expected } from "./request.js";

export interface EmbeddingRequest {
  texts: TextOrTokens[];
  kind: NonNullable<EmbedOptions["kind"]>;
  /** Fewer than the model has; `undefined` for all. */
  dimensions: number | undefined;
  /** Whether texts beyond the token limit are truncated; otherwise they are an error. */
  truncation: boolean;
  /** The answer's JSON, in pieces. */
  answer(vectors: readonly Float32Array[], work: Work): Iterable<string>;
}

/** What a request took. */
export interface Work {
  tokens: number;
  milliseconds: number;
}

export interface RequestLimits {
  /** The name of the model in requests. */
  model: string;
  dimension: number;
  /** Token ids are below this. */
  vocabularySize: number;
  /** Whether requests may ask for fewer dimensions. */
  isMatryoshka: boolean;
  maxBatch: number;
}

/** The names of an embedder in requests. By the second, clients that cannot say so otherwise embed queries. */
export function embedderNames(model: string): [name: string, forQueries: string] {
  return [model, `${model}:query`];
}

/**
 * @returns The model's name as the request has it, and whether it is the one for queries.
 * @throws ApiError 400, 404
 */
export function checkEmbedder(model: unknown, limits: RequestLimits): { name: string; isForQueries: boolean } {
  const names = embedderNames(limits.model);
  const name = checkModel(model, names);
  return { name, isForQueries: name === names[1] };
}

/** @throws ApiError 400 */
export function parseDimensions(dimensions: unknown, { dimension, isMatryoshka }: RequestLimits): number | undefined {
  if (dimensions === undefined || dimensions === null || dimensions === dimension) return undefined;
  if (!Number.isInteger(dimensions) || (dimensions as number) < 1 || (dimensions as number) > dimension) {
    throw expected("dimensions", `a whole number from 1 to ${dimension}`, dimensions);
  }
  if (isMatryoshka) return dimensions as number;
  const message =
    `dimensions: this server gives vectors of ${dimension} components; to shorten those of a model that was trained for ` +
    "it (Matryoshka), start the server with --matryoshka";
  throw new ApiError(400, "dimensions_not_supported", message, { param: "dimensions" });
}

/** @throws ApiError 400 */
export function parseTruncation(field: string, value: unknown): boolean {
  if (typeof (value ?? true) !== "boolean") throw expected(field, "true or false", value);
  return value !== false;
}

/** Vectors that are turned into text at once: two thousand would block the event loop. */
const VECTORS_PER_PIECE = 32;

/** A JSON text with a list of vectors, in pieces. */
export function* vectorsInPieces(
  before: string,
  vectors: readonly Float32Array[],
  toValue: (vector: Float32Array, index: number) => unknown,
  behind: string,
): Generator<string> {
  let piece = before;
  for (const [index, vector] of vectors.entries()) {
    piece += `${index > 0 ? "," : ""}${JSON.stringify(toValue(vector, index))}`;
    if (index % VECTORS_PER_PIECE < VECTORS_PER_PIECE - 1) continue;
    yield piece;
    piece = "";
  }
  yield piece + behind;
}
