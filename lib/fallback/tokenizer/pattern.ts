import { isObject } from "../../json_file.js";
import { knownToExpressions } from "./unicode.js";

const { SplitPreTokenizer } = require("@huggingface/tokenizers") as {
  SplitPreTokenizer: new (config: { pattern: { Regex: string } }) => { pattern: RegExp };
};

/** What becomes of the matches when a text is split, in the words of `tokenizer.json`. */
export type Behavior = "Removed" | "Isolated" | "Contiguous" | "MergedWithPrevious" | "MergedWithNext";
const BEHAVIORS = ["Removed", "Isolated", "Contiguous", "MergedWithPrevious", "MergedWithNext"];

export interface Part {
  text: string;
  isMatch: boolean;
}

/** Something that is looked for in texts. */
export class Pattern {
  readonly #expression: RegExp;
  readonly #prepare: (text: string) => string;

  /**
   * @param expression With the flags `g` and `u`.
   * @param prepare Gives the text of the same length that is searched.
   */
  constructor(expression: RegExp, prepare: (text: string) => string = (text) => text) {
    this.#expression = expression;
    this.#prepare = prepare;
  }

  /** The parts of a text, none of them empty. `invert` looks for what does not match. */
  split(text: string, behavior: Behavior, invert = false): Part[] {
    if (!BEHAVIORS.includes(behavior)) throw new Error(`behavior: expected one of ${BEHAVIORS}, found ${behavior}`);
    const parts: Part[] = [];
    let end = 0;
    const add = (to: number, isMatch: boolean) => {
      if (to > end) parts.push({ text: text.slice(end, to), isMatch: isMatch !== invert });
      end = to;
    };
    for (const match of this.#prepare(text).matchAll(this.#expression)) {
      add(match.index, false);
      add(match.index + match[0].length, true);
    }
    add(text.length, false);
    if (behavior === "Removed") return parts.filter(({ isMatch }) => !isMatch);
    if (behavior === "Isolated") return parts;
    if (behavior === "MergedWithNext") return merged(parts.reverse(), behavior).reverse();
    return merged(parts, behavior);
  }
}

/** Merges parts with those before them. `MergedWithNext` gets the parts from the last to the first. */
function merged(parts: Part[], behavior: Behavior): Part[] {
  const result: Part[] = [];
  let wasMatch = false;
  for (const { text, isMatch } of parts) {
    const last = result.at(-1);
    const joins = behavior === "Contiguous" ? isMatch === wasMatch : isMatch && !wasMatch;
    if (last && joins) last.text = behavior === "MergedWithNext" ? text + last.text : last.text + text;
    else result.push({ text, isMatch });
    wasMatch = isMatch;
  }
  return result;
}

/**
 * A pattern of `tokenizer.json`: `{ String }`, or `{ Regex }` in Oniguruma's syntax.
 *
 * @throws Error if it is neither.
 */
export function patternOf(config: unknown): Pattern {
  const { String: text, Regex: expression } = isObject(config) ? config : {};
  if (typeof text === "string") return new Pattern(new RegExp(text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "gu"));
  if (typeof expression !== "string") throw new Error("pattern: expected a String or a Regex");
  return new Pattern(new SplitPreTokenizer({ pattern: { Regex: foldCase(expression) } }).pattern, knownToExpressions);
}

/** Writes out groups of letters that ignore case. The library's own form leaves out the two letters beyond ASCII. */
function foldCase(expression: string): string {
  const more: { [letter: string]: string } = { s: "\u017f", k: "\u212a" };
  const either = (letter: string) => `[${letter}${letter.toUpperCase()}${more[letter] ?? ""}]`;
  return expression.replace(/(?<!\\)\(\?i:([a-zA-Z'|]*)\)/g, (_, group: string) => {
    return `(?:${group.toLowerCase().replace(/[a-z]/g, either)})`;
  });
}
