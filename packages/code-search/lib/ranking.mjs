/** Search by meaning and by words at once. */

import { searchWords } from "./words.mjs";

/** Candidates that each of the two ways brings. */
const CANDIDATES = 50;
/** Constant of reciprocal rank fusion, as in Cormack, Clarke and Büttcher (2009). */
const FUSION_K = 60;
const SNIPPET_LINES = 4;

/**
 * @typedef {object} Hit
 * @property {string} path
 * @property {number} line
 * @property {number} score of the fusion: only its order means something
 * @property {number | null} similarity cosine of question and chunk; `null` where only words matched
 * @property {string} name
 * @property {number} startLine
 * @property {number} endLine
 * @property {{ line: number, text: string }[]} snippet the lines with most words of the question
 */

/**
 * @param {object} task
 * @param {import("./database.mjs").IndexDatabase} task.database
 * @param {import("semantic-search-native").Embedder} task.embedder
 * @param {string} task.question
 * @param {number} task.limit
 * @returns {Promise<Hit[]>} the best first
 */
export async function search({ database, embedder, question, limit }) {
  const candidates = Math.max(CANDIDATES, limit);
  const query = await embedder.embedQuery(question, { encoding: "int8" });
  const nearest = database.nearest(query, candidates);
  const words = searchWords(question);
  const expression = words.map((word) => `"${word}"`).join(" OR ");
  const matching = words.length > 0 ? database.matching(expression, candidates) : [];
  const similarities = new Map(nearest.map(({ id, similarity }) => [id, similarity]));
  const hits = [];
  for (const [id, score] of fuse([[...similarities.keys()], matching]).slice(0, limit)) {
    const chunk = database.chunk(id);
    // An indexer may have replaced it this moment.
    if (!chunk) continue;
    const { path, line, name, startLine, endLine } = chunk;
    const snippet = snippetOf(chunk, words);
    hits.push({ path, line, score, similarity: similarities.get(id) ?? null, name, startLine, endLine, snippet });
  }
  return hits;
}

/**
 * Reciprocal rank fusion: each ranking gives 1 / (k + rank) to what it contains.
 *
 * @param {number[][]} rankings ids, the best first
 * @returns {[id: number, score: number][]} the best first
 */
export function fuse(rankings) {
  /** @type {Map<number, number>} */
  const scores = new Map();
  for (const ranking of rankings) {
    for (const [position, id] of ranking.entries()) {
      scores.set(id, (scores.get(id) ?? 0) + 1 / (FUSION_K + position + 1));
    }
  }
  return [...scores].sort(([, a], [, b]) => b - a);
}

/**
 * @param {{ text: string, line: number, startLine: number }} chunk
 * @param {string[]} words
 */
function snippetOf({ text, line, startLine }, words) {
  const lines = text.split("\n");
  const matches = lines.map((content) => {
    const lower = content.toLowerCase();
    return words.filter((word) => lower.includes(word)).length;
  });
  // Without any match: from the definition on.
  let best = { first: line - startLine, count: 0 };
  for (let first = 0; first === 0 || first + SNIPPET_LINES <= lines.length; first++) {
    const count = matches.slice(first, first + SNIPPET_LINES).reduce((sum, found) => sum + found, 0);
    if (count > best.count) best = { first, count };
  }
  const shown = lines.slice(best.first, best.first + SNIPPET_LINES);
  return shown.map((content, row) => ({ line: startLine + best.first + row, text: content }));
}
