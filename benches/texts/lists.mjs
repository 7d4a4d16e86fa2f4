/** The texts that are embedded: real functions, questions about them, and texts of exact lengths. */

import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { functionsBelow } from "../../scripts/functions.mjs";
import { Random } from "../../scripts/random.mjs";
import { ROOT } from "../../scripts/setup.mjs";
import { gpuList } from "../suites/gpu.mjs";

/** Packages of Python's standard library that are read beside this repository. */
const PYTHON_PACKAGES = [
  "asyncio",
  "concurrent",
  "email",
  "http",
  "importlib",
  "json",
  "logging",
  "multiprocessing",
  "unittest",
  "urllib",
  "xml",
  "zoneinfo",
];

/**
 * The lists of texts that a model is measured on, by their names in requests to drivers.
 *
 * @param {string} folder of the model
 * @param {object} sizes see `run.mjs`
 * @param {boolean} withSymbols whether to add the many symbols, which stay in the memory of a driver
 */
export function makeLists(folder, sizes, withSymbols) {
  const functions = realFunctions(Math.max(sizes.functions, sizes.delayTexts));
  const equal = Object.keys(sizes.equal).map((count) => [
    `equal-${count}`,
    textsOfLengths(folder, Array(Number(count)).fill(sizes.equalTokens)),
  ]);
  const { lengths = [], counts = [] } = sizes.gpu ?? {};
  const gpu = lengths.flatMap((length) =>
    counts.map((count) => [gpuList(length, count), textsOfLengths(folder, Array(count).fill(length))]),
  );
  return {
    ...byLimit(folder, sizes, functions),
    first: functions[0],
    functions,
    ...(withSymbols && { symbols: pickSymbols(functions, sizes.symbols) }),
    bulk: functions.slice(0, sizes.busyTexts),
    queries: questionsAbout(functions),
    random: textsOfLengths(folder, randomLengths(sizes.randomTexts, sizes.randomLongest)),
    ...Object.fromEntries([...equal, ...gpu]),
  };
}

/** Some of `functions`, or where they are too few, of many more. */
function pickSymbols(functions, count) {
  return count > functions.length ? manyFunctions(count) : functions.slice(0, count);
}

function pythonLibrary() {
  const { stdout } = spawnSync("python3", ["-c", "import sysconfig; print(sysconfig.get_paths()['stdlib'])"], {
    encoding: "utf8",
  });
  return stdout?.trim();
}

/** Distinct functions, taken evenly from all that were found, in their order. */
function realFunctions(count) {
  const library = pythonLibrary();
  const distinct = distinctFunctions(PYTHON_PACKAGES.flatMap((name) => (library ? [path.join(library, name)] : [])));
  if (distinct.length < count) throw new Error(`${distinct.length} functions were found, ${count} are needed`);
  return spread(distinct, count);
}

/**
 * The same from the whole of Python's standard library, with its tests if they are installed; fewer if there are not
 * enough.
 */
function manyFunctions(count) {
  const library = pythonLibrary();
  const distinct = distinctFunctions(library ? [library] : []);
  return spread(distinct, Math.min(count, distinct.length));
}

/** Of this repository and of other folders. */
function distinctFunctions(folders) {
  const existing = [ROOT, ...folders].filter((folder) => existsSync(folder));
  return [...new Set(existing.flatMap((folder) => functionsBelow(folder)).map(({ text }) => text))];
}

function spread(items, count) {
  return Array.from({ length: count }, (_, i) => items[Math.floor((i * items.length) / count)]);
}

/** A question about each function: the words of its name. */
function questionsAbout(functions) {
  const name = /(?:function\*?|fn|def)\s+(\w+)|^\s*(?:async |static |get |set )*#?(\w+)\(/m;
  const questions = functions.map((text) => {
    const [, declared, method] = name.exec(text) ?? [];
    const words = (declared ?? method ?? "").replace(/([a-z])([A-Z])/g, "$1 $2").replaceAll("_", " ");
    return `Which function does this: ${words.toLowerCase().trim()}?`;
  });
  return [...new Set(questions)];
}

/** Some texts within the token limit, and some that exceed it. */
function byLimit(modelFolder, { maxTokens, compared }, texts) {
  const require = createRequire(path.join(ROOT, "dist/lib/"));
  const { TextTokenizer } = require("./fallback/tokenizer/text_tokenizer.js");
  const { readModelDir } = require("./model_dir.js");
  const tokenizer = new TextTokenizer(readModelDir(modelFolder, { maxTokens }));
  const isCut = (text) => tokenizer.encode(text, false).truncated;
  const some = texts.slice(0, 100);
  return {
    fitting: some.filter((text) => !isCut(text)).slice(0, compared.fitting),
    cut: some.filter(isCut).slice(0, compared.cut),
  };
}

function wordsOf(modelFolder) {
  const { vocab } = JSON.parse(readFileSync(path.join(modelFolder, "tokenizer.json"), "utf8")).model;
  return Object.keys(vocab).filter((token) => /^[a-z]{3,}$/.test(token));
}

/**
 * Texts of random words, each a token of the model.
 *
 * @param {string} modelFolder
 * @param {number[]} lengths in tokens, two special ones included
 */
function textsOfLengths(modelFolder, lengths) {
  const words = wordsOf(modelFolder);
  const random = new Random("words");
  const word = () => random.of(words);
  return lengths.map((tokens) => Array.from({ length: tokens - 2 }, word).join(" "));
}

/** Lengths from 3 to `longest`, short ones more often, as of symbols in code. */
function randomLengths(count, longest) {
  const random = new Random("lengths");
  return Array.from({ length: count }, () => Math.floor(3 * (longest / 3) ** random.next()));
}
