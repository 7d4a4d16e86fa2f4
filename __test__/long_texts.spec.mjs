/** Long texts are tokenized piece by piece: into the tokens of the whole, in little memory. */

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { test } from "node:test";
import { Random } from "../scripts/random.mjs";
import { ROOT, STARTER_MODEL, temporaryFolder } from "./support/models.mjs";
import { reportsOf } from "./support/processes.mjs";

const require = createRequire(import.meta.url);
const { readModelDir } = require("../dist/lib/model_dir.js");
const { PieceRules } = require("../dist/lib/fallback/tokenizer/pieces.js");
const { TokenizerJson } = require("../dist/lib/fallback/tokenizer/tokenizer_json.js");
const { TextTokenizer } = require("../dist/lib/fallback/tokenizer/text_tokenizer.js");
const { loadAddon, addonOptions } = require("../dist/lib/native.js");

const GOLDEN = JSON.parse(readFileSync(path.join(ROOT, "tests/fixtures/golden/token_ids.json"), "utf8"));
const FIXTURE = path.join(ROOT, "tests/fixtures/bert_mean/tokenizer.json");

/** What must not be split, and where texts are split. */
const FRAGMENTS = [
  ..." |  |\t|\n|\r\n|\v|\f|\x85|\xa0|\u2028|\u3000|\0|\u200b|\u200d|\ufeff|\ufffd|\ue000|\xad|!|.|'|_|-|[|]|+".split(
    "|",
  ),
  ..."[SEP]|[MASK]|[sep]|[SE|SEP]|P]|[\u200bSEP]|<mask>|<m\xe1sk>|c++|C++|new|newword|NEWWORD".split("|"),
  ..."漢|\u{20000}|\uf900|、|\u0964|\u0301|\u0300|\u0316|\u0345|\u034f|\u302e|\u{1d165}|\u{1d16d}|\u05b0".split("|"),
  ..."e\u0301|é|ệ|≠|각|\u1100|\u1161|\u11a8|👩\u200d👧|😀|Σ|ΑΣ|σ|İ|ı|ß|ﬁ|Ⅷ".split("|"),
  ..."'S|'ll|it's|12|      |\n\n\n|▁|▁▁|e▁t|the the  return|e t|<table>|<0x0A>|<mask".split("|"),
  ..."a|Ab|_Ab|the|time|the  time|return|zzz|zzzz|zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz".split("|"),
];

function randomText(random, fragments) {
  const text = Array.from({ length: random.below(fragments) }, () => {
    const fragment = random.of(FRAGMENTS);
    return random.below(10) === 0 ? fragment.repeat(2 + random.below(50)) : fragment;
  });
  return text.join("");
}

const added = (content, properties) => (tokenizer) => {
  const token = {
    id: 1411,
    content,
    special: false,
    normalized: false,
    single_word: false,
    lstrip: false,
    rstrip: false,
  };
  tokenizer.added_tokens.push({ ...token, ...properties });
};
const model = (properties) => (tokenizer) => Object.assign(tokenizer.model, properties);
const normalizer = (properties) => (tokenizer) => Object.assign(tokenizer.normalizer, properties);

const TOKENIZERS = {
  "the fixture's": () => {},
  "short words": model({ max_input_chars_per_word: 4 }),
  "upper case": normalizer({ lowercase: false }),
  "accents stay": normalizer({ strip_accents: false }),
  "text is not cleaned": normalizer({ clean_text: false }),
  "CJK is not split": normalizer({ handle_chinese_chars: false }),
  "no normalizer": (tokenizer) => Object.assign(tokenizer, { normalizer: null }),
  "no special tokens": (tokenizer) => Object.assign(tokenizer, { post_processor: null }),
  "a token that strips": added("<mask>", { lstrip: true, rstrip: true }),
  "a token of punctuation": added("c++"),
  "a normalized token": added("C++", { normalized: true }),
  "a token within words": added("newword"),
  "a normalized token within words": added("NewWord", { normalized: true }),
  "a single word": added("Ab", { single_word: true }),
  "a token with whitespace": added("the time"),
  "a token that gets whitespace": added("漢", { normalized: true }),
  "another pre-tokenizer": (tokenizer) => Object.assign(tokenizer, { pre_tokenizer: { type: "WhitespaceSplit" } }),
};

function tokenizerFile(change) {
  const file = path.join(temporaryFolder(), "tokenizer.json");
  const tokenizer = JSON.parse(readFileSync(FIXTURE, "utf8"));
  change(tokenizer);
  writeFileSync(file, JSON.stringify(tokenizer));
  return file;
}

const modelOf = (tokenizerFile, properties) => ({
  tokenizerFile,
  encoder: { vocabulary: 40_000 },
  maxTokens: 512,
  queryPrompt: "",
  documentPrompt: "",
  lowerCase: false,
  truncationSide: "right",
  ...properties,
});

const FILES = [
  ...Object.entries(TOKENIZERS).map(([title, change]) => [title, tokenizerFile(change)]),
  ["the starter model's", path.join(STARTER_MODEL, "tokenizer.json")],
  ...Object.entries(GOLDEN.tokenizers).map(([name, file]) => [name, path.join(ROOT, "tests/fixtures", file)]),
];

for (const [title, file] of FILES) {
  test(`a text in pieces has the tokens of the whole: ${title}`, () => {
    const random = new Random(7);
    for (const truncationSide of ["right", "left"]) {
      for (const lowerCase of [false, true]) {
        for (const charactersPerPiece of [0, 1, 7, 30, 300]) {
          const maxTokens = 3 + random.below(random.below(2) ? 10 : 200);
          const model = modelOf(file, { maxTokens, lowerCase, truncationSide, documentPrompt: randomText(random, 4) });
          const inPieces = new TextTokenizer(model, charactersPerPiece);
          const whole = new TextTokenizer(model, Number.POSITIVE_INFINITY);
          for (let index = 0; index < 20; index++) {
            const text = randomText(random, 60) || "a";
            const of = (tokenizer) => {
              try {
                return tokenizer.encode(text, false);
              } catch (error) {
                return error.message;
              }
            };
            assert.deepEqual(of(inPieces), of(whole), JSON.stringify({ text, charactersPerPiece, ...model }));
          }
        }
      }
    }
  });
}

/** What makes a tokenizer's texts indivisible, among those of `GOLDEN.tokenizers`. */
const INDIVISIBLE = {
  "a token across words": ["neox_byte_level", added("e t", { id: 728 })],
  "words of another kind": [
    "split_byte_level",
    ({ pre_tokenizer }) => Object.assign(pre_tokenizer.pretokenizers[0].pattern, { Regex: "(?<=[a-z] )t" }),
  ],
  "words that are joined": [
    "byte_fallback",
    ({ model }) => {
      model.vocab["e▁"] = 795;
      model.merges.push(["e", "▁"]);
    },
  ],
};

test("long texts are split wherever that is known to be safe", () => {
  const isSplit = (name, change) => {
    const json = JSON.parse(readFileSync(path.join(ROOT, "tests/fixtures", GOLDEN.tokenizers[name]), "utf8"));
    change(json);
    return PieceRules.of(json, new TokenizerJson(json), false) !== undefined;
  };
  for (const name of Object.keys(GOLDEN.tokenizers))
    assert.ok(
      isSplit(name, () => {}),
      name,
    );
  for (const [title, [name, change]] of Object.entries(INDIVISIBLE)) assert.ok(!isSplit(name, change), title);
});

test("the addon and the fallback truncate long texts alike", async () => {
  const random = new Random(11);
  const options = { maxTokens: 400 };
  const rust = await loadAddon().Model.load(STARTER_MODEL, addonOptions(options));
  const js = new TextTokenizer(readModelDir(STARTER_MODEL, options));
  for (let index = 0; index < 60; index++) {
    const text = randomText(random, 6000);
    assert.deepEqual(js.encode(text, false).ids, [...rust.tokenize(text, false)], text);
  }
  await rust.close();
});

test("a text of a single long word is tokenized within the time limit", () => {
  for (const file of Object.values(GOLDEN.tokenizers)) {
    const tokenizer = new TextTokenizer(modelOf(path.join(ROOT, "tests/fixtures", file)));
    assert.equal(tokenizer.encode("!a".repeat(500_000), false).ids.length, 512, file);
  }
});

/** Runs in a process of its own: by how many MiB the peak memory grew while 20 MB of each unit were tokenized. */
const MEASURE = `
  const { TextTokenizer } = require(process.argv[1]);
  const model = JSON.parse(process.argv[2]);
  const peak = () => Math.round(process.resourceUsage().maxRSS / 1024);
  const rows = [];
  for (const truncationSide of ["right", "left"]) {
    const tokenizer = new TextTokenizer({ ...model, truncationSide });
    for (const unit of ["!", "[", "]", "漢", " \\u200bthe", "a", "a\\u0301\\u0300", " ", "\\u200b", "\\u0301"]) {
      const text = unit.repeat(20e6 / Buffer.byteLength(unit));
      text.toWellFormed().codePointAt(1);
      const before = peak();
      const { ids, truncated } = tokenizer.encode(text, false);
      rows.push({ unit, truncationSide, tokens: ids.length, truncated, more: peak() - before });
    }
  }
  console.log(JSON.stringify(rows));
`;

test("memory does not grow with the length of a text", async () => {
  const tokenizer = require.resolve("../dist/lib/fallback/tokenizer/text_tokenizer.js");
  const args = ["-e", MEASURE, tokenizer, JSON.stringify(modelOf(FIXTURE))];
  const rows = (await reportsOf(args))[0];
  const tokens = { a: 3, "a\u0301\u0300": 3, " ": 2, "\u200b": 2, "\u0301": 2 };
  for (const row of rows) {
    assert.equal(row.tokens, tokens[row.unit] ?? 512, JSON.stringify(row));
    assert.equal(row.truncated, row.tokens === 512, JSON.stringify(row));
    assert.ok(row.more < 150, JSON.stringify(row));
  }
});
