/** Vectors with fewer dimensions (`dimensions`) and with fewer bits (`encoding`), on every backend. */

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { test } from "node:test";
import {
  api,
  assertClose,
  BACKENDS,
  changedModel,
  embedderError,
  golden,
  model,
  withEmbedder,
} from "./support/models.mjs";

const require = createRequire(import.meta.url);
const { encode } = require("../dist/lib/fallback/vector.js");

const { texts, cuts, encodings } = golden("output");
const TEXTS = [...texts, texts[0]];
const ARRAYS = { float32: Float32Array, int8: Int8Array, binary: Uint8Array };

for (const backend of BACKENDS) {
  const load = async (name, options, use) => withEmbedder(await model(name), { ...options, backend }, use);

  test(`${backend}: vectors with fewer dimensions are those of sentence-transformers`, async () => {
    for (const { folder, options, vectors } of cuts) {
      await load(folder, options, async (embedder) => {
        assert.equal(embedder.dimension, options.dimensions);
        const actual = await embedder.embed(TEXTS);
        const what = `${folder} ${JSON.stringify(options)}`;
        for (const [index, vector] of vectors.entries()) assertClose(actual[index], vector, 1e-5, what);
        assert.deepEqual(actual[3], actual[0]);
        assert.deepEqual((await embedder.embedQuery("x")).length, options.dimensions);
      });
    }
  });

  test(`${backend}: each encoding is that of the float32 vector, in its own array, over one buffer`, async () => {
    for (const options of [{}, { dimensions: 11, layerNorm: true }]) {
      await load("nomic_cls", options, async (embedder) => {
        const exact = await embedder.embed(TEXTS);
        const query = await embedder.embedQuery(texts[1]);
        for (const [encoding, array] of Object.entries(ARRAYS)) {
          const expected = (vector) => encode(vector, embedder.dimension, encoding);
          const vectors = await embedder.embed(TEXTS, { encoding });
          assert.equal(vectors.length, TEXTS.length);
          for (const [index, vector] of vectors.entries()) {
            assert.ok(vector instanceof array);
            assert.equal(vector.buffer, vectors[0].buffer);
            assert.deepEqual(vector, expected(exact[index]));
          }
          assert.deepEqual(vectors[3], vectors[0], "equal texts");
          assert.deepEqual(await embedder.embedQuery(texts[1], { encoding }), expected(query));
          assert.deepEqual(await embedder.embed([], { encoding }), []);
        }
      });
    }
  });

  test(`${backend}: a stream encodes, and the query cache keeps encodings apart`, () =>
    load("bert_mean", {}, async (embedder) => {
      for (const encoding of Object.keys(ARRAYS)) {
        const vectors = await embedder.embed(TEXTS, { encoding });
        const streamed = [];
        for await (const { index, vector } of embedder.stream(TEXTS, { encoding })) streamed[index] = vector;
        assert.deepEqual(streamed, vectors);
        const [computed, cached] = [
          await embedder.embedQuery("x", { encoding }),
          await embedder.embedQuery("x", { encoding }),
        ];
        assert.deepEqual(cached, computed);
        assert.ok(cached instanceof ARRAYS[encoding]);
      }
      assert.equal((await embedder.info()).queryCacheHits, 3);
    }));

  test(`${backend}: without normalization, binary works and int8 is refused`, () =>
    load("bert_mean", { normalize: false }, async (embedder) => {
      const refused = embedderError("INVALID_ARGUMENT", "encoding", '"float32" or "binary"', "normalize", '"int8"');
      await assert.rejects(embedder.embed(TEXTS, { encoding: "int8" }), refused);
      await assert.rejects(embedder.embedQuery("x", { encoding: "int8" }), refused);
      assert.throws(() => embedder.stream(TEXTS, { encoding: "int8" }), refused);
      const [bits] = await embedder.embed(TEXTS, { encoding: "binary" });
      await load("bert_mean", {}, async (unit) => {
        assert.deepEqual((await unit.embed(TEXTS, { encoding: "binary" }))[0], bits);
      });
    }));

  test(`${backend}: encodings and the options of a query are checked`, () =>
    load("bert_mean", {}, async (embedder) => {
      for (const encoding of ["int4", null, 8]) {
        await assert.rejects(
          embedder.embed([], { encoding }),
          embedderError("INVALID_ARGUMENT", "option encoding", '"float32", "int8", "binary"', String(encoding)),
        );
      }
      await assert.rejects(
        embedder.embedQuery("x", { encodng: "int8" }),
        embedderError("INVALID_ARGUMENT", '"encodng"', 'did you mean "encoding"?'),
      );
      await assert.rejects(embedder.embedQuery("x", { kind: "document" }), embedderError("INVALID_ARGUMENT", '"kind"'));
      await assert.rejects(embedder.embedQuery("x", { signal: AbortSignal.abort() }), { name: "AbortError" });
      await assert.rejects(embedder.embedQuery("x", true), embedderError("INVALID_ARGUMENT", "options", "true"));
    }));

  test(`${backend}: dimensions are checked`, async () => {
    const refused = async (name, options, ...expected) =>
      assert.rejects(
        api.Embedder.load(await model(name), { ...options, backend }),
        embedderError("INVALID_ARGUMENT", ...expected),
      );
    await refused("bert_mean", { dimensions: 49 }, "dimensions", "1 to 48", "49");
    await refused("nomic_partial", { dimensions: 65, layerNorm: false }, "dimensions", "1 to 64", "65");
    for (const dimensions of [0, 1.5, "8"]) await refused("bert_mean", { dimensions }, "dimensions", "at least 1");
    await refused("bert_mean", { layerNorm: true }, "layerNorm", "dimensions");
    await refused("bert_mean", { dimensions: 8, layerNorm: "yes" }, "layerNorm", "true or false");
  });
}

test("the addon and the fallback agree on fewer dimensions, which the fingerprint covers", async () => {
  const named = async (name) => {
    const folder = await changedModel("nomic_cls", { "config.json": (config) => ({ ...config, _name_or_path: name }) });
    await api.exportOnnx(folder);
    return folder;
  };
  const [v15, v1] = [await named("nomic-ai/nomic-embed-text-v1.5"), await named("nomic-ai/nomic-embed-text-v1")];
  const cases = [
    [v15, {}],
    [v15, { dimensions: 8 }],
    [v15, { dimensions: 8, layerNorm: false }],
    [v15, { dimensions: 32 }],
    [v1, { dimensions: 8 }],
    [v1, { dimensions: 8, layerNorm: true }],
    [await model("bert_mean"), { dimensions: 8 }],
  ];
  const seen = [];
  for (const [folder, options] of cases) {
    const [rust, js] = await Promise.all(
      ["onnx", "onnx-js"].map((backend) =>
        withEmbedder(folder, { ...options, backend }, async (embedder) => {
          const { fingerprint, dimension } = embedder;
          return { fingerprint, dimension, vectors: await embedder.embed(TEXTS) };
        }),
      ),
    );
    assert.equal(js.fingerprint, rust.fingerprint);
    assert.equal(js.dimension, rust.dimension);
    for (const [index, vector] of js.vectors.entries()) assertClose(vector, rust.vectors[index], 1e-5, "both");
    seen.push(rust.fingerprint);
  }
  assert.equal(new Set(seen).size, cases.length);
});

test("a nomic_bert folder that does not name its model needs layerNorm with dimensions", async () => {
  for (const backend of ["onnx", "onnx-js"]) {
    await assert.rejects(
      api.Embedder.load(await model("nomic_cls"), { backend, dimensions: 8 }),
      embedderError("MODEL_UNSUPPORTED", "config.json", "dimensions", "layerNorm: true"),
    );
  }
});

test("the fallback encodes as numpy does", () => {
  for (const { vector, int8, binary } of encodings) {
    const rows = Float32Array.from([...vector, ...vector]);
    assert.deepEqual([...encode(rows, vector.length, "int8")], [...int8, ...int8]);
    assert.deepEqual([...encode(rows, vector.length, "binary")], [...binary, ...binary]);
    assert.deepEqual(encode(rows, vector.length, "float32"), rows);
  }
});
