/** Rerankers by name. No test reaches the real Hub. */

import assert from "node:assert/strict";
import * as path from "node:path";
import { test } from "node:test";
import { hubWith, ID, tree } from "./support/hub.mjs";
import { filesIn } from "./support/hub_server.mjs";
import { api, embedderError, model, ROOT } from "./support/models.mjs";

const FILES = filesIn(path.join(ROOT, "tests/fixtures/rerankers/bert"));
const NO_POOLING = { "1_Pooling/config.json": null };

const config = (changes) => ({
  "config.json": Buffer.from(JSON.stringify({ ...JSON.parse(FILES["config.json"]), ...changes })),
});

async function load(t, { hub, options }, { Class = api.Reranker, ...loadOptions } = {}) {
  Object.assign(process.env, { HF_ENDPOINT: hub.endpoint, HF_HUB_CACHE: options.cacheFolder });
  t.after(() => {
    delete process.env.HF_ENDPOINT;
    delete process.env.HF_HUB_CACHE;
  });
  return Class.load(ID, loadOptions);
}

test("a reranker loaded by name scores like its folder, and then loads offline", async (t) => {
  const server = await hubWith({ ...FILES, ...NO_POOLING });
  const scores = async (reranker) => {
    const result = await reranker.score("a query", ["the time", "where is it?"]);
    await reranker.close();
    return result;
  };
  const expected = await scores(await api.Reranker.load(await model("rerankers/bert"), { backend: "onnx" }));
  assert.deepEqual(await scores(await load(t, server, { backend: "onnx" })), expected);
  server.hub.close();
  assert.deepEqual(await scores(await load(t, server, { backend: "onnx", offline: true })), expected);
});

test("a language model's chat template and its module are downloaded", async (t) => {
  const server = await hubWith({ ...filesIn(path.join(ROOT, "tests/fixtures/rerankers/qwen3")), ...NO_POOLING });
  const loaded = await load(t, server, { backend: "onnx" });
  const folder = await api.Reranker.load(await model("rerankers/qwen3"), { backend: "onnx" });
  assert.equal(loaded.fingerprint, folder.fingerprint);
  await Promise.all([loaded.close(), folder.close()]);
});

test("a classifier is refused before its weights are downloaded", async (t) => {
  const labels = { id2label: { 0: "no", 1: "yes" } };
  const server = await hubWith({ ...FILES, ...NO_POOLING, ...config(labels) });
  await assert.rejects(load(t, server, { backend: "onnx" }), embedderError("MODEL_UNSUPPORTED", "num_labels = 2"));
  assert.ok(!(await tree(server.options.cacheFolder)).some((file) => file.endsWith("model.safetensors")));
});

test("an embedder whose config.json names a classifier is still an embedder if it has a pooling", async (t) => {
  const bert = JSON.parse(filesIn(path.join(ROOT, "tests/fixtures/bert_mean"))["config.json"]);
  const mislabeled = { ...bert, architectures: ["BertForSequenceClassification"] };
  const server = await hubWith({ "config.json": Buffer.from(JSON.stringify(mislabeled)) });
  const embedder = await load(t, server, { Class: api.Embedder, backend: "onnx" });
  assert.equal((await embedder.embed(["the time"])).length, 1);
  await embedder.close();
});
