/** `Embedder.load` with a model's name, and the table of known models. No test reaches the real Hub. */

import assert from "node:assert/strict";
import { mkdirSync, readFileSync, realpathSync, renameSync, rmSync, symlinkSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { hubWith, ID, tree, WEIGHTS } from "./support/hub.mjs";
import { COMMIT, sendUntil } from "./support/hub_server.mjs";
import { api, changedModel, embedderError, model, temporaryFolder, withEmbedder } from "./support/models.mjs";

const { Embedder, KNOWN_MODELS } = api;

/** What `architecture` of a known model may be. */
const ARCHITECTURES = [
  ...["nomic_bert", "bert", "xlm-roberta", "roberta", "mpnet", "modernbert", "new", "gte"],
  ...["qwen3", "qwen2", "gemma3_text", "model2vec", "static"],
];

const TEXTS = ["the time", "where is it?"];

/** Loads in this process with the environment leading to `hub`. */
async function byName(t, { hub, options }, name, loadOptions, use) {
  Object.assign(process.env, { HF_ENDPOINT: hub.endpoint, HF_HUB_CACHE: options.cacheFolder });
  t.after(() => {
    delete process.env.HF_ENDPOINT;
    delete process.env.HF_HUB_CACHE;
  });
  return withEmbedder(name, loadOptions, use);
}
const identity = async (embedder) => ({
  fingerprint: embedder.fingerprint,
  documents: await embedder.embed(TEXTS),
  query: await embedder.embedQuery(TEXTS[1]),
});

test("a model loaded by name gives the folder's vectors, reports progress, and then loads offline", async (t) => {
  const server = await hubWith();
  const reports = [];
  const onProgress = (progress) => reports.push(progress);
  const named = await byName(t, server, ID, { backend: "onnx", onProgress }, identity);
  assert.deepEqual(named, await withEmbedder(await model("bert_mean"), { backend: "onnx" }, identity));
  assert.equal(reports.at(-1).done, reports.at(-1).total);
  server.hub.close();
  assert.deepEqual(await byName(t, server, `${ID}@${COMMIT}`, { backend: "onnx", offline: true }, identity), named);
});

test("by name, the fallback downloads the ONNX graph and not model.safetensors", async (t) => {
  const folder = await model("bert_mean");
  // The exported graph with its weights under the name that exports on the Hub give them, which is as long.
  const graph = readFileSync(path.join(folder, "semantic-search-native.onnx")).toString("latin1");
  const renamed = Buffer.from(graph.replaceAll("model.safetensors", "model.onnx_data_1"), "latin1");
  const server = await hubWith({
    "onnx/model.onnx": renamed,
    "onnx/model.onnx_data": null,
    "onnx/model.onnx_data_1": WEIGHTS,
  });
  const named = await byName(t, server, ID, { backend: "onnx-js" }, identity);
  const { documents, query } = await withEmbedder(folder, { backend: "onnx-js" }, identity);
  assert.deepEqual([named.documents, named.query], [documents, query]);
  assert.ok(!tree(server.options.cacheFolder).some((name) => name.endsWith("model.safetensors")));

  await byName(t, server, ID, { backend: "onnx" }, async ({ backend }) => assert.equal(backend, "onnx"));
  await byName(t, server, ID, { backend: "onnx-js", offline: true }, async ({ backend }) =>
    assert.equal(backend, "onnx-js"),
  );
});

test("a graph that exportOnnx wrote into the snapshot serves the fallback", async (t) => {
  const server = await hubWith({ "onnx/model.onnx": null, "onnx/model.onnx_data": null });
  await assert.rejects(
    byName(t, server, ID, { backend: "onnx-js" }, identity),
    embedderError("MODEL_UNSUPPORTED", "has no ONNX file"),
  );
  const named = await byName(t, server, ID, { backend: "onnx" }, identity);
  await api.exportOnnx(ID);
  const fallback = await byName(t, server, ID, { backend: "onnx-js" }, identity);
  assert.equal(fallback.fingerprint, named.fingerprint);
});

test("exportOnnx: weights in the store that models share serve the fallback, too", async (t) => {
  const server = await hubWith({ "onnx/model.onnx": null, "onnx/model.onnx_data": null });
  const named = await byName(t, server, ID, { backend: "onnx" }, identity);
  const { cacheFolder } = server.options;
  const blob = realpathSync(path.join(cacheFolder, "models--org--model/snapshots", COMMIT, "model.safetensors"));
  const shared = path.join(cacheFolder, "blobs/ab", "ab".repeat(32));
  mkdirSync(path.dirname(shared), { recursive: true });
  renameSync(blob, shared);
  symlinkSync(path.relative(path.dirname(blob), shared), blob);
  await api.exportOnnx(ID);
  const fallback = await byName(t, server, ID, { backend: "onnx-js", offline: true }, identity);
  assert.equal(fallback.fingerprint, named.fingerprint);
});

test("exportOnnx: a blob that cannot be written is an error and leaves nothing in the snapshot", async (t) => {
  const server = await hubWith({ "onnx/model.onnx": null, "onnx/model.onnx_data": null });
  await byName(t, server, ID, { backend: "onnx" }, identity);
  const before = tree(server.options.cacheFolder);
  const graph = await api.exportOnnx(ID);
  const blob = realpathSync(graph);
  rmSync(graph);
  rmSync(blob);
  mkdirSync(blob);
  await assert.rejects(api.exportOnnx(ID), embedderError("MODEL_INVALID", blob, "cannot be written"));
  assert.deepEqual(tree(server.options.cacheFolder), before);
});

test("exportOnnx: weights that are a link out of their folder are an error; nothing is written where they are", async () => {
  const elsewhere = await changedModel("bert_mean", { "semantic-search-native.onnx": null });
  const folder = await changedModel("bert_mean", { "semantic-search-native.onnx": null, "model.safetensors": null });
  const weights = path.join(elsewhere, "model.safetensors");
  symlinkSync(weights, path.join(folder, "model.safetensors"));
  const before = [tree(folder), tree(elsewhere)];
  const refused = embedderError("MODEL_UNSUPPORTED", path.join(folder, "model.safetensors"), weights, "ONNX Runtime");
  for (const dtype of ["f32", "int8"]) await assert.rejects(api.exportOnnx(folder, { dtype }), refused);
  assert.deepEqual([tree(folder), tree(elsewhere)], before);
});

test("a known model is downloaded at its pinned commit, with its authors' prompts if the folder has none", async (t) => {
  const { id, revision, queryPrompt } = KNOWN_MODELS.find((known) => known.id === "BAAI/bge-small-en-v1.5");
  const withoutPrompts = Buffer.from(JSON.stringify({ __version__: {} }));
  const server = await hubWith({ "config_sentence_transformers.json": withoutPrompts }, { id, commit: revision });
  const changed = await byName(t, server, id.toLowerCase(), { backend: "onnx" }, identity);
  assert.ok(server.hub.requests[0].path.includes(revision));
  const snapshot = path.join(server.options.cacheFolder, "models--BAAI--bge-small-en-v1.5/snapshots", revision);
  const asFolder = (options) => withEmbedder(snapshot, { backend: "onnx", ...options }, identity);
  assert.deepEqual(changed, await asFolder({ queryPrompt, documentPrompt: "" }));
  const plain = await asFolder({});
  assert.notDeepEqual(changed.query, plain.query, "the prompt makes a difference");
  assert.deepEqual(changed.documents, plain.documents);
  assert.notEqual(changed.fingerprint, plain.fingerprint, "which the fingerprint tells");
  assert.deepEqual(
    await byName(t, server, id, { backend: "onnx", queryPrompt: "" }, identity),
    plain,
    "an option overrides",
  );
});

test("a folder's own prompts take precedence over those of KNOWN_MODELS", async (t) => {
  const { id, revision } = KNOWN_MODELS.find((known) => known.id === "intfloat/e5-small-v2");
  const own = Buffer.from(JSON.stringify({ prompts: { query: "ask: ", passage: "tell: " } }));
  const server = await hubWith({ "config_sentence_transformers.json": own }, { id, commit: revision });
  const named = await byName(t, server, id, { backend: "onnx" }, identity);
  const folder = path.join(server.options.cacheFolder, "models--intfloat--e5-small-v2/snapshots", revision);
  assert.deepEqual(named, await withEmbedder(folder, { backend: "onnx" }, identity));
});

test("a folder of that name takes precedence over the Hub", async (t) => {
  const { hub, options } = await hubWith();
  const parent = temporaryFolder();
  mkdirSync(path.join(parent, "org"));
  symlinkSync(await model("bert_mean"), path.join(parent, "org/model"), "junction");
  const back = process.cwd();
  t.after(() => process.chdir(back));
  process.chdir(parent);
  await byName(t, { hub, options }, ID, { backend: "onnx" }, async ({ dimension }) => assert.ok(dimension > 0));
  assert.deepEqual(hub.requests, []);
  await assert.rejects(Embedder.load("./org/other"), embedderError("MODEL_NOT_FOUND", path.join("org", "other")));
  await assert.rejects(
    byName(t, { hub, options }, "org/other", { backend: "onnx" }, identity),
    embedderError("MODEL_NOT_FOUND", "no model org/other", "./org/other"),
  );
});

test("loading by name can be aborted during the download", async (t) => {
  const server = await hubWith();
  const controller = new AbortController();
  server.hub.fault(
    "cdn",
    /safetensors/,
    sendUntil(100_000, () => controller.abort("enough")),
  );
  await assert.rejects(
    byName(t, server, ID, { backend: "onnx", signal: controller.signal }, identity),
    (error) => error.name === "AbortError" && error.cause === "enough",
  );
});

test("the synchronous init takes folders only", () => {
  assert.throws(() => api.init(ID), embedderError("MODEL_NOT_FOUND", "no folder org/model", "pull"));
});

test("KNOWN_MODELS is well-formed and frozen", () => {
  const ids = KNOWN_MODELS.map(({ id }) => id.toLowerCase());
  assert.equal(new Set(ids).size, ids.length);
  assert.equal(new Set(KNOWN_MODELS.map(({ revision }) => revision)).size, ids.length);
  for (const known of KNOWN_MODELS) {
    assert.match(known.revision, /^[0-9a-f]{40}$/, known.id);
    assert.match(known.id, /^[\w-]+\/[\w.-]+$/);
    assert.ok(ARCHITECTURES.includes(known.architecture), known.architecture);
    assert.ok([undefined, "mit", "apache-2.0", "gemma", "cc-by-nc-4.0"].includes(known.license), known.license);
    assert.ok(known.maxTokens === undefined || known.maxTokens >= 128);
    assert.ok(known.parameters === undefined || known.parameters > 1e6);
    const isEmbedder = known.task === "embed";
    assert.ok(isEmbedder || known.task === "rerank", known.task);
    for (const fact of ["dimension", "pooling", "queryPrompt", "documentPrompt"]) {
      assert.equal(fact in known, isEmbedder, `${known.id}: ${fact}`);
    }
    assert.ok(Object.isFrozen(known));
    if (!isEmbedder) continue;
    assert.ok(["cls", "mean", "lasttoken"].includes(known.pooling));
    assert.ok(known.dimension >= 256);
    for (const prompt of [known.queryPrompt, known.documentPrompt]) assert.match(prompt, /^$|: $|:$|:\n$/);
  }
  const run = KNOWN_MODELS.filter(({ checked }) => checked === "weights").map(({ id }) => id);
  assert.deepEqual(run, ["sentence-transformers/all-MiniLM-L6-v2"]);
  assert.ok(KNOWN_MODELS.every(({ checked }) => checked === "weights" || checked === "facts"));
  assert.ok(Object.isFrozen(KNOWN_MODELS));
});
