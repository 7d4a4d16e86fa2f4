import { isObject, type JsonObject } from "../../json_file.js";
import { unknownType, unsupported } from "./unknown_type.js";

/** The part of `@huggingface/tokenizers` that is used: its own types cannot be resolved from CommonJS. */
interface Model {
  (words: string[]): string[];
  tokens_to_ids: Map<string, number>;
  unk_token_id: number | undefined;
}
const { BPE, WordPiece } = require("@huggingface/tokenizers") as {
  [name in "BPE" | "WordPiece"]: new (
    config: JsonObject,
  ) => Model;
};

/** The ids of a word; `undefined` stands for an unknown token that the vocabulary lacks. */
export type TokenModel = (word: string) => (number | undefined)[];

/**
 * The model of a `tokenizer.json`, as the addon's tokenizer computes it.
 *
 * @throws EmbedderError `MODEL_UNSUPPORTED` for what is not known here; `Error` for a malformed one.
 */
export function tokenModelOf(config: unknown): TokenModel {
  if (!isObject(config)) throw new Error("model: expected an object");
  const { type = Array.isArray(config.vocab) ? "Unigram" : config.merges ? "BPE" : "WordPiece" } = config;
  if (type === "Unigram") return unigram(config);
  if (type === "BPE") checkBpe(config);
  else if (type !== "WordPiece") throw unknownType("model.type", type, ["WordLevel"]);
  const model = new (type === "BPE" ? BPE : WordPiece)(config);
  // Word by word: the library would join unknown characters of different words.
  return (word) => model([word]).map((token) => model.tokens_to_ids.get(token) ?? model.unk_token_id);
}

/** Refuses what the library ignores. */
function checkBpe({ vocab, merges, ...config }: JsonObject): void {
  for (const key of ["dropout", "continuing_subword_prefix", "end_of_word_suffix"]) {
    if (config[key]) throw unsupported(`model.${key}: ${JSON.stringify(config[key])}`);
  }
  for (const merge of merges as (string | [string, string])[]) {
    const [left = "", right = ""] = typeof merge === "string" ? merge.split(" ") : merge;
    for (const token of [left, right, left + right]) {
      if (!Object.hasOwn(vocab as object, token))
        throw new Error(`model.merges: ${JSON.stringify(token)} is not in vocab`);
    }
  }
}

/** How much less likely than the least likely token an unknown character is. */
const UNKNOWN_PENALTY = 10;

interface Node {
  id?: number;
  next: Map<string, Node>;
}

/**
 * The likeliest tokens of a word, by Viterbi's algorithm. The library rounds sums differently, so that it chooses others
 * among equally likely ones, and it knows no bytes.
 */
function unigram({ vocab, unk_id: unknown, byte_fallback }: JsonObject): TokenModel {
  const tokens = vocab as [token: string, score: number][];
  if (typeof unknown === "number" && unknown >= tokens.length)
    throw new Error(`model.unk_id: ${unknown} is not in vocab`);
  const ids = new Map(tokens.map(([token], id) => [token, id]));
  const scores = tokens.map(([, score]) => score);
  const unknownScore =
    scores.reduce((least, score) => Math.min(least, score), Number.POSITIVE_INFINITY) - UNKNOWN_PENALTY;
  const root: Node = { next: new Map() };
  for (const [token, id] of ids) {
    let node = root;
    for (const character of token) {
      const next: Node = node.next.get(character) ?? { next: new Map() };
      node.next.set(character, next);
      node = next;
    }
    if (token !== "") node.id = id;
  }

  const idsOf = (piece: string): (number | undefined)[] => {
    const id = ids.get(piece);
    if (id !== undefined) return [id];
    if (byte_fallback) {
      const name = (byte: number) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
      const bytes = Array.from(Buffer.from(piece), (byte) => ids.get(name(byte)));
      if (!bytes.includes(undefined)) return bytes;
    }
    if (typeof unknown !== "number") throw new Error(`${JSON.stringify(piece)} is unknown, and unk_id is missing`);
    return [unknown];
  };

  return (word) => {
    const characters = [...word];
    /** Of the best path to each place: its score, its last token and where that begins. */
    const best = Array.from({ length: characters.length + 1 }, () => ({ score: 0, id: -1, start: -1 }));
    for (const start of characters.keys()) {
      const { score: before } = best[start] as { score: number };
      const reach = (end: number, score: number, id: number) => {
        const place = best[end] as { score: number; id: number; start: number };
        if (place.start < 0 || before + score > place.score) Object.assign(place, { score: before + score, id, start });
      };
      let isKnown = false;
      let node = root.next.get(characters[start] as string);
      for (let end = start + 1; node; node = node.next.get(characters[end++] ?? "")) {
        if (node.id === undefined) continue;
        isKnown ||= end === start + 1;
        reach(end, scores[node.id] as number, node.id);
      }
      if (!isKnown) reach(start + 1, unknownScore, typeof unknown === "number" ? unknown : -1);
    }
    const pieces: string[] = [];
    let isUnknown = false;
    for (let end = characters.length; end > 0; ) {
      const { id, start } = best[end] as { id: number; start: number };
      const piece = characters.slice(start, end).join("");
      // Unknown characters in a row are one token.
      const joins = isUnknown && id === unknown;
      if (joins) pieces.push(piece + pieces.pop());
      else pieces.push(piece);
      isUnknown = id === unknown;
      end = start;
    }
    return pieces.reverse().flatMap(idsOf);
  };
}
