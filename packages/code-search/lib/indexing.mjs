/** Brings an index up to date with its folder. */

import * as path from "node:path";
import { CHUNKER_VERSION, chunkFile, embeddedText } from "./chunks.mjs";
import { filesBelow, readSource } from "./files.mjs";

/** @typedef {import("./chunks.mjs").Chunk} Chunk */
/** @typedef {import("semantic-search-native").Embedder} Embedder */
/**
 * A file on its way through the embedder.
 *
 * @typedef {object} PendingFile
 * @property {string} path
 * @property {string} hash
 * @property {Chunk[]} chunks
 * @property {Int8Array[]} vectors
 * @property {number} missing vectors that are not there yet
 */
/** What is said of a folder that is not there when it is read. */
const VANISHED = new Set(["ENOENT", "ENOTDIR"]);

/** @typedef {{ done: number, total: number, chunks: number }} Progress files that are up to date, and chunks embedded */
/**
 * @typedef {object} Summary
 * @property {number} files files in the index that are up to date
 * @property {number} changed files that were new or had changed
 * @property {number} removed files that are gone
 * @property {number} chunks chunks that were embedded
 * @property {number} truncated chunks that were longer than the model reads
 * @property {boolean} wasReset whether an index of another model or chunker was thrown away
 */

/**
 * Everything that decides chunks and vectors: an index of another configuration is not mixed with, but made anew.
 *
 * @param {Embedder} embedder
 */
export function configurationOf({ fingerprint }) {
  return JSON.stringify({ chunker: CHUNKER_VERSION, fingerprint, encoding: "int8" });
}

/**
 * Reading and cutting, embedding and writing overlap, and files are written as soon as their vectors are there: what is
 * in memory are the texts that `embedder.stream` reads ahead.
 *
 * @param {object} task
 * @param {string} task.dir
 * @param {import("./database.mjs").IndexDatabase} task.database
 * @param {Embedder} task.embedder
 * @param {AbortSignal} [task.signal] leaves the index usable; the next call goes on from there
 * @param {(progress: Progress) => void} [task.onProgress]
 * @param {(message: string) => void} [task.onWarning] called for what could not be read
 * @returns {Promise<Summary>}
 */
export async function indexFolder({ dir, database, embedder, signal, onProgress = () => {}, onWarning = () => {} }) {
  const wasReset = database.configure(configurationOf(embedder), embedder.dimension);
  const summary = { files: 0, changed: 0, removed: 0, chunks: 0, truncated: 0, wasReset };
  const gone = database.hashes();
  const skipped = (/** @type {string} */ folder, /** @type {NodeJS.ErrnoException} */ { code, message }) => {
    onWarning(`${folder}: skipped (${message})`);
    if (code !== undefined && VANISHED.has(code)) return;
    // Its files are still there, so they stay in the index as they were.
    for (const file of gone.keys()) if (file.startsWith(`${folder}/`)) gone.delete(file);
  };
  const paths = await filesBelow(dir, skipped);
  let looked = 0;
  /** By the text's index in the stream. @type {Map<number, { file: PendingFile, position: number }>} */
  const awaited = new Map();
  let texts = 0;

  const report = (/** @type {number} */ files) => {
    looked += files;
    onProgress({ done: looked, total: paths.length, chunks: summary.chunks });
  };
  const write = (/** @type {PendingFile} */ file) => {
    database.write(file);
    summary.changed++;
    summary.files++;
    report(1);
  };

  async function* changedTexts() {
    for (const relative of paths) {
      signal?.throwIfAborted();
      const source = await readSource(path.join(dir, relative));
      if (!source) {
        report(1);
        continue;
      }
      const before = gone.get(relative);
      gone.delete(relative);
      if (before === source.hash) {
        summary.files++;
        report(1);
        continue;
      }
      const chunks = await chunkFile(relative, source.text, embedder.maxTokens);
      const file = { path: relative, hash: source.hash, chunks, vectors: [], missing: chunks.length };
      if (chunks.length === 0) write(file);
      for (const [position, chunk] of chunks.entries()) {
        awaited.set(texts++, { file, position });
        yield embeddedText(relative, chunk);
      }
    }
  }

  for await (const { index, vector, truncated } of embedder.stream(changedTexts(), { encoding: "int8", signal })) {
    const found = awaited.get(index);
    if (!found) throw new Error(`the stream gave a vector for text ${index}, which it was not given`);
    awaited.delete(index);
    const { file, position } = found;
    file.vectors[position] = vector;
    file.missing--;
    summary.chunks++;
    if (truncated) summary.truncated++;
    if (file.missing === 0) write(file);
    else report(0);
  }
  for (const relative of gone.keys()) database.remove(relative);
  summary.removed = gone.size;
  return summary;
}
