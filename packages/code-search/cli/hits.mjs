/** Results, as text and as JSON. */

import * as path from "node:path";
import { pathToFileURL } from "node:url";
import { InvalidArgumentError } from "commander";
import { isLimit, MAX_LIMIT } from "./configuration.mjs";
import { abilities, complain, grouped, onOneLine, print, printable } from "./terminal.mjs";

/** @typedef {import("./configuration.mjs").Settings & { json?: boolean, color: boolean }} HitFlags */
/** @typedef {Awaited<ReturnType<import("../index.mjs").CodeSearch["search"]>>} Found */
/** @typedef {Found["hits"][number]} Hit */

const [BOLD, DIM, RED, RESET] = ["\x1b[1m", "\x1b[2m", "\x1b[1;31m", "\x1b[0m"];
/** Shorter words are highlighted only where they stand alone: "i" is in every line. */
const MIN_PART = 3;

/** @param {import("commander").Command} command */
export function addLimitOptions(command) {
  return command
    .option("--limit <count>", "most results (default: 10)", limitOf)
    .option("--json", "results as JSON")
    .option("--no-color", "no colors, also on a terminal");
}

/** @param {string} text */
function limitOf(text) {
  const limit = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (!isLimit(limit)) throw new InvalidArgumentError(`Expected a whole number from 1 to ${MAX_LIMIT}.`);
  return limit;
}

/**
 * @param {Found} found
 * @param {{ dir: string, words: string[], flags: HitFlags }} shown `dir` as the user named it; `words` to highlight
 */
export function printHits({ hits, exact }, { dir, words, flags }) {
  if (flags.json) {
    print(JSON.stringify({ hits, exact }, null, 2));
    return;
  }
  const style = new Style(abilities(flags), words);
  for (const hit of hits) process.stdout.write(`${textOf(hit, path.normalize(dir), style)}\n\n`);
  if (exact.chunks < exact.of) {
    complain(`${grouped(exact.chunks)} of ${grouped(exact.of)} chunks exact; \`index\` computes the rest`);
  }
  if (hits.length === 0) complain("nothing was found");
}

/**
 * A result in some lines without control characters. Its place can be opened from where the user is.
 *
 * @param {Hit} hit
 * @param {string} [dir]
 * @param {Style} [style]
 */
export function textOf({ path: file, line, name, snippet }, dir = ".", style = new Style()) {
  const relative = path.join(dir, file);
  const head = `${style.place(relative, line)}  ${onOneLine(name)}`.trimEnd();
  return [head, ...snippet.map((shown) => style.line(shown))].join("\n");
}

/** How text is marked for the terminal that it goes to. */
export class Style {
  /**
   * @param {import("./terminal.mjs").Abilities} [abilities]
   * @param {string[]} [words] to highlight
   */
  constructor({ hasColors, hasLinks } = { hasColors: false, hasLinks: false }, words = []) {
    this.hasColors = hasColors;
    this.hasLinks = hasLinks;
    this.words = hasColors ? patternOf(words) : undefined;
  }

  /**
   * The fragment is how kitty and VS Code name a line.
   *
   * @param {string} file
   * @param {number} line
   */
  place(file, line) {
    const text = `${this.#colored(BOLD, onOneLine(file))}:${line}`;
    if (!this.hasLinks) return text;
    return `\x1b]8;;${pathToFileURL(path.resolve(file)).href}#${line}\x1b\\${text}\x1b]8;;\x1b\\`;
  }

  /** @param {{ line: number, text: string }} shown */
  line({ line, text }) {
    const code = printable(text);
    const highlighted = this.words ? code.replace(this.words, (word) => this.#colored(RED, word)) : code;
    return `${this.#colored(DIM, String(line).padStart(6))}  ${highlighted}`;
  }

  /** @param {string} color @param {string} text */
  #colored(color, text) {
    return this.hasColors ? `${color}${text}${RESET}` : text;
  }
}

/**
 * @param {string[]} words of letters and digits only
 * @returns {RegExp | undefined}
 */
function patternOf(words) {
  if (words.length === 0) return undefined;
  const longestFirst = words.toSorted((a, b) => b.length - a.length);
  const alternatives = longestFirst.map((word) =>
    word.length < MIN_PART ? `(?<![\\p{L}\\p{N}])${word}(?![\\p{L}\\p{N}])` : word,
  );
  return new RegExp(alternatives.join("|"), "giu");
}
