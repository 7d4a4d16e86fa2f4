/** The addon and the JavaScript fallback give the same tokens, vectors and fingerprints. */

import assert from "node:assert/strict";
import { cpSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { test } from "node:test";
import { functionsBelow } from "../scripts/functions.mjs";
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
import { GOLDEN, goldenTokenizers, TokenizerPair } from "./support/tokens.mjs";

const require = createRequire(import.meta.url);
const { loadAddon, addonOptions } = require("../dist/lib/native.js");
const { readModelDir } = require("../dist/lib/model_dir.js");
const { TextTokenizer } = require("../dist/lib/fallback/tokenizer/text_tokenizer.js");

const both = (folder, options, use) =>
  withEmbedder(folder, { ...options, backend: "onnx" }, (rust) =>
    withEmbedder(folder, { ...options, backend: "onnx-js" }, (js) => use(rust, js)),
  );

for (const name of FIXTURES) {
  test(`${name}: vectors are equal to 1e-5, and all facts about the model are equal`, async () => {
    const texts = golden(name).cases.map(({ text }) => text.slice(0, 50_000));
    for (const options of [
      {},
      { maxTokens: 9, queryPrompt: 'say "é\u2028" \\: ', documentPrompt: "", normalize: false },
    ]) {
      await both(await model(name), options, async (rust, js) => {
        for (const kind of ["query", "document"]) {
          const cut = { rust: [], js: [] };
          const fromRust = await rust.embed(texts, { kind, onTruncated: (indices) => cut.rust.push(...indices) });
          const fromJs = await js.embed(texts, { kind, onTruncated: (indices) => cut.js.push(...indices) });
          for (const index of texts.keys())
            assertClose(fromJs[index], fromRust[index], 1e-5, texts[index].slice(0, 80));
          assert.deepEqual(cut.js, cut.rust);
        }
        for (const property of ["fingerprint", "dimension", "maxTokens", "pooling", "truncatedTexts"]) {
          assert.deepEqual(js[property], rust[property], property);
        }
      });
    }
  });
}

const FOLDERS = {
  "prompts that are null, a default prompt": {
    "config_sentence_transformers.json": () => ({ prompts: { query: null, web: "web: " }, default_prompt_name: "web" }),
  },
  "passage and corpus prompts": {
    "config_sentence_transformers.json": () => ({ prompts: { corpus: "c: ", passage: "p: " } }),
  },
  "several pooling modes, in the order of the list": {
    "1_Pooling/config.json": () => ({ pooling_mode: ["mean", "cls", "weightedmean"] }),
  },
  "older pooling booleans": {
    "1_Pooling/config.json": () => ({
      pooling_mode_max_tokens: true,
      pooling_mode_cls_token: true,
      pooling_mode_lasttoken: true,
    }),
  },
  "no limit in sentence_bert_config.json": {
    "sentence_bert_config.json": () => ({}),
    "tokenizer_config.json": (config) => ({ ...config, model_max_length: 1e30 }),
  },
  "a limit beyond the positions": { "sentence_bert_config.json": () => ({ max_seq_length: 4000 }) },
  "lower-casing, cutting on the left": {
    "sentence_bert_config.json": () => ({ max_seq_length: 12, do_lower_case: true }),
    "tokenizer_config.json": (config) => ({ ...config, truncation_side: "left" }),
  },
  "truncation and padding in tokenizer.json": {
    "tokenizer.json": (tokenizer) => ({
      ...tokenizer,
      truncation: { direction: "Right", max_length: 5, strategy: "LongestFirst", stride: 0 },
      padding: {
        strategy: { Fixed: 40 },
        direction: "Right",
        pad_to_multiple_of: null,
        pad_id: 0,
        pad_type_id: 0,
        pad_token: "[PAD]",
      },
    }),
  },
};

for (const [title, changes] of Object.entries(FOLDERS)) {
  test(`a model folder with ${title} means the same to both`, async () => {
    const folder = await changedModel("bert_mean", changes);
    const texts = ["ΟΔΟΣ Straße İstanbul", "the quick brown fox jumps over the lazy dog and so on and on and on", ""];
    await both(folder, {}, async (rust, js) => {
      assert.equal(js.fingerprint, rust.fingerprint);
      assert.equal(js.maxTokens, rust.maxTokens);
      for (const kind of ["query", "document"]) {
        const [a, b] = [await rust.embed(texts, { kind }), await js.embed(texts, { kind })];
        for (const index of texts.keys()) assertClose(b[index], a[index], 1e-5, texts[index]);
      }
    });
  });
}

/** By name: tokenizers of small vocabularies, and all-MiniLM's. */
async function* tokenizerPairs() {
  for (const [name, json] of Object.entries(goldenTokenizers())) yield [name, await TokenizerPair.of(name, json)];
  yield ["all-MiniLM-L6-v2", await TokenizerPair.load("all-MiniLM-L6-v2", STARTER_MODEL, { maxTokens: 512 })];
}

const chunksOf = (text) => text.match(/.{1,1000}/gsu) ?? [""];

test("both tokenizers give the ids of Python's tokenizers", async () => {
  for (const [name, json] of Object.entries(goldenTokenizers())) {
    const pair = await TokenizerPair.of(name, json);
    for (const { text, ids } of GOLDEN.cases) {
      assert.deepEqual(pair.ids(text), { addon: ids[name], fallback: ids[name] }, `${name}: ${text}`);
    }
    await pair.close();
  }
});

test("both tokenizers give the same ids for this repository and for lone surrogates", async () => {
  const files = [...new Set(functionsBelow(ROOT).map(({ file }) => file)), "package-lock.json"];
  const texts = files.map((file) => readFileSync(path.join(ROOT, file), "utf8").slice(0, 20_000));
  for await (const [, pair] of tokenizerPairs()) {
    for (const text of [...texts, ...golden("all-MiniLM-L6-v2").texts, "x\ud800y\udfffz\udc00\ud800"].flatMap(
      chunksOf,
    )) {
      assert.equal(pair.difference(text), undefined);
    }
    await pair.close();
  }
});

/** The planes with characters: all, but of the large scripts that are all alike only every seventh. */
function* characters() {
  for (let code = 0; code < 0xe0200; code++) {
    if (code === 0x34000) code = 0xe0000;
    const isOneOfMany =
      (code >= 0x3400 && code < 0xa000) ||
      (code >= 0xac00 && code < 0xd7b0) ||
      (code >= 0x13000 && code < 0x19000) ||
      code >= 0x20000;
    if ((code < 0xd800 || code > 0xdfff) && (!isOneOfMany || code % 7 === 0)) yield String.fromCodePoint(code);
  }
}

test("both tokenizers give the same ids for every character", async () => {
  for await (const [, pair] of tokenizerPairs()) {
    let text = "";
    for (const character of characters()) {
      text += ` a${character}a${character}`;
      if (text.length < 200) continue;
      assert.equal(pair.difference(text), undefined);
      text = "";
    }
    await pair.close();
  }
});

test("a text that equals an added token only after normalization is not that token, in either tokenizer", async () => {
  const folder = await changedModel("bert_mean", {
    "tokenizer.json": (tokenizer) => JSON.parse(JSON.stringify(tokenizer).replaceAll("[MASK]", "<mask>")),
  });
  const rust = await loadAddon().Model.load(folder, addonOptions({}));
  const js = new TextTokenizer(readModelDir(folder, {}));
  for (const text of ["<mask>", "<másk>", "<\u200bmask>", "<MASK>", "a <másk>"]) {
    const ids = [...rust.tokenize(text, false)];
    assert.equal(ids.includes(4), text === "<mask>", text);
    assert.deepEqual(js.encode(text, false).ids, ids, text);
  }
  await rust.close();
});

test("the fallback refuses a tokenizer that it could not compute like the addon", async () => {
  const first = { type: "Metaspace", replacement: "▁", prepend_scheme: "first", split: true };
  const changes = {
    "normalizer.type: Nmt": ["byte_fallback", { normalizer: { type: "Nmt" } }],
    "pre_tokenizer.type: UnicodeScripts": ["byte_fallback", { pre_tokenizer: { type: "UnicodeScripts" } }],
    'prepend_scheme "first" behind another': [
      "unigram",
      { pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "WhitespaceSplit" }, first] } },
    ],
    "model.dropout: 0.5": ["byte_fallback", { model: { dropout: 0.5 } }],
    "model.type: WordLevel": ["word_piece", { model: { type: "WordLevel" } }],
  };
  for (const [named, [name, parts]] of Object.entries(changes)) {
    const json = goldenTokenizers()[name];
    Object.assign(json, parts, { model: { ...json.model, ...parts.model } });
    const refused = embedderError("MODEL_UNSUPPORTED", "tokenizer.json", named, "JavaScript fallback");
    await assert.rejects(TokenizerPair.of(name, json), refused);
  }
});

test("exportOnnx writes a graph that refers to the weights beside it", async () => {
  const folder = await changedModel("nomic_cls", { "semantic-search-native.onnx": null });
  const file = await api.exportOnnx(folder);
  assert.equal(file, path.join(folder, "semantic-search-native.onnx"));
  assert.ok(readFileSync(file).length < readFileSync(path.join(folder, "model.safetensors")).length / 2);
});

test("scripts/starter-model.onnx is what exportOnnx writes for the starter model", async () => {
  const folder = temporaryFolder();
  cpSync(STARTER_MODEL, folder, { recursive: true, filter: (name) => !name.endsWith(".onnx") });
  const file = await api.exportOnnx(folder);
  const committed = readFileSync(path.join(ROOT, "scripts/starter-model.onnx"));
  assert.ok(readFileSync(file).equals(committed), `replace scripts/starter-model.onnx by ${file}`);
});
