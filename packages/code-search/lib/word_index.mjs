/** Which chunks have the words of a question, by FTS5. */

/** Takes some 10 ms; a folder of a few thousand chunks has no words that are left out. */
const SCORED_CHUNKS = 10_000;

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
   * The chunks that have some of the words, the best first. FTS5 counts all chunks that have a word and scores all that
   * have one of them, which takes too long for words that are everywhere in a large index, and say little there. So only
   * the rarest words are looked for, as many as are in so many chunks together; there may be none.
   *
   * @param {string[]} words
   * @param {number} limit
   * @returns {number[]} ids
   */
  withSome(words, limit) {
    const counted = words
      .map((word) => ({ word, chunks: this.#countMatching(quoted(word)) }))
      .filter(({ chunks }) => chunks > 0)
      .sort((a, b) => a.chunks - b.chunks);
    const rare = [];
    for (let scored = counted[0]?.chunks ?? 0; scored <= this.#scored && rare.length < counted.length; ) {
      rare.push(quoted(counted[rare.length].word));
      scored += counted[rare.length]?.chunks ?? 0;
    }
    return rare.length > 0 ? this.matching(rare.join(" OR "), limit) : [];
  }

  /**
   * The chunks that match an FTS5 expression, the best first. Names count most.
   *
   * @param {string} expression
   * @param {number} limit
   * @returns {number[]} ids
   */
  matching(expression, limit) {
    const sql = "SELECT rowid AS id FROM words WHERE words MATCH ? ORDER BY bm25(words, 2.0, 4.0, 1.0) LIMIT ?";
    const rows = this.#prepare(sql).all(expression, limit);
    return rows.map(({ id }) => Number(id));
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

/** @param {string} word */
function quoted(word) {
  return `"${word}"`;
}
