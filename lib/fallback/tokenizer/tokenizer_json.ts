import type { JsonObject } from "../../json_file.js";
import { type AddedToken, AddedTokens, isNormalized } from "./added_tokens.js";
import { type Normalizer, normalizerOf } from "./normalizer.js";
import { type PreTokenizer, preTokenizerOf } from "./pre_tokenizer.js";
import { type TokenModel, tokenModelOf } from "./token_model.js";
import { unknownType } from "./unknown_type.js";

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

/** The ids that a post-processor puts before and after a text. */
function specialIds(postProcessor: JsonObject | null | undefined): [before: number[], after: number[]] {
  if (!postProcessor) return [[], []];
  const { type, processors, cls, sep } = postProcessor as {
    type: string;
    processors: JsonObject[];
    cls: [string, number];
    sep: [string, number];
  };
  if (type === "TemplateProcessing") return templateIds(postProcessor);
  if (type === "BertProcessing" || type === "RobertaProcessing") return [[cls[1]], [sep[1]]];
  if (type === "ByteLevel") return [[], []];
  if (type !== "Sequence") throw unknownType("post_processor.type", type, []);
  const all = processors.map(specialIds);
  return [all.flatMap(([before]) => before).reverse(), all.flatMap(([, after]) => after)];
}

function templateIds(template: JsonObject): [before: number[], after: number[]] {
  const { single, special_tokens: tokens } = template as {
    single: { Sequence?: object; SpecialToken?: { id: string } }[];
    special_tokens: { [name: string]: { ids: number[] } };
  };
  if (!Object.values(tokens).every(({ ids }) => Array.isArray(ids) && ids.every(isCount))) {
    throw new Error("post_processor.special_tokens: expected the ids of each");
  }
  const text = single.findIndex(({ Sequence: sequence }) => sequence);
  const ids = single.map(({ SpecialToken: token }) => {
    if (!token) return [];
    const special = tokens[token.id];
    if (special) return special.ids;
    throw new Error(`the template's token ${JSON.stringify(token.id)} is missing in special_tokens`);
  });
  return [ids.slice(0, text).flat(), ids.slice(text + 1).flat()];
}

/** Whether a value is a whole number of at least 0. */
export function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
