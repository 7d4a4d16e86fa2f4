/** Which chunks have the words of a question, by FTS5. */

/** Takes some 30 ms. */
const SCORED_CHUNKS = 30_000;

export const EMPTY_WORDS = `
  DROP TABLE IF EXISTS words;
  CREATE VIRTUAL TABLE words USING fts5 (
    path, name, text, content = '', contentless_delete = 1, tokenize = 'porter unicode61'
  );`;

export class WordIndex {
  #prepare;
  #scored;

  /**
   * @param {(sql: string) => import("@photostructure/sqlite").StatementSyncInstance} prepare
   * @param {number} [scored] chunks whose words are scored for a question
   */
  constructor(prepare, scored = SCORED_CHUNKS) {
    this.#prepare = prepare;
    this.#scored = scored;
  }

  /**
   * The chunks that have some of the words, the best first. A score takes a microsecond, and a frequent word is in most of
   * a million chunks: beyond a limit, only chunks that have a rare word are scored, or several frequent ones.
   *
   * @param {string[]} words
   * @param {number} limit
   * @returns {number[]} ids
   */
  withSome(words, limit) {
    if (words.length === 0) return [];
    if (this.#countMatching(anyOf(words)) <= this.#scored) return this.#best([anyOf(words)], limit);
    const counted = words
      .map((word) => ({ word, chunks: this.#countMatching(anyOf([word])) }))
      .filter(({ chunks }) => chunks > 0)
      .sort((a, b) => a.chunks - b.chunks);
    const rare = [];
    for (let scored = counted[0]?.chunks; scored <= this.#scored; scored += counted[rare.length]?.chunks) {
      rare.push(counted[rare.length].word);
    }
    const frequent = counted.slice(rare.length).map(({ word }) => word);
    if (rare.length === 0) return this.#withAll(frequent, limit);
    const expressions = [anyOf(rare), `${anyOf(rare)} AND ${anyOf(frequent)}`];
    return this.#best(frequent.length > 0 ? expressions : [anyOf(rare)], limit);
  }

  /**
   * @param {string[]} words the rarest first
   * @param {number} limit
   */
  #withAll(words, limit) {
    let count = Math.min(2, words.length);
    while (count < words.length && this.#countMatching(allOf(words.slice(0, count))) > this.#scored) count++;
    const all = allOf(words.slice(0, count));
    const rest = words.slice(count);
    return this.#best(rest.length > 0 ? [all, `${all} AND ${anyOf(rest)}`] : [all], limit);
  }

  /**
   * What matches one of several expressions, by the best of its scores.
   *
   * @param {string[]} expressions
   * @param {number} limit
   */
  #best(expressions, limit) {
    /** @type {Map<number, number>} */
    const best = new Map();
    for (const { id, score } of expressions.flatMap((expression) => this.matching(expression, limit))) {
      best.set(id, Math.min(best.get(id) ?? 0, score));
    }
    const ranked = [...best].sort(([, a], [, b]) => a - b);
    return ranked.slice(0, limit).map(([id]) => id);
  }

  /**
   * The chunks that match an FTS5 expression, the best first. Names count most.
   *
   * @param {string} expression
   * @param {number} limit
   * @returns {{ id: number, score: number }[]} FTS5's scores are negative: the lower, the better
   */
  matching(expression, limit) {
    const sql = `SELECT rowid AS id, bm25(words, 2.0, 4.0, 1.0) AS score FROM words WHERE words MATCH ?
      ORDER BY score LIMIT ?`;
    const rows = this.#prepare(sql).all(expression, limit);
    return rows.map(({ id, score }) => ({ id: Number(id), score: Number(score) }));
  }

  /**
   * How many chunks match, as far as it matters.
   *
   * @param {string} expression
   */
  #countMatching(expression) {
    const sql = "SELECT count(*) AS n FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)";
    return Number(this.#prepare(sql).get(expression, this.#scored + 1)?.n);
  }
}

/** @param {string[]} words */
function anyOf(words) {
  return `(${words.map((word) => `"${word}"`).join(" OR ")})`;
}

/** @param {string[]} words */
function allOf(words) {
  return `(${words.map((word) => `"${word}"`).join(" AND ")})`;
}
