/**
 * The index on disk: one SQLite file with the chunks, their vectors (sqlite-vec) and their words (FTS5). A file's rows
 * are written in one transaction, so that whatever ends the process, a file is in the index whole or not at all.
 */

import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { DatabaseSync } from "@photostructure/sqlite";
import * as sqliteVec from "sqlite-vec";
import { searchableText } from "./words.mjs";

/** @typedef {import("./chunks.mjs").Chunk} Chunk */
/** @typedef {Chunk & { id: number, path: string }} StoredChunk */

const FOLDER = ".code-search";
const FILE = "index.db";
/** Locked by the process that is at work on the index. */
const LOCK_FILE = "lock.db";
const LOCK_RETRY_MS = 100;
/** Another process may be writing: a search that makes the file's header, say. */
const BUSY_TIMEOUT_MS = 10_000;
const BUSY_RETRY_MS = 10;

/** @param {number} dimension */
const schema = (dimension) => `
  DROP TABLE IF EXISTS words;
  DROP TABLE IF EXISTS vectors;
  DROP TABLE IF EXISTS chunks;
  DROP TABLE IF EXISTS files;
  CREATE TABLE files (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, hash TEXT NOT NULL);
  CREATE TABLE chunks (
    id INTEGER PRIMARY KEY,
    file_id INTEGER NOT NULL REFERENCES files,
    name TEXT NOT NULL,
    line INTEGER NOT NULL,
    start_line INTEGER NOT NULL,
    end_line INTEGER NOT NULL,
    text TEXT NOT NULL
  );
  CREATE INDEX chunks_of_file ON chunks (file_id);
  CREATE VIRTUAL TABLE vectors USING vec0 (id INTEGER PRIMARY KEY, vector int8[${dimension}] distance_metric=cosine);
  CREATE VIRTUAL TABLE words USING fts5 (
    path, name, text, content = '', contentless_delete = 1, tokenize = 'porter unicode61'
  );`;

/** @param {string} dir */
export function indexFile(dir) {
  return path.join(dir, FOLDER, FILE);
}

/**
 * The right to change the index of a folder, which one process has at a time: two that embed the same files would take
 * twice as long as one. Waits for it. It is a lock on a file, so that it ends with its process, however that ends.
 *
 * @param {string} dir
 * @param {object} [options]
 * @param {AbortSignal} [options.signal]
 * @param {() => void} [options.onWait] called once if another process has it
 * @returns {Promise<{ release(): void }>}
 */
export async function lockIndex(dir, { signal, onWait = () => {} } = {}) {
  const file = path.join(makeIndexFolder(dir), LOCK_FILE);
  const lock = new DatabaseSync(file, { timeout: 0 });
  try {
    for (let isFirst = true; ; isFirst = false) {
      signal?.throwIfAborted();
      try {
        lock.exec("BEGIN EXCLUSIVE");
        return { release: () => lock.close() };
      } catch (error) {
        if (!/locked/.test(String(error))) throw error;
      }
      if (isFirst) onWait();
      await sleep(LOCK_RETRY_MS);
    }
  } catch (error) {
    lock.close();
    throw error;
  }
}

/** @param {string} dir */
function makeIndexFolder(dir) {
  const folder = path.join(dir, FOLDER);
  if (!existsSync(folder)) {
    mkdirSync(folder, { recursive: true });
    writeFileSync(path.join(folder, ".gitignore"), "*\n");
  }
  return folder;
}

export class IndexDatabase {
  /** @type {Map<string, import("@photostructure/sqlite").StatementSyncInstance>} */
  #statements = new Map();

  /**
   * Opens the index of a folder, making it where there is none.
   *
   * @param {string} dir
   */
  constructor(dir) {
    const file = indexFile(dir);
    makeIndexFolder(dir);
    this.db = new DatabaseSync(file, { allowExtension: true, timeout: BUSY_TIMEOUT_MS });
    this.db.enableLoadExtension(true);
    sqliteVec.load(this.db);
    this.db.enableLoadExtension(false);
    try {
      this.#switchToWal();
      this.db.exec("PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON");
      this.db.exec(
        "CREATE TABLE IF NOT EXISTS configuration (id INTEGER PRIMARY KEY CHECK (id = 1), value TEXT NOT NULL)",
      );
    } catch (cause) {
      this.db.close();
      const { message, code } = /** @type {NodeJS.ErrnoException} */ (cause);
      const hint = "if it is damaged, remove it and index again";
      throw Object.assign(new Error(`${file}: ${message} (${hint})`, { cause }), { code });
    }
  }

  /**
   * With WAL a search reads while an indexer writes, and `synchronous = NORMAL` loses nothing when a process ends.
   * SQLite's busy timeout does not cover the switch: two processes that make an index at once would meet here.
   */
  #switchToWal() {
    const deadline = Date.now() + BUSY_TIMEOUT_MS;
    while (true) {
      try {
        this.db.exec("PRAGMA journal_mode = WAL");
        return;
      } catch (error) {
        if (!/locked/.test(String(error)) || Date.now() > deadline) throw error;
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, BUSY_RETRY_MS);
      }
    }
  }

  close() {
    this.db.close();
  }

  /** What the index was made with; `undefined` for a new one. */
  get configuration() {
    const row = this.#statement("SELECT value FROM configuration").get();
    return row ? String(row.value) : undefined;
  }

  /**
   * Empties the index if it was made with another configuration.
   *
   * @param {string} configuration everything that decides chunks and vectors
   * @param {number} dimension
   * @returns {boolean} whether an index was thrown away
   */
  configure(configuration, dimension) {
    return this.#transaction(() => {
      const before = this.configuration;
      if (before === configuration) return false;
      // Statements over the old tables would keep these locked.
      this.#statements.clear();
      this.db.exec(schema(dimension));
      this.#run("INSERT OR REPLACE INTO configuration VALUES (1, ?)", configuration);
      return before !== undefined;
    });
  }

  /** The hash of each file in the index. */
  hashes() {
    const rows = this.#statement("SELECT path, hash FROM files").all();
    return new Map(rows.map(({ path, hash }) => [String(path), String(hash)]));
  }

  counts() {
    const sql = "SELECT (SELECT count(*) FROM files) AS files, (SELECT count(*) FROM chunks) AS chunks";
    return /** @type {{ files: number, chunks: number }} */ ({ ...this.#statement(sql).get() });
  }

  /**
   * Puts a file in the place of what the index had of it.
   *
   * @param {{ path: string, hash: string, chunks: Chunk[], vectors: Int8Array[] }} file
   */
  write({ path, hash, chunks, vectors }) {
    this.#transaction(() => {
      this.#remove(path);
      const { lastInsertRowid: fileId } = this.#run("INSERT INTO files (path, hash) VALUES (?, ?)", path, hash);
      for (const [position, { name, line, startLine, endLine, text }] of chunks.entries()) {
        const { lastInsertRowid } = this.#run(
          "INSERT INTO chunks (file_id, name, line, start_line, end_line, text) VALUES (?, ?, ?, ?, ?, ?)",
          ...[fileId, name, line, startLine, endLine, text],
        );
        // vec0 takes integers only as such, and JavaScript's numbers are bound as floats.
        const id = BigInt(lastInsertRowid);
        this.#run("INSERT INTO vectors (id, vector) VALUES (?, vec_int8(?))", id, vectors[position]);
        const words = [path, name, text].map(searchableText);
        this.#run("INSERT INTO words (rowid, path, name, text) VALUES (?, ?, ?, ?)", id, ...words);
      }
    });
  }

  /** @param {string} path */
  remove(path) {
    this.#transaction(() => this.#remove(path));
  }

  /** @param {string} path */
  #remove(path) {
    const file = this.#statement("SELECT id FROM files WHERE path = ?").get(path);
    if (!file) return;
    for (const chunk of this.#statement("SELECT id FROM chunks WHERE file_id = ?").all(file.id)) {
      const id = BigInt(Number(chunk.id));
      this.#run("DELETE FROM vectors WHERE id = ?", id);
      this.#run("DELETE FROM words WHERE rowid = ?", id);
    }
    this.#run("DELETE FROM chunks WHERE file_id = ?", file.id);
    this.#run("DELETE FROM files WHERE id = ?", file.id);
  }

  /**
   * The chunks whose vectors are nearest, the nearest first.
   *
   * @param {Int8Array} vector
   * @param {number} limit
   */
  nearest(vector, limit) {
    const sql =
      "SELECT id, 1 - distance AS similarity FROM vectors WHERE vector MATCH vec_int8(?) AND k = ? ORDER BY distance";
    const rows = this.#statement(sql).all(vector, BigInt(limit));
    return rows.map(({ id, similarity }) => ({ id: Number(id), similarity: Number(similarity) }));
  }

  /**
   * The chunks that match an FTS5 expression, the best first. Names count most.
   *
   * @param {string} expression
   * @param {number} limit
   */
  matching(expression, limit) {
    const sql = "SELECT rowid AS id FROM words WHERE words MATCH ? ORDER BY bm25(words, 2.0, 4.0, 1.0) LIMIT ?";
    return this.#statement(sql)
      .all(expression, limit)
      .map(({ id }) => Number(id));
  }

  /** @param {number} id */
  chunk(id) {
    const sql = `SELECT chunks.id, path, name, line, start_line AS startLine, end_line AS endLine, text
      FROM chunks JOIN files ON files.id = file_id WHERE chunks.id = ?`;
    const row = this.#statement(sql).get(id);
    return row ? /** @type {StoredChunk} */ ({ ...row }) : undefined;
  }

  /**
   * @param {string} sql
   * @param {...any} values
   */
  #run(sql, ...values) {
    return this.#statement(sql).run(...values);
  }

  /** @param {string} sql */
  #statement(sql) {
    const statement = this.#statements.get(sql) ?? this.db.prepare(sql);
    this.#statements.set(sql, statement);
    return statement;
  }

  /**
   * @template T
   * @param {() => T} work
   */
  #transaction(work) {
    this.db.exec("BEGIN IMMEDIATE");
    try {
      const result = work();
      this.db.exec("COMMIT");
      return result;
    } catch (error) {
      this.db.exec("ROLLBACK");
      throw error;
    }
  }
}
