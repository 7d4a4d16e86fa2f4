/** MLX in a Node process: beside ONNX Runtime, from many threads, and when the process ends. Only for builds with MLX. */

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import * as path from "node:path";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import { api, assertClose, cosine, FIXTURES, HAS_MLX, model, ROOT, withEmbedder } from "./support/models.mjs";

const { Embedder } = api;
const MLX = { backend: "mlx", dtype: "f32", maxTokens: 64 };
const PACKAGE = path.join(ROOT, "dist/embedder.js");
const TEXTS = Array.from({ length: 24 }, (_, index) => `${index} ${"some words of code; ".repeat(index % 7)}`);

if (HAS_MLX) {
  test("mlx, onnx and onnxruntime-node in one process give the same vectors", async () => {
    createRequire(import.meta.url)("onnxruntime-node");
    for (const name of FIXTURES) {
      const folder = await model(name);
      const vectors = [];
      for (const backend of ["mlx", "onnx", "onnx-js"]) {
        await withEmbedder(folder, { ...MLX, backend }, async (embedder) => {
          assert.equal(embedder.backend, backend);
          vectors.push({ fingerprint: embedder.fingerprint, rows: await embedder.embed(TEXTS) });
        });
      }
      const [mlx, ...others] = vectors;
      for (const other of others) {
        assert.equal(other.fingerprint, mlx.fingerprint);
        for (const [index, row] of other.rows.entries()) assertClose(mlx.rows[index], row, 1e-5, `${name}[${index}]`);
      }
    }
  });

  test("info() reports MLX's memory, and closing releases it", async () => {
    const folder = await model("bert_mean");
    const memory = async (embedder) => (await embedder.info()).memory;
    await withEmbedder(folder, MLX, async (outer) => {
      const before = await memory(outer);
      const inner = await Embedder.load(folder, MLX);
      const during = await memory(inner);
      assert.ok(during.activeBytes > before.activeBytes + 200_000, `${during.activeBytes} after ${before.activeBytes}`);
      assert.ok(during.peakBytes >= during.activeBytes);
      await inner.close();
      assert.ok((await memory(outer)).activeBytes <= before.activeBytes);
    });
    await withEmbedder(folder, { backend: "onnx" }, async (embedder) => assert.equal(await memory(embedder), null));
  });

  test('"auto" takes MLX on a GPU only, and says so', async () => {
    await withEmbedder(await model("bert_mean"), { backend: "auto" }, async (embedder) => {
      if (embedder.isGpu) return assert.deepEqual([embedder.backend, embedder.fallbackReason], ["mlx", null]);
      assert.equal(embedder.backend, "onnx");
      assert.match(embedder.fallbackReason, /mlx.*GPU/);
    });
  });

  test("half precision works with MLX only, and takes half the memory", async () => {
    const folder = await model("bert_mean");
    const weights = (dtype) => withEmbedder(folder, { ...MLX, dtype }, async (loaded) => (await loaded.info()).memory);
    const { activeBytes: whole } = await weights("f32");
    const [exact] = await withEmbedder(folder, MLX, (embedder) => embedder.embed(["some words"]));
    for (const [dtype, least] of [
      ["f16", 0.9995],
      ["bf16", 0.99],
    ]) {
      const [half] = await withEmbedder(folder, { ...MLX, dtype }, (embedder) => embedder.embed(["some words"]));
      const similarity = cosine(exact, half);
      assert.ok(similarity >= least, `${dtype}: ${similarity}`);
      const { activeBytes } = await weights(dtype);
      assert.ok(Math.abs(activeBytes / whole - 0.5) < 0.05, `${dtype}: ${activeBytes} of ${whole} bytes`);
      for (const backend of ["onnx", "onnx-js"]) {
        await assert.rejects(Embedder.load(folder, { backend, dtype }), { code: "INVALID_ARGUMENT" });
      }
    }
  });

  test("eight worker threads work at the same time", async () => {
    const folder = await model("nomic_cls");
    const expected = await withEmbedder(folder, MLX, (embedder) => embedder.embed(TEXTS));
    const source = `
      const { parentPort, workerData: { file, folder, options, texts } } = require("node:worker_threads");
      (async () => {
        const embedder = await require(file).Embedder.load(folder, options);
        for (let round = 0; round < 3; round++) parentPort.postMessage(await embedder.embed(texts));
        await embedder.close();
      })();`;
    const inWorker = () =>
      new Promise((resolve, reject) => {
        const rounds = [];
        const workerData = { file: PACKAGE, folder, options: MLX, texts: TEXTS };
        const worker = new Worker(source, { eval: true, workerData });
        worker.on("message", (rows) => rounds.push(rows));
        worker.on("error", reject);
        worker.on("exit", () => resolve(rounds));
      });
    for (const rounds of await Promise.all(Array.from({ length: 8 }, inWorker))) {
      assert.equal(rounds.length, 3);
      for (const [index, row] of rounds.flat().entries()) {
        assertClose(row, expected[index % TEXTS.length], 1e-5, `text ${index}`);
      }
    }
  });
}
