/** Rerankers on every backend against `CrossEncoder` of sentence-transformers (see tests/fixtures/rerankers.py). */

import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { test } from "node:test";
import {
  api,
  assertClose,
  BACKENDS,
  changedModel,
  embedderError,
  maxDifference,
  model,
  ROOT,
  temporaryFolder,
} from "./support/models.mjs";
import { tableModel } from "./support/onnx_writer.mjs";

const require = createRequire(import.meta.url);
const { Embedder, Reranker } = api;
const NAMES = ["bert", "distilbert", "modernbert", "qwen3", "qwen3_classifier", "xlm_roberta"];
/** Token ids of the fixture `bert`. */
const VOCABULARY = 1411;
/** Scores are raw logits. */
const TOLERANCE = 1e-4;
const QUERY = "where is a number read from a string?";
const TEXTS = ["def parse(value): return int(value)", "", "日本語 🚀", "where are tokens validated?", "the time", ""];

const reranker = (name) => model(`rerankers/${name}`);
const changed = (name, changes) => changedModel(`rerankers/${name}`, changes);

function golden(name) {
  const file = path.join(ROOT, "tests/fixtures/rerankers/golden", `${name}.json`);
  const { cases, ...facts } = JSON.parse(readFileSync(file, "utf8"));
  for (const entry of cases) {
    if (typeof entry.text !== "string") entry.text = entry.text.repeat.repeat(entry.text.times);
  }
  return { cases, ...facts };
}

async function withReranker(folder, options, use) {
  const loaded = await Reranker.load(folder, options);
  try {
    return await use(loaded);
  } finally {
    await loaded.close();
  }
}

for (const backend of BACKENDS) {
  for (const name of NAMES) {
    test(`${name} gives the scores of CrossEncoder on ${backend}`, async () => {
      const { cases, maxTokens, activation } = golden(name);
      await withReranker(await reranker(name), { backend }, async (loaded) => {
        assert.equal(loaded.maxTokens, maxTokens);
        assert.equal(loaded.activation, activation);
        for (const { name: what, query, text, logit, sigmoid, score, truncated } of cases) {
          const cut = [];
          const onTruncated = (indices) => cut.push(...indices);
          const raw = await loaded.score(query, [text], { activation: "none", onTruncated });
          assert.ok(raw instanceof Float32Array);
          assertClose(raw, [logit], TOLERANCE, what);
          assert.deepEqual(cut, truncated ? [0] : [], what);
          assertClose(await loaded.score(query, [text], { activation: "sigmoid" }), [sigmoid], TOLERANCE, what);
          assertClose(await loaded.score(query, [text]), [score], TOLERANCE, what);
        }
        const count = cases.filter(({ truncated }) => truncated).length;
        assert.equal(loaded.truncatedTexts, 3 * count);
      });
    });
  }

  test(`scores and ranks on ${backend}`, async () => {
    await withReranker(await reranker("bert"), { backend }, async (loaded) => {
      const scores = await loaded.score(QUERY, TEXTS);
      assert.equal(scores.length, TEXTS.length);
      assert.equal(scores[1], scores[5]);
      const alone = await Promise.all(TEXTS.map((text) => loaded.score(QUERY, [text])));
      const tolerance = backend === "onnx" || backend === "onnx-js" ? 0 : TOLERANCE;
      assertClose(
        scores,
        Float32Array.from(alone, ([score]) => score),
        tolerance,
        "alone",
      );
      const expected = [...scores.keys()].sort((a, b) => scores[b] - scores[a] || a - b);
      const ranked = await loaded.rank(QUERY, TEXTS);
      assert.deepEqual(
        ranked.map(({ index }) => index),
        expected,
      );
      for (const { index, score } of ranked) assertClose([score], [scores[index]], TOLERANCE, TEXTS[index]);
      assert.ok(expected.indexOf(1) < expected.indexOf(5), "of equal scores, the first comes first");
      const best = await loaded.rank(QUERY, TEXTS, { topK: 2, activation: "sigmoid" });
      assert.deepEqual(
        best.map(({ index }) => index),
        expected.slice(0, 2),
      );
      for (const { index, score } of best) {
        assertClose([score], [1 / (1 + Math.exp(-scores[index]))], TOLERANCE, "sigmoid");
      }
      assert.equal((await loaded.rank(QUERY, TEXTS, { topK: 100 })).length, TEXTS.length);
      assert.deepEqual(await loaded.score(QUERY, []), new Float32Array());
      assert.deepEqual(await loaded.rank(QUERY, []), []);
      const { texts, calls, activation, maxTokens, fingerprint } = await loaded.info();
      assert.ok(texts > 0);
      assert.deepEqual([calls, activation, maxTokens, fingerprint], [0, "none", 64, loaded.fingerprint]);
      assert.equal(loaded.backend, backend);
    });
  });

  test(`a query that leaves no room for a text is refused on ${backend}`, async () => {
    await withReranker(await reranker("xlm_roberta"), { backend }, async (loaded) => {
      for (const words of [60, 61, 100_000]) {
        const refused = embedderError("INVALID_ARGUMENT", "query", "at most 59 tokens", "maxTokens, 64");
        await assert.rejects(loaded.score("time ".repeat(words), ["a", "b"]), refused);
      }
      // A failed call leaves others alone.
      assert.equal((await loaded.score(QUERY, ["a"])).length, 1);
    });
    const folder = await reranker("bert");
    const refused = embedderError("INVALID_ARGUMENT", "maxTokens", "3 special tokens and a token of each text");
    await assert.rejects(Reranker.load(folder, { backend, maxTokens: 4 }), refused);
    await withReranker(folder, { backend, maxTokens: 5 }, async (loaded) => {
      assert.equal((await loaded.score("time", ["a text"])).length, 1);
    });
  });

  test(`embedders and rerankers are told apart on ${backend}`, async () => {
    for (const name of ["bert_mean", "nomic_cls", "xlm_roberta"]) {
      const refused = embedderError("MODEL_UNSUPPORTED", name, "Embedder.load");
      await assert.rejects(Reranker.load(await model(name), { backend }), refused);
    }
    for (const name of NAMES) {
      const refused = embedderError("MODEL_UNSUPPORTED", name, "Reranker.load");
      await assert.rejects(Embedder.load(await reranker(name), { backend }), refused);
    }
  });

  test(`what a reranker's folder may not ask for is refused by name on ${backend}`, async () => {
    const labels = { 0: "no", 1: "yes" };
    const cases = [
      [{ "config.json": (config) => ({ ...config, id2label: labels }) }, "num_labels = 2"],
      [{ "config.json": ({ id2label: _, ...config }) => config }, "num_labels = 2"],
    ];
    for (const [changes, named] of cases) {
      const folder = await changed("bert", { ...changes, "semantic-search-native.onnx": null });
      writeFileSync(path.join(folder, "model.onnx"), tableModel({ table: new Float32Array(VOCABULARY), width: 1 }));
      await assert.rejects(Reranker.load(folder, { backend }), embedderError("MODEL_UNSUPPORTED", named));
    }
  });
}

for (const backend of BACKENDS) {
  test(`a prompt precedes queries, or is the instruction of a chat template, on ${backend}`, async () => {
    const scores = async (folder, options, query = QUERY) =>
      withReranker(folder, { backend, ...options }, (loaded) => loaded.score(query, TEXTS, { activation: "none" }));
    const bert = await reranker("bert");
    const expected = await scores(bert, {}, `find: ${QUERY}`);
    assertClose(await scores(bert, { queryPrompt: "find: " }), expected, TOLERANCE, "the option");
    const declared = { prompts: { q: "find: " }, default_prompt_name: "q" };
    const folder = await changed("bert", { "config_sentence_transformers.json": () => declared });
    assertClose(await scores(folder), expected, TOLERANCE, "the folder's");
    assert.ok(maxDifference(await scores(bert), expected) > 10 * TOLERANCE);

    const [qwen, classifier] = await Promise.all(["qwen3", "qwen3_classifier"].map(reranker));
    const own = "Given a web search query, retrieve relevant passages that answer the query";
    const code = "Given a question, find the function of the code that answers it";
    const plain = await scores(qwen);
    for (const queryPrompt of ["", own])
      assertClose(await scores(qwen, { queryPrompt }), plain, TOLERANCE, queryPrompt);
    assert.ok(maxDifference(await scores(qwen, { queryPrompt: code }), plain) > 10 * TOLERANCE);
    assertClose(await scores(classifier, { queryPrompt: code }), await scores(classifier), TOLERANCE, "the default");
  });

  test(`what a chat template leaves no room for is refused on ${backend}`, async () => {
    const folder = await reranker("qwen3");
    const refused = embedderError("INVALID_ARGUMENT", "maxTokens", "chat template");
    await assert.rejects(Reranker.load(folder, { backend, maxTokens: 100 }), refused);
    await withReranker(folder, { backend }, async (loaded) => {
      const query = embedderError("INVALID_ARGUMENT", "query", "maxTokens, 192");
      await assert.rejects(loaded.score("time ".repeat(100), ["a"]), query);
    });
  });
}

test("every backend gives the same fingerprint", async () => {
  for (const name of NAMES) {
    const folder = await reranker(name);
    const of = (options) => withReranker(folder, options, async ({ fingerprint }) => fingerprint);
    const found = await Promise.all(BACKENDS.map((backend) => of({ backend })));
    assert.equal(new Set(found).size, 1, name);
    assert.notEqual(await of({ maxTokens: golden(name).maxTokens - 1 }), found[0]);
  }
});

test("int8 scores keep close", async () => {
  for (const name of NAMES) {
    const { cases } = golden(name);
    const folder = await changed(name, {});
    await api.exportOnnx(folder, { dtype: "int8" });
    const logits = cases.map(({ logit }) => logit);
    const spread = Math.max(...logits) - Math.min(...logits);
    for (const backend of ["cpu", "onnx-js"]) {
      await withReranker(folder, { backend, dtype: "int8" }, async (loaded) => {
        for (const { query, text, logit, name: what } of cases) {
          const scores = await loaded.score(query, [text], { activation: "none" });
          assertClose(scores, [logit], 0.1 * spread, `${backend} ${name} ${what}`);
        }
      });
    }
  }
});

test("the activation is what CrossEncoder would take", async () => {
  const sentence = "config_sentence_transformers.json";
  const config = (changes) => ({ "config.json": (json) => ({ ...json, ...changes }) });
  const identity = "torch.nn.modules.linear.Identity";
  const sigmoid = "torch.nn.modules.activation.Sigmoid";
  const older = "sbert_ce_default_activation_function";
  const activationOf = async (name, changes, options) => {
    const folder = await changed(name, changes);
    await api.exportOnnx(folder);
    return withReranker(folder, options, async ({ activation }) => activation);
  };
  for (const [name, changes, expected] of [
    ["bert", {}, "none"],
    ["xlm_roberta", {}, "sigmoid"],
    ["distilbert", {}, "none"],
    ["distilbert", config({ [older]: undefined }), "sigmoid"],
    ["distilbert", config({ [older]: sigmoid }), "sigmoid"],
    ["distilbert", config({ sentence_transformers: { activation_fn: sigmoid, version: "4.1.0" } }), "sigmoid"],
    ["bert", { [sentence]: () => ({ activation_fn: null }) }, "sigmoid"],
    ["bert", { [sentence]: () => ({}), ...config({ sentence_transformers: { activation_fn: identity } }) }, "none"],
    ["xlm_roberta", { [sentence]: (json) => ({ ...json, activation_fn: "torch.nn.Identity" }) }, "none"],
  ]) {
    assert.equal(await activationOf(name, changes), expected, JSON.stringify([name, Object.keys(changes)]));
  }
  for (const activation of ["torch.nn.modules.activation.Tanh", "my_model.Sigmoid"]) {
    const changes = { [sentence]: (json) => ({ ...json, activation_fn: activation }) };
    const refused = embedderError("MODEL_UNSUPPORTED", sentence, activation, "option activation");
    await assert.rejects(activationOf("bert", changes), refused);
    assert.equal(await activationOf("bert", changes, { activation: "sigmoid" }), "sigmoid");
  }
});

test("a sigmoid gives 1 for every logit above 17.4", () => {
  const { activated } = require("../dist/lib/activation.js");
  assert.deepEqual(
    [...activated(Float32Array.of(17.3, 17.4, 30), "sigmoid")].map((score) => score === 1),
    [false, true, true],
  );
});

test("an ONNX file from elsewhere: logits as the output, token types as an input", async () => {
  const table = Float32Array.from({ length: VOCABULARY }, (_, index) => Math.sin(index));
  const folderWith = async (graph) => {
    const folder = await changed("bert", { "semantic-search-native.onnx": null, "model.safetensors": null });
    mkdirSync(path.join(folder, "onnx"));
    writeFileSync(path.join(folder, "onnx/model.onnx"), tableModel({ table, width: 1, ...graph }));
    return folder;
  };
  const inputs = { input_ids: "int64", attention_mask: "int64", token_type_ids: "int64" };
  const { cases } = golden("bert");
  const usual = { isPooled: true, output: "logits" };
  await withReranker(await folderWith({ ...usual, inputs }), { backend: "onnx-js" }, async (loaded) => {
    for (const { query, text, ids, name } of cases) {
      const expected = ids.reduce((sum, id) => sum + table[id], 0) / ids.length;
      assertClose(await loaded.score(query, [text], { activation: "none" }), [expected], 1e-5, name);
    }
  });
  // The mean of the types is the share of the text and its separator.
  const types = { input_ids: "int64", token_type_ids: "int64" };
  const counting = tableModel({
    table: Float32Array.of(0, 1),
    width: 1,
    ...usual,
    inputs: types,
    lookUp: "token_type_ids",
  });
  const folder = await folderWith(usual);
  writeFileSync(path.join(folder, "onnx/model.onnx"), counting);
  await withReranker(folder, { backend: "onnx-js" }, async (loaded) => {
    for (const { query, text, ids, name } of cases) {
      const [score] = await loaded.score(query, [text], { activation: "none" });
      const { length } = await tokensOf(query);
      assertClose([score], [(ids.length - length) / ids.length], 1e-5, name);
    }
  });
  for (const [graph, code, named] of [
    [{ isPooled: false, output: "logits" }, "MODEL_UNSUPPORTED", "logits [batch, 1]"],
    [{ ...usual, width: 2, table: new Float32Array(2 * VOCABULARY) }, "MODEL_INVALID", "a score is one number"],
  ]) {
    await assert.rejects(Reranker.load(await folderWith(graph), { backend: "onnx-js" }), embedderError(code, named));
  }
});

test("both tokenizers join a pair alike, whatever joins it", async () => {
  const token = (id, type_id) => ({ SpecialToken: { id, type_id } });
  const sequence = (id, type_id) => ({ Sequence: { id, type_id } });
  const special = (name, ids) => ({ [name]: { id: name, ids, tokens: ids.map(String) } });
  const template = (pair, tokens) => ({
    type: "TemplateProcessing",
    single: [sequence("A", 0)],
    pair,
    special_tokens: tokens,
  });
  const tokens = { ...special("[CLS]", [2]), ...special("[SEP]", [3]) };
  const sep = ["[SEP]", 3];
  const cls = ["[CLS]", 2];
  const options = { backend: "onnx", maxTokens: 20 };
  const long = "the time ".repeat(30);
  for (const processor of [
    { type: "BertProcessing", sep, cls },
    { type: "RobertaProcessing", sep, cls, trim_offsets: true, add_prefix_space: false },
    template([sequence("A", 0), token("[SEP]", 1), sequence("B", 1)], tokens),
    template([token("[CLS]", 0), sequence("B", 0), token("[SEP]", 0), sequence("A", 1)], tokens),
  ]) {
    const folder = await changed("bert", {
      "tokenizer.json": (tokenizer) => ({ ...tokenizer, post_processor: processor }),
    });
    await api.exportOnnx(folder);
    const score = (backend) =>
      withReranker(folder, { ...options, backend }, (loaded) => loaded.score(QUERY, [...TEXTS, long]));
    assertClose(await score("onnx-js"), await score("onnx"), TOLERANCE, JSON.stringify(processor));
  }
  const unordered = template([sequence("A", 1), sequence("B", 0)], tokens);
  const missing = template([sequence("A", 0), token("[X]", 0), sequence("B", 1)], tokens);
  for (const [processor, backend, code] of [
    [unordered, "onnx", "MODEL_INVALID"],
    [unordered, "onnx-js", "MODEL_INVALID"],
    // The library panics.
    [missing, "onnx", "TOKENIZATION_FAILED"],
    [missing, "onnx-js", "MODEL_INVALID"],
    [
      { type: "ByteLevel", add_prefix_space: false, trim_offsets: false, use_regex: true },
      "onnx-js",
      "MODEL_UNSUPPORTED",
    ],
  ]) {
    const folder = await changed("bert", {
      "tokenizer.json": (tokenizer) => ({ ...tokenizer, post_processor: processor }),
    });
    await assert.rejects(Reranker.load(folder, { backend }), embedderError(code));
  }
});

/** A query's tokens with the special tokens around it, which are those of a single text. */
async function tokensOf(query) {
  const { createRequire } = await import("node:module");
  const require = createRequire(import.meta.url);
  const { readModelDir } = require("../dist/lib/model_dir.js");
  const { TextTokenizer } = require("../dist/lib/fallback/tokenizer/text_tokenizer.js");
  const { ids } = new TextTokenizer(readModelDir(await model("bert_mean"), { maxTokens: 64 })).encode(query, false);
  return ids;
}

test("arguments are checked by name", async () => {
  const folder = await reranker("bert");
  const wrong = (promise, ...named) => assert.rejects(promise, embedderError("INVALID_ARGUMENT", ...named));
  await wrong(Reranker.load(), "model");
  for (const option of ["pooling", "normalize", "documentPrompt", "dimensions", "queryCacheSize", "task"]) {
    await wrong(Reranker.load(folder, { [option]: "cls" }), `unknown option "${option}"`, "activation");
  }
  await wrong(Reranker.load(folder, { activation: "softmax" }), "activation", '"none", "sigmoid"');
  await wrong(Embedder.load(folder, { task: "rerank" }), 'unknown option "task"');
  await withReranker(folder, {}, async (loaded) => {
    await wrong(loaded.score(1, ["a"]), "query", "a string");
    await wrong(loaded.score(QUERY, "a"), "texts");
    await wrong(loaded.score(QUERY, ["a", Uint32Array.of(1)]), "texts[1]", "token ids");
    await wrong(loaded.score(QUERY, ["a"], { kind: "query" }), 'unknown option "kind"');
    await wrong(loaded.score(QUERY, ["a"], { topK: 1 }), 'unknown option "topK"');
    await wrong(loaded.rank(QUERY, ["a"], { topK: 0 }), "topK", "at least 1");
    await wrong(loaded.rank(QUERY, ["a"], { activation: "softmax" }), "activation");
  });
});

for (const backend of BACKENDS) {
  test(`abort, progress and close on ${backend}`, async () => {
    const loaded = await Reranker.load(await reranker("distilbert"), { backend });
    const many = Array.from({ length: 3000 }, (_, index) => `${index}${" word".repeat(40)}`);
    const controller = new AbortController();
    const aborted = loaded.score(QUERY, many, { signal: controller.signal });
    setTimeout(() => controller.abort("enough"), 20);
    await assert.rejects(aborted, { name: "AbortError", code: "ABORT_ERR", cause: "enough" });
    await assert.rejects(loaded.rank(QUERY, many, { signal: controller.signal }), { code: "ABORT_ERR" });

    const reports = [];
    const texts = many.slice(0, 64);
    await loaded.score(QUERY, texts, { onProgress: (progress) => reports.push(progress) });
    assert.deepEqual([reports.at(-1).done, reports.at(-1).total], [64, 64]);
    const thrown = new Error("the caller's own");
    const throwing = loaded.score(QUERY, texts, {
      onProgress: () => {
        throw thrown;
      },
    });
    await assert.rejects(throwing, thrown);

    const cut = loaded.score(QUERY, many);
    cut.catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, 20));
    await loaded[Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]();
    await assert.rejects(cut, embedderError("CLOSED"));
    await assert.rejects(loaded.score(QUERY, ["a"]), embedderError("CLOSED"));
    await assert.rejects(loaded.info(), embedderError("CLOSED"));
    await loaded.close();
  });
}

test("idle weights are unloaded and loaded again", async () => {
  await withReranker(await reranker("bert"), { idleTimeoutMs: 50 }, async (loaded) => {
    const before = await loaded.score(QUERY, TEXTS);
    await new Promise((resolve) => setTimeout(resolve, 300));
    assert.equal(maxDifference(await loaded.score(QUERY, TEXTS), before), 0);
  });
});

test("a reranker that is no longer there, and an aborted load", async () => {
  const nowhere = path.join(temporaryFolder(), "none");
  await assert.rejects(Reranker.load(nowhere), embedderError("MODEL_NOT_FOUND", "none"));
  const load = Reranker.load(await reranker("bert"), { signal: AbortSignal.abort() });
  await assert.rejects(load, { name: "AbortError" });
});
