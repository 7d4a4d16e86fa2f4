import type { JsonObject } from "../../json_file.js";
import { type Behavior, Pattern, patternOf } from "./pattern.js";
import { knownToExpressions, PUNCTUATION, WORD_OR_SYMBOLS } from "./unicode.js";
import { unknownType, unsupported } from "./unknown_type.js";

/** Splits a text into words. `isStart` says whether it is at the beginning of what the caller passed. */
export type PreTokenizer = (text: string, isStart: boolean) => string[];

const WHITESPACE = new Pattern(/\p{White_Space}/gu);
const DIGITS = new Pattern(/\p{N}/gu);
const SYMBOLS = new Pattern(PUNCTUATION);
const WORDS = new Pattern(WORD_OR_SYMBOLS, knownToExpressions);
/** GPT-2's. */
const BYTE_LEVEL_WORDS = new Pattern(
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu,
  knownToExpressions,
);

/** The letter that byte-level tokenizers write for each byte: itself if it can be seen, else one from U+0100 on. */
const LETTER_OF_BYTE: readonly string[] = (() => {
  let next = 0x100;
  const isVisible = (byte: number) => /[!-~\xa1-\xac\xae-\xff]/.test(String.fromCharCode(byte));
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isVisible(byte) ? byte : next++));
})();

/** Types that the addon knows and this module does not. */
const OF_ADDON = ["CharDelimiterSplit", "FixedLength", "UnicodeScripts"];

const textsOf = (parts: { text: string }[]) => parts.map(({ text }) => text);

/**
 * The pre-tokenizer of a `tokenizer.json`, as the addon's tokenizer computes it.
 *
 * @throws EmbedderError `MODEL_UNSUPPORTED` for a type that is not known here; `Error` for a malformed one.
 */
export function preTokenizerOf(config: JsonObject | null | undefined): PreTokenizer {
  if (!config) return (text) => [text];
  switch (config.type) {
    case "Sequence":
      return sequence(config.pretokenizers as JsonObject[]);
    case "BertPreTokenizer":
      return (text) =>
        WHITESPACE.split(text, "Removed").flatMap((word) => textsOf(SYMBOLS.split(word.text, "Isolated")));
    case "WhitespaceSplit":
      return (text) => textsOf(WHITESPACE.split(text, "Removed"));
    case "Whitespace":
      return (text) => textsOf(WORDS.split(text, "Removed", true));
    case "Punctuation": {
      const behavior = (config.behavior ?? "Isolated") as Behavior;
      return (text) => textsOf(SYMBOLS.split(text, behavior));
    }
    case "Digits": {
      const behavior = config.individual_digits ? "Isolated" : "Contiguous";
      return (text) => textsOf(DIGITS.split(text, behavior));
    }
    case "Split": {
      const pattern = patternOf(config.pattern);
      return (text) => textsOf(pattern.split(text, config.behavior as Behavior, config.invert === true));
    }
    case "ByteLevel":
      return byteLevel(config);
    case "Metaspace":
      return metaspace(config);
    default:
      throw unknownType("pre_tokenizer.type", config.type, OF_ADDON);
  }
}

function sequence(configs: JsonObject[]): PreTokenizer {
  // Whether a word is the first depends on what the pre-tokenizers before have removed.
  if (configs.slice(1).some((config) => config.prepend_scheme === "first")) {
    throw unsupported('pre_tokenizer.type: Metaspace with prepend_scheme "first" behind another');
  }
  const steps = configs.map(preTokenizerOf);
  return (text, isStart) => steps.reduce((words, step) => words.flatMap((word) => step(word, isStart)), [text]);
}

function byteLevel({ use_regex = true, add_prefix_space }: JsonObject): PreTokenizer {
  return (text) => {
    const prefixed = add_prefix_space && !text.startsWith(" ") ? ` ${text}` : text;
    const words = use_regex ? textsOf(BYTE_LEVEL_WORDS.split(prefixed, "Isolated")) : [prefixed];
    return words.map((word) => Array.from(Buffer.from(word), (byte) => LETTER_OF_BYTE[byte]).join(""));
  };
}

function metaspace({ replacement, prepend_scheme: scheme = "always", split = true }: JsonObject): PreTokenizer {
  if (typeof replacement !== "string") throw new Error("pre_tokenizer.replacement: expected a character");
  const space = patternOf({ String: replacement });
  return (text, isStart) => {
    const replaced = text.replaceAll(" ", replacement);
    const isPrefixed = scheme === "always" || (scheme === "first" && isStart);
    const word = isPrefixed && !replaced.startsWith(replacement) ? replacement + replaced : replaced;
    return split ? textsOf(space.split(word, "MergedWithNext")) : [word];
  };
}
