/** Requests and answers of OpenAI's embeddings API. */

import type { EmbedOptions, TextOrTokens } from "../embedder.js";
import { describeValue } from "../lib/errors.js";
import { ApiError, checkBatch, checkModel, expected, fieldsOf } from "./request.js";

export interface EmbeddingsRequest {
  texts: TextOrTokens[];
  kind: NonNullable<EmbedOptions["kind"]>;
  format: "float" | "base64";
  /** Fewer than the model has; `undefined` for all. */
  dimensions: number | undefined;
  /** Whether texts beyond the token limit are truncated; otherwise they are an error. */
  truncation: boolean;
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

/** The kinds of texts as Voyage, NIM and Cohere name them. OpenAI has none: all texts are documents. */
const INPUT_TYPES: Record<string, EmbeddingsRequest["kind"]> = {
  query: "query",
  document: "document",
  passage: "document",
  search_query: "query",
  search_document: "document",
};

const FIELDS = ["input", "model", "encoding_format", "dimensions", "user", "input_type", "truncation"];

/**
 * Checks the body of a request.
 *
 * @throws ApiError 400, 404 for another model, 413 for too many texts
 */
export function parseEmbeddingsRequest(body: unknown, limits: RequestLimits): EmbeddingsRequest {
  const { model, input, encoding_format, dimensions, input_type, truncation } = fieldsOf(
    body,
    FIELDS,
    "input and model",
  );
  checkModel(model, limits.model);
  const texts = parseInput(input, limits);
  const format = encoding_format ?? "float";
  if (format !== "float" && format !== "base64") {
    throw expected("encoding_format", '"float" or "base64"', encoding_format);
  }
  const type = input_type ?? "document";
  if (typeof type !== "string" || !Object.hasOwn(INPUT_TYPES, type)) {
    throw expected("input_type", '"query" or "document"', input_type);
  }
  if (typeof (truncation ?? true) !== "boolean") throw expected("truncation", "true or false", truncation);
  return {
    texts,
    kind: INPUT_TYPES[type] as EmbeddingsRequest["kind"],
    format,
    dimensions: parseDimensions(dimensions, limits),
    truncation: truncation !== false,
  };
}

/** OpenAI accepts one text or several, or the token ids of one text or several. */
function parseInput(input: unknown, { vocabularySize, maxBatch }: RequestLimits): TextOrTokens[] {
  if (typeof input === "string") return [input];
  if (!Array.isArray(input)) throw expected("input", "a string, an array of strings or arrays of token ids", input);
  if (input.length === 0) throw expected("input", "at least one text", input);
  const [first] = input;
  if (typeof first === "number") return [parseTokens("input", input, vocabularySize)];
  checkBatch("input", input.length, maxBatch);
  return input.map((text: unknown, index) => {
    const what = `input[${index}]`;
    if (Array.isArray(first)) {
      if (Array.isArray(text)) return parseTokens(what, text, vocabularySize);
      throw expected(what, "an array of token ids, as input[0] is", text, "input");
    }
    if (typeof text === "string") return text;
    throw expected(what, index === 0 ? "a string or an array of token ids" : "a string, as input[0] is", text, "input");
  });
}

/** @param what Names them in errors. */
function parseTokens(what: string, tokens: readonly unknown[], vocabularySize: number): Uint32Array {
  if (tokens.length === 0) throw expected(what, "at least one token id", tokens, "input");
  const isId = (token: unknown) =>
    Number.isInteger(token) && (token as number) >= 0 && (token as number) < vocabularySize;
  const place = tokens.findIndex((token) => !isId(token));
  if (place < 0) return Uint32Array.from(tokens as number[]);
  const expectation = `a token id of the model that is served, a whole number from 0 to ${vocabularySize - 1}`;
  throw new ApiError(
    400,
    "invalid_value",
    `${what}[${place}]: expected ${expectation}, found ${describeValue(tokens[place])}; token ids differ from model to ` +
      "model, and LangChain's OpenAIEmbeddings sends those of another one unless it has check_embedding_ctx_length=False",
    { param: "input" },
  );
}

function parseDimensions(dimensions: unknown, { dimension, isMatryoshka }: RequestLimits): number | undefined {
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

/** Vectors that are turned into text at once: two thousand would block the event loop. */
const VECTORS_PER_PIECE = 32;

/** The answer's JSON, in pieces. */
export function* embeddingsResponse(
  vectors: readonly Float32Array[],
  { format }: EmbeddingsRequest,
  model: string,
  tokens: number,
): Generator<string> {
  let piece = '{"object":"list","data":[';
  for (const [index, vector] of vectors.entries()) {
    const embedding = format === "base64" ? base64(vector) : Array.from(vector);
    piece += `${index > 0 ? "," : ""}${JSON.stringify({ object: "embedding", index, embedding })}`;
    if (index % VECTORS_PER_PIECE < VECTORS_PER_PIECE - 1) continue;
    yield piece;
    piece = "";
  }
  const usage = { prompt_tokens: tokens, total_tokens: tokens };
  yield `${piece}],"model":${JSON.stringify(model)},"usage":${JSON.stringify(usage)}}`;
}

/** Little-endian float32, which is the byte order of every supported platform. */
function base64({ buffer, byteOffset, byteLength }: Float32Array): string {
  return Buffer.from(buffer, byteOffset, byteLength).toString("base64");
}
