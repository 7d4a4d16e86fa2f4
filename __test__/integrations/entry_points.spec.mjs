/** The integrations as a user's TypeScript has them, and by `require`. */

import assert from "node:assert/strict";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { ROOT, temporaryFolder } from "../support/models.mjs";
import { runNode } from "../support/processes.mjs";

const PACKAGES = fileURLToPath(new URL("node_modules", import.meta.url));

test("require gives what import gives", async () => {
  const require = createRequire(import.meta.url);
  for (const name of ["ai-sdk", "chromadb", "lancedb", "langchain"]) {
    const subpath = `semantic-search-native/${name}`;
    const { default: required, ...imported } = await import(subpath);
    assert.deepEqual(Object.keys(required), Object.keys(require(subpath)));
    for (const [key, value] of Object.entries(require(subpath))) assert.equal(imported[key], value, key);
  }
});

const USE = `
import * as lancedb from "@lancedb/lancedb";
import { MemoryVectorStore } from "@langchain/classic/vectorstores/memory";
import { ContextualCompressionRetriever } from "@langchain/classic/retrievers/contextual_compression";
import type { EmbeddingsInterface } from "@langchain/core/embeddings";
import type { BaseDocumentCompressor } from "@langchain/core/retrievers/document_compressors";
import { embed, embedMany, type EmbeddingModel, rerank, type RerankingModel } from "ai";
import type { EmbeddingModel as EmbeddingModel6, RerankingModel as RerankingModel6 } from "ai-6";
import { ChromaClient, type EmbeddingFunction } from "chromadb";
import { Embedder, Reranker } from "semantic-search-native";
import { embeddingModel, rerankingModel } from "semantic-search-native/ai-sdk";
import { embeddingFunction } from "semantic-search-native/chromadb";
import { registerEmbedder } from "semantic-search-native/lancedb";
import { documentCompressor, embeddings } from "semantic-search-native/langchain";

export async function use(texts: string[]): Promise<void> {
  const embedder = await Embedder.load("model");
  const reranker = await Reranker.load("model");

  const models: [EmbeddingModel, EmbeddingModel6] = [embeddingModel(embedder), embeddingModel(embedder, { kind: "query" })];
  const rerankers: [RerankingModel, RerankingModel6] = [rerankingModel(reranker), rerankingModel(reranker, { activation: "none" })];
  await embedMany({ model: embeddingModel(embedder), values: texts });
  await embed({ model: models[0], value: "a", providerOptions: { "semantic-search-native": { kind: "query" } } });
  await rerank({ model: rerankers[0], query: "a", documents: texts });
  // @ts-expect-error a kind that does not exist
  embeddingModel(embedder, { kind: "code" });

  const interfaces: [EmbeddingsInterface, BaseDocumentCompressor] = [embeddings(embedder), documentCompressor(reranker)];
  const store = await MemoryVectorStore.fromTexts(texts, [], embeddings(embedder));
  const baseCompressor = documentCompressor(reranker, { topK: 3 });
  new ContextualCompressionRetriever({ baseCompressor, baseRetriever: store.asRetriever() });
  // @ts-expect-error an option of another library
  documentCompressor(reranker, { topN: 3 });

  const chroma: EmbeddingFunction = embeddingFunction(embedder);
  await new ChromaClient().createCollection({ name: "a", embeddingFunction: chroma });

  const lance: lancedb.embedding.TextEmbeddingFunction = registerEmbedder(lancedb.embedding, embedder, "a");
  lancedb.embedding.LanceSchema({ text: lance.sourceField(), vector: lance.vectorField() });
  // @ts-expect-error not an embedder
  registerEmbedder(lancedb.embedding, reranker);
  console.log(interfaces, models, rerankers);
}
`;

for (const extension of ["mts", "cts"]) {
  test(`types compile strictly in a .${extension} file, with those of the libraries`, async () => {
    const user = temporaryFolder();
    const modules = path.join(user, "node_modules");
    mkdirSync(modules);
    for (const name of ["@lancedb", "@langchain", "ai", "ai-6", "chromadb", "semantic-search-native"]) {
      symlinkSync(path.join(PACKAGES, name), path.join(modules, name), "junction");
    }
    symlinkSync(path.join(ROOT, "node_modules/@types"), path.join(modules, "@types"), "junction");
    writeFileSync(path.join(user, `use.${extension}`), USE);
    const compilerOptions = {
      module: "node20",
      target: "es2022",
      strict: true,
      exactOptionalPropertyTypes: true,
      noEmit: true,
      types: ["node"],
      // The libraries' own do not pass.
      skipLibCheck: true,
    };
    writeFileSync(path.join(user, "tsconfig.json"), JSON.stringify({ compilerOptions, files: [`use.${extension}`] }));
    const tsc = path.join(ROOT, "node_modules/typescript/bin/tsc");
    const { stdout, status } = await runNode([tsc, "-p", user]);
    assert.equal(status, 0, stdout);
  });
}
