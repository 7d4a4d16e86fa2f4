/** Brings an index up to date with its folder: first words and static vectors, then the transformer's vectors. */

import { stat } from "node:fs/promises";
import * as path from "node:path";
import { setImmediate } from "node:timers/promises";
import { CHUNKER_VERSION, chunkFile, embeddedText } from "./chunks.mjs";
import { filesBelow, readSource, Scope } from "./files.mjs";
import { importWords, refinementOrder } from "./importance.mjs";

/** @typedef {import("semantic-search-native").Embedder} Embedder */
/** @typedef {import("./database.mjs").IndexDatabase} IndexDatabase */
/** @typedef {import("./database.mjs").IndexedFile} IndexedFile */

/** What is said of a folder that is not there when it is read. */
const VANISHED = new Set(["ENOENT", "ENOTDIR"]);
/** Files that are read at once. */
const READ_AHEAD = 32;
/** Files are written in transactions of about so many chunks, vectors likewise. */
const CHUNKS_PER_WRITE = 64;
const SKETCHES_PER_WRITE = 512;
const VECTORS_PER_WRITE = 64;
/** Longer chunks would dilute what they say, whatever the model reads. */
const MAX_CHUNK_TOKENS = 320;
/** A file that changed so shortly before it was read may change again within the resolution of its time. */
const RACY_MS = 2000;

/**
 * @typedef {object} Summary
 * @property {number} files files in the index that are up to date
 * @property {number} changed files that were new or had changed
 * @property {number} removed files that are gone
 * @property {number} chunks chunks of changed files
 * @property {boolean} wasReset whether an index of another model or chunker was thrown away
 */

/**
 * Everything that decides what is in an index.
 *
 * @param {Embedder} embedder
 */
function configurationOf(embedder) {
  return {
    chunks: JSON.stringify({ chunker: CHUNKER_VERSION, tokens: chunkTokens(embedder) }),
    vectors: vectorsOf(embedder),
  };
}

/**
 * Everything that decides vectors.
 *
 * @param {Embedder} embedder
 */
export function vectorsOf({ fingerprint }) {
  return JSON.stringify({ fingerprint, encoding: "int8" });
}

/** @param {Embedder} embedder */
function chunkTokens({ maxTokens }) {
  return Math.min(maxTokens, MAX_CHUNK_TOKENS);
}

/**
 * All of it: what `updateFolder`, `sketchFolder` and `refineFolder` do.
 *
 * @param {object} task
 * @param {string} task.dir
 * @param {IndexDatabase} task.database
 * @param {Embedder} task.embedder
 * @param {Embedder} [task.sketcher] of static vectors
 * @param {AbortSignal} [task.signal] leaves the index usable; the next call goes on from there
 * @param {(progress: { done: number, total: number }) => void} [task.onProgress] in chunks whose vectors are exact
 * @param {(message: string) => void} [task.onWarning]
 * @returns {Promise<Summary & { truncated: number }>}
 */
export async function indexFolder({ onProgress, sketcher, ...task }) {
  const summary = await updateFolder(task);
  if (sketcher) await sketchFolder({ ...task, sketcher });
  return { ...summary, ...(await refineFolder({ ...task, onProgress })) };
}

/**
 * Reads new and changed files and makes them searchable by words.
 *
 * @param {object} task
 * @param {string} task.dir
 * @param {IndexDatabase} task.database
 * @param {Embedder} task.embedder
 * @param {ReadonlySet<string>} [task.changed] the files and folders that may have changed; all by default
 * @param {AbortSignal} [task.signal]
 * @param {(progress: { done: number, total: number }) => void} [task.onProgress] in files
 * @param {(message: string) => void} [task.onWarning] called for what could not be read
 * @returns {Promise<Summary>}
 */
export async function updateFolder({ dir, database, embedder, changed, signal, onProgress, onWarning = () => {} }) {
  const wasReset = database.configure(configurationOf(embedder));
  const scope = changed && !wasReset ? scopeOf(changed) : undefined;
  const summary = { files: 0, changed: 0, removed: 0, chunks: 0, wasReset };
  const known = database.files(scope?.paths);
  const gone = new Set(known.keys());
  const skipped = (/** @type {string} */ folder, /** @type {NodeJS.ErrnoException} */ { code, message }) => {
    onWarning(`${folder}: skipped (${message})`);
    if (code !== undefined && VANISHED.has(code)) return;
    // Its files are still there, so they stay in the index as they were.
    for (const file of gone) if (file.startsWith(`${folder}/`)) gone.delete(file);
  };
  const paths = await filesBelow(dir, skipped, scope);

  /** @type {IndexedFile[]} */
  let pending = [];
  /** Chunks of these. */
  let waiting = 0;
  const flush = () => {
    if (pending.length > 0) database.write(pending);
    pending = [];
    waiting = 0;
  };

  for (let next = 0; next < paths.length; next += READ_AHEAD) {
    signal?.throwIfAborted();
    const group = paths.slice(next, next + READ_AHEAD);
    const changes = await Promise.all(group.map((file) => changeOf(dir, file, known.get(file))));
    const touched = [];
    for (const change of changes) {
      if (change.state === "unreadable") continue;
      gone.delete(change.path);
      summary.files++;
      if (change.state === "touched") touched.push(change);
      if (change.state !== "changed") continue;
      const { text, state: _, ...file } = change;
      const chunks = await chunkFile(file.path, text, chunkTokens(embedder));
      pending.push({ ...file, imports: importWords(text), chunks });
      waiting += chunks.length;
      summary.changed++;
      summary.chunks += chunks.length;
      if (waiting >= CHUNKS_PER_WRITE) flush();
      // Cutting and writing are synchronous: others get their turn.
      await setImmediate();
    }
    if (touched.length > 0) database.touch(touched);
    onProgress?.({ done: Math.min(next + READ_AHEAD, paths.length), total: paths.length });
  }
  flush();
  if (gone.size > 0) database.remove(gone);
  // It reads all vectors, which a change of a few files is not worth.
  if (!scope && gone.size + summary.changed > 0) database.dropSpareVectors();
  summary.removed = gone.size;
  return summary;
}

/**
 * @param {ReadonlySet<string>} changed
 * @returns {Scope | undefined} `undefined` for everything
 */
function scopeOf(changed) {
  const scope = new Scope(changed);
  return scope.hasIgnoreFiles ? undefined : scope;
}

/**
 * What has become of a file: `touched` is one whose size or time is another, but not its content.
 *
 * @typedef {{ path: string } & ({ state: "unreadable" | "unchanged" } |
 *   { state: "touched", size: number, modifiedMs: number } |
 *   { state: "changed", size: number, modifiedMs: number, hash: string, text: string })} Change
 */

/**
 * Size and time tell most files that are as they were without reading them.
 *
 * @param {string} dir
 * @param {string} file
 * @param {IndexedFile | undefined} known
 * @returns {Promise<Change>}
 */
async function changeOf(dir, file, known) {
  const full = path.join(dir, file);
  let size;
  let modifiedMs;
  try {
    ({ size, mtimeMs: modifiedMs } = await stat(full));
  } catch {
    return { path: file, state: "unreadable" };
  }
  if (known?.size === size && known.modifiedMs === modifiedMs) return { path: file, state: "unchanged" };
  if (modifiedMs > Date.now() - RACY_MS) modifiedMs = 0;
  const source = await readSource(full);
  if (!source) return { path: file, state: "unreadable" };
  if (known?.hash === source.hash) return { path: file, state: "touched", size, modifiedMs };
  return { path: file, state: "changed", size, modifiedMs, ...source };
}

/**
 * Gives static vectors to all chunks that have no vector.
 *
 * @param {object} task
 * @param {IndexDatabase} task.database
 * @param {Embedder} task.sketcher
 * @param {AbortSignal} [task.signal]
 */
export async function sketchFolder({ database, sketcher, signal }) {
  database.configureSketches(vectorsOf(sketcher));
  while (true) {
    const chunks = database.withoutVectors(SKETCHES_PER_WRITE);
    if (chunks.length === 0) return;
    const texts = chunks.map((chunk) => embeddedText(chunk.path, chunk));
    const vectors = await sketcher.embed(texts, { encoding: "int8", signal });
    database.sketch(chunks.map(({ id }, index) => ({ id, vector: vectors[index] })));
  }
}

/**
 * Computes the vectors of all chunks that have no exact ones yet, the most promising first. What is computed is stored
 * bit by bit.
 *
 * @param {object} task
 * @param {IndexDatabase} task.database
 * @param {Embedder} task.embedder
 * @param {AbortSignal} [task.signal] leaves the index usable; the next call goes on from there
 * @param {(progress: { done: number, total: number }) => void} [task.onProgress] in chunks whose vectors are exact
 * @returns {Promise<{ chunks: number, truncated: number }>} chunks that were embedded, and those of them that were longer than
 * the model reads
 */
export async function refineFolder({ database, embedder, signal, onProgress }) {
  const files = refinementOrder(database.inexactFiles(), database);
  const { chunks: total } = database.counts();
  const summary = { chunks: 0, truncated: 0 };
  /** By the text's index in the stream. @type {Map<number, Uint8Array>} */
  const keys = new Map();
  /** Keys whose vectors are not stored yet: several chunks may have the same text. */
  const begun = new Set();
  let texts = 0;

  function* inexactTexts() {
    for (const { id } of files) {
      // Bit by bit: meanwhile, files go, and questions ask for chunks.
      for (const chunk of database.inexactChunks(id)) {
        if (begun.has(`${chunk.key}`)) continue;
        begun.add(`${chunk.key}`);
        keys.set(texts++, chunk.key);
        yield embeddedText(chunk.path, chunk);
      }
    }
  }

  /** @type {{ key: Uint8Array, vector: Int8Array }[]} */
  let pending = [];
  const write = () => {
    database.refine(pending);
    for (const { key } of pending) begun.delete(`${key}`);
    pending = [];
    onProgress?.({ done: database.counts().exact, total });
  };
  for await (const { index, vector, truncated } of embedder.stream(inexactTexts(), { encoding: "int8", signal })) {
    pending.push({ key: /** @type {Uint8Array} */ (keys.get(index)), vector });
    keys.delete(index);
    summary.chunks++;
    if (truncated) summary.truncated++;
    if (pending.length >= VECTORS_PER_WRITE) write();
  }
  write();
  return summary;
}
