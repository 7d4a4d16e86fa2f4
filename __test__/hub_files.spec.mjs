/** Which files of a model are downloaded, and what their names may be. No test reaches the real Hub. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { assertComplete, FIXTURE, hubWith, ID, NEEDED, repository, tree, WEIGHTS } from "./support/hub.mjs";
import { COMMIT, filesIn, sendJson } from "./support/hub_server.mjs";
import { api, embedderError, ROOT, temporaryFolder } from "./support/models.mjs";

const { pull } = api;

test("shards are downloaded with their index", async () => {
  const files = filesIn(path.join(ROOT, "tests/fixtures/bert_cls_f16"));
  const { options } = await hubWith({ ...files, "model.safetensors": null });
  const folder = await pull(ID, options);
  const weights = tree(folder).filter((name) => name.startsWith("model"));
  assert.deepEqual(
    weights,
    Object.keys(files)
      .filter((name) => name.startsWith("model-") || name.includes("index"))
      .sort(),
  );
});

test("a model whose Transformer lies in a subfolder is downloaded whole", async () => {
  const files = filesIn(path.join(ROOT, "tests/fixtures/bert_cls_bf16"));
  const nothing = Object.fromEntries(Object.keys(FIXTURE).map((name) => [name, null]));
  const { options } = await hubWith({ ...nothing, ...files });
  const folder = await pull(ID, options);
  assert.deepEqual(tree(folder), Object.keys(files).sort());
});

test("Dense modules are downloaded with their weights, or the model is refused", async () => {
  const files = filesIn(path.join(ROOT, "tests/fixtures/bert_dense"));
  const { hub, options } = await hubWith(files);
  const folder = await pull(ID, options);
  const dense = ["2_Dense", "3_Dense"].flatMap((module) => [`${module}/config.json`, `${module}/model.safetensors`]);
  assert.deepEqual(tree(folder), [...NEEDED, ...dense].sort());
  delete hub.models[ID].files["3_Dense/model.safetensors"];
  hub.models[ID].files["3_Dense/pytorch_model.bin"] = WEIGHTS;
  await assert.rejects(
    pull(ID, { ...options, cacheFolder: path.join(temporaryFolder(), "hub") }),
    embedderError("MODEL_UNSUPPORTED", "has no 3_Dense/model.safetensors", "pytorch_model.bin"),
  );
});

test("a static model is downloaded without the settings that it does not have", async () => {
  for (const name of ["static_embedding", "static_mapped"]) {
    const files = filesIn(path.join(ROOT, "tests/fixtures", name));
    const nothing = Object.fromEntries(Object.keys(FIXTURE).map((file) => [file, null]));
    const { hub, options } = await hubWith({ ...nothing, ...files });
    assert.deepEqual(tree(await pull(ID, options)), Object.keys(files).sort());
    if (name === "static_embedding") continue;
    // Known by its config.json alone.
    hub.models[ID].files = { ...files };
    delete hub.models[ID].files["modules.json"];
    const bare = await pull(ID, { ...options, cacheFolder: path.join(temporaryFolder(), "hub") });
    assert.deepEqual(tree(bare), Object.keys(hub.models[ID].files).sort());
  }
});

test("the ONNX graph and its data are downloaded on request, and no other ONNX file", async () => {
  const { options } = await hubWith();
  const folder = await pull(ID, { ...options, onnx: true });
  assert.deepEqual(tree(folder), [...NEEDED, "onnx/model.onnx", "onnx/model.onnx_data"].sort());
});

test("a repository without readable weights is refused", async () => {
  const { hub, options } = await hubWith({ "model.safetensors": null, "onnx/model.onnx": null });
  await assert.rejects(
    pull(ID, options),
    embedderError("MODEL_UNSUPPORTED", "org/model@main has no model.safetensors", "pytorch_model.bin"),
  );
  hub.models[ID].files["model.safetensors"] = WEIGHTS;
  await assert.rejects(
    pull(ID, { ...options, onnx: true }),
    embedderError("MODEL_UNSUPPORTED", "has no ONNX file", "onnx/model.onnx", "exportOnnx"),
  );
});

test("an unsupported architecture is refused before its weights are downloaded", async () => {
  const config = Buffer.from(JSON.stringify({ ...JSON.parse(FIXTURE["config.json"]), model_type: "t5" }));
  const { hub, options } = await hubWith({ "config.json": config });
  await assert.rejects(pull(ID, options), embedderError("MODEL_UNSUPPORTED", '"t5"'));
  assert.deepEqual(hub.fileRequests(), ["hub modules.json", "hub config.json"]);
});

test("file names that lead out of the folder are never written", async () => {
  const evil = { "../evil": Buffer.from("x"), "/evil": Buffer.from("x"), "a\\..\\..\\evil": Buffer.from("x") };
  const { options } = await hubWith(evil);
  assertComplete(await pull(ID, options));
  assert.deepEqual(
    tree(path.dirname(options.cacheFolder)).filter((name) => name.includes("evil")),
    [],
  );

  const index = (name) => Buffer.from(JSON.stringify({ weight_map: { a: name } }));
  for (const name of ["../config.json", "/etc/passwd", "..\\config.json", "1_Pooling/../../x"]) {
    const { options } = await hubWith({
      [name]: Buffer.from("x"),
      "model.safetensors": null,
      "model.safetensors.index.json": index(name),
    });
    await assert.rejects(pull(ID, options), embedderError("MODEL_INVALID", "weight_map", JSON.stringify(name)));
  }
  const modules = JSON.parse(FIXTURE["modules.json"]);
  modules[0].path = "../..";
  const { options: nested } = await hubWith({ "modules.json": Buffer.from(JSON.stringify(modules)) });
  await assert.rejects(pull(ID, nested), embedderError("MODEL_INVALID", "inside the model folder"));
});

test("a hash or commit that could be a path is refused", async () => {
  for (const change of [
    { blobId: "../../../evil" },
    { blobId: undefined },
    { lfs: { sha256: "..", size: 1 } },
    { size: -1 },
  ]) {
    const { hub, options } = await hubWith();
    const siblings = [{ rfilename: "config.json", size: 3, blobId: "0".repeat(40), ...change }];
    hub.fault("hub", /api/, (response) => sendJson(response, { sha: COMMIT, siblings }));
    await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "config.json has no size or hash"));
  }
  for (const answer of [{ sha: "../..", siblings: [] }, { sha: COMMIT }, [], null]) {
    const { hub, options } = await hubWith();
    hub.fault("hub", /api/, (response) => sendJson(response, answer));
    await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "expected a Hub's description"));
  }
  const { hub, options } = await hubWith();
  hub.fault("hub", /api/, (response) => response.end("<html>Please log in</html>"));
  await assert.rejects(pull(ID, options), embedderError("DOWNLOAD_FAILED", "expected a short JSON", "login page"));
});

test("invalid names and revisions are refused", async () => {
  for (const name of [
    undefined,
    1,
    "",
    "model",
    "a/b/c",
    "../model",
    "org/..",
    "org/model@",
    "-a/b",
    "a/b.git",
    "a--b/c",
    "org/mo del",
  ]) {
    await assert.rejects(pull(name), embedderError("INVALID_ARGUMENT", "a name on the Hub"), String(name));
  }
  for (const revision of ["../main", "a/../../b", "/a", "a b", "a\\b", "a\u0000"]) {
    await assert.rejects(pull(ID, { revision }), embedderError("INVALID_ARGUMENT", "revision"), revision);
  }
  const { hub, options } = await hubWith({}, { branches: { main: COMMIT, "refs/pr/1": COMMIT } });
  assert.equal(path.basename(await pull(`${ID}@refs/pr/1`, options)), COMMIT);
  assert.equal(readFileSync(path.join(repository(options), "refs/refs/pr/1"), "utf8"), COMMIT);
  assert.ok(hub.requests[0].path.includes("/revision/refs%2Fpr%2F1?"));
});

test("invalid options of pull are refused", async () => {
  await assert.rejects(pull(ID, { cachefolder: "x" }), embedderError("INVALID_ARGUMENT", '"cacheFolder"'));
  await assert.rejects(pull(ID, { endpoint: "hub" }), embedderError("INVALID_ARGUMENT", "http or https URL"));
  await assert.rejects(pull(ID, { endpoint: "ftp://x" }), embedderError("INVALID_ARGUMENT", "http or https URL"));
  await assert.rejects(pull(ID, { token: 1 }), embedderError("INVALID_ARGUMENT", "token"));
  await assert.rejects(pull(ID, { signal: {} }), embedderError("INVALID_ARGUMENT", "AbortSignal"));
});
