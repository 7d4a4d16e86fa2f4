/** The addon and the JavaScript fallback give the same tokens, vectors and fingerprints. */

import assert from "node:assert/strict";
import { readdirSync, readFileSync, symlinkSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { test } from "node:test";
import { functionsBelow } from "../scripts/functions.mjs";
import {
  api,
  assertClose,
  changedModel,
  FIXTURES,
  golden,
  model,
  ROOT,
  STARTER_MODEL,
  temporaryFolder,
  withEmbedder,
} from "./support/models.mjs";

const require = createRequire(import.meta.url);
const { loadAddon, addonOptions } = require("../dist/lib/native.js");
const { readModelDir } = require("../dist/lib/model_dir.js");
const { TextTokenizer } = require("../dist/lib/fallback/tokenizer.js");

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

/** BERT's WordPiece, byte-level BPE and SentencePiece's Unigram. */
const TOKENIZERS = {
  bert: async () => STARTER_MODEL,
  roberta: () => model("roberta"),
  xlm_roberta: () => model("xlm_roberta"),
};

for (const [name, folderOf] of Object.entries(TOKENIZERS)) {
  test(`both tokenizers give the same ids for real source code and unusual text: ${name}`, async () => {
    const folder = await folderOf();
    const files = [...new Set(functionsBelow(ROOT).map(({ file }) => file)), "package-lock.json"];
    const texts = [
      ...files.map((file) => readFileSync(path.join(ROOT, file), "utf8")),
      ...golden("all-MiniLM-L6-v2").texts,
      "ΟΔΟΣ ΣΑΣ Σ", // capital sigma at the end of a word
      "𠀀𪚥 \u{2f800} 漢字かな交じり文", // CJK beyond the basic plane
      "İıſK Å ẞ ﬃ Ǆ ΐ ᾳ",
      "e\u0301 \u0301\u0302 a\u0323\u0307 क्षि",
      "\0\u0001\t\v\f\u0085\u00a0\u200b\u2028\u3000\ufeff x\ud800y\udfffz",
      "a <mask>  <mask>b </s><s>x<pad> <unk>",
      "ﬁ ｆｕｌｌ　ｗｉｄｔｈ ① ㎏ ½ e\u0301 Å ｶﾞ 가 ﷺ",
      "السلام عليكم \u202eabc\u202c שלום \u0600x",
      "\u1100\u1161\u11a8 ไทย ภาษา தமிழ் 🏴\u{e0067}\u{e0062}\u{e007f} \r\n\r \n\n   don't I'll 12,345.67",
      "[CLS] [SEP][MASK] [PAD]x[UNK] [cls] ##ing un##able",
      `${"x".repeat(100)} ${"y".repeat(101)} ${"é".repeat(100)}`,
      "👩‍💻👍🏽🇩🇪 ½ ² ™ €£¥ «quoted» “x” ‐–— … ‼ ",
    ];
    const options = { maxTokens: 512 };
    const rust = await loadAddon().Model.load(folder, addonOptions(options));
    const js = new TextTokenizer(readModelDir(folder, options));
    for (const [index, text] of texts.entries()) {
      for (const chunk of text.match(/.{1,1000}/gsu) ?? [""]) {
        assert.deepEqual(js.encode(chunk, false).ids, [...rust.tokenize(chunk, false)], files[index] ?? chunk);
      }
    }
    await rust.close();
  });
}

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

test("exportOnnx writes a graph that refers to the weights beside it", async () => {
  const folder = await changedModel("nomic_cls", { "semantic-search-native.onnx": null });
  const file = await api.exportOnnx(folder);
  assert.equal(file, path.join(folder, "semantic-search-native.onnx"));
  assert.ok(readFileSync(file).length < readFileSync(path.join(folder, "model.safetensors")).length / 2);
});

test("scripts/starter-model.onnx is what exportOnnx writes for the starter model", async () => {
  const folder = temporaryFolder();
  for (const name of readdirSync(STARTER_MODEL)) {
    if (!name.endsWith(".onnx")) symlinkSync(path.join(STARTER_MODEL, name), path.join(folder, name));
  }
  const file = await api.exportOnnx(folder);
  const committed = readFileSync(path.join(ROOT, "scripts/starter-model.onnx"));
  assert.ok(readFileSync(file).equals(committed), `replace scripts/starter-model.onnx by ${file}`);
});
