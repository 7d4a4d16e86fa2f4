/** Code search as a library: what the command line and the MCP server are made of. */

import { realpathSync } from "node:fs";
import * as path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { subscribe } from "@parcel/watcher";
import { Embedder } from "semantic-search-native";
import { embeddedText } from "./lib/chunks.mjs";
import { IndexDatabase } from "./lib/database.mjs";
import { SKIPPED_FOLDERS } from "./lib/files.mjs";
import { lockIndex } from "./lib/index_folder.mjs";
import { refineFolder, sketchFolder, updateFolder, vectorsOf } from "./lib/indexing.mjs";
import { candidatesOf, hitsOf, search, withChunks } from "./lib/ranking.mjs";
import { findStaticModel, makeStaticModel } from "./lib/static_model.mjs";

/** @typedef {import("./lib/ranking.mjs").Hit} Hit */
/** @typedef {import("./lib/indexing.mjs").Summary} Summary */
/** @typedef {{ hits: Hit[], exact: { chunks: number, of: number } }} Answer hits, the best first; chunks with exact vectors */

/** A question makes so many of its candidates exact before it is answered, as far as they are done in this time. */
const CANDIDATES_FIRST = 32;
const CANDIDATES_PER_CALL = 8;
const CANDIDATES_TIME_MS = 500;
/** Editors write a file in several steps. */
const SETTLED_MS = 100;

/**
 * The index of a folder, and the models that it is made with.
 *
 * ```js
 * const search = await CodeSearch.open("my-project", { model: "nomic-ai/CodeRankEmbed" });
 * await search.update(); // searchable by words and static vectors
 * const { hits } = await search.search("where are tokens validated?");
 * await search.refine(); // every vector is the model's
 * await search.close();
 * ```
 */
export class CodeSearch {
  /** The static model, once it is needed. @type {Promise<Embedder | undefined> | undefined} */
  #sketcher;

  /**
   * @param {string} dir
   * @param {string} model
   * @param {Embedder} embedder
   */
  constructor(dir, model, embedder) {
    this.dir = dir;
    this.model = model;
    this.embedder = embedder;
    this.database = new IndexDatabase(dir);
  }

  /**
   * Opens the index of a folder, making it where there is none, and loads the model.
   *
   * @param {string} dir
   * @param {object} options
   * @param {string} options.model as `Embedder.load` takes it, like the other options
   * @param {import("semantic-search-native").LoadOptions["backend"]} [options.backend]
   * @param {boolean} [options.offline]
   * @param {(progress: import("semantic-search-native").PullProgress) => void} [options.onProgress] of a download
   * @param {AbortSignal} [options.signal]
   */
  static async open(dir, { model, ...options }) {
    const embedder = await Embedder.load(model, options);
    try {
      return new CodeSearch(dir, model, embedder);
    } catch (error) {
      await embedder.close();
      throw error;
    }
  }

  /** Files and chunks of the index, and chunks whose vectors are the model's. */
  get status() {
    return this.database.isEmpty ? { files: 0, chunks: 0, exact: 0 } : this.database.counts();
  }

  /**
   * Reads new and changed files: afterwards they are searchable by words, and by static vectors if these have been made for
   * the model before.
   *
   * @param {object} [options]
   * @param {ReadonlySet<string>} [options.changed] the files and folders that may have changed, relative to the folder, with
   * `/`; all by default
   * @param {AbortSignal} [options.signal]
   * @param {(progress: { done: number, total: number }) => void} [options.onProgress] in files
   * @param {(message: string) => void} [options.onWarning] called for what could not be read
   * @param {() => void} [options.onWait] called if another process is indexing the folder, whose end is awaited
   * @returns {Promise<Summary>}
   */
  async update({ onWait, ...options } = {}) {
    return this.#locked({ signal: options.signal, onWait }, async () => {
      const { dir, database, embedder } = this;
      const summary = await updateFolder({ dir, database, embedder, ...options });
      const sketcher = await this.#neededSketcher();
      if (sketcher) await sketchFolder({ database, sketcher, signal: options.signal });
      return summary;
    });
  }

  /**
   * Computes the model's vectors of all chunks that have none yet, the most promising first. The first time with a model,
   * its static model is made before.
   *
   * @param {object} [options]
   * @param {AbortSignal} [options.signal]
   * @param {(progress: { done: number, total: number }) => void} [options.onProgress] in chunks
   * @param {(message: string) => void} [options.onWarning]
   * @param {() => void} [options.onWait]
   * @returns {Promise<{ chunks: number, truncated: number }>} chunks that were embedded, and those of them that were longer
   * than the model reads
   */
  async refine({ onWait, onWarning = () => {}, ...options } = {}) {
    return this.#locked({ signal: options.signal, onWait }, async () => {
      const { database, embedder } = this;
      if (database.hasInexact && !(await this.#neededSketcher())) {
        await this.#makeSketches(options.signal).catch((error) => {
          options.signal?.throwIfAborted();
          onWarning(`coarse vectors cannot be made: ${error.message}`);
        });
      }
      return refineFolder({ database, embedder, ...options });
    });
  }

  /** @param {AbortSignal | undefined} signal */
  async #makeSketches(signal) {
    const { database, embedder, model } = this;
    const sketcher = await makeStaticModel(embedder, model, { signal });
    if (!sketcher) return;
    this.#sketcher = Promise.resolve(sketcher);
    await sketchFolder({ database, sketcher, signal });
  }

  /** The static model, if a chunk has no exact vector yet and it has been made before. */
  async #neededSketcher() {
    if (!this.database.hasInexact) return undefined;
    this.#sketcher ??= findStaticModel(this.embedder);
    return this.#sketcher;
  }

  /**
   * @param {string} question
   * @param {object} [options]
   * @param {number} [options.limit] hits
   * @param {import("semantic-search-native").Reranker} [options.reranker] reads the best hits once more and orders them
   * @param {AbortSignal} [options.signal]
   * @returns {Promise<Answer>}
   * @throws an error `INDEX_CHANGED` if another process has made the index anew with another model
   */
  async search(question, { limit = 10, reranker, signal } = {}) {
    const { database, embedder } = this;
    if (database.isEmpty) return this.#answer([]);
    this.#checkModel();
    await this.#refineCandidates(question, signal);
    const sketcher = await this.#neededSketcher();
    return this.#answer(await search({ database, embedder, sketcher, reranker, question, limit }));
  }

  /**
   * Chunks like the one at a line.
   *
   * @param {{ path: string, line: number }} place path relative to the folder, with `/`
   * @param {{ limit?: number, signal?: AbortSignal }} [options]
   * @returns {Promise<Answer>}
   * @throws RangeError if no chunk of the index is at that line
   */
  async similar({ path, line }, { limit = 10, signal } = {}) {
    const { database, embedder } = this;
    const chunk = database.isEmpty ? undefined : database.chunkAt(path, line);
    if (!chunk) throw new RangeError(`${path}:${line} is not in the index of ${this.dir}`);
    this.#checkModel();
    const text = embeddedText(chunk.path, chunk);
    await this.#refineCandidates(text, signal);
    const [vector] = await embedder.embed([text], { encoding: "int8", signal });
    const nearest = database.nearest(vector, limit + 1).filter(({ id }) => id !== chunk.id);
    const found = nearest.slice(0, limit).map(({ id, similarity }) => ({ id, score: similarity, similarity }));
    return this.#answer(hitsOf(withChunks(database, found), []));
  }

  /**
   * Brings the index up to date, and again after each change, until it is aborted.
   *
   * @param {object} [options]
   * @param {AbortSignal} [options.signal]
   * @param {(summary: Summary) => void} [options.onUpdate] called after each update that changed something
   * @param {(message: string) => void} [options.onWarning]
   */
  async watch({ signal, onUpdate = () => {}, onWarning } = {}) {
    const changes = new Changes();
    const watcher = await changes.of(this.dir);
    const aborted = new Promise((resolve) => signal?.addEventListener("abort", resolve, { once: true }));
    try {
      // All of it at first: nobody has watched before.
      for (let changed; !signal?.aborted; changed = changes.take()) {
        const summary = await this.update({ changed, signal, onWarning });
        if (summary.changed + summary.removed > 0) onUpdate(summary);
        const stop = new AbortController();
        const refining = this.refine({ signal: AbortSignal.any([stop.signal, ...(signal ? [signal] : [])]), onWarning })
          .then(({ chunks }) => chunks > 0 && onUpdate(summary))
          .catch((error) => {
            if (!stop.signal.aborted) throw error;
          });
        // A failure of refinement ends it as well.
        await Promise.race([changes.next(), aborted, refining.then(() => aborted)]);
        stop.abort();
        await refining;
      }
    } catch (error) {
      if (!signal?.aborted) throw error;
    } finally {
      await watcher.unsubscribe();
    }
  }

  async close() {
    await this.embedder.close();
    // One that could not be loaded has been said to whoever needed it.
    await (await this.#sketcher?.catch(() => undefined))?.close();
    this.database.close();
  }

  /**
   * @param {Hit[]} hits
   * @returns {Answer}
   */
  #answer(hits) {
    const { chunks, exact } = this.status;
    return { hits, exact: { chunks: exact, of: chunks } };
  }

  #checkModel() {
    if (this.database.configuration("vectors") === vectorsOf(this.embedder)) return;
    const message = `the index of ${this.dir} has been made anew with another model: update it`;
    throw Object.assign(new Error(message), { code: "INDEX_CHANGED" });
  }

  /**
   * What a question is likely to find is made exact first.
   *
   * @param {string} question
   * @param {AbortSignal | undefined} signal
   */
  async #refineCandidates(question, signal) {
    const { database, embedder } = this;
    if (!database.hasInexact) return;
    const deadline = performance.now() + CANDIDATES_TIME_MS;
    const sketcher = await this.#neededSketcher();
    const candidates = await candidatesOf({ database, embedder, sketcher, question });
    const inexact = candidates.filter(({ isExact }) => !isExact).slice(0, CANDIDATES_FIRST);
    for (let first = 0; first < inexact.length && performance.now() < deadline; first += CANDIDATES_PER_CALL) {
      const chunks = inexact.slice(first, first + CANDIDATES_PER_CALL);
      const texts = chunks.map((chunk) => embeddedText(chunk.path, chunk));
      const vectors = await embedder.embed(texts, { encoding: "int8", signal });
      database.refine(chunks.map(({ key }, index) => ({ key, vector: vectors[index] })));
    }
  }

  /**
   * Runs work that changes the index, one process at a time.
   *
   * @template T
   * @param {{ signal?: AbortSignal, onWait?: () => void }} options
   * @param {() => Promise<T>} work
   * @returns {Promise<T>}
   */
  async #locked(options, work) {
    const lock = await lockIndex(this.dir, options);
    try {
      return await work();
    } finally {
      lock.release();
    }
  }
}

/** What changes in a folder. */
class Changes {
  /** @type {Set<string>} */
  #paths = new Set();
  /** @type {unknown} */
  #error;
  #wake = () => {};

  /**
   * Begins to watch.
   *
   * @param {string} dir
   */
  of(dir) {
    // The system names what has changed by its real path.
    const root = realpathSync(dir);
    const ignore = SKIPPED_FOLDERS.map((folder) => `**/${folder}`);
    return subscribe(
      root,
      (error, events) => {
        this.#error ??= error;
        for (const event of events ?? []) this.#paths.add(path.relative(root, event.path).split(path.sep).join("/"));
        this.#wake();
      },
      { ignore },
    );
  }

  /** Resolves when something has changed, and editors have had time to write all of it. */
  async next() {
    if (this.#paths.size === 0 && this.#error === undefined) {
      await new Promise((resolve) => {
        this.#wake = () => resolve(undefined);
      });
    }
    if (this.#error) throw this.#error;
    await sleep(SETTLED_MS);
  }

  /** The paths that have changed since it was asked before. */
  take() {
    const paths = this.#paths;
    this.#paths = new Set();
    return paths;
  }
}
