/** The JavaScript fallback on ONNX files from elsewhere, and the order in which it answers calls. */

import assert from "node:assert/strict";
import { appendFileSync, linkSync, mkdirSync, renameSync, truncateSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as os from "node:os";
import * as path from "node:path";
import { test } from "node:test";
import {
  api,
  assertClose,
  changedModel,
  embedderError,
  model,
  ROOT,
  STARTER_MODEL,
  temporaryFolder,
  withEmbedder,
} from "./support/models.mjs";
import { tableModel } from "./support/onnx_writer.mjs";
import { reportsOf } from "./support/processes.mjs";

const WIDTH = 64;
const VOCABULARY = 1500;
const table = Float32Array.from({ length: VOCABULARY * WIDTH }, (_, index) => Math.sin(index) + 0.1);
const DEFAULTS = { table, width: WIDTH };

/** A model folder whose ONNX files are these and no other. */
async function folderWith(files) {
  const folder = await changedModel("bert_mean", {
    "semantic-search-native.onnx": null,
    "config.json": (config) => ({ ...config, hidden_size: WIDTH, num_attention_heads: 4 }),
    "1_Pooling/config.json": () => ({ pooling_mode: "mean" }),
  });
  mkdirSync(path.join(folder, "onnx"));
  for (const [file, content] of Object.entries(files)) writeFileSync(path.join(folder, file), content);
  return folder;
}

const load = (folder, options) => api.Embedder.load(folder, { ...options, backend: "onnx-js" });

async function vectorOf(files, options) {
  const embedder = await load(await folderWith(files), options);
  const [vector] = await embedder.embed(["the time"]);
  const { fingerprint } = embedder;
  await embedder.close();
  return { vector, fingerprint };
}

test("inputs have the names and types that the file declares", async () => {
  const plain = await vectorOf({ "model.onnx": tableModel(DEFAULTS) });
  for (const inputs of [
    { input_ids: "int32" },
    { input_ids: "int64", attention_mask: "int64" },
    { token_type_ids: "int32", attention_mask: "int64", input_ids: "int64" },
  ]) {
    const { vector } = await vectorOf({ "model.onnx": tableModel({ ...DEFAULTS, inputs }) });
    assert.deepEqual(vector, plain.vector);
  }
  for (const [inputs, named] of [
    [{ input_ids: "int64", position_ids: "int64" }, "position_ids"],
    [{ attention_mask: "int64" }, "input_ids"],
  ]) {
    const folder = await folderWith({ "model.onnx": tableModel({ ...DEFAULTS, inputs }) });
    await assert.rejects(load(folder), embedderError("MODEL_UNSUPPORTED", "model.onnx", named));
  }
});

test("outputs are read as the file declares them", async () => {
  const { vector } = await vectorOf({ "model.onnx": tableModel(DEFAULTS) });
  const renamed = await vectorOf({ "model.onnx": tableModel({ ...DEFAULTS, output: "anything" }) });
  assert.deepEqual(renamed.vector, vector);
  for (const output of ["sentence_embedding", "pooled"]) {
    const pooled = { "model.onnx": tableModel({ ...DEFAULTS, isPooled: true, output }) };
    assertClose((await vectorOf(pooled)).vector, vector, 1e-6, output);
    await assert.rejects(
      load(await folderWith(pooled), { pooling: "cls" }),
      embedderError("MODEL_UNSUPPORTED", "already pooled"),
    );
  }
  const narrow = await folderWith({ "model.onnx": tableModel({ table, width: WIDTH / 2 }) });
  await assert.rejects(load(narrow), embedderError("MODEL_INVALID", "hidden size is 64"));
});

test("a graph that pools by itself is refused where Dense modules follow", async () => {
  const folder = await changedModel("bert_dense", {
    "semantic-search-native.onnx": null,
    "model.onnx": tableModel({ table, width: 32, isPooled: true }),
  });
  await assert.rejects(load(folder), embedderError("MODEL_UNSUPPORTED", "already pooled", "Dense"));
});

test("files are tried in a fixed order, and dtype chooses among them", async () => {
  const float = tableModel(DEFAULTS);
  const quantized = tableModel({ ...DEFAULTS, table: table.map((value) => Math.round(value * 8) / 8) });
  const files = { "onnx/model.onnx": float, "onnx/model_quantized.onnx": quantized };
  const chosen = await vectorOf(files);
  const int8 = await vectorOf(files, { dtype: "int8" });
  assert.deepEqual(chosen, await vectorOf({ "model.onnx": float, "onnx/model.onnx": quantized }));
  assert.deepEqual(int8, await vectorOf({ "model_quantized.onnx": quantized }));
  assert.notEqual(int8.fingerprint, chosen.fingerprint);
  assert.notEqual((await vectorOf({ "model.onnx": quantized })).fingerprint, int8.fingerprint, "dtype is part of it");
});

test("external data counts as weights", async () => {
  const file = tableModel({ ...DEFAULTS, externalData: "table.bin" });
  const bytes = Buffer.from(table.buffer);
  const inside = await vectorOf({ "model.onnx": tableModel(DEFAULTS) });
  const outside = await vectorOf({ "model.onnx": file, "table.bin": bytes });
  assert.deepEqual(outside.vector, inside.vector);
  const changed = await vectorOf({ "model.onnx": file, "table.bin": Buffer.from(bytes).fill(0, 0, 4) });
  assert.notEqual(changed.fingerprint, outside.fingerprint);
  await assert.rejects(load(await folderWith({ "model.onnx": file })), embedderError("MODEL_NOT_FOUND", "table.bin"));
});

test("weights that changed while loaded are refused; a replaced file is not", async () => {
  const bytes = Buffer.from(table.buffer);
  const folder = await folderWith({
    "model.onnx": tableModel({ ...DEFAULTS, externalData: "table.bin" }),
    "table.bin": bytes,
  });
  const file = path.join(folder, "table.bin");
  const changed = embedderError("MODEL_INVALID", "table.bin", "has changed", "load the model again");
  for (const change of [
    () => writeFileSync(file, Buffer.from(bytes).fill(0, 0, 4), { flag: "r+" }),
    () => truncateSync(file, 8),
    () => appendFileSync(file, "more"),
  ]) {
    writeFileSync(file, bytes);
    await withEmbedder(folder, { backend: "onnx-js" }, async (embedder) => {
      const [before] = await embedder.embed(["the time"]);
      // Replaced the way that a download does it.
      writeFileSync(`${file}.new`, bytes);
      linkSync(file, `${file}.old`);
      renameSync(`${file}.new`, file);
      assert.deepEqual((await embedder.embed(["the time"]))[0], before);
      renameSync(`${file}.old`, file);
      change();
      await assert.rejects(embedder.embed(["the time"]), changed);
      await assert.rejects(embedder.embedQuery("a query"), changed);
    });
  }
});

/** A model whose tokenizer takes unbounded time for a run of the letter a that is followed by something else. */
const explosive = (changes) =>
  changedModel("bert_mean", {
    "tokenizer.json": (json) => ({
      ...json,
      pre_tokenizer: {
        type: "Sequence",
        pretokenizers: [
          { type: "Split", pattern: { Regex: "^(a+)+$" }, behavior: "Isolated", invert: false },
          json.pre_tokenizer,
        ],
      },
      ...changes,
    }),
  });
const EXPLOSION = `${"a".repeat(60)}!`;

/** Shortens the tokenizer's time limit, of 10 s, to half a second in the processes that the fallback starts during `use`. */
async function withShortTimeLimit(use) {
  const file = path.join(temporaryFolder(), "short-time-limit.cjs");
  writeFileSync(
    file,
    `const limits = require(${JSON.stringify(path.join(ROOT, "dist/lib/fallback/tokenizer/time_limit.js"))});
     const { withinTimeLimit } = limits;
     limits.withinTimeLimit = (limitMs, work) => withinTimeLimit(Math.ceil(limitMs / 20), work);`,
  );
  process.env.NODE_OPTIONS = `--require ${JSON.stringify(file)}`;
  try {
    await use();
  } finally {
    delete process.env.NODE_OPTIONS;
  }
}
/** The limit grows where the processor is at others' work. */
const NOT_DONE = /not done after \d+(\.\d+)? s/;

test("a text that the tokenizer never finishes fails alone", { timeout: 300_000 }, () =>
  withShortTimeLimit(async () => {
    await withEmbedder(await explosive({}), { backend: "onnx-js" }, async (embedder) => {
      const exploding = embedder.embed(["fine", EXPLOSION]);
      const [[fine]] = await Promise.all([
        embedder.embed(["fine"]),
        assert.rejects(exploding, embedderError("TOKENIZATION_FAILED", NOT_DONE)),
      ]);
      assert.deepEqual((await embedder.embed(["fine"]))[0], fine);
    });
  }),
);

test("a tokenizer that never finishes a single letter is refused", { timeout: 300_000 }, () =>
  withShortTimeLimit(async () => {
    const normalizer = { type: "Replace", pattern: { String: "a" }, content: EXPLOSION };
    const folder = await explosive({ normalizer });
    await assert.rejects(load(folder), embedderError("MODEL_INVALID", "tokenizer.json", NOT_DONE));
  }),
);

test("absurd numbers are refused before anything is allocated for them", { timeout: 300_000 }, async () => {
  const withTokenizer = (change) => changedModel("bert_mean", { "tokenizer.json": change });
  const withId = (id) => (json) => ({ ...json, model: { ...json.model, vocab: { ...json.model.vocab, the: id } } });
  const withAdded = (id) => (json) => ({ ...json, added_tokens: [...json.added_tokens, { content: "[X]", id }] });
  for (const [id, reason] of [
    [1e15, "has id 1000000000000000"],
    [4_294_967_290, "has id 4294967290"],
    [1e300, "whole number of at least 0, found 1e+300"],
    [-1, "whole number of at least 0, found -1"],
    [1.5, "whole number of at least 0, found 1.5"],
    [null, "whole number of at least 0, found null"],
    ["7", 'whole number of at least 0, found "7"'],
  ]) {
    for (const change of [withId(id), withAdded(id)]) {
      await assert.rejects(load(await withTokenizer(change)), embedderError("MODEL_INVALID", "tokenizer.json", reason));
    }
  }
  for (const longest of [-1, 0.5, "100", 1e300]) {
    const folder = await withTokenizer((json) => ({
      ...json,
      model: { ...json.model, max_input_chars_per_word: longest },
    }));
    await assert.rejects(load(folder), embedderError("MODEL_INVALID", "max_input_chars_per_word", String(longest)));
  }
  for (const change of [
    { hidden_size: 1e15 },
    { hidden_size: 2 ** 31 },
    { hidden_size: 1e300 },
    { hidden_size: -1 },
    { vocab_size: 1e300 },
    { vocab_size: 1e15 },
    { max_position_embeddings: 1e300 },
  ]) {
    const folder = await changedModel("bert_mean", { "config.json": (config) => ({ ...config, ...change }) });
    // As the addon has it: what cannot be true is refused, whether or not this backend would need it.
    const refused = embedderError("MODEL_INVALID");
    await assert.rejects(load(folder, { maxTokens: 2 ** 31 - 1 }), refused, JSON.stringify(change));
  }
});

test("values that are not finite are an error, and the next call works", async () => {
  const damaged = table.slice().fill(Number.NaN, 0, WIDTH);
  const embedder = await load(await folderWith({ "model.onnx": tableModel({ ...DEFAULTS, table: damaged }) }));
  await assert.rejects(embedder.embed(["fine", "[PAD]"]), embedderError("INFERENCE_FAILED", "NaN"));
  assert.equal((await embedder.embed(["fine"])).length, 1);
  await embedder.close();
});

test("the event loop stays free while the fallback loads and embeds", () =>
  freeEventLoop(async () => {
    await withEmbedder(STARTER_MODEL, { backend: "onnx-js" }, (embedder) =>
      embedder.embed(Array.from({ length: 40 }, (_, index) => `${index} ${"some words of text ".repeat(30)}`)),
    );
  }));

test("a query overtakes bulk work", () =>
  withEmbedder(STARTER_MODEL, { backend: "onnx-js" }, async (embedder) => {
    const finished = [];
    const bulk = embedder
      .embed(Array.from({ length: 60 }, (_, index) => `${index} ${"words ".repeat(100)}`))
      .then(() => finished.push("bulk"));
    await new Promise((resolve) => setTimeout(resolve, 50));
    const query = embedder.embedQuery("a query").then(() => finished.push("query"));
    await Promise.all([bulk, query]);
    assert.deepEqual(finished, ["query", "bulk"]);
  }));

test("an idle embedder does not keep the process alive; a call does", async () => {
  const script = `
    const { Embedder } = require(${JSON.stringify(path.join(ROOT, "dist/embedder.js"))});
    Embedder.load(${JSON.stringify(await model("bert_mean"))}, { backend: "onnx-js" })
      .then((embedder) => embedder.embed(["x"]))
      .then((vectors) => console.log(vectors.length));`;
  assert.deepEqual(await reportsOf(["-e", script], { timeoutMs: 60_000 }), [1]);
});

/** Measures the longest time for which a timer of 5 ms was late. */
async function freeEventLoop(work) {
  let longest = 0;
  let last = performance.now();
  const timer = setInterval(() => {
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
  }, 5);
  await work();
  clearInterval(timer);
  assert.ok(longest < 250, `the event loop stood still for ${Math.round(longest)} ms`);
}

test("the fallback's threads honour the quota of a container", () => {
  const { availableProcessors } = createRequire(import.meta.url)("../dist/lib/processors.js");
  const all = os.availableParallelism();
  const twice = `${all * 2}00000`;
  for (const [expected, files] of [
    [all, { "cpu.max": "max 100000\n" }],
    [1, { "cpu.max": "50000 100000\n" }],
    [1, { "cpu.max": "100000 100000\n" }],
    [1, { "cpu.max": "150000 100000\n" }],
    [all, { "cpu.max": `${twice} 100000\n` }],
    [all, { "cpu.max": "nonsense" }],
    [all, { "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n" }],
    [1, { "cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n" }],
    [all, { "cpu/cpu.cfs_quota_us": `${twice}\n`, "cpu/cpu.cfs_period_us": "100000\n" }],
    [all, { "cpu/cpu.cfs_quota_us": "150000\n" }],
  ]) {
    const cgroups = temporaryFolder();
    mkdirSync(path.join(cgroups, "cpu"));
    for (const [file, content] of Object.entries(files)) writeFileSync(path.join(cgroups, file), content);
    assert.equal(availableProcessors(cgroups), expected, JSON.stringify(files));
  }
  assert.equal(availableProcessors(path.join(temporaryFolder(), "none")), all);
});
