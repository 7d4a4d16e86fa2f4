/** Requests and answers of `POST /rerank`: those of text-embeddings-inference, and those that Cohere and Jina share. */

import type { RankedText } from "../embedder.js";
import { checkBatch, checkModel, expected, fieldsOf } from "./request.js";

export interface RerankRequest {
  query: string;
  texts: string[];
  /** As text-embeddings-inference: `texts`, and an array as the answer. Otherwise `documents`, and an object. */
  isPlain: boolean;
  /** How many results are wanted. */
  topN: number | undefined;
  /** Whether results contain their texts. */
  withTexts: boolean;
  /** Whether scores are the numbers that the model gives; otherwise they are between 0 and 1. */
  isRaw: boolean;
  /** Whether texts beyond the token limit are truncated; otherwise they are an error. */
  truncation: boolean;
}

const FIELDS = [
  ...["query", "documents", "texts", "model", "top_n", "return_documents", "return_text", "raw_scores"],
  ...["truncation", "truncate", "user"],
];

/**
 * Checks the body of a request.
 *
 * @param served The model's name in requests, which may leave it out.
 * @throws ApiError 400, 404 for another model, 413 for too many texts
 */
export function parseRerankRequest(body: unknown, served: string, maxBatch: number): RerankRequest {
  const fields = fieldsOf(body, FIELDS, "query and documents (or texts)");
  const { query, documents, texts, model, top_n: topN } = fields;
  if (model !== undefined) checkModel(model, [served]);
  if (typeof query !== "string") throw expected("query", "a string", query);
  const isPlain = documents === undefined;
  if (!isPlain && texts !== undefined) throw expected("texts", "either documents or texts", texts);
  const name = isPlain ? "texts" : "documents";
  if (topN !== undefined && topN !== null && !(Number.isInteger(topN) && (topN as number) >= 1)) {
    throw expected("top_n", "a whole number of at least 1", topN);
  }
  const flag = (names: string[], otherwise: boolean) => {
    const [given] = names.filter((name) => fields[name] !== undefined && fields[name] !== null);
    if (given === undefined) return otherwise;
    const value = fields[given];
    if (typeof value === "boolean") return value;
    throw expected(given, "true or false", value);
  };
  return {
    query,
    texts: parseTexts(name, isPlain ? texts : documents, maxBatch),
    isPlain,
    topN: (topN ?? undefined) as number | undefined,
    withTexts: flag(["return_documents", "return_text"], false),
    isRaw: flag(["raw_scores"], false),
    truncation: flag(["truncation", "truncate"], true),
  };
}

/** Strings, or objects with a `text`. */
function parseTexts(name: string, texts: unknown, maxBatch: number): string[] {
  if (!Array.isArray(texts)) throw expected(name, "an array of strings", texts);
  if (texts.length === 0) throw expected(name, "at least one text", texts);
  checkBatch(name, texts.length, maxBatch);
  return texts.map((text: unknown, index) => {
    const content = typeof text === "object" && text !== null ? (text as { text?: unknown }).text : text;
    if (typeof content === "string") return content;
    throw expected(`${name}[${index}]`, 'a string or an object with a string "text"', text, name);
  });
}

/** The answer, best text first. */
export function rerankResponse(
  ranked: readonly RankedText[],
  { texts, isPlain, withTexts }: RerankRequest,
  model: string,
  tokens: number,
): object {
  if (isPlain) {
    return ranked.map(({ index, score }) => ({ index, score, ...(withTexts && { text: texts[index] }) }));
  }
  const results = ranked.map(({ index, score }) => ({
    index,
    relevance_score: score,
    ...(withTexts && { document: { text: texts[index] } }),
  }));
  return { object: "list", model, results, usage: { prompt_tokens: tokens, total_tokens: tokens } };
}
