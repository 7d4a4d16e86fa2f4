/** `dtype: "bf16"` and `"int8"` on the CPU as users see them, with the real starter model; `tests/reduced.rs` has the rest. */

import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { test } from "node:test";
import {
  api,
  changedModel,
  cosine,
  embedderError,
  FIXTURES,
  golden,
  model,
  ROOT,
  STARTER_MODEL,
  temporaryFolder,
  withEmbedder,
} from "./support/models.mjs";
import { runNode } from "./support/processes.mjs";

const { loadAddon } = createRequire(import.meta.url)("../dist/lib/native.js");

const { texts } = golden("all-MiniLM-L6-v2");
const INT8 = { dtype: "int8", backend: "cpu" };
/** Those that this processor has instructions for, with the least cosine to float32. */
const DTYPES = { ...(loadAddon().cpuKernels().bf16 && { bf16: 0.9995 }), int8: 0.98 };

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

test("every vector of the real model is near its float32 one, and not a copy of it", async () => {
  const float = await withEmbedder(STARTER_MODEL, { backend: "onnx" }, (embedder) => embedder.embed(texts));
  for (const [dtype, least] of Object.entries(DTYPES)) {
    const vectors = await withEmbedder(STARTER_MODEL, { backend: "cpu", dtype }, (embedder) => embedder.embed(texts));
    for (const index of texts.keys()) {
      const similarity = cosine(vectors[index], float[index]);
      assert.ok(similarity >= least && similarity < 0.9999999, `${dtype}: ${similarity}: ${texts[index].slice(0, 80)}`);
    }
  }
});

test("a vector is bitwise the same whatever else is in the call, with any number of threads", async () => {
  const copies = [...texts, texts[3], "a", "b", texts[0]];
  for (const dtype of Object.keys(DTYPES)) {
    let expected;
    for (const threads of [1, 2, 4]) {
      await withEmbedder(STARTER_MODEL, { backend: "cpu", dtype, threads }, async (embedder) => {
        const together = await embedder.embed(copies);
        expected ??= together;
        assert.deepEqual(together, expected);
        for (const [index, text] of copies.entries()) {
          const [alone] = await embedder.embed([text]);
          assert.deepEqual(alone, expected[index], `${dtype}, ${threads} threads: ${text.slice(0, 80)}`);
        }
      });
    }
  }
});

test("the number format is part of the fingerprint, and decides what computes", async () => {
  const fingerprints = new Set();
  for (const dtype of ["f32", ...Object.keys(DTYPES)]) {
    await withEmbedder(await model("bert_mean"), { dtype, backend: "auto" }, ({ fingerprint, backend }) => {
      fingerprints.add(fingerprint);
      assert.equal(backend, dtype === "f32" ? "onnx" : "cpu");
    });
  }
  assert.equal(fingerprints.size, 1 + Object.keys(DTYPES).length);
});

test("an older processor computes nearly the same int8 vectors; what it has no instructions for is refused", async () => {
  const code = `
    const { Embedder } = require(${JSON.stringify(path.join(ROOT, "dist/embedder.js"))});
    const [folder, dtype] = process.argv.slice(1);
    Embedder.load(folder, { dtype, backend: "cpu" }).then(async (embedder) => {
      console.log(JSON.stringify(Array.from((await embedder.embed(["one text"]))[0])));
    }, (error) => console.log(JSON.stringify([error.code, error.message])));`;
  const run = async (level, dtype) => {
    const env = { ...process.env, SEMANTIC_SEARCH_CPU: level };
    const { stdout } = await runNode(["-e", code, STARTER_MODEL, dtype], { env });
    return JSON.parse(stdout);
  };
  const best = await run("", "int8");
  for (const level of ["portable", "avx2", "avx512"]) {
    assert.ok(cosine(await run(level, "int8"), best) > 0.99, level);
    const [code, message] = await run(level, "bf16");
    assert.equal(code, "INVALID_ARGUMENT");
    assert.match(message, /no instructions for bfloat16/);
  }
  const [unknown, message] = await run("avx3", "int8");
  assert.equal(unknown, "INVALID_ARGUMENT");
  assert.match(message, /SEMANTIC_SEARCH_CPU: expected "portable", .*"amx", found "avx3"/);
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
            // Their weights have scales of their own, and a last bit that differs may become a whole step. A cosine of
            // 0.99 is this distance, which vectors of zeros have as well.
            const squares = actual[index].map((value, place) => (value - expected[index][place]) ** 2);
            const distance = squares.reduce((sum, square) => sum + square, 0);
            assert.ok(distance <= 0.02, `${distance}: ${name}: ${texts[index].slice(0, 80)}`);
          }
        }
      }),
    );
  }
});

test("on the real model, the fallback's vectors are near", async () => {
  const folder = starterModelCopy();
  await api.exportOnnx(folder, { dtype: "int8" });
  const vectors = (backend) => withEmbedder(folder, { dtype: "int8", backend }, (embedder) => embedder.embed(texts));
  const [rust, js] = [await vectors("cpu"), await vectors("onnx-js")];
  for (const index of texts.keys()) {
    const similarity = cosine(js[index], rust[index]);
    assert.ok(similarity > 0.97, `${similarity}: ${texts[index].slice(0, 80)}`);
  }
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
    embedderError("INVALID_ARGUMENT", '"f32" with the backend onnx'),
  );
  await assert.rejects(api.exportOnnx(folder, { dtype: "bf16" }), embedderError("INVALID_ARGUMENT", "dtype"));
});
