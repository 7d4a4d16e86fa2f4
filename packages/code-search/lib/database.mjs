/**
 * The index on disk: one SQLite file with the chunks, their words (FTS5) and their vectors, of which the binary codes are
 * also in memory. Files are written in transactions, so that whatever ends the process, a file is in the index whole or not
 * at all. Exact vectors are kept by what was embedded: text that comes back, from another branch or under another file, is
 * not embedded again.
 */

import { createHash } from "node:crypto";
import { DatabaseSync } from "@photostructure/sqlite";
import { BinaryCodes, emptyCodesTable } from "./binary_codes.mjs";
import { embeddedText } from "./chunks.mjs";
import { indexFile, makeIndexFolder } from "./index_folder.mjs";
import { EMPTY_WORDS, WordIndex } from "./word_index.mjs";
import { searchableText } from "./words.mjs";

export { indexFile };

/** @typedef {import("./chunks.mjs").Chunk} Chunk */
/** @typedef {Chunk & { id: number, path: string, key: Uint8Array, isExact: boolean }} StoredChunk with the key of its vector */
/**
 * @typedef {object} IndexedFile
 * @property {string} path relative to the folder, with `/`
 * @property {string} hash of its content
 * @property {number} size in bytes
 * @property {number} modifiedMs
 * @property {string[]} imports words of its import lines
 * @property {Chunk[]} chunks
 */
/** What kind of vector a chunk has. */
const NO_VECTOR = 0;
const STATIC_VECTOR = 1;
const EXACT_VECTOR = 2;

/** Goes up whenever the tables change. */
const SCHEMA_VERSION = 1;
/** Another process may be writing: a search that makes the file's header, say. */
const BUSY_TIMEOUT_MS = 10_000;
const BUSY_RETRY_MS = 10;
/** Vectors of chunks that are in no file any more are dropped when they are more than this many times the others. */
const SPARE_VECTORS = 4;
/** Lines between two chunks. */
const BLANK_LINES = 5;
/** What is near by its binary code, and then compared by its vector. */
const RESCORED = 1000;
const RESCORED_PER_HIT = 10;

const FILES_AND_CHUNKS = `
  DROP TABLE IF EXISTS imports;
  DROP TABLE IF EXISTS chunks;
  DROP TABLE IF EXISTS files;
  CREATE TABLE files (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, hash TEXT NOT NULL, size INTEGER NOT NULL,
    modified_ms REAL NOT NULL
  );
  CREATE TABLE imports (word TEXT NOT NULL, file_id INTEGER NOT NULL REFERENCES files, PRIMARY KEY (word, file_id))
    WITHOUT ROWID;
  CREATE INDEX imports_of_file ON imports (file_id);
  CREATE TABLE chunks (
    id INTEGER PRIMARY KEY, file_id INTEGER NOT NULL REFERENCES files, key BLOB NOT NULL, vector INTEGER NOT NULL,
    name TEXT NOT NULL, defined TEXT, line INTEGER NOT NULL, start_line INTEGER NOT NULL, end_line INTEGER NOT NULL,
    text TEXT NOT NULL
  );
  CREATE INDEX chunks_of_file ON chunks (file_id);
  CREATE INDEX chunks_of_key ON chunks (key);
  CREATE INDEX inexact_chunks ON chunks (vector, file_id) WHERE vector < ${EXACT_VECTOR};
  CREATE INDEX definitions ON chunks (defined COLLATE NOCASE) WHERE defined IS NOT NULL;
  ${EMPTY_WORDS}`;

const EMBEDDINGS = `
  DROP TABLE IF EXISTS embeddings;
  CREATE TABLE embeddings (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID;`;

const SKETCHES = `
  DROP TABLE IF EXISTS sketches;
  CREATE TABLE sketches (id INTEGER PRIMARY KEY, vector BLOB NOT NULL);
  ${emptyCodesTable("sketch_codes")}`;

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
    this.db = new DatabaseSync(file, { timeout: BUSY_TIMEOUT_MS });
    const prepare = (/** @type {string} */ sql) => this.#statement(sql);
    this.codes = new BinaryCodes(prepare, "codes");
    this.sketchCodes = new BinaryCodes(prepare, "sketch_codes");
    this.words = new WordIndex(prepare);
    try {
      this.#switchToWal();
      this.db.exec(
        "PRAGMA trusted_schema = OFF; PRAGMA cache_size = -32768; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = OFF",
      );
      this.#migrate();
      this.db.exec("PRAGMA foreign_keys = ON");
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

  /** An index of another version of this program is made anew: it holds nothing that the folder does not. */
  #migrate() {
    if (this.#version === SCHEMA_VERSION) return;
    this.#transaction(() => {
      // Another process may have done it meanwhile.
      if (this.#version === SCHEMA_VERSION) return;
      // Virtual tables first: they take their hidden tables with them.
      const sql = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY sql NOT LIKE 'CREATE VIRTUAL%'";
      const names = this.db.prepare(sql).all();
      for (const { name } of names) if (!/^sqlite_/.test(String(name))) this.db.exec(`DROP TABLE IF EXISTS "${name}"`);
      this.db.exec("CREATE TABLE configuration (name TEXT PRIMARY KEY, value TEXT NOT NULL)");
      this.db.exec(`PRAGMA user_version = ${SCHEMA_VERSION}`);
    });
  }

  get #version() {
    return Number(this.db.prepare("PRAGMA user_version").get()?.user_version);
  }

  close() {
    this.db.close();
  }

  /** Whether nothing has been put into it yet. */
  get isEmpty() {
    return this.configuration("chunks") === undefined;
  }

  /**
   * What a part of the index was made with; `undefined` for a new one.
   *
   * @param {"chunks" | "vectors" | "sketches" | "version"} part
   */
  configuration(part) {
    const row = this.#statement("SELECT value FROM configuration WHERE name = ?").get(part);
    return row ? String(row.value) : undefined;
  }

  /**
   * Empties the parts of the index that were made with another configuration.
   *
   * @param {object} configuration
   * @param {string} configuration.chunks everything that decides how files are cut
   * @param {string} configuration.vectors everything that decides exact vectors
   * @returns {boolean} whether something was thrown away
   */
  configure({ chunks, vectors }) {
    return this.#transaction(() => {
      const before = this.configuration("chunks");
      const isNewModel = this.configuration("vectors") !== vectors;
      if (before === chunks && !isNewModel) return false;
      // Statements over the old tables would keep these locked.
      this.#statements.clear();
      if (isNewModel) this.db.exec(EMBEDDINGS);
      this.db.exec(FILES_AND_CHUNKS + emptyCodesTable("codes") + SKETCHES);
      this.#setConfiguration("chunks", chunks);
      this.#setConfiguration("vectors", vectors);
      this.#setConfiguration("sketches", "");
      return before !== undefined;
    });
  }

  /**
   * Drops static vectors of another model.
   *
   * @param {string} sketches everything that decides static vectors
   */
  configureSketches(sketches) {
    this.#transaction(() => {
      if (this.configuration("sketches") === sketches) return;
      this.#statements.clear();
      this.db.exec(SKETCHES);
      this.db.exec(`UPDATE chunks SET vector = ${NO_VECTOR} WHERE vector = ${STATIC_VECTOR}`);
      this.#setConfiguration("sketches", sketches);
    });
  }

  /**
   * @param {string} name
   * @param {string} value
   */
  #setConfiguration(name, value) {
    this.#run("INSERT OR REPLACE INTO configuration VALUES (?, ?)", name, value);
  }

  /**
   * What the index knows of files, by path.
   *
   * @param {Iterable<string>} [places] only these files, and those in these folders
   */
  files(places) {
    const all = "SELECT path, hash, size, modified_ms AS modifiedMs FROM files";
    // "0" comes right behind "/": between the two is what is in a folder.
    const below = `${all} WHERE path = ?1 OR (path > ?1 || '/' AND path < ?1 || '0')`;
    const rows = places
      ? [...places].flatMap((place) => this.#statement(below).all(place))
      : this.#statement(all).all();
    return new Map(rows.map((row) => [String(row.path), /** @type {IndexedFile} */ (/** @type {unknown} */ (row))]));
  }

  /** Files and chunks, and chunks whose vectors are exact. */
  counts() {
    const sql = `SELECT (SELECT count(*) FROM files) AS files, (SELECT count(*) FROM chunks) AS chunks,
      (SELECT count(*) FROM chunks WHERE vector < ${EXACT_VECTOR}) AS inexact`;
    const { files, chunks, inexact } = /** @type {Record<string, number>} */ ({ ...this.#statement(sql).get() });
    return { files, chunks, exact: chunks - inexact };
  }

  /**
   * Puts files in the place of what the index had of them, in one transaction.
   *
   * @param {IndexedFile[]} files
   */
  write(files) {
    this.#transaction(() => {
      for (const file of files) this.#write(file);
    });
  }

  /** @param {IndexedFile} file */
  #write({ path, hash, size, modifiedMs, imports, chunks }) {
    // Ids are used again, so that codes, which are in memory by id, have no gaps.
    const ids = this.#remove(path);
    const { lastInsertRowid: fileId } = this.#run(
      "INSERT INTO files (path, hash, size, modified_ms) VALUES (?, ?, ?, ?)",
      ...[path, hash, size, modifiedMs],
    );
    for (const word of imports) this.#run("INSERT INTO imports VALUES (?, ?)", word, fileId);
    const searchablePath = searchableText(path);
    for (const chunk of chunks) {
      const { name, isDefinition, line, startLine, endLine, text } = chunk;
      const key = keyOf(embeddedText(path, chunk));
      const known = this.#statement("SELECT vector FROM embeddings WHERE key = ?").get(key);
      const { lastInsertRowid } = this.#run(
        `INSERT INTO chunks (id, file_id, key, vector, name, defined, line, start_line, end_line, text)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
        ...[ids.shift() ?? null, fileId, key, known ? EXACT_VECTOR : NO_VECTOR],
        ...[name, isDefinition ? ownName(name) : null, line, startLine, endLine, text],
      );
      const id = Number(lastInsertRowid);
      if (known) this.codes.set(id, signed(known.vector));
      const words = [searchablePath, searchableText(name), searchableText(text)];
      this.#run("INSERT INTO words (rowid, path, name, text) VALUES (?, ?, ?, ?)", id, ...words);
    }
  }

  /**
   * Notes that files are as they were, but for their times.
   *
   * @param {Pick<IndexedFile, "path" | "size" | "modifiedMs">[]} files
   */
  touch(files) {
    this.#transaction(() => {
      for (const { path, size, modifiedMs } of files) {
        this.#run("UPDATE files SET size = ?, modified_ms = ? WHERE path = ?", size, modifiedMs, path);
      }
    });
  }

  /** @param {Iterable<string>} paths */
  remove(paths) {
    this.#transaction(() => {
      for (const path of paths) this.#remove(path);
    });
  }

  /**
   * @param {string} path
   * @returns {number[]} the ids that its chunks had
   */
  #remove(path) {
    const file = this.#statement("SELECT id FROM files WHERE path = ?").get(path);
    if (!file) return [];
    const chunks = this.#statement("SELECT id, vector FROM chunks WHERE file_id = ? ORDER BY id").all(file.id);
    for (const { id, vector } of chunks) {
      this.#dropVector(Number(id), Number(vector));
      this.#run("DELETE FROM words WHERE rowid = ?", id);
    }
    this.#run("DELETE FROM chunks WHERE file_id = ?", file.id);
    this.#run("DELETE FROM imports WHERE file_id = ?", file.id);
    this.#run("DELETE FROM files WHERE id = ?", file.id);
    return chunks.map(({ id }) => Number(id));
  }

  /**
   * @param {number} id of a chunk
   * @param {number} kind
   */
  #dropVector(id, kind) {
    if (kind === EXACT_VECTOR) this.codes.set(id, undefined);
    if (kind !== STATIC_VECTOR) return;
    this.sketchCodes.set(id, undefined);
    this.#run("DELETE FROM sketches WHERE id = ?", id);
  }

  /** Drops vectors of text that is nowhere any more, once they are many. */
  dropSpareVectors() {
    this.#transaction(() => {
      const count = (/** @type {string} */ table) =>
        Number(this.#statement(`SELECT count(*) AS n FROM ${table}`).get()?.n);
      if (count("embeddings") <= (1 + SPARE_VECTORS) * count("chunks")) return;
      this.db.exec("DELETE FROM embeddings WHERE key NOT IN (SELECT key FROM chunks)");
    });
  }

  /** Whether a chunk has no exact vector yet. */
  get hasInexact() {
    const sql = `SELECT 1 FROM chunks WHERE vector < ${EXACT_VECTOR} LIMIT 1`;
    return !this.isEmpty && this.#statement(sql).get() !== undefined;
  }

  /**
   * Files that have chunks whose vectors are not exact yet, with what the order of refinement goes by.
   *
   * @returns {{ id: number, path: string, modifiedMs: number }[]}
   */
  inexactFiles() {
    const sql = `SELECT id, path, modified_ms AS modifiedMs FROM files
      WHERE id IN (SELECT file_id FROM chunks WHERE vector < ${EXACT_VECTOR})`;
    return /** @type {any[]} */ (this.#statement(sql).all());
  }

  /**
   * The chunks of a file whose vectors are not exact yet.
   *
   * @param {number} file
   */
  inexactChunks(file) {
    return this.#statement(`SELECT id FROM chunks WHERE file_id = ? AND vector < ${EXACT_VECTOR} ORDER BY id`)
      .all(file)
      .map(({ id }) => /** @type {StoredChunk} */ (this.chunk(Number(id))));
  }

  /**
   * Chunks that have no vector of either kind.
   *
   * @param {number} limit
   */
  withoutVectors(limit) {
    return this.#statement(`SELECT id FROM chunks WHERE vector = ${NO_VECTOR} AND vector < ${EXACT_VECTOR} LIMIT ?`)
      .all(limit)
      .map(({ id }) => /** @type {StoredChunk} */ (this.chunk(Number(id))));
  }

  /**
   * Stores static vectors of chunks.
   *
   * @param {{ id: number, vector: Int8Array }[]} sketches
   */
  sketch(sketches) {
    this.#transaction(() => {
      for (const { id, vector } of sketches) {
        const { changes } = this.#run(
          `UPDATE chunks SET vector = ${STATIC_VECTOR} WHERE id = ? AND vector = ${NO_VECTOR}`,
          id,
        );
        // Else it is gone, or exact.
        if (changes === 0) continue;
        this.#run("INSERT INTO sketches VALUES (?, ?)", id, vector);
        this.sketchCodes.set(id, vector);
      }
    });
  }

  /**
   * How many files have a word in their import lines.
   *
   * @param {string} word in lower case
   */
  importsOf(word) {
    return Number(this.#statement("SELECT count(*) AS n FROM imports WHERE word = ?").get(word)?.n);
  }

  /**
   * Stores exact vectors, for all chunks of the same embedded text.
   *
   * @param {{ key: Uint8Array, vector: Int8Array }[]} embeddings
   */
  refine(embeddings) {
    this.#transaction(() => {
      for (const { key, vector } of embeddings) {
        this.#run("INSERT OR REPLACE INTO embeddings VALUES (?, ?)", key, vector);
        const sql = `SELECT id, vector FROM chunks WHERE key = ? AND vector < ${EXACT_VECTOR}`;
        for (const row of this.#statement(sql).all(key)) {
          const id = Number(row.id);
          this.#dropVector(id, Number(row.vector));
          this.codes.set(id, vector);
          this.#run(`UPDATE chunks SET vector = ${EXACT_VECTOR} WHERE id = ?`, id);
        }
      }
    });
  }

  /**
   * The chunks whose exact vectors are nearest, the nearest first.
   *
   * @param {Int8Array} vector
   * @param {number} limit
   */
  nearest(vector, limit) {
    const sql = `SELECT chunks.id, embeddings.vector FROM json_each(?) JOIN chunks ON chunks.id = json_each.value
      JOIN embeddings ON embeddings.key = chunks.key`;
    const made = `${this.configuration("chunks")} ${this.configuration("vectors")}`;
    return this.#nearest(this.codes, sql, made, vector, limit);
  }

  /**
   * The chunks nearest by static vectors, of those that have no exact ones.
   *
   * @param {Int8Array} vector
   * @param {number} limit
   */
  nearestSketches(vector, limit) {
    const sql = "SELECT sketches.id, vector FROM json_each(?) JOIN sketches ON sketches.id = json_each.value";
    const made = `${this.configuration("chunks")} ${this.configuration("sketches")}`;
    return this.#nearest(this.sketchCodes, sql, made, vector, limit);
  }

  /**
   * @param {BinaryCodes} codes
   * @param {string} sql vectors of ids
   * @param {string} made
   * @param {Int8Array} vector
   * @param {number} limit
   */
  #nearest(codes, sql, made, vector, limit) {
    const ids = codes.nearest(vector, Math.max(RESCORED, RESCORED_PER_HIT * limit), made);
    const rows = this.#statement(sql).all(JSON.stringify(ids));
    return rows
      .map((row) => ({ id: Number(row.id), similarity: cosine(vector, signed(row.vector)) }))
      .sort((a, b) => b.similarity - a.similarity)
      .slice(0, limit);
  }

  /**
   * The chunks that match an FTS5 expression, the best first.
   *
   * @param {string} expression
   * @param {number} limit
   */
  matching(expression, limit) {
    return this.words.matching(expression, limit);
  }

  /**
   * The chunks that begin the definition of a name, whatever it belongs to.
   *
   * @param {string} name
   * @param {number} limit
   */
  definitionsOf(name, limit) {
    const sql = "SELECT id FROM chunks WHERE defined = ? COLLATE NOCASE LIMIT ?";
    return this.#statement(sql)
      .all(name, limit)
      .map(({ id }) => Number(id));
  }

  /** @param {number} id */
  chunk(id) {
    const sql = `SELECT chunks.id, path, key, name, defined IS NOT NULL AS isDefinition, line, start_line AS startLine,
      end_line AS endLine, text, vector = ${EXACT_VECTOR} AS isExact
      FROM chunks JOIN files ON files.id = file_id WHERE chunks.id = ?`;
    const row = /** @type {any} */ (this.#statement(sql).get(id));
    if (!row) return undefined;
    const { isDefinition, isExact, ...rest } = row;
    return /** @type {StoredChunk} */ ({ ...rest, isDefinition: Boolean(isDefinition), isExact: Boolean(isExact) });
  }

  /**
   * The chunk that a line is in, or else one that is a few lines away: blank lines are in none.
   *
   * @param {string} path
   * @param {number} line
   */
  chunkAt(path, line) {
    const sql = `SELECT chunks.id FROM chunks JOIN files ON files.id = file_id
      WHERE path = ?1 AND max(start_line - ?2, ?2 - end_line) <= ?3
      ORDER BY max(start_line - ?2, ?2 - end_line, 0), end_line - start_line LIMIT 1`;
    const row = this.#statement(sql).get(path, line, BLANK_LINES);
    return row ? this.chunk(Number(row.id)) : undefined;
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

  /** Ends a transaction that has changed codes with a version of its own. */
  #writeCodes() {
    if (!this.codes.isChanged && !this.sketchCodes.isChanged) return;
    const version = Number(this.configuration("version") ?? 0) + 1;
    this.#setConfiguration("version", String(version));
    this.codes.write(version);
    this.sketchCodes.write(version);
  }

  /**
   * @template T
   * @param {() => T} work
   */
  #transaction(work) {
    this.db.exec("BEGIN IMMEDIATE");
    try {
      const result = work();
      this.#writeCodes();
      this.db.exec("COMMIT");
      return result;
    } catch (error) {
      this.codes.discard();
      this.sketchCodes.discard();
      this.db.exec("ROLLBACK");
      throw error;
    }
  }
}

/**
 * A vector as SQLite gives it.
 *
 * @param {unknown} blob
 */
function signed(blob) {
  const { buffer, byteOffset, length } = /** @type {Uint8Array} */ (blob);
  return new Int8Array(buffer, byteOffset, length);
}

/**
 * @param {Int8Array} a
 * @param {Int8Array} b of the same length
 */
function cosine(a, b) {
  let product = 0;
  let squaredA = 0;
  let squaredB = 0;
  for (let index = 0; index < a.length; index++) {
    product += a[index] * b[index];
    squaredA += a[index] * a[index];
    squaredB += b[index] * b[index];
  }
  return product / Math.sqrt(squaredA * squaredB || 1);
}

/**
 * The last part of a name: `request` of `Session.request`.
 *
 * @param {string} name
 */
export function ownName(name) {
  return name.split(/[.:#]+/).findLast((part) => part !== "") ?? name;
}

/**
 * What a chunk's vector is stored under: the first half of the SHA-256 of what is embedded.
 *
 * @param {string} embedded
 */
function keyOf(embedded) {
  return createHash("sha256").update(embedded).digest().subarray(0, 16);
}
