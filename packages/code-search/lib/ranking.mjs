/**
 * Search by meaning and by words at once, and what makes of the chunks found the answer that a developer would give. Scores
 * are relative to the best candidate's, which has 1 before the rules below add to it. Their sizes are round numbers:
 * halving or doubling one changes little.
 */

import { embeddedText } from "./chunks.mjs";
import { ownName } from "./database.mjs";
import { pathWeight, stemOf } from "./paths.mjs";
import { areRelated, searchWords, wordsOf } from "./words.mjs";

/** @typedef {import("./database.mjs").IndexDatabase} IndexDatabase */
/** @typedef {import("./database.mjs").StoredChunk} StoredChunk */
/** @typedef {import("semantic-search-native").Embedder} Embedder */
/** @typedef {StoredChunk & { score: number, similarity: number | null }} Candidate */

/** Candidates that each way brings. */
const CANDIDATES = 100;
/** Constant of reciprocal rank fusion, as in Cormack, Clarke and Büttcher (2009). */
const FUSION_K = 60;
/** A cross-encoder reads so many candidates anew. */
const RERANKED = 30;
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
 * @param {Task & { limit: number, reranker?: import("semantic-search-native").Reranker }} task
 * @returns {Promise<Hit[]>} the best first
 */
export async function search({ limit, reranker, ...task }) {
  const { database, question } = task;
  const candidates = await candidatesOf({ ...task, depth: Math.max(CANDIDATES, limit) });
  const ranked = rank(candidates, question, database);
  const answer = reranker ? await reranked(ranked, question, reranker) : ranked;
  return hitsOf(answer.slice(0, limit), searchWords(question));
}

/**
 * The best candidates in the order of a cross-encoder.
 *
 * @param {Candidate[]} ranked
 * @param {string} question
 * @param {import("semantic-search-native").Reranker} reranker
 * @returns {Promise<Candidate[]>}
 */
async function reranked(ranked, question, reranker) {
  const best = ranked.slice(0, RERANKED);
  const scores = await reranker.rank(
    question,
    best.map((candidate) => embeddedText(candidate.path, candidate)),
  );
  return [...scores.map(({ index, score }) => ({ ...best[index], score })), ...ranked.slice(RERANKED)];
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
  const matching = database.words.withSome(searchWords(question), depth);
  const definitions = isName(question) ? database.definitionsOf(ownName(question.trim()), depth) : [];
  const similarities = new Map([...nearestSketches, ...nearest].map(({ id, similarity }) => [id, similarity]));
  const fused = fuse([nearest, nearestSketches].map((list) => list.map(({ id }) => id)).concat([matching]));
  const best = fused[0]?.[1] ?? 1;
  const scores = new Map(fused.map(([id, score]) => [id, score / best]));
  for (const id of definitions) if (!scores.has(id)) scores.set(id, 0);
  const found = [...scores].map(([id, score]) => ({ id, score, similarity: similarities.get(id) ?? null }));
  return withChunks(database, found);
}

/**
 * @param {IndexDatabase} database
 * @param {Pick<Candidate, "id" | "score" | "similarity">[]} found
 * @returns {Candidate[]}
 */
export function withChunks(database, found) {
  return found.flatMap((candidate) => {
    const chunk = database.chunk(candidate.id);
    // An indexer may have replaced it this moment.
    return chunk ? [{ ...chunk, ...candidate }] : [];
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
 * @param {Candidate[]} candidates the best first
 * @param {string} question
 * @param {{ importsOf(stem: string): number }} database
 * @param {Rule[]} [rules]
 * @returns {Candidate[]} the best first
 */
export function rank(candidates, question, database, rules = RULES) {
  return rules.reduce((ranked, rule) => {
    const scores = rule({ candidates: ranked, question, database });
    return ranked
      .map((candidate, position) => ({ ...candidate, score: scores[position] }))
      .sort((a, b) => b.score - a.score);
  }, candidates);
}

/**
 * Gives candidates, the best of which is the first, other scores.
 *
 * @typedef {(task: { candidates: Candidate[], question: string, database: { importsOf(stem: string): number } }) =>
 *   number[]} Rule
 */

/** A file that has several good chunks is about the question, more than one that mentions it once: its best chunk gains. */
const FILE_BONUS = 0.3;
const FILE_CHUNKS = 5;

/** @type {Rule} */
export function moreOfFile({ candidates }) {
  /** @type {Map<string, { best: Candidate, sum: number, chunks: number }>} */
  const files = new Map();
  // What the last candidate has, any chunk would have that two words lead to.
  const least = Math.min(...candidates.map(({ score }) => score));
  for (const candidate of candidates) {
    const file = files.get(candidate.path) ?? { best: candidate, sum: 0, chunks: 0 };
    if (file.chunks < FILE_CHUNKS) file.sum += candidate.score - least;
    file.chunks++;
    files.set(candidate.path, file);
  }
  const most = Math.max(...[...files.values()].map(({ sum }) => sum));
  return candidates.map((candidate) => {
    const file = files.get(candidate.path);
    return candidate.score + (file?.best === candidate && most > 0 ? (FILE_BONUS * file.sum) / most : 0);
  });
}

/**
 * Who asks for a name wants to see its definition, in this case of letters rather than in another; where the question is a
 * sentence, definitions are still better answers.
 */
const NAMED_DEFINITION_BONUS = 2;
const OTHER_CASE_BONUS = 1;
const DEFINITION_BONUS = 0.1;

/** @type {Rule} */
export function definitionsFirst({ candidates, question }) {
  const wanted = isName(question) ? ownName(question.trim()) : "";
  return candidates.map(({ score, isDefinition, name }) => {
    if (!isDefinition) return score;
    const own = ownName(name);
    if (own === wanted) return score + NAMED_DEFINITION_BONUS;
    return score + (own.toLowerCase() === wanted.toLowerCase() ? OTHER_CASE_BONUS : DEFINITION_BONUS);
  });
}

/** A definition's name tells what it is for: the more of it the question has, the better. */
const NAME_BONUS = 0.2;

/** @type {Rule} */
export function namesInQuestion({ candidates, question }) {
  const share = shareIn(question);
  return candidates.map(
    ({ score, isDefinition, name }) => score + (isDefinition ? NAME_BONUS * share(ownName(name)) : 0),
  );
}

/** So does the name of a file. */
const FILE_NAME_BONUS = 0.3;

/** @type {Rule} */
export function fileNamesInQuestion({ candidates, question }) {
  const share = shareIn(question);
  return candidates.map(({ score, path }) => score + FILE_NAME_BONUS * share(stemOf(path)));
}

/** What many files import is central, and more often asked for. It gains this for the first file, and with each doubling. */
const IMPORT_BONUS = 0.02;

/** @type {Rule} */
export function importedOften({ candidates, database }) {
  return candidates.map(
    ({ score, path }) => score + IMPORT_BONUS * Math.log2(1 + database.importsOf(stemOf(path).toLowerCase())),
  );
}

/**
 * Tests, examples, documents and the like count less, unless the question asks for them.
 *
 * @type {Rule}
 */
export function codeBeforeTheRest({ candidates, question }) {
  return candidates.map(({ score, path }) => score * pathWeight(path, question));
}

/** Each further hit of a file says less that is new. */
const REPEATED_WEIGHT = 0.5;

/** @type {Rule} */
export function otherFilesToo({ candidates }) {
  /** @type {Map<string, number>} */
  const weights = new Map();
  return candidates.map(({ score, path }) => {
    const weight = weights.get(path) ?? 1;
    weights.set(path, weight * REPEATED_WEIGHT);
    return score * weight;
  });
}

/** In this order: what adds to a score, what scales it. */
export const RULES = [
  moreOfFile,
  definitionsFirst,
  namesInQuestion,
  fileNamesInQuestion,
  importedOften,
  codeBeforeTheRest,
  otherFilesToo,
];

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
 * @param {Candidate[]} ranked
 * @param {string[]} words of the question
 * @returns {Hit[]}
 */
export function hitsOf(ranked, words) {
  return ranked.map((candidate) => {
    const { path, line, score, similarity, isExact, name, startLine, endLine } = candidate;
    return { path, line, score, similarity, isExact, name, startLine, endLine, snippet: snippetOf(candidate, words) };
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
