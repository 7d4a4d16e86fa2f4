import { types } from "node:util";
import { ENCODINGS, type Encoding, type TextOrTokens } from "./engine.js";
import { callback, checkOptions, invalid, oneOf, type Rule, readArgument, signal } from "./option_rules.js";

/** Options of {@link Embedder.embed}. */
export interface EmbedOptions<E extends Encoding = "float32"> {
  /** Whether the texts are queries or documents, which selects the model's prompt. Default `"document"`. */
  kind?: "query" | "document";
  /**
   * How vectors are stored: `"float32"` (default), `"int8"` (x ≈ value / 127; not with `normalize: false`) or `"binary"`
   * (signs, eight to a byte). Compare vectors only with vectors of the same encoding.
   */
  encoding?: E;
  /**
   * Called once if texts were truncated to `maxTokens`, before the promise resolves, with their indices in `texts` in
   * ascending order. An error that it throws rejects the call.
   */
  onTruncated?: (indices: Uint32Array) => void;
  /** Ends the call with an `AbortError`; whatever has not been computed yet is dropped. */
  signal?: AbortSignal;
  /**
   * Called from time to time, and once more when everything is done, before the promise resolves. An error that it throws
   * ends the call.
   */
  onProgress?: (progress: EmbedProgress) => void;
}

/** How far {@link Embedder.embed} has come. */
export interface EmbedProgress {
  /** Texts whose vectors are ready. */
  done: number;
  /** Texts of the call. */
  total: number;
  /** Tokens of these texts; equal texts count once, and a cached query counts as when it was computed. */
  tokens: number;
}

/** Options of {@link Embedder.stream}. */
export type StreamOptions<E extends Encoding = "float32"> = Pick<EmbedOptions<E>, "kind" | "encoding" | "signal">;

/** Options of {@link Embedder.embedQuery}. */
export type QueryOptions<E extends Encoding = "float32"> = Omit<EmbedOptions<E>, "kind">;

const kind: Rule = {
  expected: '"query" or "document"',
  accepts: (value) => value === "query" || value === "document",
};
const encoding = oneOf(...ENCODINGS);
const QUERY_RULES = { encoding, onTruncated: callback, signal, onProgress: callback };

/** @param options Options, or whether the texts are queries. @throws EmbedderError `INVALID_ARGUMENT` */
export function checkEmbedOptions(options: unknown): EmbedOptions<Encoding> {
  if (typeof options === "boolean") return { kind: options ? "query" : "document" };
  return checkOptions<EmbedOptions<Encoding>>(options, { kind, ...QUERY_RULES });
}

/** @throws EmbedderError `INVALID_ARGUMENT` */
export function checkQueryOptions(options: unknown): QueryOptions<Encoding> {
  return checkOptions<QueryOptions<Encoding>>(options, QUERY_RULES);
}

/** @throws EmbedderError `INVALID_ARGUMENT` */
export function checkStreamOptions(options: unknown): StreamOptions<Encoding> {
  return checkOptions<StreamOptions<Encoding>>(options, { kind, encoding, signal });
}

/** Most texts of a call: their vectors are one buffer, and numbered in 32 bits. */
export const MAX_TEXTS = 10_000_000;

/**
 * A checked copy of the texts of one call.
 *
 * @throws EmbedderError `INVALID_ARGUMENT` naming the first index that holds neither a string nor token ids.
 */
export function checkTexts(texts: unknown): TextOrTokens[] {
  return readArgument("texts", () => {
    if (!Array.isArray(texts)) throw invalid("texts", "an array of strings or Uint32Arrays of token ids", texts);
    const { length } = texts;
    if (!Number.isInteger(length) || length < 0 || length > MAX_TEXTS) {
      throw invalid("texts", `at most ${MAX_TEXTS} texts in a call (stream takes any number)`, texts);
    }
    // By index: any other way of copying can be overridden, and takes minutes for a huge sparse array.
    const snapshot = new Array<TextOrTokens>(length);
    for (let index = 0; index < length; index++) {
      const text: unknown = texts[index];
      snapshot[index] = typeof text === "string" ? text : checkText(`texts[${index}]`, text);
    }
    return snapshot;
  });
}

/**
 * Checks that a value is a text or token ids. Whether the model has these ids, the engine checks.
 *
 * @param what Names the value in errors.
 * @throws EmbedderError `INVALID_ARGUMENT`
 */
export function checkText(what: string, text: unknown): TextOrTokens {
  // Unlike `instanceof`, this does not accept whatever has the prototype, and it calls no proxy.
  if (typeof text === "string" || types.isUint32Array(text)) return text;
  throw invalid(what, "a string or a Uint32Array of token ids", text);
}
