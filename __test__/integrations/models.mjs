/** What the tests of the integrations share: texts, and models with random weights. */

import { after } from "node:test";
import { api, model } from "../support/models.mjs";

export { assertClose, embedderError, temporaryFolder } from "../support/models.mjs";

export const TEXTS = ["def parse(value): return int(value)", "日本語 🚀", "where are tokens validated?", "the time"];
export const QUERY = "where is a number read from a string?";
/** Longer than any limit of the models here. */
export const LONG_TEXT = "word ".repeat(2000);

/** One with different prompts for queries and documents. It is closed when the tests of the file are done. */
export async function loadEmbedder(options = {}) {
  return closedAfterwards(await api.Embedder.load(await model("nomic_mean_dynamic"), options));
}

export async function loadReranker() {
  return closedAfterwards(await api.Reranker.load(await model("rerankers/bert")));
}

function closedAfterwards(loaded) {
  after(() => loaded.close());
  return loaded;
}

/** Vectors of documents as arrays of numbers. */
export const documentVectors = async (embedder, texts) => arrays(await embedder.embed(texts));

/** Vectors of queries as arrays of numbers. */
export const queryVectors = async (embedder, texts) => arrays(await embedder.embed(texts, { kind: "query" }));

const arrays = (vectors) => vectors.map((vector) => Array.from(vector));

/** The texts by the cosine of their vectors to that of a query, the nearest first. */
export async function nearest(embedder, texts, query) {
  const [target] = await queryVectors(embedder, [query]);
  const vectors = await documentVectors(embedder, texts);
  const found = texts.map((text, index) => ({
    text,
    cosine: vectors[index].reduce((sum, x, i) => sum + x * target[i], 0),
  }));
  return found.sort((a, b) => b.cosine - a.cosine);
}
