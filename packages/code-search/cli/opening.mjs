/** Opens the index of a folder with the model that options, environment and files name. */

import { existsSync } from "node:fs";
import { Option } from "commander";
import { DEVICES, settingsFor } from "./configuration.mjs";
import { Failure } from "./failure.mjs";
import { interruptionSignal } from "./interruption.mjs";
import { existingFolder } from "./locations.mjs";
import { ProgressLine } from "./progress.mjs";
import { grouped } from "./terminal.mjs";

/** @typedef {import("../index.mjs").CodeSearch} CodeSearch */
/** @typedef {import("./configuration.mjs").Settings} Settings */
/** @typedef {{ folder: string, limit: number, signal: AbortSignal, progress: ProgressLine }} Context */

/** Small, fast, and as good at finding code as larger ones once words count as well. */
const DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2";
/** Inside the repository of semantic-search-native: the same, as its demo brings it. */
const STARTER_MODEL = new URL("../../../scripts/starter-model.mjs", import.meta.url);

/** What computes on a device, the best first. */
const BACKENDS = /** @type {const} */ ({ auto: ["auto"], cpu: ["onnx", "onnx-js"], gpu: ["mlx", "webgpu"] });

/** @param {import("commander").Command} command */
export function addModelOptions(command) {
  return command
    .option("--model <model>", `a folder, or a name on the Hugging Face Hub (default: ${DEFAULT_MODEL})`)
    .addOption(new Option("--device <name>", "what computes (default: auto, the fastest that works)").choices(DEVICES));
}

/**
 * Runs a command on the index of a folder, which Ctrl-C stops.
 *
 * @template T
 * @param {string} dir
 * @param {Settings} options
 * @param {(codeSearch: CodeSearch, context: Context) => Promise<T>} work
 */
export async function withCodeSearch(dir, options, work) {
  const folder = existingFolder(dir);
  const signal = interruptionSignal();
  const progress = new ProgressLine(process.stderr);
  /** @type {CodeSearch | undefined} */
  let codeSearch;
  try {
    const { limit, ...opened } = await openFolder(folder, options, { signal, progress });
    codeSearch = opened.codeSearch;
    return await work(codeSearch, { folder, limit, signal, progress });
  } catch (error) {
    throw signal.aborted ? interrupted(signal.reason, codeSearch) : error;
  } finally {
    progress.clear();
    await codeSearch?.close();
  }
}

/**
 * Reads what is new or has changed, once no other process is at work on the index.
 *
 * @param {CodeSearch} codeSearch
 * @param {Pick<Context, "folder" | "signal" | "progress">} context
 */
export async function update(codeSearch, { folder, signal, progress }) {
  return updateOrWait(codeSearch, { signal, progress, onWait: () => sayWaiting(folder, progress) });
}

/**
 * @param {string} folder
 * @param {ProgressLine} progress
 */
export function sayWaiting(folder, progress) {
  progress.say(`another process is indexing ${folder}: waiting for its end`);
}

/**
 * The same, but an index that another process is at work on is taken as it is: that may take long.
 *
 * @param {CodeSearch} codeSearch
 * @param {Pick<Context, "folder" | "signal" | "progress">} context
 */
export async function updateIfFree(codeSearch, { folder, signal, progress }) {
  const busy = new AbortController();
  const onWait = () => {
    if (codeSearch.status.chunks > 0) busy.abort();
    else sayWaiting(folder, progress);
  };
  try {
    await updateOrWait(codeSearch, { signal: AbortSignal.any([signal, busy.signal]), progress, onWait });
  } catch (error) {
    if (!busy.signal.aborted || signal.aborted) throw error;
    progress.say("another process is indexing the folder: results are of what it has read so far");
  }
}

/**
 * @param {CodeSearch} codeSearch
 * @param {Pick<Context, "signal" | "progress"> & { onWait: () => void }} context
 */
async function updateOrWait(codeSearch, { signal, progress, onWait }) {
  const onWarning = progress.say.bind(progress);
  const summary = await codeSearch.update({ signal, onProgress: progress.counting("files"), onWarning, onWait });
  if (summary.wasReset) progress.say("the index was of another model or version: made anew");
  return summary;
}

/**
 * Code like the code at a line.
 *
 * @param {CodeSearch} codeSearch
 * @param {{ path: string, line: number }} place
 * @param {{ limit: number, signal?: AbortSignal }} options
 */
export async function similarTo(codeSearch, place, options) {
  try {
    return await codeSearch.similar(place, options);
  } catch (error) {
    throw error instanceof RangeError ? new Failure("NOT_INDEXED", error.message) : error;
  }
}

/**
 * @param {Failure} reason
 * @param {CodeSearch | undefined} codeSearch
 */
function interrupted({ code, message, exitCode }, codeSearch) {
  if (!codeSearch) return new Failure(code, message, exitCode);
  const { files, chunks, exact } = codeSearch.status;
  const state = `${grouped(files)} files are in the index, ${grouped(exact)} of ${grouped(chunks)} chunks exact`;
  return new Failure(code, `${message}: ${state}; the same command goes on from there`, exitCode);
}

/**
 * @param {string} folder absolute
 * @param {Settings} options
 * @param {{ signal: AbortSignal, progress: ProgressLine }} context
 */
export async function openFolder(folder, options, { signal, progress }) {
  const { model, device, limit } = await settingsFor(folder, options);
  const name = model ? model.name : await defaultModel(progress);
  if (model?.isDownloaded) await checkIsThere(model);
  const { CodeSearch } = await import("../index.mjs");
  const onProgress = progress.showDownload.bind(progress);
  const common = { model: name, onProgress, signal, ...(model?.isDownloaded && { offline: true }) };
  const reasons = [];
  for (const backend of BACKENDS[device]) {
    try {
      return { codeSearch: await CodeSearch.open(folder, { ...common, backend }), limit };
    } catch (error) {
      if (/** @type {{ code?: unknown }} */ (error).code !== "BACKEND_UNAVAILABLE") throw error;
      reasons.push(/** @type {Error} */ (error).message);
    } finally {
      progress.clear();
    }
  }
  throw new Failure("BACKEND_UNAVAILABLE", reasons.join("; "));
}

/** @param {ProgressLine} progress */
async function defaultModel(progress) {
  if (import.meta.url.includes("/node_modules/") || !existsSync(STARTER_MODEL)) return DEFAULT_MODEL;
  const { bringStarterModel, starterModelFolder } = await import(STARTER_MODEL.href);
  return bringStarterModel({ folder: starterModelFolder(), log: progress.say.bind(progress) });
}

/** @param {import("./configuration.mjs").NamedModel} model */
async function checkIsThere({ name, namedBy }) {
  const { pull } = await import("semantic-search-native");
  try {
    await pull(name, { offline: true });
  } catch (error) {
    const { code, message } = /** @type {NodeJS.ErrnoException} */ (error);
    if (code === "INVALID_ARGUMENT") {
      const expected = "expected a folder below its own, or a name on the Hub";
      throw new Failure("INVALID_CONFIGURATION", `${namedBy}: model: ${expected}, found ${JSON.stringify(name)}`);
    }
    if (code !== "MODEL_NOT_FOUND") throw error;
    throw new Failure(
      code,
      `${namedBy} names the model ${name}, which is not downloaded, and a folder's file does not start a download: run ` +
        `npx semantic-search-native pull ${quoted(name)}, or name another one with --model (${message})`,
    );
  }
}

/**
 * An argument as it can be pasted into a shell: what a folder's file says is not to be run by one.
 *
 * @param {string} argument
 */
function quoted(argument) {
  if (/^[\w./@:+-]+$/.test(argument)) return argument;
  return process.platform === "win32" ? `"${argument}"` : `'${argument.replaceAll("'", "'\\''")}'`;
}
