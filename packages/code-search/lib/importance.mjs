/** Which files come first: those that a developer is likely to ask for. */

import { pathWeight } from "./paths.mjs";
import { stemOf } from "./ranking.mjs";

/** Lines by which a file names others, in most languages. */
const IMPORT_LINE =
  /^\s*(?:(?:import|from|use|using|include|require|require_relative|alias|mod|open)\b|#\s*include\b|export\b.*\bfrom\b|.*\brequire\s*\().*$/gm;
/** Files changed in the last week are probably being worked on. */
const RECENT_MS = 7 * 24 * 60 * 60 * 1000;
const RECENT_WEIGHT = 2;

/**
 * The words of a file's import lines, in lower case.
 *
 * @param {string} source
 */
export function importWords(source) {
  const words = new Set();
  for (const [line] of source.matchAll(IMPORT_LINE)) {
    for (const word of line.toLowerCase().match(/[\p{L}\p{N}_-]+/gu) ?? []) words.add(word);
  }
  return [...words];
}

/**
 * Chunks in the order in which their vectors are computed: those of recent files and of files that many others import
 * first, tests and documents last.
 *
 * @param {{ id: number, path: string, modifiedMs: number }[]} chunks
 * @param {{ importsOf(stem: string): number }} database
 * @param {number} [now]
 * @returns {number[]} ids
 */
export function refinementOrder(chunks, database, now = Date.now()) {
  /** @type {Map<string, number>} */
  const weights = new Map();
  const weightOf = (/** @type {{ path: string, modifiedMs: number }} */ { path, modifiedMs }) => {
    const known = weights.get(path);
    if (known !== undefined) return known;
    const recency = now - modifiedMs < RECENT_MS ? RECENT_WEIGHT : 1;
    const weight = pathWeight(path) * recency * (1 + Math.log2(1 + database.importsOf(stemOf(path).toLowerCase())));
    weights.set(path, weight);
    return weight;
  };
  return chunks.toSorted((a, b) => weightOf(b) - weightOf(a)).map(({ id }) => id);
}
