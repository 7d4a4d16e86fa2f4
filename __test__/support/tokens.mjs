/**
 * Texts that tokenizers may disagree about, and what both give: the addon, which has Rust's `tokenizers`, and the
 * JavaScript fallback. To try more, add to the tables: texts, or a way to change a tokenizer.
 */

import { cpSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { isDeepStrictEqual } from "node:util";
import { ROOT, temporaryFolder } from "./models.mjs";

const require = createRequire(import.meta.url);
const { addonOptions, loadAddon } = require("../../dist/lib/native.js");
const { readModelDir } = require("../../dist/lib/model_dir.js");
const { TextTokenizer } = require("../../dist/lib/fallback/tokenizer/text_tokenizer.js");

const FIXTURES = path.join(ROOT, "tests/fixtures");
/** A model without a prompt for documents, and with more rows than the tokenizers have tokens. */
const MODEL = path.join(FIXTURES, "nomic_cls");
const OPTIONS = { maxTokens: 2048 };

/** Texts and their ids, by Python's `tokenizers`. */
export const GOLDEN = JSON.parse(readFileSync(path.join(FIXTURES, "golden/token_ids.json"), "utf8"));

const added = (...tokens) => {
  return (json) => {
    const { vocab } = json.model;
    let next = Math.max(Object.keys(vocab).length, ...json.added_tokens.map(({ id }) => id + 1));
    for (const [content, properties] of tokens) {
      const known = Array.isArray(vocab) ? undefined : vocab[content];
      const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: false };
      json.added_tokens.push({ id: known ?? next++, content, ...flags, ...properties });
    }
  };
};
const normalizer = (value) => (json) => Object.assign(json, { normalizer: value });
const preTokenizer = (value) => (json) => Object.assign(json, { pre_tokenizer: value });
const split = (pattern, behavior, invert = false) => ({ type: "Split", pattern, behavior, invert });
const bytes = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false };
const sequence = (...pretokenizers) => ({ type: "Sequence", pretokenizers });

/** Tokens that overlap, strip, match single words or match after normalization. */
const ODD_TOKENS = added(
  ["<a>", { lstrip: true }],
  ["<b>", { rstrip: true }],
  ["<a><b>", { lstrip: true, rstrip: true, normalized: true }],
  [" \t", {}],
  ["Word", { single_word: true }],
  ["caf\u00e9", { single_word: true, normalized: true }],
  ["e\u0301x", { normalized: true }],
  ["\u212bx", { normalized: true }],
  ["rs", { normalized: true, lstrip: true }],
);

/** Ways to change a tokenizer: its fixture, and what is changed. */
const CHANGES = {
  "odd tokens, WordPiece": ["word_piece", ODD_TOKENS],
  "odd tokens, Unigram": ["unigram", ODD_TOKENS],
  "odd tokens, byte level": ["byte_level", ODD_TOKENS],
  "odd tokens, words split by the file": ["split_byte_level", ODD_TOKENS],
  "odd tokens, GPT-NeoX": ["neox_byte_level", ODD_TOKENS],
  "odd tokens, byte fallback": ["byte_fallback", ODD_TOKENS],
  "BERT without a normalizer": ["word_piece", normalizer(null)],
  "BERT that keeps control characters": ["word_piece", (json) => Object.assign(json.normalizer, { clean_text: false })],
  "BERT that keeps case and accents": ["word_piece", (json) => Object.assign(json.normalizer, { lowercase: false })],
  "BERT's words at whitespace": ["word_piece", preTokenizer({ type: "WhitespaceSplit" })],
  "BERT's words by \\w": ["word_piece", preTokenizer({ type: "Whitespace" })],
  "BERT's words at digits": [
    "word_piece",
    preTokenizer(sequence({ type: "Whitespace" }, { type: "Digits", individual_digits: true })),
  ],
  "BERT's words at punctuation": [
    "word_piece",
    preTokenizer(
      sequence(
        { type: "WhitespaceSplit" },
        { type: "Digits", individual_digits: false },
        { type: "Punctuation", behavior: "Contiguous" },
      ),
    ),
  ],
  "decomposed, without accents, in lower case": [
    "word_piece",
    normalizer({
      type: "Sequence",
      normalizers: ["NFKD", "StripAccents", "Lowercase"].map((type) => ({ type })),
    }),
  ],
  "stripped and prepended": [
    "byte_fallback",
    normalizer({
      type: "Sequence",
      normalizers: [
        { type: "NFD" },
        { type: "Strip", strip_left: true, strip_right: true },
        { type: "Prepend", prepend: "\u2581" },
        { type: "Replace", pattern: { Regex: "\\s+|[\u00e9$]" }, content: "\u2581$&" },
      ],
    }),
  ],
  "Unigram over whole sentences": [
    "unigram",
    (json) => {
      json.pre_tokenizer = { type: "Metaspace", replacement: "\u2581", prepend_scheme: "always", split: false };
    },
  ],
  "Unigram with a prefix at the beginning": [
    "unigram",
    preTokenizer({ type: "Metaspace", replacement: "\u2581", prepend_scheme: "first", split: true }),
  ],
  "Unigram without a prefix, NFKC": [
    "unigram",
    (json) => {
      json.normalizer = { type: "NFKC" };
      json.pre_tokenizer = { type: "Metaspace", replacement: "\u2581", prepend_scheme: "never", split: true };
    },
  ],
  "byte level with a prefix": ["byte_level", (json) => Object.assign(json.pre_tokenizer, { add_prefix_space: true })],
  "whole words of the vocabulary": ["split_byte_level", (json) => Object.assign(json.model, { ignore_merges: true })],
  "unknown characters": ["byte_fallback", (json) => Object.assign(json.model, { byte_fallback: false })],
  "unknown characters one by one": [
    "byte_fallback",
    (json) => Object.assign(json.model, { byte_fallback: false, fuse_unk: false }),
  ],
  "unknown characters in words": [
    "byte_fallback",
    (json) => {
      json.model.byte_fallback = false;
      json.normalizer = null;
      json.pre_tokenizer = split({ String: " " }, "MergedWithPrevious");
    },
  ],
  ...Object.fromEntries(
    ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"].flatMap((behavior) =>
      [false, true].map((invert) => [
        `split, ${behavior}${invert ? ", inverted" : ""}`,
        ["split_byte_level", preTokenizer(sequence(split({ Regex: "\\s|e+|\\p{Lu}" }, behavior, invert), bytes))],
      ]),
    ),
  ),
  "split at a string": ["split_byte_level", preTokenizer(sequence(split({ String: "e." }, "Removed"), bytes))],
  "Llama 3's and GPT-4o's words": [
    "split_byte_level",
    preTokenizer(
      sequence(
        split(
          {
            Regex:
              "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
          },
          "Isolated",
        ),
        bytes,
      ),
    ),
  ],
};

/** The `tokenizer.json` of each of the golden file's tokenizers. */
export function goldenTokenizers() {
  const entries = Object.entries(GOLDEN.tokenizers);
  return Object.fromEntries(
    entries.map(([name, file]) => [name, JSON.parse(readFileSync(path.join(FIXTURES, file), "utf8"))]),
  );
}

function changedTokenizers() {
  return Object.fromEntries(
    Object.entries(CHANGES).map(([title, [name, change]]) => {
      const json = goldenTokenizers()[name];
      change(json);
      return [title, json];
    }),
  );
}

const range = (first, last) =>
  Array.from({ length: last - first + 1 }, (_, index) => String.fromCodePoint(first + index));

/** What tokenizers are known to treat in ways of their own. */
const FRAGMENTS = [
  ...[
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    "\v",
    "\f",
    "\x85",
    "\xa0",
    "\u2028",
    "\u2029",
    "\u3000",
    "\u1680",
  ],
  ...[
    ...range(0x2000, 0x200f),
    "\u202f",
    "\u205f",
    "\u2060",
    "\u180e",
    "\ufeff",
    "\0",
    "\x01",
    "\x1f",
    "\x7f",
    "\x9f",
    "\xad",
  ],
  // Unicode forms: compositions, exclusions from them, orders of marks, compatibility characters, Hangul.
  ...[
    "e\u0301",
    "\u00e9",
    "\u212b",
    "A\u030a",
    "\u2126",
    "\u0958",
    "\u2adc",
    "\u0344",
    "\u0340",
    "\u1ec7",
    "e\u0302\u0323",
  ],
  ...[
    "\u0323\u0302",
    "\u0301",
    "\u0300",
    "\u0345",
    "\u034f",
    "\u0f71\u0f72\u0f74",
    "\u1100\u1161\u11a8",
    "\uac01",
    "\uac00\u11a8",
  ],
  ...[
    "\ufb01",
    "\ufb06",
    "\uff21",
    "\uff41",
    "\u2460",
    "\u338f",
    "\u00bd",
    "\u00b2",
    "\u2122",
    "\u2026",
    "\ufdfa",
    "\uff76\uff9e",
  ],
  ...[
    "\u{1d15e}",
    "\u{1d165}",
    "\u{1d400}",
    "\u{2f800}",
    "\uf900",
    "\u{11935}\u{11930}",
    "\u{1e900}",
    "\u1e9b\u0323",
    "\u0149",
  ],
  // Letters whose case is not simple, contractions.
  ...[
    "\u03a3",
    "\u0391\u03a3",
    "\u03c2",
    "\u0130",
    "\u0131",
    "\u00df",
    "\u1e9e",
    "\u01c4",
    "\u1fb3",
    "\u017f",
    "\u212a",
    "\u0587",
  ],
  ...[
    "'s",
    "'S",
    "'t",
    "'T",
    "'re",
    "'RE",
    "'rE",
    "'ve",
    "'m",
    "'ll",
    "'LL",
    "'lL",
    "'d",
    "'\u017f",
    "\u2019s",
    "'ss",
    "''s",
    "'",
  ],
  // Emoji, flags, tags, selectors.
  ...[
    "\u{1f600}",
    "\u{1f469}\u200d\u{1f4bb}",
    "\u{1f44d}\u{1f3fd}",
    "\u{1f1e9}\u{1f1ea}",
    "\u{1f1e9}",
    "\u2764\ufe0f",
    "1\ufe0f\u20e3",
  ],
  ...[
    "\u{1f3f4}\u{e0067}\u{e0062}\u{e007f}",
    "\u{1f468}\u200d\u{1f469}\u200d\u{1f467}",
    "\ufe0e",
    "\u{e0100}",
    "\u{fe4e5}",
  ],
  // Lone halves of surrogate pairs, noncharacters, private use.
  ...[
    "\ud800",
    "\udfff",
    "\ud83d",
    "\ude00\ud83d",
    "\uffff",
    "\ufffe",
    "\ufffd",
    "\ufdd0",
    "\u{10ffff}",
    "\ue000",
    "\u{f0000}",
  ],
  // Scripts, digits, punctuation.
  ...[
    "\u05e9\u05dc\u05d5\u05dd",
    "\u0627\u0644\u0633\u0644\u0627\u0645",
    "\u202e",
    "\u202c",
    "\u061c",
    "\u0600",
    "\u06dd",
    "\u05b0",
  ],
  ...[
    "\u0915\u094d\u0937\u093f",
    "\u0e44\u0e17\u0e22",
    "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd",
    "\u1019\u103c\u1014\u103a",
    "\u0f40\u0f0b",
  ],
  ...[
    "\u6f22",
    "\u5b57",
    "\u304b\u306a",
    "\u30ab\u30ca",
    "\u3001",
    "\u3002",
    "\u{20000}",
    "\u{2a6df}",
    "\u{2ebf0}",
    "\u{30000}",
    "\u9fff",
  ],
  ...[
    "\u0663",
    "\u096a",
    "\u0e53",
    "\uff17",
    "\u4e03",
    "\u2167",
    "\u{1d7d9}",
    "\u{1f101}",
    "\u00bc",
    "\u3007",
    "123",
    "12,345.67",
    "0x1F",
  ],
  ...[
    ...range(0x21, 0x2f),
    ...range(0x3a, 0x40),
    ...range(0x5b, 0x60),
    ...range(0x7b, 0x7e),
    "\u00ab",
    "\u2014",
    "\u00bf",
    "\u2581",
    "\u0120",
  ],
  ...[
    "a",
    "B",
    "the",
    "The time",
    "return",
    "self.",
    "snake_case",
    "camelCase",
    "HTTPServer",
    "e",
    "ee",
    "rs",
    "Word",
    "caf\u00e9",
    "cafe\u0301",
  ],
  ...[
    "x".repeat(100),
    "x".repeat(101),
    "\u00e9".repeat(120),
    "\u{1f600}".repeat(60),
    "Donaudampfschifffahrtsgesellschaft",
    "[",
    "##ing",
  ],
];

/** The first and the last character of blocks of Unicode from which characters are drawn. */
const BLOCKS = [
  ...[
    [0, 0x7f],
    [0x80, 0x24f],
    [0x250, 0x36f],
    [0x370, 0x58f],
    [0x590, 0x8ff],
    [0x900, 0xdff],
    [0xe00, 0x109f],
  ],
  ...[
    [0x10a0, 0x18af],
    [0x18b0, 0x1fff],
    [0x2000, 0x2bff],
    [0x2c00, 0x2fff],
    [0x3000, 0x33ff],
    [0x3400, 0x9fff],
  ],
  ...[
    [0xa000, 0xabff],
    [0xac00, 0xd7ff],
    [0xd800, 0xdfff],
    [0xe000, 0xf8ff],
    [0xf900, 0xffff],
    [0x10000, 0x10fff],
  ],
  ...[
    [0x11000, 0x16fff],
    [0x17000, 0x1bfff],
    [0x1c000, 0x1efff],
    [0x1f000, 0x1faff],
    [0x1fb00, 0x323af],
  ],
  ...[
    [0xe0000, 0xe01ff],
    [0xf0000, 0x10ffff],
  ],
];

const words = (text, most) => text.match(new RegExp(`[^]{1,${most}}`, "gu")) ?? [""];

const SOURCE_CODE = "tests/fixtures/source_code";
/** Source code in many languages: written for these tests, and this repository's own. */
const CODE = [
  ...readdirSync(path.join(ROOT, SOURCE_CODE)).map((name) => `${SOURCE_CODE}/${name}`),
  ...[
    "src/tokenizer.rs",
    "lib/fallback/tokenizer/pieces.ts",
    "tests/fixtures/families.py",
    "package.json",
    "README.md",
  ],
];

/** Texts for one tokenizer. */
export class TokenTexts {
  #code;
  #tokens;
  #vocabulary;

  constructor(json) {
    this.#code = CODE.map((file) => readFileSync(path.join(ROOT, file), "utf8"));
    this.#tokens = json.added_tokens.map(({ content }) => content);
    const { vocab } = json.model;
    this.#vocabulary = Array.isArray(vocab) ? vocab.map(([token]) => token) : Object.keys(vocab);
  }

  text(random) {
    if (random.next() < 0.1) return random.of(words(random.of(this.#code), 1 + random.below(1500)));
    let text = "";
    for (let count = random.below(random.next() < 0.2 ? 60 : 8); count >= 0; count--) {
      const fragment = this.#fragment(random);
      text += random.next() < 0.06 ? fragment.repeat(2 + random.below(20)) : fragment;
    }
    return text;
  }

  #fragment(random) {
    const kind = random.below(20);
    if (kind < 3) return " ";
    if (kind < 10) return random.of(FRAGMENTS);
    if (kind < 12) {
      const [first, last] = random.of(BLOCKS);
      return String.fromCodePoint(first + random.below(last - first + 1));
    }
    if (kind < 15) return this.#almost(random, random.of(this.#tokens));
    if (kind < 18) return this.#almost(random, random.of(this.#vocabulary));
    const code = random.of(this.#code);
    const start = random.below(code.length);
    return code.slice(start, start + random.below(30));
  }

  /** The token, or something close to it. */
  #almost(random, token) {
    const kind = random.below(14);
    if (kind === 0) return token.slice(0, random.below(token.length));
    if (kind === 1) return token.slice(random.below(token.length));
    if (kind === 2) return token.toUpperCase();
    if (kind === 3) return token.normalize("NFD");
    // Full width, which NFKC and SentencePiece's rules undo.
    if (kind === 4) return token.replace(/[!-~]/g, (one) => String.fromCharCode(one.charCodeAt(0) + 0xfee0));
    if (kind === 5) return token.slice(0, 1) + random.of(FRAGMENTS) + token.slice(1);
    if (kind === 6) return random.of(FRAGMENTS) + token + random.of(FRAGMENTS);
    if (kind === 7) return token.replaceAll("\u2581", " ").replaceAll("\u0120", " ").replaceAll("\u010a", "\n");
    return token;
  }
}

/** A tokenizer as its two readers read it. */
export class TokenizerPair {
  #name;
  #rust;
  #js;

  /** @param {string} folder of a model */
  static async load(name, folder, options) {
    const pair = new TokenizerPair();
    pair.#name = name;
    pair.#rust = await loadAddon().Model.load(folder, addonOptions(options));
    pair.#js = new TextTokenizer(readModelDir(folder, options));
    return pair;
  }

  /** @param {object} json of a `tokenizer.json` */
  static async of(name, json) {
    const folder = temporaryFolder();
    cpSync(MODEL, folder, { recursive: true });
    writeFileSync(path.join(folder, "tokenizer.json"), JSON.stringify(json));
    return TokenizerPair.load(name, folder, OPTIONS);
  }

  /** The ids of a text, or why there are none, by each reader. */
  ids(text) {
    const of = (encode) => {
      try {
        return [...encode()];
      } catch (error) {
        return `${error.code} ${error.message}`;
      }
    };
    return { addon: of(() => this.#rust.tokenize(text, false)), fallback: of(() => this.#js.encode(text, false).ids) };
  }

  /** How the readers disagree about a text; `undefined` if they agree. */
  difference(text) {
    const { addon, fallback } = this.ids(text);
    if (isDeepStrictEqual(addon, fallback)) return undefined;
    return `${this.#name}: ${JSON.stringify(text)}\n  addon:    ${addon}\n  fallback: ${fallback}`;
  }

  async close() {
    await this.#rust.close();
  }
}

/** A target of `fuzz/javascript.mjs`: random texts for a random tokenizer. */
export class Tokens {
  #subjects = [];

  async prepare() {
    for (const [name, json] of Object.entries({ ...goldenTokenizers(), ...changedTokenizers() })) {
      this.#subjects.push({ pair: await TokenizerPair.of(name, json), texts: new TokenTexts(json) });
    }
  }

  /** @returns what the readers disagree about, or `undefined` */
  async run(random) {
    const { pair, texts } = random.of(this.#subjects);
    return pair.difference(texts.text(random));
  }

  async close() {
    for (const { pair } of this.#subjects) await pair.close();
  }
}
