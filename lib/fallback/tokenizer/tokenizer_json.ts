import type { JsonObject } from "../../json_file.js";
import { type AddedToken, AddedTokens, isNormalized } from "./added_tokens.js";
import { type Normalizer, normalizerOf } from "./normalizer.js";
import { specialIds } from "./post_processor.js";
import { type PreTokenizer, preTokenizerOf } from "./pre_tokenizer.js";
import { type TokenModel, tokenModelOf } from "./token_model.js";

/**
 * A `tokenizer.json`, computed as the addon's tokenizer (`tokenizers` 0.23.2) does. Of `@huggingface/tokenizers` it takes BPE,
 * WordPiece and the translation of regular expressions. What else there is differs in details, which
 * `node fuzz/javascript.mjs --target=tokens` finds. Truncation and padding are ignored.
 */
export class TokenizerJson {
  readonly normalize: Normalizer;
  readonly splitIntoWords: PreTokenizer;
  /** Ids that the post-processor puts around a text. */
  readonly before: readonly number[];
  readonly after: readonly number[];
  readonly #model: TokenModel;
  readonly #asWritten: AddedTokens;
  readonly #normalized: AddedTokens;

  /** @throws EmbedderError `MODEL_UNSUPPORTED` for a part that is not known here; `Error` for a malformed one. */
  constructor(json: JsonObject) {
    this.normalize = normalizerOf(json.normalizer as JsonObject | null);
    this.splitIntoWords = preTokenizerOf(json.pre_tokenizer as JsonObject | null);
    this.#model = tokenModelOf(json.model);
    [this.before, this.after] = specialIds(json.post_processor as JsonObject | null);
    const tokens = (json.added_tokens ?? []) as AddedToken[];
    const ofKind = (kind: boolean, contentOf: (token: AddedToken) => string) =>
      new AddedTokens(tokens.filter((token) => isNormalized(token) === kind).map((token) => [contentOf(token), token]));
    this.#asWritten = ofKind(false, ({ content }) => content);
    this.#normalized = ofKind(true, ({ content }) => this.normalize(content));
  }

  /** Ids of a text without special tokens; `undefined` for an unknown token that the vocabulary lacks. */
  ids(text: string): (number | undefined)[] {
    const ids: (number | undefined)[] = [];
    let isStart = true;
    for (const section of this.#asWritten.split(text)) {
      const parts = typeof section === "number" ? [section] : this.#normalized.split(this.normalize(section));
      for (const part of parts) {
        if (typeof part === "number") ids.push(part);
        else for (const word of this.splitIntoWords(part, isStart)) for (const id of this.#model(word)) ids.push(id);
        isStart = false;
      }
    }
    return ids;
  }
}
