import { EmbedderError } from "./errors.js";
import { isObject, type JsonObject, readJsonObjectIfPresent } from "./json_file.js";
import type { ModelDir } from "./model_dir.js";

/** What is used of `@huggingface/tokenizers`: its own types cannot be resolved from CommonJS. */
interface Tokenizer {
  normalizer: ((text: string) => string) | null;
  encode(text: string, options?: { add_special_tokens?: boolean }): { ids: number[] };
  get_vocab(): Map<string | undefined, number>;
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
    try {
      // The second argument, tokenizer_config.json, stays empty: tokenizer.json alone decides, as for the addon.
      this.#tokenizer = new Tokenizer({ ...json, added_tokens: json.added_tokens ?? [] }, {});
      if (isObject(json.normalizer) && json.normalizer.type === "BertNormalizer") {
        this.#tokenizer.normalizer = bertNormalizer(json.normalizer);
      }
      const content = this.#tokenizer.encode("a", { add_special_tokens: false }).ids;
      const whole = this.#tokenizer.encode("a").ids;
      const start = whole.findIndex((_, index) => content.every((id, offset) => whole[index + offset] === id));
      this.#before = whole.slice(0, start);
      this.#after = whole.slice(start + content.length);
    } catch (cause) {
      throw new EmbedderError("MODEL_INVALID", `${file}: is not a tokenizer: ${(cause as Error).message}`, { cause });
    }
    checkVocabulary(file, this.#tokenizer, model.vocabularySize);
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
      content = this.#contentIds(whole, room);
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

  /** A vocabulary does not hold every id: a post-processor writes its own. */
  #checkIds(ids: readonly number[]): void {
    const { tokenizerFile, vocabularySize } = this.#model;
    const id = ids.find((id) => !(id < vocabularySize));
    if (id !== undefined) throw otherModel(tokenizerFile, "", id, vocabularySize);
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

/** No token of the vocabulary may have an id without a row in the embedding table, whether or not a text has it. */
function checkVocabulary(file: string, tokenizer: Tokenizer, rows: number): void {
  for (const [token, id] of tokenizer.get_vocab()) {
    // Ids that no token has appear as `undefined`.
    if (token !== undefined && id >= rows) throw otherModel(file, token, id, rows);
  }
}

function otherModel(file: string, token: string, id: number, rows: number): EmbedderError {
  return new EmbedderError(
    "MODEL_INVALID",
    `${file}: token ${JSON.stringify(token)} has id ${id}, but the model embeds only ids below ${rows} (vocab_size); tokenizer and weights are of different models`,
  );
}
