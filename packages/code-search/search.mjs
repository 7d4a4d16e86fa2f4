#!/usr/bin/env node
/** Command line: `index` brings the index of a folder up to date, `search` asks it. */

import { existsSync, statSync } from "node:fs";
import * as path from "node:path";
import { inspect, parseArgs } from "node:util";
import { Embedder } from "semantic-search-native";
import { IndexDatabase, indexFile, lockIndex } from "./lib/database.mjs";
import { configurationOf, indexFolder } from "./lib/indexing.mjs";
import { ProgressLine } from "./lib/progress.mjs";
import { search } from "./lib/ranking.mjs";
import { complain, print } from "./lib/terminal.mjs";

const HELP = `Searches a folder of source code by meaning and by words.

  code-search index [dir]           make the index of a folder, or bring it up to date
  code-search search "<question>"   ask it

  --dir=<dir>       search: the folder (default: the current one)
  --limit=<n>       search: results (default: 10)
  --json            search: results as JSON
  --model=<model>   a folder, or a name on the Hugging Face Hub such as nomic-ai/CodeRankEmbed
                    (default: the environment variable SEMANTIC_SEARCH_MODEL)
  --help

Exit codes: 0 done, 1 failed or nothing indexed, 2 wrong arguments, 130 interrupted (index goes on where it was).
`;
const STARTER_MODEL = new URL("../../scripts/starter-model.mjs", import.meta.url);

/** Ends the program with a message and no stack. */
class Failure extends Error {
  /**
   * @param {string} message
   * @param {number} exitCode
   */
  constructor(message, exitCode = 1) {
    super(message);
    this.exitCode = exitCode;
  }
}

/** @param {string[]} args */
function readArguments(args) {
  const text = /** @type {const} */ ({ type: "string" });
  const flag = /** @type {const} */ ({ type: "boolean", default: false });
  const options = { dir: text, limit: text, model: text, json: flag, help: { ...flag, short: "h" } };
  try {
    return parseArgs({ args, options, allowPositionals: true });
  } catch (error) {
    throw new Failure(`${/** @type {Error} */ (error).message}\n\n${HELP}`, 2);
  }
}

/** @param {string | undefined} model */
async function chosenModel(model) {
  const named = model ?? process.env.SEMANTIC_SEARCH_MODEL;
  if (named) return named;
  if (!existsSync(STARTER_MODEL)) {
    throw new Failure("no model: name one with --model=nomic-ai/CodeRankEmbed (or a folder), or SEMANTIC_SEARCH_MODEL");
  }
  // Inside the repository of semantic-search-native: the model of its demo.
  const { bringStarterModel, starterModelFolder } = await import(STARTER_MODEL.href);
  return bringStarterModel({ folder: starterModelFolder(), log: complain });
}

/** @param {string | undefined} model */
async function load(model) {
  const progress = new ProgressLine(process.stderr);
  const embedder = await Embedder.load(await chosenModel(model), { onProgress: progress.showDownload.bind(progress) });
  progress.clear();
  return embedder;
}

/** @param {string} dir */
function checkFolder(dir) {
  if (!statSync(dir, { throwIfNoEntry: false })?.isDirectory()) throw new Failure(`${dir} is not a folder`);
}

/**
 * @param {string} dir
 * @param {string | undefined} model
 */
async function index(dir, model) {
  checkFolder(dir);
  const stop = new AbortController();
  // Once: a second Ctrl-C ends the process at once, which does no harm either.
  process.once("SIGINT", () => stop.abort());
  const embedder = await load(model);
  const database = new IndexDatabase(dir);
  const progress = new ProgressLine(process.stderr);
  const start = performance.now();
  const { signal } = stop;
  /** @type {{ release(): void } | undefined} */
  let lock;
  try {
    lock = await lockIndex(dir, {
      signal,
      onWait: () => console.error(`another process is indexing ${dir}: waiting for its end`),
    });
    const onProgress = progress.show.bind(progress);
    const onWarning = (/** @type {string} */ message) => {
      progress.clear();
      console.error(message);
    };
    const summary = await indexFolder({ dir, database, embedder, signal, onProgress, onWarning });
    progress.clear();
    if (summary.wasReset) print("the index was of another model or version: made anew");
    const { files, chunks } = database.counts();
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    print(
      `${files} files, ${chunks} chunks: ${summary.changed} files embedded (${summary.chunks} chunks), ` +
        `${summary.removed} removed, in ${seconds} s`,
    );
    if (summary.truncated > 0) {
      print(`${summary.truncated} chunks are longer than the ${embedder.maxTokens} tokens that the model reads`);
    }
  } catch (error) {
    progress.clear();
    if (!stop.signal.aborted) throw error;
    const { files } = database.counts();
    throw new Failure(`interrupted: ${files} files are in the index; the same command goes on from there`, 130);
  } finally {
    database.close();
    lock?.release();
    await embedder.close();
  }
}

/**
 * @param {string} question
 * @param {{ dir: string, limit: number, json: boolean, model: string | undefined }} options
 */
async function ask(question, { dir, limit, json, model }) {
  checkFolder(dir);
  const command = `code-search index ${JSON.stringify(dir)}`;
  if (!existsSync(indexFile(dir))) throw new Failure(`nothing is indexed in ${dir}: run ${command}`);
  const database = new IndexDatabase(dir);
  /** @type {Embedder | undefined} */
  let embedder;
  try {
    if (database.configuration === undefined || database.counts().files === 0) {
      throw new Failure(`nothing is indexed in ${dir}: run ${command}`);
    }
    embedder = await load(model);
    if (database.configuration !== configurationOf(embedder)) {
      throw new Failure(`the index of ${dir} is of another model or version: run ${command}`);
    }
    const hits = await search({ database, embedder, question, limit });
    if (json) {
      print(JSON.stringify(hits, null, 2));
      return;
    }
    for (const { path: file, line, score, name, snippet } of hits) {
      print(`${file}:${line}  ${score.toFixed(4)}  ${name}`.trimEnd());
      for (const shown of snippet) print(`${String(shown.line).padStart(6)}  ${shown.text}`);
      print();
    }
  } finally {
    database.close();
    await embedder?.close();
  }
}

async function main() {
  const { values, positionals } = readArguments(process.argv.slice(2));
  const [command, argument, ...rest] = positionals;
  if (values.help) {
    process.stdout.write(HELP);
    return;
  }
  if (command === "index" && rest.length === 0 && (argument === undefined || values.dir === undefined)) {
    await index(path.normalize(argument ?? values.dir ?? "."), values.model);
    return;
  }
  if (command !== "search" || !argument?.trim() || rest.length > 0) throw new Failure(HELP, 2);
  const limit = Number(values.limit ?? 10);
  if (!Number.isInteger(limit) || limit < 1 || limit > 1000) throw new Failure("--limit is a number from 1 to 1000", 2);
  await ask(argument, { dir: path.normalize(values.dir ?? "."), limit, json: values.json, model: values.model });
}

try {
  await main();
} catch (error) {
  const isExpected = error instanceof Failure || /** @type {{ code?: unknown }} */ (error).code !== undefined;
  complain(isExpected ? /** @type {Error} */ (error).message : inspect(error));
  process.exitCode = error instanceof Failure ? error.exitCode : 1;
}
