import { isDeepStrictEqual } from "node:util";
import { isObject, type JsonObject } from "../../json_file.js";
import { type AddedToken, isNormalized } from "./added_tokens.js";
import type { TokenizerJson } from "./tokenizer_json.js";

/** How a tokenizer treats a character, as bits. */
const BLANK = 1; // Gives no token: whitespace, or removed by the normalizer.
const IN_WORD = 2; // Part of a word, as a letter is.
const ENDS_WORD = 4; // No word extends across it.
const SPLIT_BEFORE = 8; // The text may be split before it.
const SPLIT_AFTER = 16; // The text may be split after it.
const LETTER = 32; // The text may be split between it and a space.
const SPACE = 64;
const KNOWN = 128; // The other bits are valid.

/** Where texts may be split, and what may be left out, without changing their tokens; `src/pieces.rs` explains it. */
export class PieceRules {
  readonly #tokenizer: TokenizerJson;
  readonly #lowerCase: boolean;
  /** Whether texts are split between words only. */
  readonly #keepsWords: boolean;
  readonly #behindFirst = new Set<string>();
  readonly #aheadOfLast = new Set<string>();
  readonly #characters = new Uint8Array(0x11_0000);
  /** Longest added token, in characters. */
  readonly longestAddedToken: number;
  /** Letters of a word beyond this number may be left out; infinite if they may not. */
  readonly lettersOfWord: number;

  private constructor(
    json: JsonObject,
    tokenizer: TokenizerJson,
    lowerCase: boolean,
    keepsWords: boolean,
    contents: string[][],
  ) {
    this.#tokenizer = tokenizer;
    this.#lowerCase = lowerCase;
    this.#keepsWords = keepsWords;
    for (const content of contents) {
      for (const character of content.slice(1)) this.#behindFirst.add(character);
      for (const character of content.slice(0, -1)) this.#aheadOfLast.add(character);
    }
    this.longestAddedToken = Math.max(0, ...contents.map(({ length }) => length));
    const { model } = json as { model: { type: string; max_input_chars_per_word?: number } };
    const canLeaveOut =
      model.type === "WordPiece" &&
      !keepsWords &&
      addedTokens(json).every((token) => !isNormalized(token)) &&
      contents.every((content) => content.some((character) => this.of(character) & ENDS_WORD));
    this.lettersOfWord = canLeaveOut ? (model.max_input_chars_per_word ?? 100) : Number.POSITIVE_INFINITY;
  }

  /** `undefined` for a tokenizer that may need the whole text. */
  static of(json: JsonObject, tokenizer: TokenizerJson, lowerCase: boolean): PieceRules | undefined {
    const keepsWords = !takesCharactersOneByOne(json);
    if (keepsWords && !takesWordsOneByOne(json)) return undefined;
    const tokens = addedTokens(json);
    const contents = tokens.map((token) => [
      ...(isNormalized(token) ? tokenizer.normalize(token.content) : token.content),
    ]);
    if (tokens.some(({ single_word, rstrip }) => single_word || (rstrip && keepsWords))) return undefined;
    const isTorn = (content: string[]) =>
      keepsWords ? END_OF_WORD.test(content.join("")) : content.some((character) => /\p{White_Space}/u.test(character));
    if (contents.some(isTorn)) return undefined;
    const rules = new PieceRules(json, tokenizer, lowerCase, keepsWords, contents);
    const isBlank = (character: string) => rules.of(character) & BLANK;
    return tokens.some(({ content }) => [...content].some(isBlank)) ? undefined : rules;
  }

  /** How the tokenizer treats a character, as bits. */
  of(character: string): number {
    const codePoint = character.codePointAt(0) as number;
    let bits = this.#characters[codePoint] as number;
    if (bits === 0) {
      bits = this.#findOut(character) | KNOWN;
      this.#characters[codePoint] = bits;
    }
    return bits;
  }

  /** Tries the tokenizer with the character inside a word. */
  #findOut(character: string): number {
    if (this.#keepsWords) return character === " " ? SPACE : /[a-zA-Z]/.test(character) ? LETTER : 0;
    const own = this.prepare(character);
    const words = this.#tokenizer.splitIntoWords(this.#tokenizer.normalize(`a${own}a`), true);
    const [first] = words;
    const last = words.at(-1);
    if (words.length === 1) {
      if (first === "aa") return BLANK;
      return first?.startsWith("a") && last?.endsWith("a") ? IN_WORD : ENDS_WORD;
    }
    // It splits the word at one side only, or in a way that is not known here.
    if (first !== "a" || last !== "a") return ENDS_WORD;
    let bits = ENDS_WORD | (words.length === 2 ? BLANK : 0);
    const characters = [...own, ...this.#tokenizer.normalize(own)];
    if (!characters.some((one) => this.#behindFirst.has(one))) bits |= SPLIT_BEFORE;
    if (!characters.some((one) => this.#aheadOfLast.has(one))) bits |= SPLIT_AFTER;
    return bits;
  }

  prepare(text: string): string {
    return this.#lowerCase ? text.toLowerCase() : text;
  }
}

const addedTokens = (json: JsonObject) => (json.added_tokens ?? []) as AddedToken[];

/** Whether normalization and the ends of words depend on single characters only. */
function takesCharactersOneByOne({ normalizer, pre_tokenizer }: JsonObject): boolean {
  const typeOf = (part: unknown) => (isObject(part) ? part.type : undefined);
  // BERT's canonical decomposition reorders combining marks, but only within a word.
  const normalizesThem = [undefined, "BertNormalizer"].includes(typeOf(normalizer) as string | undefined);
  // Byte-level pre-tokenizers and Metaspace depend on the neighbors of a character.
  return normalizesThem && typeOf(pre_tokenizer) === "BertPreTokenizer";
}

/**
 * Whether a text gives the same tokens in two parts, if the first ends with an ASCII letter and the second begins with a
 * space.
 */
function takesWordsOneByOne({ normalizer, pre_tokenizer, model }: JsonObject): boolean {
  const isAbsent = (part: unknown) => part === null || part === undefined;
  const beginsWords = (isAbsent(normalizer) || keepsSpaces(normalizer)) && beginsWordsWithSpaces(pre_tokenizer);
  // Gemma's: spaces become letters of a text that is a single word.
  const hasNoWords =
    isDeepStrictEqual(normalizer, SPACES_TO_LETTERS) &&
    (isAbsent(pre_tokenizer) || isDeepStrictEqual(pre_tokenizer, SPLIT_AT_SPACES));
  return beginsWords || (hasNoWords && joinsNoWords(model));
}

/** The letter that stands for a space. */
const SPACE_LETTER = "▁";
/** A place where a text may be split between words. */
const END_OF_WORD = /[a-zA-Z][ ▁]/;

const SPACES_TO_LETTERS = { type: "Replace", pattern: { String: " " }, content: SPACE_LETTER };
const SPLIT_AT_SPACES = { type: "Split", pattern: { String: " " }, behavior: "MergedWithPrevious", invert: false };

/** Qwen2's and Qwen3's. What it finds ends with a letter, or does not depend on what is behind the next space. */
const QWEN_WORDS = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;

/** Whether a model never merges an ASCII letter and a space behind it: both are tokens, and no token contains both. */
function joinsNoWords(model: unknown): boolean {
  const { vocab, merges, ignore_merges } = isObject(model) ? model : {};
  if (!isObject(vocab) || !merges || ignore_merges) return false;
  const letters = [..."abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", SPACE_LETTER];
  return (
    letters.every((letter) => Object.hasOwn(vocab, letter)) &&
    !Object.keys(vocab).some((token) => END_OF_WORD.test(token))
  );
}

/** Whether a normalizer treats what is before a space and what follows independently. */
function keepsSpaces(normalizer: unknown): boolean {
  const { type, pattern, content, normalizers } = isObject(normalizer) ? normalizer : {};
  if (type === "Replace") return isObject(pattern) && pattern.Regex === " {2,}" && content === " ";
  if (type === "Sequence") return Array.isArray(normalizers) && normalizers.every(keepsSpaces);
  return type === "Precompiled" || type === "NFC" || type === "NFKC";
}

/** Whether a pre-tokenizer begins a word at a space behind a letter, and would do so at the beginning of a text. */
function beginsWordsWithSpaces(preTokenizer: unknown): boolean {
  const { type, use_regex, split, prepend_scheme, pretokenizers } = isObject(preTokenizer) ? preTokenizer : {};
  if (type === "ByteLevel") return use_regex !== false;
  if (type === "Metaspace") return (prepend_scheme ?? "always") !== "first" && split !== false;
  if (type !== "Sequence" || !Array.isArray(pretokenizers) || pretokenizers.length !== 2) return false;
  const [first = {}, second = {}] = pretokenizers as JsonObject[];
  if (first.type === "WhitespaceSplit") return second.type === "Metaspace" && second.prepend_scheme !== "first";
  const words = { type: "Split", pattern: { Regex: QWEN_WORDS }, behavior: "Isolated", invert: false };
  return isDeepStrictEqual(first, words) && second.type === "ByteLevel";
}

/**
 * The pieces of a text, starting at the side that truncation keeps, without what does not change tokens. Each but the last
 * is at least `length` long. Tokenized one by one, they give the same tokens as the whole text.
 */
export function* pieces(rules: PieceRules, text: string, fromEnd: boolean, length: number): Generator<string> {
  /** Runs of blank characters so far, and for each blank character the latest run that it was kept in. */
  let blankRuns = 0;
  const latestRuns = new Map<string, number>();
  const lettersThatCount = Math.max(rules.lettersOfWord + 1, rules.longestAddedToken);
  let position = fromEnd ? text.length : 0;
  const next = () => {
    if (!fromEnd) return position < text.length ? String.fromCodePoint(text.codePointAt(position) as number) : "";
    if (position < 2) return text.slice(0, position);
    const pair = text.slice(position - 2, position);
    return (pair.codePointAt(0) as number) > 0xffff ? pair : pair.slice(1);
  };
  while (position !== (fromEnd ? 0 : text.length)) {
    const piece: string[] = [];
    let latest = 0;
    let latestCharacter = "";
    let letters = 0;
    /** The last characters of a word that has more letters than count. */
    let endOfWord: string[] = [];
    for (let character = next(); character !== ""; character = next()) {
      const bits = rules.of(character);
      if (latest && piece.length >= length) {
        const [left, right] = fromEnd ? [bits, latest] : [latest, bits];
        if (left & SPLIT_AFTER || right & SPLIT_BEFORE || (left & LETTER && right & SPACE)) break;
      }
      position += fromEnd ? -character.length : character.length;
      const isRepeated = character === latestCharacter;
      latestCharacter = character;
      latest = bits;
      if (bits & ENDS_WORD) {
        piece.push(...endOfWord);
        endOfWord = [];
        letters = 0;
      }
      if (bits & IN_WORD) letters++;
      if (bits & BLANK) {
        // One of each is kept, since removing a mark could change the order of others.
        if (isRepeated || latestRuns.get(character) === blankRuns) continue;
        latestRuns.set(character, blankRuns);
      } else {
        blankRuns++;
      }
      if (letters > lettersThatCount) {
        endOfWord.push(character);
        if (endOfWord.length > rules.longestAddedToken) endOfWord.shift();
      } else {
        piece.push(character);
      }
    }
    piece.push(...endOfWord);
    if (fromEnd) piece.reverse();
    yield rules.prepare(piece.join(""));
  }
}
