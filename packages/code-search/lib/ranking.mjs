/**
 * Search by meaning and by words at once, and what makes of the chunks found the answer that a developer would give. Scores
 * are relative to the best candidate's, which has 1 before the rules below add to it. Their sizes are round numbers:
 * halving or doubling one changes little.
 */

import { ownName } from "./database.mjs";
import { pathWeight } from "./paths.mjs";
import { areRelated, searchWords, wordsOf } from "./words.mjs";

/** @typedef {import("./database.mjs").IndexDatabase} IndexDatabase */
/** @typedef {import("./database.mjs").StoredChunk} StoredChunk */
/** @typedef {import("semantic-search-native").Embedder} Embedder */
/** @typedef {StoredChunk & { score: number, similarity: number | null }} Candidate */

/** Candidates that each way brings. */
const CANDIDATES = 50;
/** Constant of reciprocal rank fusion, as in Cormack, Clarke and Büttcher (2009). */
const FUSION_K = 60;
const SNIPPET_LINES = 4;

/**
 * @typedef {object} Hit
 * @property {string} path
 * @property {number} line
 * @property {number} score only its order means something
 * @property {number | null} similarity cosine of question and chunk; `null` where the chunk was found in another way
 * @property {boolean} isExact whether the model has read the chunk
 * @property {string} name
 * @property {number} startLine
 * @property {number} endLine
 * @property {{ line: number, text: string }[]} snippet the lines with most words of the question
 */

/**
 * @typedef {object} Task
 * @property {IndexDatabase} database
 * @property {Embedder} embedder
 * @property {Embedder} [sketcher] of the static vectors of chunks that have no exact ones
 * @property {string} question
 */

/**
 * @param {Task & { limit: number }} task
 * @returns {Promise<Hit[]>} the best first
 */
export async function search({ limit, ...task }) {
  const { database, question } = task;
  const candidates = await candidatesOf({ ...task, depth: Math.max(CANDIDATES, limit) });
  return hitsOf(database, rank(candidates, question, database).slice(0, limit), searchWords(question));
}

/**
 * What the ways to search find.
 *
 * @param {Task & { depth?: number }} task
 * @returns {Promise<Candidate[]>} the best first
 */
export async function candidatesOf({ database, embedder, sketcher, question, depth = CANDIDATES }) {
  const query = await embedder.embedQuery(question, { encoding: "int8" });
  const nearest = database.nearest(query, depth);
  const sketch = await sketcher?.embedQuery(question, { encoding: "int8" });
  const nearestSketches = sketch ? database.nearestSketches(sketch, depth) : [];
  const matching = database.withWords(searchWords(question), depth);
  const definitions = isName(question) ? database.definitionsOf(ownName(question.trim()), depth) : [];
  const similarities = new Map([...nearestSketches, ...nearest].map(({ id, similarity }) => [id, similarity]));
  const fused = fuse([nearest, nearestSketches].map((list) => list.map(({ id }) => id)).concat([matching]));
  const best = fused[0]?.[1] ?? 1;
  const scores = new Map(fused.map(([id, score]) => [id, score / best]));
  for (const id of definitions) if (!scores.has(id)) scores.set(id, 0);
  return [...scores].flatMap(([id, score]) => {
    const chunk = database.chunk(id);
    // An indexer may have replaced it this moment.
    return chunk ? [{ ...chunk, score, similarity: similarities.get(id) ?? null }] : [];
  });
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
 * Candidates in the order of the answer.
 *
 * @param {Candidate[]} candidates
 * @param {string} question
 * @param {{ importsOf(stem: string): number }} database
 * @returns {Candidate[]} the best first
 */
export function rank(candidates, question, database) {
  const bonuses = [
    ofFile(candidates),
    ofDefinition(question),
    ofName(question),
    ofFileName(question),
    ofImports(database),
  ];
  const ranked = candidates
    .map((candidate) => {
      const score = bonuses.reduce((sum, bonus) => sum + bonus(candidate), candidate.score);
      return { ...candidate, score: score * pathWeight(candidate.path, question) };
    })
    .sort((a, b) => b.score - a.score);
  return withoutRepetition(ranked);
}

/** @typedef {(candidate: Candidate) => number} Bonus what a candidate's score gains */

/** A file that has several good chunks is about the question, more than one that mentions it once: its best chunk gains. */
const FILE_BONUS = 0.3;
const FILE_CHUNKS = 5;

/**
 * @param {Candidate[]} candidates the best first
 * @returns {Bonus}
 */
export function ofFile(candidates) {
  /** @type {Map<string, { best: number, sum: number, chunks: number }>} */
  const files = new Map();
  for (const { id, path, score } of candidates) {
    const file = files.get(path) ?? { best: id, sum: 0, chunks: 0 };
    if (file.chunks < FILE_CHUNKS) file.sum += score;
    file.chunks++;
    files.set(path, file);
  }
  const most = Math.max(...[...files.values()].map(({ sum }) => sum));
  return ({ id, path }) => {
    const file = files.get(path);
    return file?.best === id && most > 0 ? (FILE_BONUS * file.sum) / most : 0;
  };
}

/** Who asks for a name wants to see its definition; where the question is a sentence, definitions are still better answers. */
const NAMED_DEFINITION_BONUS = 1;
const DEFINITION_BONUS = 0.1;

/**
 * @param {string} question
 * @returns {Bonus}
 */
export function ofDefinition(question) {
  const wanted = isName(question) ? ownName(question.trim()).toLowerCase() : undefined;
  return ({ isDefinition, name }) => {
    if (!isDefinition) return 0;
    return DEFINITION_BONUS + (ownName(name).toLowerCase() === wanted ? NAMED_DEFINITION_BONUS : 0);
  };
}

/** A name tells what a definition is for, as a file's name tells of the file: the more of it the question has, the better. */
const NAME_BONUS = 0.2;
const FILE_NAME_BONUS = 0.3;

/**
 * @param {string} question
 * @returns {Bonus}
 */
export function ofName(question) {
  const share = shareIn(question);
  return ({ isDefinition, name }) => (isDefinition ? NAME_BONUS * share(ownName(name)) : 0);
}

/**
 * @param {string} question
 * @returns {Bonus}
 */
export function ofFileName(question) {
  const share = shareIn(question);
  return ({ path }) => FILE_NAME_BONUS * share(stemOf(path));
}

/** What many files import is central, and more often asked for. It gains this for the first file, and with each doubling. */
const IMPORT_BONUS = 0.02;

/**
 * @param {{ importsOf(stem: string): number }} database
 * @returns {Bonus}
 */
export function ofImports(database) {
  return ({ path }) => IMPORT_BONUS * Math.log2(1 + database.importsOf(stemOf(path).toLowerCase()));
}

/** Each further hit of a file says less that is new. */
const REPEATED_WEIGHT = 0.5;

/**
 * @param {Candidate[]} ranked the best first
 * @returns {Candidate[]}
 */
export function withoutRepetition(ranked) {
  /** @type {Map<string, number>} */
  const weights = new Map();
  return ranked
    .map((candidate) => {
      const weight = weights.get(candidate.path) ?? 1;
      weights.set(candidate.path, weight * REPEATED_WEIGHT);
      return { ...candidate, score: candidate.score * weight };
    })
    .sort((a, b) => b.score - a.score);
}

/**
 * Whether a question is the name of something.
 *
 * @param {string} question
 */
function isName(question) {
  return /^\S+$/.test(question.trim());
}

/**
 * How many of a name's words are in the question, as a part of 1.
 *
 * @param {string} question
 * @returns {(name: string) => number}
 */
function shareIn(question) {
  const asked = searchWords(question);
  return (name) => {
    const words = wordsOf(name).filter(({ length }) => length > 1);
    return words.filter((word) => asked.some((other) => areRelated(word, other))).length / Math.max(1, words.length);
  };
}

/**
 * The name of a file without its ending.
 *
 * @param {string} path
 */
export function stemOf(path) {
  return path.slice(path.lastIndexOf("/") + 1).replace(/(?<=.)\.[^.]*$/, "");
}

/**
 * @param {IndexDatabase} database
 * @param {{ id: number, score: number, similarity: number | null }[]} ranked
 * @param {string[]} words of the question
 * @returns {Hit[]}
 */
export function hitsOf(database, ranked, words) {
  return ranked.flatMap(({ id, score, similarity }) => {
    const chunk = database.chunk(id);
    if (!chunk) return [];
    const { path, line, name, startLine, endLine, isExact } = chunk;
    const snippet = snippetOf(chunk, words);
    return [{ path, line, score, similarity, isExact, name, startLine, endLine, snippet }];
  });
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
