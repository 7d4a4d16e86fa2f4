import { EmbedderError } from "./errors.js";
import { isObject, type JsonObject, readJsonObjectIfPresent } from "./json_file.js";
import type { ModelDir } from "./model_dir.js";
import { withinTimeLimit } from "./time_limit.js";

/** What is used of `@huggingface/tokenizers`: its own types cannot be resolved from CommonJS. */
interface Tokenizer {
  normalizer: ((text: string) => string) | null;
  encode(text: string, options?: { add_special_tokens?: boolean }): { ids: number[] };
}
const { Tokenizer } = require("@huggingface/tokenizers") as {
  Tokenizer: new (tokenizerJson: JsonObject, tokenizerConfig: JsonObject) => Tokenizer;
};

export interface TokenizedText {
  /** Prompt, text and special tokens, cut to the model's limit. */
  ids: number[];
  truncated: boolean;
}

/** Characters looked at first, per token of the limit; most texts have fewer. */
const CHARACTERS_PER_TOKEN = 16;

/** How long a text may take; more if it is long. A tokenizer that ends at all needs a fraction of it. */
const TIME_LIMIT_MS = 10_000;
const CHARACTERS_PER_MS = 100;

/** Texts to token ids, as the addon's `src/tokenizer.rs`. Truncation and padding of `tokenizer.json` are ignored. */
export class TextTokenizer {
  readonly #tokenizer: Tokenizer;
  readonly #model: ModelDir;
  readonly #before: readonly number[];
  readonly #after: readonly number[];
  readonly #splitsAtWhitespace: boolean;

  /** @throws EmbedderError `MODEL_INVALID` or `INVALID_ARGUMENT` (a limit without room for text). */
  constructor(model: ModelDir) {
    const file = model.tokenizerFile;
    const json = readJsonObjectIfPresent(file) ?? {};
    checkNumbers(file, json, model.vocabularySize);
    try {
      // The second argument, tokenizer_config.json, stays empty: tokenizer.json alone decides, as for the addon.
      this.#tokenizer = new Tokenizer({ ...json, added_tokens: json.added_tokens ?? [] }, {});
      if (isObject(json.normalizer) && json.normalizer.type === "BertNormalizer") {
        this.#tokenizer.normalizer = bertNormalizer(json.normalizer);
      }
      if (isObject(json.pre_tokenizer) && json.pre_tokenizer.type === "BertPreTokenizer") {
        const normalize = this.#tokenizer.normalizer ?? ((text: string) => text);
        // The library takes a text that only its normalization makes equal to an added token for the token. BERT
        // splits at the space.
        this.#tokenizer.normalizer = (text) => `${normalize(text)} `;
      }
      const encode = (options?: { add_special_tokens: boolean }) =>
        withinTimeLimit(TIME_LIMIT_MS, () => this.#tokenizer.encode("a", options).ids);
      const content = encode({ add_special_tokens: false });
      const whole = encode();
      const start = whole.findIndex((_, index) => content.every((id, offset) => whole[index + offset] === id));
      this.#before = whole.slice(0, start);
      this.#after = whole.slice(start + content.length);
    } catch (cause) {
      throw new EmbedderError("MODEL_INVALID", `${file}: is not a tokenizer: ${(cause as Error).message}`, { cause });
    }
    this.#model = model;
    this.#checkIds([...this.#before, ...this.#after]);
    const specialTokens = this.#before.length + this.#after.length;
    if (model.maxTokens <= specialTokens) {
      throw new EmbedderError(
        "INVALID_ARGUMENT",
        `maxTokens: expected more than the ${specialTokens} special tokens that this model adds to a text, found ${model.maxTokens}`,
      );
    }
    this.#splitsAtWhitespace = splitsAtWhitespace(json);
  }

  /** @throws EmbedderError `TOKENIZATION_FAILED` */
  encode(text: string, isQuery: boolean): TokenizedText {
    const { queryPrompt, documentPrompt, maxTokens, lowerCase, truncationSide } = this.#model;
    let whole = (isQuery ? queryPrompt : documentPrompt) + text.toWellFormed();
    if (lowerCase) whole = whole.toLowerCase();
    const room = maxTokens - this.#before.length - this.#after.length;
    let content: number[];
    try {
      const limitMs = TIME_LIMIT_MS + Math.ceil(whole.length / CHARACTERS_PER_MS);
      content = withinTimeLimit(limitMs, () => this.#contentIds(whole, room));
    } catch (cause) {
      throw new EmbedderError("TOKENIZATION_FAILED", `tokenization failed: ${(cause as Error).message}`, { cause });
    }
    const truncated = content.length > room;
    if (truncated) content = truncationSide === "right" ? content.slice(0, room) : content.slice(-room);
    const ids = [...this.#before, ...content, ...this.#after];
    if (ids.length === 0) {
      throw new EmbedderError("TOKENIZATION_FAILED", "the tokenizer gives no token for a text, not even a special one");
    }
    this.#checkIds(ids);
    return { ids, truncated };
  }

  /** A vocabulary does not hold every id: a post-processor writes its own, and where it finds none `undefined`. */
  #checkIds(ids: readonly (number | undefined)[]): void {
    const { tokenizerFile, vocabularySize } = this.#model;
    for (const id of ids) {
      if (!isCount(id) || id >= vocabularySize) throw otherModel(tokenizerFile, "", id, vocabularySize);
    }
  }

  /** Ids of the text without special tokens, or of a part at the kept side that already has more than `room`. */
  #contentIds(text: string, room: number): number[] {
    for (let length = room * CHARACTERS_PER_TOKEN; ; length *= 4) {
      const part = this.#splitsAtWhitespace ? this.#keptPart(text, length) : text;
      const { ids } = this.#tokenizer.encode(part, { add_special_tokens: false });
      if (ids.length > room || part.length === text.length) return ids;
    }
  }

  /** At least `length` characters from the side that truncation keeps, up to whitespace. */
  #keptPart(text: string, length: number): string {
    if (length >= text.length) return text;
    const isSpace = (index: number) => " \t\r\n".includes(text[index] ?? " ");
    if (this.#model.truncationSide === "right") {
      let end = length;
      while (!isSpace(end)) end++;
      return text.slice(0, end);
    }
    let start = text.length - length;
    while (!isSpace(start)) start--;
    return text.slice(Math.max(start, 0));
  }
}

/**
 * Whether a text may be cut at whitespace before it is tokenized, without changing the tokens of either part: BERT's
 * tokenizer splits there first. An added token that holds whitespace, or takes what is around it, would be in the way.
 */
function splitsAtWhitespace(json: JsonObject): boolean {
  const isBert = isObject(json.pre_tokenizer) && json.pre_tokenizer.type === "BertPreTokenizer";
  const addedTokens = (json.added_tokens ?? []) as { content?: string; lstrip?: boolean; rstrip?: boolean }[];
  return isBert && addedTokens.every(({ content, lstrip, rstrip }) => !lstrip && !rstrip && !/\s/.test(content ?? ""));
}

/**
 * BERT's text clean-up exactly as the Rust tokenizer does it. The JavaScript library's own differs: it leaves CJK
 * characters beyond the basic plane unseparated, and writes a word-final capital sigma as ς instead of σ.
 */
function bertNormalizer(config: JsonObject): (text: string) => string {
  const stripAccents = config.strip_accents ?? config.lowercase;
  return (text) => {
    let result = text;
    if (config.clean_text) {
      result = result.replace(/(?![\t\n\r])[\0\ufffd\p{Cc}\p{Cf}\p{Co}]/gu, "").replace(/\s/g, " ");
    }
    if (config.handle_chinese_chars) {
      result = result.replace(
        /[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu,
        " $& ",
      );
    }
    if (stripAccents) result = result.normalize("NFD").replace(/\p{Mn}/gu, "");
    // Capital sigma is the one letter whose small form JavaScript chooses by what follows it.
    if (config.lowercase) result = result.replaceAll("Σ", "σ").toLowerCase();
    return result;
  };
}

/**
 * Refuses numbers that the tokenizer would not get over, which it does not check itself. Every id must have a row in the
 * embedding table.
 */
function checkNumbers(file: string, json: JsonObject, rows: number): void {
  const invalid = (problem: string) => new EmbedderError("MODEL_INVALID", `${file}: ${problem}`);
  const model = isObject(json.model) ? json.model : {};
  for (const [token, id] of vocabulary(model.vocab, json.added_tokens)) {
    if (!isCount(id)) {
      const found = JSON.stringify(id ?? null);
      throw invalid(`token ${JSON.stringify(token)}: id: expected a whole number of at least 0, found ${found}`);
    }
    if (id >= rows) throw otherModel(file, String(token), id, rows);
  }
  const longest = model.max_input_chars_per_word ?? 0;
  if (!isCount(longest)) {
    const found = JSON.stringify(longest);
    throw invalid(`max_input_chars_per_word: expected a whole number of at least 0, found ${found}`);
  }
}

function* vocabulary(vocab: unknown, addedTokens: unknown): Generator<[token: unknown, id: unknown]> {
  // Unigram has a list of pairs, whose places are the ids.
  if (Array.isArray(vocab)) yield* vocab.map((entry, id): [unknown, number] => [[entry].flat()[0], id]);
  else if (isObject(vocab)) yield* Object.entries(vocab);
  if (!Array.isArray(addedTokens)) return;
  for (const token of addedTokens) yield isObject(token) ? [token.content, token.id] : [token, undefined];
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function otherModel(file: string, token: string, id: number | undefined, rows: number): EmbedderError {
  return new EmbedderError(
    "MODEL_INVALID",
    `${file}: token ${JSON.stringify(token)} has id ${id}, but the model embeds only ids below ${rows} (vocab_size); tokenizer and weights are of different models`,
  );
}
