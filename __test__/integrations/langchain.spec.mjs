/** LangChain.js: its vector store and its retriever with a compressor. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { ContextualCompressionRetriever } from "@langchain/classic/retrievers/contextual_compression";
import { MemoryVectorStore } from "@langchain/classic/vectorstores/memory";
import { Document } from "@langchain/core/documents";
import { BaseDocumentCompressor } from "@langchain/core/retrievers/document_compressors";
import { documentCompressor, embeddings } from "semantic-search-native/langchain";
import {
  documentVectors,
  embedderError,
  loadEmbedder,
  loadReranker,
  nearest,
  QUERY,
  queryVectors,
  TEXTS,
} from "./models.mjs";

const embedder = await loadEmbedder();
const reranker = await loadReranker();
const metadata = TEXTS.map((_, index) => ({ source: `file ${index}` }));

test("a vector store holds the vectors of documents, and is searched with those of queries", async () => {
  const store = await MemoryVectorStore.fromTexts(TEXTS, metadata, embeddings(embedder));
  assert.deepEqual(
    store.memoryVectors.map(({ embedding }) => embedding),
    await documentVectors(embedder, TEXTS),
  );
  const found = await store.similaritySearchWithScore(QUERY, TEXTS.length);
  const expected = await nearest(embedder, TEXTS, QUERY);
  assert.deepEqual(
    found.map(([{ pageContent }]) => pageContent),
    expected.map(({ text }) => text),
  );
  for (const [index, [, score]] of found.entries()) assert.ok(Math.abs(score - expected[index].cosine) < 1e-6);
  const [query] = await queryVectors(embedder, [QUERY]);
  assert.deepEqual(await embeddings(embedder).embedQuery(QUERY), query);
  assert.notDeepEqual(await embeddings(embedder).embedDocuments([QUERY]), [query], "the prompts differ");
});

test("a retriever sorts what it found by the reranker's scores", async () => {
  const store = await MemoryVectorStore.fromTexts(TEXTS, metadata, embeddings(embedder));
  for (const options of [undefined, { topK: 2, activation: "none" }]) {
    const baseCompressor = documentCompressor(reranker, options);
    assert.ok(BaseDocumentCompressor.isBaseDocumentCompressor(baseCompressor));
    const baseRetriever = store.asRetriever(TEXTS.length);
    const documents = await new ContextualCompressionRetriever({ baseCompressor, baseRetriever }).invoke(QUERY);
    const ranked = await reranker.rank(QUERY, TEXTS, options);
    const expected = ranked.map(({ index, score }) => [TEXTS[index], { ...metadata[index], relevanceScore: score }]);
    assert.deepEqual(
      documents.map(({ pageContent, metadata }) => [pageContent, metadata]),
      expected,
    );
  }
});

test("documents that are given to the compressor stay as they are", async () => {
  const documents = [new Document({ pageContent: TEXTS[0], metadata: { page: 1 }, id: "a" })];
  const [compressed] = await documentCompressor(reranker).compressDocuments(documents, QUERY);
  assert.deepEqual(documents[0].metadata, { page: 1 });
  assert.deepEqual([compressed.id, compressed.metadata.page], ["a", 1]);
  assert.deepEqual(await documentCompressor(reranker).compressDocuments([], QUERY), []);
});

test("errors are ours", async () => {
  await assert.rejects(embeddings(embedder).embedDocuments(["a", 1]), embedderError("INVALID_ARGUMENT", "texts[1]"));
  await assert.rejects(embeddings(embedder).embedQuery(null), embedderError("INVALID_ARGUMENT", "text"));
  const compressor = documentCompressor(reranker, { topN: 2 });
  await assert.rejects(compressor.compressDocuments([], QUERY), embedderError("INVALID_ARGUMENT", "topN"));
});
