/**
 * A static model made from a transformer: a table with a vector for each token, whose mean is the vector of a text. It is
 * some hundred times as fast and knows about as much of single words, so that a folder can be searched by meaning before
 * the transformer has read it.
 *
 * The method is that of Model2Vec (Tulkens and van Dongen, 2024): the transformer's vectors of all tokens, each as a text
 * of its own; PCA; weights by how rare a token is. It needs nothing but the model. The table is kept in the cache folder,
 * in the format of Model2Vec.
 */

import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { Worker } from "node:worker_threads";
import { Embedder, packageCacheFolder, pull } from "semantic-search-native";

/** Goes up whenever other tables come out. */
const VERSION = 1;
const DIMENSION = 256;
/** Tables of larger vocabularies take longer to make than most folders take to embed. */
const MAX_VOCABULARY = 65_536;
const TOKENS_PER_CALL = 1024;

/**
 * The static model of a transformer, if it has been made before.
 *
 * @param {Embedder} embedder
 * @returns {Promise<Embedder | undefined>}
 */
export async function findStaticModel(embedder) {
  const folder = staticModelFolder(embedder);
  return folder && existsSync(folder) ? Embedder.load(folder, { backend: "auto" }) : undefined;
}

/**
 * Makes the static model of a transformer, which takes seconds to minutes, and loads it.
 *
 * @param {Embedder} embedder
 * @param {string} model what the embedder was loaded from
 * @param {{ signal?: AbortSignal }} [options]
 * @returns {Promise<Embedder | undefined>} `undefined` for a model that is not suited: its vocabulary is too large, or there
 * is no place to keep the table
 */
export async function makeStaticModel(embedder, model, { signal } = {}) {
  const folder = staticModelFolder(embedder);
  if (!folder || embedder.vocabularySize > MAX_VOCABULARY || embedder.dimension <= DIMENSION) return undefined;
  const tokenizer = readTokenizer(await modelFolder(model));
  const vectors = await tokenVectors(embedder, specialTokensOf(tokenizer), signal);
  const table = await tableOf(vectors, embedder.dimension, signal);
  writeStaticModel(folder, table, tokenizer);
  return Embedder.load(folder);
}

/** @param {Embedder} embedder */
function staticModelFolder({ fingerprint }) {
  const cache = packageCacheFolder();
  return cache && path.join(cache, "static", `${fingerprint.replace(/[^\w.-]/g, "_").slice(0, 100)}-v${VERSION}`);
}

/** @param {string} model */
async function modelFolder(model) {
  const isFolder = statSync(model, { throwIfNoEntry: false })?.isDirectory();
  return isFolder ? model : pull(model, { offline: true });
}

/** @param {string} folder */
function readTokenizer(folder) {
  return JSON.parse(readFileSync(path.join(folder, "tokenizer.json"), "utf8"));
}

/**
 * The ids of special tokens that a tokenizer puts before and behind a text.
 *
 * @param {any} tokenizer
 * @returns {{ before: number[], behind: number[] }}
 */
export function specialTokensOf({ post_processor: processor }) {
  const processors = processor?.type === "Sequence" ? processor.processors : [processor];
  for (const { type, single, special_tokens: ids, cls, sep } of processors.filter(Boolean)) {
    if (type === "BertProcessing" || type === "RobertaProcessing") return { before: [cls[1]], behind: [sep[1]] };
    if (type !== "TemplateProcessing") continue;
    const text = single.findIndex((/** @type {any} */ piece) => piece.Sequence);
    const idsOf = (/** @type {any[]} */ pieces) => pieces.flatMap((piece) => ids[piece.SpecialToken.id].ids);
    return { before: idsOf(single.slice(0, text)), behind: idsOf(single.slice(text + 1)) };
  }
  return { before: [], behind: [] };
}

/**
 * The transformer's vectors of all tokens.
 *
 * @param {Embedder} embedder
 * @param {{ before: number[], behind: number[] }} special
 * @param {AbortSignal | undefined} signal
 * @returns {Promise<Float32Array>} [tokens, width]
 */
async function tokenVectors(embedder, { before, behind }, signal) {
  const { vocabularySize, dimension } = embedder;
  const vectors = new Float32Array(vocabularySize * dimension);
  for (let first = 0; first < vocabularySize; first += TOKENS_PER_CALL) {
    const count = Math.min(TOKENS_PER_CALL, vocabularySize - first);
    const texts = Array.from({ length: count }, (_, index) => Uint32Array.of(...before, first + index, ...behind));
    const rows = await embedder.embed(texts, { signal });
    for (const [index, row] of rows.entries()) vectors.set(row, (first + index) * dimension);
  }
  return vectors;
}

/**
 * The table, computed on a thread of its own.
 *
 * @param {Float32Array} vectors [tokens, width]
 * @param {number} width
 * @param {AbortSignal | undefined} signal
 * @returns {Promise<Float32Array>} [tokens, DIMENSION]
 */
async function tableOf(vectors, width, signal) {
  const worker = new Worker(new URL("./token_table.mjs", import.meta.url), {
    workerData: { vectors, width, dimension: DIMENSION },
    transferList: [/** @type {ArrayBuffer} */ (vectors.buffer)],
  });
  try {
    const [table] = await once(worker, "message", { signal });
    return table;
  } finally {
    await worker.terminate();
  }
}

/**
 * Writes the folder beside its place and moves it there, so that it is there whole or not at all.
 *
 * @param {string} folder
 * @param {Float32Array} table
 * @param {any} tokenizer
 */
function writeStaticModel(folder, table, tokenizer) {
  const part = `${folder}.${process.pid}.part`;
  mkdirSync(part, { recursive: true });
  try {
    const shape = [table.length / DIMENSION, DIMENSION];
    const header = JSON.stringify({ embeddings: { dtype: "F32", shape, data_offsets: [0, table.byteLength] } });
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(header.length));
    const json = (/** @type {string} */ name, /** @type {any} */ value) =>
      writeFileSync(path.join(part, name), JSON.stringify(value));
    writeFileSync(
      path.join(part, "model.safetensors"),
      Buffer.concat([length, Buffer.from(header), Buffer.from(table.buffer)]),
    );
    json("config.json", { model_type: "model2vec", normalize: true });
    json("tokenizer.json", { ...tokenizer, post_processor: null, truncation: null, padding: null });
    json("modules.json", [
      { idx: 0, name: "0", path: ".", type: "sentence_transformers.models.StaticEmbedding" },
      { idx: 1, name: "1", path: "1_Normalize", type: "sentence_transformers.models.Normalize" },
    ]);
    try {
      renameSync(part, folder);
    } catch (error) {
      // Another process was faster.
      if (!existsSync(folder)) throw error;
    }
  } finally {
    rmSync(part, { recursive: true, force: true });
  }
}
