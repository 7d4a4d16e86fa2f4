/**
 * `npm run bench`: how fast and how right is it, here, beside what else one could use? Needs what `npm test` needs; peers
 * are installed into the cache folder. Writes `RESULTS.md`, `results.json` and the charts beside this file.
 *
 *   --suite=engine,peers   what to measure
 *   --full                 larger samples, more rounds, large peers too (PyTorch, candle)
 *   --smoke                a minute on tiny models without any peer, to see that the benchmark itself works
 *   --model=minilm,nomic   on which models
 *   --out=<folder>         where the results go
 */

import { mkdirSync, writeFileSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { cacheFolder } from "./install.mjs";
import { prepareModel } from "./models/prepare.mjs";
import { describeRun } from "./provenance.mjs";
import { report } from "./report.mjs";
import { measureEngine } from "./suites/engine.mjs";
import { questionsAbout, randomLengths, realFunctions, textsOfLengths } from "./texts.mjs";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const SUITES = { engine: measureEngine };

/** How much is measured. Times are for two processors. */
const SIZES = {
  smoke: {
    models: ["tiny-bert", "tiny-nomic"],
    maxTokens: 64,
    npm: false,
    functions: 24,
    chunk: 12,
    queries: 10,
    busyQueries: 5,
    busyTexts: 24,
    busyPauseMs: 0,
    delayTexts: 100,
    memoryTexts: 12,
    randomTexts: 100,
    randomLongest: 64,
  },
  usual: {
    models: ["nomic", "minilm"],
    maxTokens: 256,
    npm: true,
    functions: 256,
    chunk: 64,
    queries: 40,
    busyQueries: 40,
    busyTexts: 64,
    busyPauseMs: 50,
    delayTexts: 1000,
    memoryTexts: 16,
    randomTexts: 10_000,
    randomLongest: 128,
  },
};
SIZES.full = { ...SIZES.usual, functions: 704, randomLongest: 256 };

const { values: options } = parseArgs({
  options: {
    suite: { type: "string", default: Object.keys(SUITES).join() },
    model: { type: "string" },
    full: { type: "boolean", default: false },
    smoke: { type: "boolean", default: false },
    out: { type: "string", default: HERE },
  },
});

function makeLists(model, sizes) {
  const functions = realFunctions(Math.max(sizes.functions, sizes.delayTexts));
  const queries = questionsAbout(functions);
  return {
    first: functions[0],
    functions,
    [`functions-${sizes.busyTexts}`]: functions.slice(0, sizes.busyTexts),
    queries,
    random: textsOfLengths(model.folder, randomLengths(sizes.randomTexts, sizes.randomLongest)),
  };
}

async function main() {
  const mode = options.smoke ? "smoke" : options.full ? "full" : "usual";
  const sizes = SIZES[mode];
  const begin = performance.now();
  const progress = (line) => console.error(`${((performance.now() - begin) / 1000).toFixed(0).padStart(4)} s  ${line}`);
  const results = { run: describeRun(mode), models: {} };
  for (const name of options.model?.split(",") ?? sizes.models) {
    const model = await prepareModel(name, { maxTokens: sizes.maxTokens, quantize: sizes.npm });
    const lists = makeLists(model, sizes);
    const texts = path.join(cacheFolder(), `texts-${name}.json`);
    writeFileSync(texts, JSON.stringify(lists));
    results.models[name] = { title: model.title };
    for (const suite of options.suite.split(",")) {
      const job = { model, texts, lists, maxTokens: sizes.maxTokens, sizes, progress };
      results.models[name][suite] = await SUITES[suite](job);
      // After every suite, so that a run that is broken off leaves what it has.
      write(results, (performance.now() - begin) / 1000);
    }
  }
  console.log(report(results));
}

function write(results, seconds) {
  results.run.seconds = Math.round(seconds);
  results.run.load[1] = os.loadavg()[0];
  mkdirSync(options.out, { recursive: true });
  writeFileSync(path.join(options.out, "RESULTS.md"), report(results));
  // Four digits: differences beyond are noise.
  const short = (_, value) => (typeof value === "number" ? Number(value.toPrecision(4)) : value);
  writeFileSync(path.join(options.out, "results.json"), `${JSON.stringify(results, short)}\n`);
}

await main();
