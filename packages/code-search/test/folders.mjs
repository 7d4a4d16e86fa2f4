/** Folders for tests: temporary ones with given files, models, and indexes made by the program itself. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { Embedder } from "semantic-search-native";
import { starterModelFolder } from "../../../scripts/starter-model.mjs";
import { IndexDatabase } from "../lib/database.mjs";
import { indexFile } from "../lib/index_folder.mjs";
import { indexFolder } from "../lib/indexing.mjs";

export const REPOSITORY = fileURLToPath(new URL("../../..", import.meta.url));
export const PROGRAM = fileURLToPath(new URL("../cli/main.mjs", import.meta.url));
/** Tiny models with random weights. */
export const TINY_MODEL = path.join(REPOSITORY, "tests/fixtures/nomic_cls");
export const OTHER_TINY_MODEL = path.join(REPOSITORY, "tests/fixtures/bert_mean");
export const STARTER_MODEL = process.env.SEMANTIC_SEARCH_STARTER_MODEL ?? starterModelFolder();
export const WITHOUT_STARTER_MODEL = !existsSync(path.join(STARTER_MODEL, "model.safetensors")) && "no starter model";

const scratch = mkdtempSync(path.join(os.tmpdir(), "code-search-test-"));
process.on("exit", () => rmSync(scratch, { recursive: true, force: true }));

/**
 * A temporary folder with files, removed when the test process ends.
 *
 * @param {Record<string, string | Uint8Array>} [files] path → content
 */
export function folderWith(files = {}) {
  const folder = mkdtempSync(path.join(scratch, "folder-"));
  for (const [file, content] of Object.entries(files)) write(folder, file, content);
  return folder;
}

/**
 * @param {string} folder
 * @param {string} file
 * @param {string | Uint8Array} content
 */
export function write(folder, file, content) {
  mkdirSync(path.dirname(path.join(folder, file)), { recursive: true });
  writeFileSync(path.join(folder, file), content);
}

/**
 * Brings a folder's index up to date inside of this process.
 *
 * @param {string} dir
 * @param {{ model?: string, signal?: AbortSignal, onProgress?: (progress: { done: number, total: number }) => void,
 *   onWarning?: (message: string) => void }} [options]
 */
export async function indexed(dir, { model = TINY_MODEL, ...options } = {}) {
  const embedder = await Embedder.load(model, { backend: "onnx" });
  const database = new IndexDatabase(dir);
  try {
    return await indexFolder({ dir, database, embedder, ...options });
  } finally {
    database.close();
    await embedder.close();
  }
}

/**
 * All that an index holds, in an order that does not depend on how it came about.
 *
 * @param {string} dir
 */
export function contentsOf(dir) {
  const database = new IndexDatabase(dir);
  try {
    const sql = `SELECT path, hash, name, line, start_line, end_line, text, embeddings.vector FROM files
      LEFT JOIN chunks ON file_id = files.id LEFT JOIN embeddings ON embeddings.key = chunks.key ORDER BY path, start_line`;
    const rows = database.db.prepare(sql).all();
    const count = (/** @type {string} */ table) => database.db.prepare(`SELECT count(*) AS n FROM ${table}`).get()?.n;
    const vectors = rows.map(
      ({ vector }) => vector && Int8Array.from(new Int8Array(vector.buffer, vector.byteOffset, vector.length)),
    );
    const chunks = rows.map(({ vector: _, ...row }) => ({ ...row }));
    const { exact } = database.counts();
    return { chunks, vectors, counts: { chunks: count("chunks"), words: count("words"), exact } };
  } finally {
    database.close();
  }
}

/**
 * Vectors are equal but for one: rounding to int8 may fall to either side where float32 sums were taken in another order.
 *
 * @param {(Int8Array | null)[]} found
 * @param {(Int8Array | null)[]} expected
 */
export function assertClose(found, expected) {
  assert.equal(found.length, expected.length);
  for (const [row, vector] of found.entries()) {
    const worst = Math.max(0, ...(vector ?? []).map((value, index) => Math.abs(value - expected[row][index])));
    assert.ok(worst <= 1, `vector ${row} is off by ${worst}`);
  }
}

/**
 * What an index holds that another process may be writing: zeros while it has no tables yet.
 *
 * @param {string} dir
 */
export function countsOf(dir) {
  const nothing = { files: 0, chunks: 0, exact: 0 };
  if (!existsSync(indexFile(dir))) return nothing;
  const database = new IndexDatabase(dir);
  try {
    return database.isEmpty ? nothing : database.counts();
  } finally {
    database.close();
  }
}

/**
 * This process's environment without what a user's settings would change, and with other variables.
 *
 * @param {NodeJS.ProcessEnv} [env]
 */
export function environment(env) {
  const unset = {
    SEMANTIC_SEARCH_MODEL: undefined,
    SEMANTIC_SEARCH_DEVICE: undefined,
    SEMANTIC_SEARCH_BACKEND: undefined,
  };
  return { ...process.env, ...unset, XDG_CONFIG_HOME: scratch, APPDATA: scratch, ...env };
}

/**
 * Runs the program.
 *
 * @param {string[]} args
 * @param {{ env?: NodeJS.ProcessEnv, cwd?: string, started?: (child: import("node:child_process").ChildProcess) => void }} [options]
 */
export async function run(args, { env, cwd, started } = {}) {
  const child = spawn(process.execPath, [PROGRAM, ...args], { cwd, env: environment(env) });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text) => (stdout += text));
  child.stderr.setEncoding("utf8").on("data", (text) => (stderr += text));
  started?.(child);
  const [status, signal] = await once(child, "close");
  return { status, signal, stdout, stderr };
}
