/** Static models on every backend; their golden vectors are tested in `golden.spec.mjs`, their folders in `tests/static_models.rs`. */

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { test } from "node:test";
import {
  api,
  assertClose,
  BACKENDS,
  changedModel,
  embedderError,
  FIXTURES,
  model,
  withEmbedder,
} from "./support/models.mjs";

const { readModelDir } = createRequire(import.meta.url)("../dist/lib/model_dir.js");
const { Embedder } = api;
const NAMES = FIXTURES.filter((name) => name.startsWith("static_"));
const PLAIN = { documentPrompt: "", queryPrompt: "" };

test("there are static models to test", () => {
  assert.deepEqual(NAMES, ["static_embedding", "static_mapped", "static_model2vec"]);
});

test("a folder whose tokens share rows is read alike for a graph of its own", async () => {
  const folder = await model("static_mapped");
  const { encoder, maxTokens } = readModelDir(folder, {});
  const facts = { width: 24, vocabulary: 702, positions: 64, layerNormBeforeTruncation: false };
  assert.deepEqual({ encoder, maxTokens }, { encoder: facts, maxTokens: 64 });
  await withEmbedder(folder, { backend: "onnx" }, (embedder) => {
    assert.deepEqual([embedder.vocabularySize, embedder.dimension, embedder.maxTokens], [702, 24, 64]);
  });
});

for (const backend of BACKENDS) {
  for (const name of NAMES) {
    test(`${backend}, ${name}: a text without tokens has a vector of zeros, alone and among others`, async () => {
      for (const options of [{}, { normalize: false }, { dimensions: 5 }, { dimensions: 5, layerNorm: true }]) {
        await withEmbedder(await model(name), { ...PLAIN, ...options, backend }, async (embedder) => {
          const zeros = new Float32Array(embedder.dimension);
          const texts = ["the time", "", "the time of day", ""];
          const vectors = await embedder.embed(texts);
          assert.deepEqual([vectors[1], vectors[3]], [zeros, zeros]);
          assert.deepEqual(await embedder.embed([""]), [zeros]);
          assert.deepEqual(await embedder.embedQuery(""), zeros);
          assertClose((await embedder.embed(["the time"]))[0], vectors[0], 1e-6, "beside it");
          for await (const { vector, index } of embedder.stream(texts)) {
            assertClose(vector, vectors[index], 1e-6, texts[index]);
          }
        });
      }
    });
  }

  test(`${backend}: what is unknown to a vocabulary counts for StaticEmbedding, but not for Model2Vec`, async () => {
    const vectorsOf = async (name) =>
      withEmbedder(await model(name), { ...PLAIN, backend }, (one) => one.embed(["time", "time ☃", "☃"]));
    const [known, both, unknown] = await vectorsOf("static_embedding");
    assert.throws(() => assertClose(both, known, 1e-3));
    assert.ok(unknown.some((value) => value !== 0));
    const [same, still, nothing] = await vectorsOf("static_model2vec");
    assert.deepEqual(still, same);
    assert.deepEqual(nothing, new Float32Array(24));
  });

  test(`${backend}: ids of the caller are used as they are, and an empty list is refused`, async () => {
    await withEmbedder(await model("static_model2vec"), { ...PLAIN, backend }, async (embedder) => {
      const ids = Uint32Array.of(7, 11, 5);
      const [vector] = await embedder.embed([ids]);
      assert.ok(Math.abs(Math.hypot(...vector) - 1) < 1e-6);
      await assert.rejects(
        embedder.embed([new Uint32Array()]),
        embedderError("INVALID_ARGUMENT", "at least one token"),
      );
    });
  });

  test(`${backend}: a module that would see the zeros is refused`, async () => {
    const folder = await changedModel("static_embedding", {
      "modules.json": (modules) => [...modules, { path: "2_Dense", type: "sentence_transformers.models.Dense" }],
    });
    await assert.rejects(
      Embedder.load(folder, { backend }),
      embedderError("MODEL_UNSUPPORTED", "modules.json", "Dense"),
    );
  });
}
