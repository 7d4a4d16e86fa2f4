/** `dtype: "int8"` as users see it, with the real starter model; `tests/int8.rs` has the rest. */

import assert from "node:assert/strict";
import { chmodSync, copyFileSync, mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import {
  api,
  assertClose,
  changedModel,
  embedderError,
  FIXTURES,
  golden,
  model,
  ROOT,
  STARTER_MODEL,
  temporaryFolder,
  withEmbedder,
} from "./support/models.mjs";
import { startNode } from "./support/processes.mjs";

const CACHE = temporaryFolder();
process.env.SEMANTIC_SEARCH_CACHE = CACHE;

const { texts } = golden("all-MiniLM-L6-v2");
const INT8 = { dtype: "int8", backend: "onnx" };

const cosine = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);

/** The starter model's folder with room for files of its own. */
function starterModelCopy() {
  const folder = temporaryFolder();
  for (const name of readdirSync(STARTER_MODEL)) {
    const file = path.join(STARTER_MODEL, name);
    if (name === "model.safetensors") copyFileSync(file, path.join(folder, name));
    else if (!name.endsWith(".onnx")) symlinkSync(file, path.join(folder, name));
  }
  return folder;
}

test("every vector of the real model has a cosine of at least 0.98 to its float32 one, and not a copy of it", async () => {
  const float = await withEmbedder(STARTER_MODEL, { backend: "onnx" }, (embedder) => embedder.embed(texts));
  const int8 = await withEmbedder(STARTER_MODEL, INT8, (embedder) => embedder.embed(texts));
  for (const index of texts.keys()) {
    const similarity = cosine(int8[index], float[index]);
    assert.ok(similarity >= 0.98 && similarity < 0.999999, `${similarity}: ${texts[index].slice(0, 80)}`);
  }
});

test("a vector is bitwise the same whatever else is in the call, with any number of threads", async () => {
  const copies = [...texts, texts[3], "a", "b", texts[0]];
  let expected;
  for (const threads of [1, 2, 4]) {
    await withEmbedder(STARTER_MODEL, { ...INT8, threads }, async (embedder) => {
      const together = await embedder.embed(copies);
      expected ??= together;
      assert.deepEqual(together, expected);
      for (const [index, text] of copies.entries()) {
        const [alone] = await embedder.embed([text]);
        assert.deepEqual(alone, expected[index], `${threads} threads: ${text.slice(0, 80)}`);
      }
    });
  }
});

test("the number format is part of the fingerprint, and the weights are kept in the cache folder", async () => {
  const fingerprints = new Set();
  for (const dtype of ["f32", "int8"]) {
    await withEmbedder(await model("bert_mean"), { dtype, backend: "auto" }, ({ fingerprint, backend }) => {
      fingerprints.add(fingerprint);
      if (dtype === "int8") assert.equal(backend, "onnx");
    });
  }
  assert.equal(fingerprints.size, 2);
  const kept = readdirSync(path.join(CACHE, "quantized"));
  assert.ok(kept.length >= 1 && kept.every((name) => /^int8-v\d+-[0-9a-f]{64}\.safetensors$/.test(name)), String(kept));
});

test("several processes can quantize the same model at once", async () => {
  const cache = temporaryFolder();
  const code = `
    const { Embedder } = require(${JSON.stringify(path.join(ROOT, "dist/embedder.js"))});
    process.stdin.once("data", async () => {
      const embedder = await Embedder.load(process.env.MODEL, { dtype: "int8", backend: "onnx", threads: 1 });
      const [vector] = await embedder.embed(["one text"]);
      console.log(Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength).toString("hex"));
      process.exit();
    });
    console.log("ready");`;
  const env = { ...process.env, MODEL: STARTER_MODEL, SEMANTIC_SEARCH_CACHE: cache };
  const children = Array.from({ length: 4 }, () => startNode(["-e", code], { env }));
  await Promise.all(children.map(({ says }) => says(/ready/)));
  for (const { child } of children) child.stdin.write("go\n");
  const vectors = await Promise.all(children.map(async ({ says }) => (await says(/^([0-9a-f]+)\n/m))[1]));
  assert.match(vectors[0], /^[0-9a-f]{3072}$/);
  assert.equal(new Set(vectors).size, 1);
  const kept = readdirSync(path.join(cache, "quantized"));
  assert.ok(kept.length === 1 && kept[0].endsWith(".safetensors"), String(kept));
});

test("the fallback gives the same vectors under the same fingerprint, over the exported file", async () => {
  for (const name of FIXTURES) {
    const folder = await changedModel(name, {});
    const file = await api.exportOnnx(folder, { dtype: "int8" });
    assert.equal(path.basename(file), "semantic-search-native.int8.onnx");
    await withEmbedder(folder, INT8, (rust) =>
      withEmbedder(folder, { dtype: "int8", backend: "onnx-js" }, async (js) => {
        assert.equal(js.fingerprint, rust.fingerprint);
        for (const kind of ["document", "query"]) {
          const [expected, actual] = [await rust.embed(texts, { kind }), await js.embed(texts, { kind })];
          for (const index of texts.keys()) {
            // Integers in between: a last bit that differs may become a whole step. A cosine of 0.9999 is this distance,
            // which vectors of zeros have as well.
            const squares = actual[index].map((value, place) => (value - expected[index][place]) ** 2);
            const distance = squares.reduce((sum, square) => sum + square, 0);
            assert.ok(distance <= 0.0002, `${distance}: ${name}: ${texts[index].slice(0, 80)}`);
          }
        }
      }),
    );
  }
});

test("on the real model, the fallback's vectors differ only by rounding", async () => {
  const folder = starterModelCopy();
  await api.exportOnnx(folder, { dtype: "int8" });
  const vectors = (backend) => withEmbedder(folder, { dtype: "int8", backend }, (embedder) => embedder.embed(texts));
  const [rust, js] = [await vectors("onnx"), await vectors("onnx-js")];
  for (const index of texts.keys()) assertClose(js[index], rust[index], 1e-6, texts[index].slice(0, 80));
});

test("the fallback prefers the exported file, and uses float32 unless int8 is requested", async () => {
  const folder = await changedModel("bert_mean", {});
  mkdirSync(path.join(folder, "onnx"));
  writeFileSync(path.join(folder, "onnx/model_quantized.onnx"), "no model");
  const js = { backend: "onnx-js" };
  await assert.rejects(
    api.Embedder.load(folder, { ...js, dtype: "int8" }),
    embedderError("MODEL_INVALID", "quantized"),
  );
  await api.exportOnnx(folder, { dtype: "int8" });
  const int8 = await withEmbedder(folder, { ...js, dtype: "int8" }, ({ fingerprint }) => fingerprint);
  const float = await withEmbedder(folder, js, ({ fingerprint }) => fingerprint);
  assert.notEqual(int8, float);
});

test("a file exported for other weights is refused, even if it does not point into them", async () => {
  const shard = "model-00002-of-00002.safetensors";
  const folder = await changedModel("bert_cls_f16", {});
  await api.exportOnnx(folder, { dtype: "int8" });
  const js = { dtype: "int8", backend: "onnx-js" };
  const other = await changedModel("bert_cls_f16", {});
  const file = path.join(folder, "semantic-search-native.int8.onnx");
  copyFileSync(file, path.join(other, path.basename(file)));
  await withEmbedder(other, js, (embedder) => embedder.embed(["equal weights are no other weights"]));
  writeFileSync(path.join(other, shard), "other weights");
  await assert.rejects(api.Embedder.load(other, js), embedderError("MODEL_INVALID", "exportOnnx(modelDir, { dtype:"));
  rmSync(path.join(other, shard));
  await assert.rejects(api.Embedder.load(other, js), embedderError("MODEL_NOT_FOUND", shard));
});

test("where int8 is not supported, the error says where it is", async () => {
  const folder = await model("bert_mean");
  await assert.rejects(
    api.Embedder.load(folder, { dtype: "int8", backend: "mlx" }),
    embedderError("INVALID_ARGUMENT", "dtype", "backend mlx"),
  );
  await assert.rejects(
    api.Embedder.load(folder, { dtype: "int8", backend: "onnx-js" }),
    embedderError("MODEL_NOT_FOUND", 'exportOnnx(modelDir, { dtype: "int8" })'),
  );
  await assert.rejects(
    api.Embedder.load(folder, { dtype: "f16", backend: "onnx" }),
    embedderError("INVALID_ARGUMENT", '"int8" with the backend onnx'),
  );
  await assert.rejects(api.exportOnnx(folder, { dtype: "bf16" }), embedderError("INVALID_ARGUMENT", "dtype"));
});

test("a cache that others can write to is not used, with one warning", {
  skip: process.platform === "win32" && "Windows has access rights instead of modes",
}, async () => {
  const warnings = [];
  const keep = (warning) => warnings.push(warning);
  process.on("warning", keep);
  const quantized = path.join(CACHE, "quantized");
  mkdirSync(quantized, { recursive: true });
  chmodSync(quantized, 0o777);
  try {
    for (let i = 0; i < 2; i++) await withEmbedder(await model("nomic_cls"), INT8, () => {});
    await new Promise((resolve) => setImmediate(resolve));
  } finally {
    chmodSync(quantized, 0o700);
    process.off("warning", keep);
  }
  const [warning, ...more] = warnings.filter(({ name }) => name === "SemanticSearchWarning");
  assert.deepEqual(more, []);
  assert.match(warning.message, /others than its owner may write there \(mode 777\)/);
  assert.ok(warning.message.includes(quantized), warning.message);
});
