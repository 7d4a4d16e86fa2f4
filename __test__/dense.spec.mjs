/** `Dense` modules behind the pooling, on every backend; the golden vectors of `bert_dense` are tested in `golden.spec.mjs`. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { decodeSafetensors, encodeSafetensors } from "../scripts/safetensors.mjs";
import {
  api,
  assertClose,
  BACKENDS,
  changedModel,
  embedderError,
  model,
  ROOT,
  withEmbedder,
} from "./support/models.mjs";

const { Embedder } = api;
const TEXTS = ["fn area(r: f64) -> f64 { 3.14 * r * r }", "return", ""];
const WEIGHTS = "2_Dense/model.safetensors";

/** The first module's weights with each float32 number replaced by `bits(number)` in two bytes. */
function inHalves(dtype, bits) {
  const { header, data } = decodeSafetensors(readFileSync(path.join(ROOT, "tests/fixtures/bert_dense", WEIGHTS)));
  const halves = Buffer.alloc(data.length / 2);
  for (let index = 0; index < data.length / 4; index++) {
    halves.writeUInt16LE(bits(data.readUInt32LE(4 * index)), 2 * index);
  }
  const shorter = Object.entries(header).filter(([name]) => name !== "__metadata__");
  const changed = shorter.map(
    ([
      name,
      {
        shape,
        data_offsets: [start, end],
      },
    ]) => [name, { dtype, shape, data_offsets: [start / 2, end / 2] }],
  );
  return encodeSafetensors({ header: Object.fromEntries(changed), headerLength: 0, data: halves });
}

/** Half precision with the fraction cut off. Numbers below 2^-14 become 0, and one of them a subnormal number. */
function toFloat16(float) {
  const exponent = ((float >> 23) & 0xff) - 127 + 15;
  const sign = (float >>> 16) & 0x8000;
  if (exponent <= 0) return sign | 0x0123;
  return sign | (exponent << 10) | ((float >> 13) & 0x3ff);
}

const HALVES = {
  F16: inHalves("F16", toFloat16),
  BF16: inHalves("BF16", (float) => float >>> 16),
};

for (const [dtype, weights] of Object.entries(HALVES)) {
  test(`weights in ${dtype} give the same vectors on every backend`, async () => {
    const folder = await changedModel("bert_dense", { [WEIGHTS]: weights });
    const exact = await withEmbedder(await model("bert_dense"), { backend: "onnx" }, (one) => one.embed(TEXTS));
    let first;
    for (const backend of BACKENDS) {
      await withEmbedder(folder, { backend, dtype: "f32" }, async (embedder) => {
        const vectors = await embedder.embed(TEXTS);
        first ??= { vectors, fingerprint: embedder.fingerprint };
        assert.equal(embedder.fingerprint, first.fingerprint);
        for (const [index, vector] of vectors.entries()) {
          assertClose(vector, first.vectors[index], 1e-5, `${backend}, ${TEXTS[index]}`);
          assertClose(vector, exact[index], 0.05, `${backend}, ${TEXTS[index]}`);
        }
      });
    }
  });
}

for (const backend of BACKENDS) {
  test(`${backend}: dimensions are taken from the last module's vector`, async () => {
    const folder = await model("bert_dense");
    const options = { backend, normalize: false };
    const [full] = await withEmbedder(folder, options, (embedder) => embedder.embed(["text"]));
    assert.equal(full.length, 24);
    const [short] = await withEmbedder(folder, { ...options, dimensions: 5 }, (embedder) => embedder.embed(["text"]));
    assert.deepEqual(short, full.slice(0, 5));
    await assert.rejects(
      Embedder.load(folder, { backend, dimensions: 25 }),
      embedderError("INVALID_ARGUMENT", "dimensions", "1 to 24", "25"),
    );
  });

  test(`${backend}: damaged weights are refused by name`, async () => {
    const file = readFileSync(path.join(ROOT, "tests/fixtures/bert_dense", WEIGHTS));
    const nan = Buffer.from(file);
    nan.writeFloatLE(Number.NaN, file.length - 4);
    const renamed = (from, to) => Buffer.from(file.toString("latin1").replace(from, to), "latin1");
    for (const [content, ...named] of [
      [null],
      [nan, "linear", "NaN"],
      [file.subarray(0, -4), "is not a complete safetensors file"],
      [file.subarray(0, 20), "is not a complete safetensors file"],
      [file.subarray(0, 3), "is not a complete safetensors file"],
      [Buffer.concat([file, Buffer.alloc(4)]), "is not a complete safetensors file"],
      [renamed("linear.weight", "linear.Weight"), "linear.weight", "no such tensor"],
      [renamed("linear.bias", "linear.bios"), "linear.bias", "no such tensor"],
      [renamed("[48,32]", "[32,48]"), "linear.weight", /\[48, ?32\]/, /\[32, ?48\]/],
      [renamed(/F32/g, "I32"), /linear/, "F32, F16 or BF16", "I32"],
    ]) {
      const folder = await changedModel("bert_dense", { [WEIGHTS]: content });
      const code = content === null ? "MODEL_NOT_FOUND" : "MODEL_INVALID";
      await assert.rejects(Embedder.load(folder, { backend }), embedderError(code, path.normalize(WEIGHTS), ...named));
    }
  });
}
