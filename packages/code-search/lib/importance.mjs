/** Which files come first: those that a developer is likely to ask for. */

import { pathWeight, stemOf } from "./paths.mjs";

/** Lines by which a file names others, in most languages. */
const IMPORT_LINE =
  /^[ \t]*(?:(?:import|from|use|using|include|require|require_relative|alias|mod|open)\b|#[ \t]*include\b|export\b.*\bfrom\b|.*\brequire\s*\().*$/gm;
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
 * Files in the order in which their vectors are computed: recent ones and those that many others import first, tests and
 * documents last.
 *
 * @template {{ path: string, modifiedMs: number }} File
 * @param {File[]} files
 * @param {{ importsOf(stem: string): number }} database
 * @param {number} [now]
 * @returns {File[]}
 */
export function refinementOrder(files, database, now = Date.now()) {
  const weighted = files.map((file) => {
    const recency = now - file.modifiedMs < RECENT_MS ? RECENT_WEIGHT : 1;
    const imports = database.importsOf(stemOf(file.path).toLowerCase());
    return { file, weight: pathWeight(file.path) * recency * (1 + Math.log2(1 + imports)) };
  });
  return weighted.sort((a, b) => b.weight - a.weight).map(({ file }) => file);
}
