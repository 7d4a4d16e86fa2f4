/**
 * How large a folder can be: indexes copies of real files with other names in them, and asks questions.
 *
 *   node benches/large.mjs <folder of sources> [--files=1000,10000,100000] [--model=<folder>] [--work=<folder>] [--keep]
 *
 * The transformer would take hours for a million chunks and costs the same per chunk in any folder, so its vectors are
 * replaced: each is a mixture of a topic's vector and noise. Everything else is what `index` and `search` do.
 */

import { mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { parseArgs } from "node:util";
import { Embedder } from "semantic-search-native";
import { IndexDatabase } from "../lib/database.mjs";
import { filesBelow, readSource } from "../lib/files.mjs";
import { indexFile } from "../lib/index_folder.mjs";
import { updateFolder } from "../lib/indexing.mjs";
import { search } from "../lib/ranking.mjs";

const QUESTIONS = [
  "where are options checked",
  "read a file and parse its header",
  "error handling of requests that time out",
  "cache with a limit on its size",
  "how is the queue of jobs drained",
  "parse command line arguments",
  "close all connections",
  "convert a string to bytes",
];
const TOPICS = 2000;
const BRANCH_FILES = 2000;
const REPEATS = 5;

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    files: { type: "string", default: "1000,10000,100000" },
    model: { type: "string" },
    work: { type: "string", default: path.join(os.tmpdir(), "code-search-large") },
    keep: { type: "boolean", default: false },
  },
});
const [sources] = positionals;
const model = values.model ?? process.env.SEMANTIC_SEARCH_MODEL;
if (!sources || !model) throw new Error("usage: node benches/large.mjs <folder of sources> --model=<folder>");

let state = 1;
/** Pseudo-random numbers from -128 to 127 that are the same in each run (xorshift). */
function random() {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return (state >> 8) % 128;
}

/**
 * A source with another number behind each of its longer names.
 *
 * @param {string} text
 * @param {number} copy
 */
function renamed(text, copy) {
  return copy === 0 ? text : text.replace(/\b[a-z]\w{7,}\b/g, (name) => `${name}${copy}`);
}

/**
 * @param {string} folder
 * @param {{ path: string, text: string }[]} originals
 * @param {number} count
 * @returns {string[]} their paths
 */
function writeFiles(folder, originals, count) {
  const paths = [];
  for (let file = 0; file < count; file++) {
    const { path: relative, text } = originals[file % originals.length];
    const copy = Math.floor(file / originals.length);
    const target = path.join(folder, `copy${copy}`, relative);
    mkdirSync(path.dirname(target), { recursive: true });
    writeFileSync(target, renamed(text, copy));
    paths.push(target);
  }
  return paths;
}

/** @param {number[]} times */
function median(times) {
  return times.toSorted((a, b) => a - b)[times.length >> 1];
}

/**
 * @param {() => unknown} work
 * @returns {Promise<number>} milliseconds
 */
async function timed(work) {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

/**
 * @param {IndexDatabase} database
 * @param {number} dimension
 */
function refineWithStandIns(database, dimension) {
  const topics = Array.from({ length: TOPICS }, () => Int8Array.from({ length: dimension }, random));
  for (const { id: file } of database.inexactFiles()) {
    const embeddings = database.inexactChunks(file).map((chunk) => {
      const topic = topics[chunk.id % TOPICS];
      const vector = topic.map((value) => Math.max(-127, Math.min(127, (value + random()) / 2)));
      return { key: chunk.key, vector };
    });
    database.refine(embeddings);
  }
}

/** @param {Embedder} embedder */
function withoutVectors(embedder) {
  return { maxTokens: embedder.maxTokens, fingerprint: embedder.fingerprint, dimension: embedder.dimension };
}

const embedder = await Embedder.load(model);
const originals = [];
for (const relative of await filesBelow(sources)) {
  const source = await readSource(path.join(sources, relative));
  if (source) originals.push({ path: relative, text: source.text });
}
console.log(
  `${os.cpus()[0]?.model.trim()}, ${os.cpus().length} processors, Node.js ${process.version}, ${path.basename(model)}`,
);
console.log(`${originals.length} files of ${path.basename(path.resolve(sources))}, again and again with other names\n`);
const columns = [
  "files",
  "chunks",
  "read s",
  "MB on disk",
  "RSS MB",
  "nothing new ms",
  "one file ms",
  "one of all ms",
  "branch s",
  "query ms",
  "first query ms",
];
console.log(`| ${columns.join(" | ")} |\n|${"---|".repeat(columns.length)}`);
for (const count of values.files.split(",").map(Number)) {
  const dir = path.join(values.work, String(count));
  rmSync(dir, { recursive: true, force: true });
  const paths = writeFiles(dir, originals, count);
  let database = new IndexDatabase(dir);
  const update = (/** @type {Set<string> | undefined} */ changed = undefined) =>
    updateFolder({ dir, database, embedder: /** @type {any} */ (withoutVectors(embedder)), changed });
  const readMs = await timed(() => update());
  refineWithStandIns(database, embedder.dimension);
  const nothing = await timed(() => update());
  const { path: file, text } = originals[0];
  const changed = path.join("copy0", file);
  writeFileSync(path.join(dir, changed), `${text}\n// changed\n`);
  const oneOfAll = await timed(() => update());
  writeFileSync(path.join(dir, changed), `${text}\n// changed again\n`);
  const one = await timed(() => update(new Set([changed])));

  // Another branch and back: what was there before has its vectors at once.
  const branch = paths.slice(0, BRANCH_FILES);
  const before = branch.map((name) => readFileSync(name));
  for (const name of branch) writeFileSync(name, `${readFileSync(name)}\n// branch\n`);
  await update();
  for (const [index, name] of branch.entries()) writeFileSync(name, before[index]);
  const exact = database.counts().exact;
  const back = await timed(() => update());
  const { chunks, exact: exactAgain } = database.counts();
  if (exactAgain < exact) throw new Error("vectors were lost");
  database.close();

  const ask = (/** @type {string} */ question) => search({ database, embedder, question, limit: 10 });
  database = new IndexDatabase(dir);
  await embedder.embedQuery(QUESTIONS[0]);
  const first = await timed(() => ask(QUESTIONS[0]));
  const times = [];
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    for (const question of QUESTIONS) times.push(await timed(() => ask(`${question} ${repeat}`)));
  }
  const figures = [
    ...[count, chunks, (readMs / 1000).toFixed(1), (statSync(indexFile(dir)).size / 1e6).toFixed(0)],
    ...[(process.memoryUsage.rss() / 1e6).toFixed(0), nothing.toFixed(0), one.toFixed(0), oneOfAll.toFixed(0)],
    ...[(back / 1000).toFixed(1), median(times).toFixed(1), first.toFixed(1)],
  ];
  console.log(`| ${figures.join(" | ")} |`);
  database.close();
  if (!values.keep) rmSync(dir, { recursive: true, force: true });
}
await embedder.close();
