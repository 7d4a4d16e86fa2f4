/** The embeddings request and its answers in OpenAI's words, and errors in OpenAI's shape. */

import type { EmbedOptions, TextOrTokens } from "../embedder.js";
import { describeValue } from "../lib/errors.js";

/** An answer that says what is wrong. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  readonly param: string | null;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    status: number,
    message: string,
    details: { code: string; param?: string; headers?: Record<string, string> },
  ) {
    super(message);
    this.status = status;
    this.code = details.code;
    this.param = details.param ?? null;
    this.headers = { ...(RETRIED.includes(status) && { "retry-after": "1" }), ...details.headers };
  }

  toJSON(): object {
    const { message, code, param } = this;
    return { error: { message, type: ERROR_TYPES[this.status] ?? "invalid_request_error", param, code } };
  }
}

/** Answers to requests that may be sent once more as they are. */
const RETRIED = [429, 503];

const ERROR_TYPES: Record<number, string> = { 429: "rate_limit_error", 500: "server_error", 503: "server_error" };

export interface EmbeddingsRequest {
  texts: TextOrTokens[];
  kind: NonNullable<EmbedOptions["kind"]>;
  format: "float" | "base64";
  /** Fewer than the model's own; `undefined` for all. */
  dimensions: number | undefined;
  /** Whether texts beyond the token limit are cut; else they are an error. */
  truncation: boolean;
}

export interface RequestLimits {
  /** The name that requests call the model by. */
  model: string;
  dimension: number;
  /** Token ids are below it. */
  vocabularySize: number;
  /** Whether vectors may be cut to what a request's `dimensions` says. */
  isMatryoshka: boolean;
  maxBatch: number;
}

/** Other services' words for the kind of the texts: Voyage and NIM, Cohere. OpenAI has none: all texts are documents. */
const INPUT_TYPES: Record<string, EmbeddingsRequest["kind"]> = {
  query: "query",
  document: "document",
  passage: "document",
  search_query: "query",
  search_document: "document",
};

const FIELDS = ["input", "model", "encoding_format", "dimensions", "user", "input_type", "truncation"];

/**
 * A request's body, checked.
 *
 * @throws ApiError 400, 404 for another model, 413 for too many texts
 */
export function parseEmbeddingsRequest(body: unknown, limits: RequestLimits): EmbeddingsRequest {
  if (typeof body !== "object" || body === null || Array.isArray(body)) {
    throw new ApiError(400, "the body must be a JSON object with input and model", { code: "invalid_value" });
  }
  const unknown = Object.keys(body).find((name) => !FIELDS.includes(name));
  if (unknown !== undefined) {
    throw new ApiError(400, `unknown field ${JSON.stringify(unknown)} (known: ${FIELDS.join(", ")})`, {
      param: unknown,
      code: "unknown_parameter",
    });
  }
  const { model, input, encoding_format, dimensions, input_type, truncation } = body as Record<string, unknown>;
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

/** @throws ApiError 404 */
export function checkModel(model: unknown, served: string): void {
  if (typeof model !== "string" || model === "") throw expected("model", `the name of the model, "${served}"`, model);
  if (model === served) return;
  throw new ApiError(404, `the model ${JSON.stringify(model)} is not served here; this server has "${served}"`, {
    param: "model",
    code: "model_not_found",
  });
}

/** OpenAI takes a text, several, the token ids of a text, or those of several. */
function parseInput(input: unknown, { vocabularySize, maxBatch }: RequestLimits): TextOrTokens[] {
  if (typeof input === "string") return [input];
  if (!Array.isArray(input)) throw expected("input", "a string, an array of strings or arrays of token ids", input);
  if (input.length === 0) throw expected("input", "at least one text", input);
  const [first] = input;
  if (typeof first === "number") return [parseTokens("input", input, vocabularySize)];
  if (input.length > maxBatch) {
    throw new ApiError(
      413,
      `input: ${input.length} texts in one request; this server takes ${maxBatch} (--max-batch)`,
      {
        param: "input",
        code: "batch_too_large",
      },
    );
  }
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

/** @param what Where they stand in the request */
function parseTokens(what: string, tokens: readonly unknown[], vocabularySize: number): Uint32Array {
  if (tokens.length === 0) throw expected(what, "at least one token id", tokens, "input");
  const isId = (token: unknown) =>
    Number.isInteger(token) && (token as number) >= 0 && (token as number) < vocabularySize;
  const place = tokens.findIndex((token) => !isId(token));
  if (place < 0) return Uint32Array.from(tokens as number[]);
  const expectation = `a token id of the model that is served, a whole number from 0 to ${vocabularySize - 1}`;
  throw new ApiError(
    400,
    `${what}[${place}]: expected ${expectation}, found ${describeValue(tokens[place])}; token ids differ from model to ` +
      "model, and LangChain's OpenAIEmbeddings sends those of another one unless it has check_embedding_ctx_length=False",
    { param: "input", code: "invalid_value" },
  );
}

function parseDimensions(dimensions: unknown, { dimension, isMatryoshka }: RequestLimits): number | undefined {
  if (dimensions === undefined || dimensions === null || dimensions === dimension) return undefined;
  if (!Number.isInteger(dimensions) || (dimensions as number) < 1 || (dimensions as number) > dimension) {
    throw expected("dimensions", `a whole number from 1 to ${dimension}`, dimensions);
  }
  if (isMatryoshka) return dimensions as number;
  throw new ApiError(
    400,
    `dimensions: this server gives vectors of ${dimension} components; to cut those of a model that was trained for ` +
      "it (Matryoshka), start the server with --matryoshka",
    { param: "dimensions", code: "dimensions_not_supported" },
  );
}

function expected(what: string, expectation: string, found: unknown, param = what): ApiError {
  return new ApiError(400, `${what}: expected ${expectation}, found ${describeValue(found)}`, {
    param,
    code: "invalid_value",
  });
}

/** Vectors turned into text at a time: the event loop must not wait for two thousand of them. */
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

/** Little-endian float32, as every platform of this package has it in memory. */
function base64({ buffer, byteOffset, byteLength }: Float32Array): string {
  return Buffer.from(buffer, byteOffset, byteLength).toString("base64");
}
