import { createHash } from "node:crypto";
import type { ChatTemplate } from "../../chat_template.js";
import { EmbedderError } from "../../errors.js";
import { isObject, type JsonObject, parseJsonObject } from "../../json_file.js";
import type { ModelDir } from "../../model_dir.js";
import { MOST_TOKENIZER, readRegularFile } from "../../regular_file.js";
import { PieceRules, pieces } from "./pieces.js";
import { isCount, type PairPart, pairTemplate } from "./post_processor.js";
import { withinTimeLimit } from "./time_limit.js";
import { TokenizerJson } from "./tokenizer_json.js";

export interface TokenizedText {
  /** Prompt, text and special tokens, truncated to the model's limit. Only a static model's text may have none. */
  ids: number[];
  /** The index of the first token of type 1, which those of a pair's second text have; without any, the number of tokens. */
  second: number;
  truncated: boolean;
}

/** Longest text that is tokenized at once: longer than most token limits, and short enough to be fast. */
const CHARACTERS_PER_PIECE = 4096;

/** How long a text may take, plus time for its length. A tokenizer that finishes at all needs a fraction of it. */
const TIME_LIMIT_MS = 10_000;
const CHARACTERS_PER_MS = 100;

/** Texts to token ids, like the addon's `src/tokenizer.rs`. Ignores the truncation and padding of `tokenizer.json`. */
export class TextTokenizer {
  /** SHA-256 of `tokenizer.json` as it was read. */
  readonly hash: string;
  readonly #tokenizer: TokenizerJson;
  readonly #model: ModelDir;
  /** For rerankers. */
  readonly #pair: readonly PairPart[];
  /** How long texts are split; `undefined` if they are tokenized whole. */
  readonly #pieceRules: PieceRules | undefined;
  readonly #charactersPerPiece: number;
  /** Ids that are put around a text. With a chat template, all that precedes the text is a part of it. */
  readonly #before: readonly number[];
  readonly #after: readonly number[];
  /** Most tokens of a query. */
  readonly #mostOfQuery: number;
  /** The token that is left out. */
  readonly #leftOut: unknown;

  /**
   * @throws EmbedderError `MODEL_INVALID`, `MODEL_UNSUPPORTED` for a tokenizer that only the addon knows, or
   * `INVALID_ARGUMENT` for a limit that leaves no room for text.
   */
  constructor(model: ModelDir, charactersPerPiece = CHARACTERS_PER_PIECE) {
    const file = model.tokenizerFile;
    const bytes = readRegularFile(file, MOST_TOKENIZER);
    this.hash = createHash("sha256").update(bytes).digest("hex");
    const json = parseJsonObject(file, bytes);
    checkNumbers(file, json, model.encoder.vocabulary);
    try {
      const tokenizer = new TokenizerJson(json);
      this.#tokenizer = tokenizer;
      this.#pieceRules = withinTimeLimit(TIME_LIMIT_MS, () => PieceRules.of(json, tokenizer, model.lowerCase));
      withinTimeLimit(TIME_LIMIT_MS, () => tokenizer.ids("a"));
      // Static models have no special tokens, and a chat template contains its own.
      [this.#before, this.#after] =
        model.staticTokens || model.template ? [[], []] : [tokenizer.before, tokenizer.after];
    } catch (cause) {
      if (cause instanceof EmbedderError) throw new EmbedderError(cause.code, `${file}: ${cause.message}`, { cause });
      throw new EmbedderError("MODEL_INVALID", `${file}: is not a tokenizer: ${(cause as Error).message}`, { cause });
    }
    if (model.staticTokens === "known") this.#leftOut = unknownToken(json);
    this.#model = model;
    this.#charactersPerPiece = charactersPerPiece;
    if (model.template) {
      this.#pair = [];
      checkEnd(file, json, model.template);
      this.#after = this.#content(model.template.after, model.maxTokens);
      // With a query of one token, to which the space in front of it belongs.
      const before = this.#content(inFrontOfText(model.template, "a").trimEnd(), model.maxTokens).length;
      this.#mostOfQuery = model.maxTokens - this.#after.length - before;
      if (this.#mostOfQuery > 0) return;
      const message = `maxTokens: expected room for the model's chat template and a token of each text, found ${model.maxTokens}`;
      throw new EmbedderError("INVALID_ARGUMENT", message);
    }
    this.#pair = model.task === "rerank" ? pairTemplate(file, json.post_processor) : [];
    const specials =
      model.task === "rerank" ? this.#pair.flatMap(({ ids = [] }) => ids) : [...this.#before, ...this.#after];
    const specialTokens = specials.length;
    const [texts, expected] =
      model.task === "rerank"
        ? [2, `at least ${specialTokens} special tokens and a token of each text`]
        : [1, `more than the ${specialTokens} special tokens that this model adds to a text`];
    if (model.maxTokens < specialTokens + texts) {
      const message = `maxTokens: expected ${expected}, found ${model.maxTokens}`;
      throw new EmbedderError("INVALID_ARGUMENT", message);
    }
    this.#mostOfQuery = model.maxTokens - specialTokens - 1;
    this.#checkIds(specials);
  }

  /** @throws EmbedderError `TOKENIZATION_FAILED` */
  encode(text: string, isQuery: boolean): TokenizedText {
    const { queryPrompt, documentPrompt, maxTokens } = this.#model;
    const room = maxTokens - this.#before.length - this.#after.length;
    const content = this.#content((isQuery ? queryPrompt : documentPrompt) + text, room);
    const ids = [...this.#before, ...this.#kept(content, room), ...this.#after];
    this.#checkNotEmpty(ids);
    return { ids, second: ids.length, truncated: content.length > room };
  }

  /**
   * A query and a text, of which the text is truncated.
   *
   * @throws EmbedderError `TOKENIZATION_FAILED`, or `INVALID_ARGUMENT` for a query that leaves no room for a text.
   */
  encodePair(query: string, text: string): TokenizedText {
    const { maxTokens, queryPrompt, template } = this.#model;
    if (template) {
      const most = maxTokens - this.#after.length;
      const before = inFrontOfText(template, query);
      // A space at its end may become a part of the text's first token.
      this.#roomBehind(this.#content(before.trimEnd(), most), most);
      const content = this.#content(before + text, most);
      const ids = [...this.#kept(content, most), ...this.#after];
      return { ids, second: ids.length, truncated: content.length > most };
    }
    const most = this.#mostOfQuery + 1;
    const first = this.#content(queryPrompt + query, most);
    const room = this.#roomBehind(first, most);
    const content = this.#content(text, room);
    const parts = { A: first, B: this.#kept(content, room) };
    const ids: number[] = [];
    let second = -1;
    for (const part of this.#pair) {
      if (part.type === 1 && second < 0) second = ids.length;
      ids.push(...(part.ids ?? parts[part.sequence]));
    }
    this.#checkNotEmpty(ids);
    return { ids, second: second < 0 ? ids.length : second, truncated: content.length > room };
  }

  /** How many of `most` tokens are left for a text behind these, which end with a query. */
  #roomBehind(query: readonly number[], most: number): number {
    if (query.length < most) return most - query.length;
    const message = `query: expected at most ${this.#mostOfQuery} tokens, so that a token of a text and the special tokens fit into maxTokens, ${this.#model.maxTokens}, found a longer one`;
    throw new EmbedderError("INVALID_ARGUMENT", message);
  }

  /** Ids of a text without special tokens; of a long text, only of enough pieces to exceed `room`. */
  #content(text: string, room: number): number[] {
    const whole = text.toWellFormed();
    let content: (number | undefined)[];
    try {
      const limitMs = TIME_LIMIT_MS + Math.ceil(whole.length / CHARACTERS_PER_MS);
      content = withinTimeLimit(limitMs, () => this.#contentIds(whole, room));
    } catch (cause) {
      throw new EmbedderError("TOKENIZATION_FAILED", `tokenization failed: ${(cause as Error).message}`, { cause });
    }
    this.#checkIds(content);
    return content;
  }

  /** What is left of too many ids, without those that do not count. */
  #kept(content: number[], room: number): number[] {
    const { truncationSide } = this.#model;
    const kept =
      content.length <= room ? content : truncationSide === "right" ? content.slice(0, room) : content.slice(-room);
    return kept.filter((id) => id !== this.#leftOut);
  }

  #checkNotEmpty(ids: readonly number[]): void {
    if (ids.length > 0 || this.#model.staticTokens) return;
    throw new EmbedderError("TOKENIZATION_FAILED", "the tokenizer gives no token for a text, not even a special one");
  }

  /**
   * The caller's token ids, without a prompt or special tokens added, truncated like those of a text.
   *
   * @param index Of the text in its call, for the error.
   * @throws EmbedderError `INVALID_ARGUMENT`
   */
  take(ids: Uint32Array, index: number): TokenizedText {
    const { maxTokens, encoder, truncationSide } = this.#model;
    const vocabularySize = encoder.vocabulary;
    const refused = (expected: string, found: string) =>
      new EmbedderError("INVALID_ARGUMENT", `texts: expected ${expected}, found ${found}`);
    if (ids.length === 0) throw refused("at least one token id for a text", `none for texts[${index}]`);
    const place = ids.findIndex((id) => id >= vocabularySize);
    if (place >= 0) {
      const expected = `token ids of this model, from 0 to ${vocabularySize - 1} (they differ from model to model)`;
      throw refused(expected, `${ids[place]} at texts[${index}][${place}]`);
    }
    const kept = truncationSide === "right" ? ids.subarray(0, maxTokens) : ids.subarray(-maxTokens);
    return { ids: [...kept], second: kept.length, truncated: ids.length > maxTokens };
  }

  /** Checks ids that are not from the vocabulary: a post-processor has its own, or `undefined` for a missing one. */
  #checkIds(ids: readonly (number | undefined)[]): asserts ids is number[] {
    const { tokenizerFile, encoder } = this.#model;
    const vocabularySize = encoder.vocabulary;
    for (const id of ids) {
      if (!isCount(id) || id >= vocabularySize) throw otherModel(tokenizerFile, "", id, vocabularySize);
    }
  }

  /** Ids of the text without special tokens; of a long text, only of enough pieces to exceed `room`. */
  #contentIds(text: string, room: number): (number | undefined)[] {
    const { lowerCase, truncationSide } = this.#model;
    const encode = (part: string) => this.#tokenizer.ids(part);
    if (!this.#pieceRules || text.length <= this.#charactersPerPiece) {
      return encode(lowerCase ? text.toLowerCase() : text);
    }
    const fromEnd = truncationSide === "left";
    // The lower-case form of a capital sigma depends on its surroundings, which a piece does not have.
    const whole = lowerCase && text.includes("Σ") ? text.toLowerCase() : text;
    let ids: (number | undefined)[] = [];
    for (const piece of pieces(this.#pieceRules, whole, fromEnd, this.#charactersPerPiece)) {
      ids = fromEnd ? [...encode(piece), ...ids] : [...ids, ...encode(piece)];
      if (ids.length > room) break;
    }
    return ids;
  }
}

function inFrontOfText({ before, between }: ChatTemplate, query: string): string {
  return before + query + between;
}

/**
 * Without a token of `added_tokens` behind the text, the tokens of the template's end would depend on how the text ends.
 *
 * @throws EmbedderError `MODEL_UNSUPPORTED`
 */
function checkEnd(file: string, { added_tokens: addedTokens }: JsonObject, { after }: ChatTemplate): void {
  const tokens = Array.isArray(addedTokens) ? addedTokens.filter(isObject) : [];
  const begins = ({ content, lstrip, single_word: isWord }: JsonObject) =>
    typeof content === "string" && content !== "" && after.startsWith(content) && !lstrip && !isWord;
  if (tokens.some(begins)) return;
  const message = `${file}: a chat template that has no token of added_tokens behind the text is not supported; expected one such as "<|im_end|>"`;
  throw new EmbedderError("MODEL_UNSUPPORTED", message);
}

/** The id of the token that stands for text that no other token stands for, if there is one. */
function unknownToken({ model, added_tokens: addedTokens }: JsonObject): unknown {
  const { vocab, unk_token: token, unk_id: id } = isObject(model) ? model : {};
  const [, found] = [...vocabulary(vocab, addedTokens)].find(([name]) => token && name === token) ?? [];
  return found ?? id;
}

/**
 * Refuses what the Rust tokenizer refuses, but the library does not check. Every id must have a row in the embedding
 * table.
 */
function checkNumbers(file: string, json: JsonObject, rows: number): void {
  const invalid = (problem: string) => new EmbedderError("MODEL_INVALID", `${file}: ${problem}`);
  if ((json.version ?? "1.0") !== "1.0") {
    throw invalid(`is not a tokenizer: unknown version ${JSON.stringify(json.version)}`);
  }
  const model = isObject(json.model) ? json.model : {};
  for (const [token, id] of vocabulary(model.vocab, json.added_tokens)) {
    if (!isCount(id)) {
      const found = JSON.stringify(id ?? null);
      throw invalid(`token ${JSON.stringify(token)}: id: expected a whole number of at least 0, found ${found}`);
    }
    if (id >= rows) throw otherModel(file, String(token), id, rows);
  }
  checkAddedTokens(json, model.vocab, invalid);
  for (const key of ["unk_token", "continuing_subword_prefix", "max_input_chars_per_word"]) {
    if (model.type === "WordPiece" && model[key] === undefined) throw invalid(`is not a tokenizer: ${key} is missing`);
  }
  const { max_input_chars_per_word: longest = 0 } = model;
  // The Rust tokenizer has 64 bits for it.
  if (!(Number.isInteger(longest) && (longest as number) >= 0 && (longest as number) < 2 ** 64)) {
    const found = JSON.stringify(longest);
    throw invalid(`max_input_chars_per_word: expected a whole number of at least 0, found ${found}`);
  }
}

/** An added token gets its id from the vocabulary, or the next one after it, whatever `added_tokens` says. */
function checkAddedTokens(json: JsonObject, vocab: unknown, invalid: (problem: string) => EmbedderError): void {
  const ids = new Map(vocabulary(vocab, undefined));
  let next = ids.size;
  for (const [token, id] of vocabulary(undefined, json.added_tokens)) {
    if (!ids.has(token)) ids.set(token, next++);
    const expected = ids.get(token);
    if (id !== expected) {
      throw invalid(`added token ${JSON.stringify(token)}: expected its id to be ${expected}, found ${id}`);
    }
  }
}

function* vocabulary(vocab: unknown, addedTokens: unknown): Generator<[token: unknown, id: unknown]> {
  // Unigram has a list of pairs, whose positions are the ids.
  if (Array.isArray(vocab)) yield* vocab.map((entry, id): [unknown, number] => [[entry].flat()[0], id]);
  else if (isObject(vocab)) yield* Object.entries(vocab);
  if (!Array.isArray(addedTokens)) return;
  for (const token of addedTokens) yield isObject(token) ? [token.content, token.id] : [token, undefined];
}

function otherModel(file: string, token: string, id: number | undefined, rows: number): EmbedderError {
  const message = `${file}: token ${JSON.stringify(token)} has id ${id}, but the model embeds only ids below ${rows} (vocab_size); tokenizer and weights are of different models`;
  return new EmbedderError("MODEL_INVALID", message);
}
