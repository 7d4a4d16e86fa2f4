/** Vercel's AI SDK, both versions whose specification the models have. */

import assert from "node:assert/strict";
import { test } from "node:test";
import * as ai7 from "ai";
import * as ai6 from "ai-6";
import { embeddingModel, rerankingModel } from "semantic-search-native/ai-sdk";
import {
  documentVectors,
  embedderError,
  LONG_TEXT,
  loadEmbedder,
  loadReranker,
  QUERY,
  queryVectors,
  TEXTS,
} from "./models.mjs";

// What it logs is in the results as well.
globalThis.AI_SDK_LOG_WARNINGS = false;

const embedder = await loadEmbedder();
const reranker = await loadReranker();
const forQueries = { "semantic-search-native": { kind: "query" } };

/** @param {AbortSignal} signal */
const isAbort = (signal) => (error) => error.name === "AbortError" && error.code === "ABORT_ERR" && !!signal.aborted;

for (const [name, { cosineSimilarity, embed, embedMany, rerank }] of Object.entries({ ai7, ai6 })) {
  test(`${name}: embedMany gives the vectors of documents and their tokens`, async () => {
    const { embeddings, usage, warnings } = await embedMany({ model: embeddingModel(embedder), values: TEXTS });
    let tokens;
    await embedder.embed(TEXTS, { onProgress: (progress) => (tokens = progress.tokens) });
    assert.deepEqual(embeddings, await documentVectors(embedder, TEXTS));
    assert.deepEqual([usage.tokens, warnings], [tokens, []]);
    assert.ok(Math.abs(cosineSimilarity(embeddings[0], embeddings[0]) - 1) < 1e-6);
  });

  test(`${name}: a query is a model of its own, or an option of the call`, async () => {
    const [expected] = await queryVectors(embedder, [QUERY]);
    const own = await embed({ model: embeddingModel(embedder, { kind: "query" }), value: QUERY });
    const option = await embed({ model: embeddingModel(embedder), value: QUERY, providerOptions: forQueries });
    assert.deepEqual([own.embedding, option.embedding], [expected, expected]);
    const { embedding } = await embed({ model: embeddingModel(embedder), value: QUERY });
    assert.notDeepEqual(embedding, expected, "the prompts differ");
  });

  test(`${name}: rerank sorts texts and objects`, async () => {
    const model = rerankingModel(reranker);
    for (const topN of [undefined, 2]) {
      const { ranking, rerankedDocuments } = await rerank({ model, documents: TEXTS, query: QUERY, topN });
      const expected = await reranker.rank(QUERY, TEXTS, topN === undefined ? {} : { topK: topN });
      assert.deepEqual(
        ranking.map(({ originalIndex, score }) => ({ index: originalIndex, score })),
        expected,
      );
      assert.deepEqual(
        rerankedDocuments,
        expected.map(({ index }) => TEXTS[index]),
      );
    }
    const objects = TEXTS.map((text, page) => ({ text, page }));
    const { ranking } = await rerank({ model, documents: objects, query: QUERY });
    const texts = objects.map((one) => JSON.stringify(one));
    assert.deepEqual(
      ranking.map(({ originalIndex, score }) => ({ index: originalIndex, score })),
      await reranker.rank(QUERY, texts),
    );
    const raw = { "semantic-search-native": { activation: "none" } };
    const logits = await rerank({ model, documents: TEXTS, query: QUERY, providerOptions: raw });
    const [best] = await reranker.rank(QUERY, TEXTS, { activation: "none" });
    assert.equal(logits.ranking[0].score, best.score);
    assert.deepEqual((await rerank({ model, documents: [], query: QUERY })).ranking, []);
  });

  test(`${name}: what was truncated is a warning`, async () => {
    const model = embeddingModel(embedder);
    const { warnings } = await embedMany({ model, values: ["a", LONG_TEXT] });
    assert.deepEqual(warnings, [
      { type: "other", message: `truncated to ${embedder.maxTokens} tokens: 1 of the values (1)` },
    ]);
  });

  test(`${name}: an aborted call rejects with our AbortError`, async () => {
    const abortSignal = AbortSignal.abort();
    const embedding = embedMany({ model: embeddingModel(embedder), values: TEXTS, abortSignal });
    await assert.rejects(embedding, isAbort(abortSignal));
    const reranking = rerank({ model: rerankingModel(reranker), documents: TEXTS, query: QUERY, abortSignal });
    await assert.rejects(reranking, isAbort(abortSignal));
  });

  test(`${name}: errors are ours, and misspelt options are named`, async () => {
    const misspelt = { "semantic-search-native": { kid: "query" } };
    await assert.rejects(
      embed({ model: embeddingModel(embedder), value: QUERY, providerOptions: misspelt }),
      embedderError("INVALID_ARGUMENT", "kid"),
    );
    await assert.rejects(
      rerank({ model: rerankingModel(reranker), documents: TEXTS, query: QUERY, providerOptions: misspelt }),
      embedderError("INVALID_ARGUMENT", "kid"),
    );
    const closed = await loadEmbedder();
    await closed.close();
    await assert.rejects(embed({ model: embeddingModel(closed), value: QUERY }), embedderError("CLOSED"));
  });
}

test("ai7: other dimensions than the embedder's are a warning", async () => {
  const model = embeddingModel(embedder);
  const { embedding, warnings } = await ai7.embed({ model, value: QUERY, dimensions: 8 });
  assert.equal(embedding.length, embedder.dimension);
  assert.deepEqual(
    warnings.map(({ type, feature }) => [type, feature]),
    [["unsupported", "dimensions"]],
  );
  const same = await ai7.embed({ model, value: QUERY, dimensions: embedder.dimension });
  assert.deepEqual(same.warnings, []);
});

test("warnings about reranked documents reach whoever calls the model", async () => {
  const documents = { type: "object", values: [{ text: LONG_TEXT }, { text: "a" }] };
  const { warnings } = await rerankingModel(reranker).doRerank({ query: QUERY, documents });
  assert.deepEqual(
    warnings.map(({ type, feature, message }) => [type, feature ?? message]),
    [
      ["compatibility", "object documents"],
      ["other", `truncated to ${reranker.maxTokens} tokens: 1 of the documents (0)`],
    ],
  );
});
