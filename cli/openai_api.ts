/** Requests and answers of OpenAI's embeddings API. */

import type { TextOrTokens } from "../embedder.js";
import { describeValue } from "../lib/errors.js";
import {
  checkEmbedder,
  type EmbeddingRequest,
  parseDimensions,
  parseTruncation,
  type RequestLimits,
  vectorsInPieces,
} from "./embedding_request.js";
import { ApiError, checkBatch, expected, fieldsOf } from "./request.js";

/** The kinds of texts as Voyage, NIM and Cohere name them. OpenAI has none: all texts are documents. */
const INPUT_TYPES: Record<string, EmbeddingRequest["kind"]> = {
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
export function parseEmbeddingsRequest(body: unknown, limits: RequestLimits): EmbeddingRequest {
  const { model, input, encoding_format, dimensions, input_type, truncation } = fieldsOf(
    body,
    FIELDS,
    "input and model",
  );
  const { name, isForQueries } = checkEmbedder(model, limits);
  const texts = parseInput(input, limits);
  const format = encoding_format ?? "float";
  if (format !== "float" && format !== "base64") {
    throw expected("encoding_format", '"float" or "base64"', encoding_format);
  }
  const type = input_type ?? (isForQueries ? "query" : "document");
  if (typeof type !== "string" || !Object.hasOwn(INPUT_TYPES, type)) {
    throw expected("input_type", '"query" or "document"', input_type);
  }
  const kind = INPUT_TYPES[type] as EmbeddingRequest["kind"];
  if (isForQueries && kind !== "query") {
    throw expected("input_type", `"query" or none with the model ${JSON.stringify(name)}`, input_type);
  }
  return {
    texts,
    kind,
    dimensions: parseDimensions(dimensions, limits),
    truncation: parseTruncation("truncation", truncation),
    answer: (vectors, { tokens }) => {
      const toValue = (vector: Float32Array, index: number) => {
        const embedding = format === "base64" ? base64(vector) : Array.from(vector);
        return { object: "embedding", index, embedding };
      };
      const usage = { prompt_tokens: tokens, total_tokens: tokens };
      const rest = `],"model":${JSON.stringify(name)},"usage":${JSON.stringify(usage)}}`;
      return vectorsInPieces('{"object":"list","data":[', vectors, toValue, rest);
    },
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

/** Little-endian float32, which is the byte order of every supported platform. */
function base64({ buffer, byteOffset, byteLength }: Float32Array): string {
  return Buffer.from(buffer, byteOffset, byteLength).toString("base64");
}
