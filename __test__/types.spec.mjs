/** The package's types, as a strict TypeScript user sees them from ES modules and from CommonJS. */

import assert from "node:assert/strict";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { ROOT, temporaryFolder } from "./support/models.mjs";
import { runNode } from "./support/processes.mjs";

const USE = `
import { type Activation, Embedder, EmbedderError, embed, exportOnnx, init, isGpu, type EmbedderErrorCode, pull, KNOWN_MODELS, type EmbedOptions, type Encoding, type KnownModel, type LoadOptions, type PullOptions, type PullProgress, type RankedText, type RankOptions, Reranker, type RerankerInfo, type TextOrTokens } from "semantic-search-native";
import { type EmbeddingModel, embeddingModel, rerankingModel } from "semantic-search-native/ai-sdk";
import { embeddingFunction } from "semantic-search-native/chromadb";
import { type EmbeddingModule, registerEmbedder } from "semantic-search-native/lancedb";
import { documentCompressor, embeddings } from "semantic-search-native/langchain";

export async function use(lancedb: EmbeddingModule<{ ndims(): number }>): Promise<void> {
  const options: LoadOptions = { backend: "onnx-js", pooling: "cls", maxTokens: 128, normalize: true, dtype: "f32" };
  await using embedder = await Embedder.load("model", options);
  const onTruncated = (indices: Uint32Array) => void indices.length;
  const settings: EmbedOptions = { kind: "query", onTruncated };
  const vectors: Float32Array[] = await embedder.embed(["a"] as const, settings);
  const same: Float32Array[] = await embedder.embed(["a"], true);
  const query: Float32Array = await embedder.embedQuery("a");
  const bytes: Int8Array[] = await embedder.embed(["a"], { encoding: "int8", kind: "query" });
  const bits: Uint8Array = await embedder.embedQuery("a", { encoding: "binary", onTruncated });
  for await (const { vector } of embedder.stream(["a"], { encoding: "int8" })) bytes.push(vector);
  for await (const { vector } of embedder.stream(["a"])) vectors.push(vector);
  const mixed: TextOrTokens[] = ["a", Uint32Array.of(1, 2)];
  vectors.push(...(await embedder.embed(mixed)), await embedder.embedQuery(Uint32Array.of(1)), ...embed(mixed));
  for await (const { vector } of embedder.stream(mixed)) vectors.push(vector);
  const chosen = "int8" as Encoding;
  const any: (Float32Array | Int8Array | Uint8Array)[] = await embedder.embed(["a"], { encoding: chosen });
  const smaller = await Embedder.load("model", { dimensions: 256, layerNorm: true });
  const backend: "mlx" | "webgpu" | "onnx" | "cpu" | "onnx-js" = embedder.backend;
  const reason: string | null = embedder.fallbackReason;
  const count: number = embedder.dimension + embedder.maxTokens + embedder.vocabularySize + embedder.truncatedTexts + vectors.length + same.length + query.length;
  init("model", { maxTokens: 1 });
  const rows: Float32Array[] = embed(["a"], false);
  const file: Promise<string> = exportOnnx("model");
  const onProgress = ({ file, done, total }: PullProgress) => void (done / total < 1 && file.length);
  const from: PullOptions = { revision: "main", token: false, offline: true, onnx: true, onProgress };
  const folder: string = await pull("org/name", from);
  await Embedder.load("org/name@main", { offline: true, onProgress });
  await using reranker = await Reranker.load("model", { activation: "sigmoid", maxTokens: 512 });
  const rankOptions: RankOptions = { topK: 3, activation: "none" };
  const ranked: RankedText[] = await reranker.rank("a", ["b"], rankOptions);
  const scores: Float32Array = await reranker.score("a", ["b"] as const, { onTruncated });
  const info: RerankerInfo = await reranker.info();
  const activation: Activation = info.activation;
  console.log(ranked, scores, activation);
  const embeddingModels: EmbeddingModel[] = [embeddingModel(embedder), embeddingModel(embedder, { kind: "query" })];
  const dimensions: number = registerEmbedder(lancedb, embedder).ndims();
  console.log(embeddingModels, dimensions, rerankingModel(reranker), embeddingFunction(embedder), embeddings(embedder), documentCompressor(reranker, rankOptions));
  // @ts-expect-error an option about vectors
  await Reranker.load("model", { pooling: "cls" });
  // @ts-expect-error an option of rank
  await reranker.score("a", ["b"], { topK: 1 });
  const known: KnownModel | undefined = KNOWN_MODELS.find(({ id }) => id === folder);
  const width: number | undefined = known?.task === "embed" ? known.dimension : undefined;
  const code: EmbedderErrorCode = new EmbedderError("CLOSED", "closed").code;
  console.log(known, width, backend, reason, count, rows, file, code, isGpu(), embedder.pooling.includes("mean"), bytes, bits, any, smaller);
  // @ts-expect-error a misspelt option
  await Embedder.load("model", { maxToken: 1 });
  // @ts-expect-error a value that is none of the known ones
  await Embedder.load("model", { pooling: "median" });
  // @ts-expect-error the vectors are float32 unless an encoding says otherwise
  const floats: Int8Array[] = await embedder.embed(["a"], { kind: "query" });
  // @ts-expect-error the vectors are bits
  const signs: Int8Array = await embedder.embedQuery("a", { encoding: "binary" });
  // @ts-expect-error an encoding that does not exist
  await embedder.embed(["a"], { encoding: "int4" });
  // @ts-expect-error a query has its kind
  await embedder.embedQuery("a", { kind: "document" });
  // @ts-expect-error a token is a text, or false for none
  await pull("org/name", { token: true });
  // @ts-expect-error a reranker has no vectors
  known?.dimension;
  // @ts-expect-error the table is for reading
  KNOWN_MODELS.push(...KNOWN_MODELS);
  // @ts-expect-error ids are unsigned integers of 32 bits
  await embedder.embed([[1, 2]]);
  // @ts-expect-error not an array
  await embedder.embed("a");
  // @ts-expect-error the fallback cannot be synchronous
  init("model", { backend: "onnx-js" });
}
`;

for (const extension of ["mts", "cts"]) {
  test(`types compile in a .${extension} file, strictly and with the library's declarations checked`, async () => {
    const user = temporaryFolder();
    mkdirSync(path.join(user, "node_modules"));
    symlinkSync(ROOT, path.join(user, "node_modules/semantic-search-native"), "junction");
    symlinkSync(path.join(ROOT, "node_modules/@types"), path.join(user, "node_modules/@types"), "junction");
    writeFileSync(path.join(user, `use.${extension}`), USE);
    const compilerOptions = {
      module: "node16",
      target: "es2022",
      strict: true,
      exactOptionalPropertyTypes: true,
      noEmit: true,
      types: ["node"],
    };
    writeFileSync(path.join(user, "tsconfig.json"), JSON.stringify({ compilerOptions, files: [`use.${extension}`] }));
    const tsc = path.join(ROOT, "node_modules/typescript/bin/tsc");
    const { stdout, status } = await runNode([tsc, "-p", user]);
    assert.equal(status, 0, stdout);
  });
}
