/**
 * `npm run bench`: how fast is it on this machine and how accurate, compared with the alternatives? Installs what it needs,
 * peers into the cache folder. Writes `RESULTS.md`, `results.json` and the charts into `results/`.
 *
 * `suites/` is what is measured, `contestants/` who is compared and how it is installed and started, `drivers/` the code
 * that runs in their processes, `models/` and `texts/` what they are given, `report/` what is made of the samples.
 *
 *   --suite=engine,peers,stages,mlx,families,processor,gpu
 *                              what to measure; `families` is one model of each family, `processor` bfloat16 and int8,
 *                              `gpu` WebGPU and MLX, where there is a GPU
 *   --model=nomic,minilm       on which models; for `families` see `models/family_model.mjs`
 *   --peers=ours-f32,candle    which peers; see `contestants/registry.mjs`
 *   --full                     25,000 symbols, more rounds, all suites on all models, large peers too
 *   --software-gpu             in the suite gpu, a GPU in software counts as one
 *   --smoke                    some seconds on tiny models without any peer, to see that the benchmark works
 *   --package=<folder>         another build of this package
 *   --out=<folder>             where the results go
 */

import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import {
  addonIsStale,
  buildAddon,
  compileTypeScript,
  installPackages,
  ROOT,
  rustEnvironment,
} from "../scripts/setup.mjs";
import { cacheFolder } from "./contestants/install.mjs";
import { measured, PEERS } from "./contestants/registry.mjs";
import { FAMILIES } from "./models/family_model.mjs";
import { prepareModel } from "./models/prepare.mjs";
import { figures } from "./report/figures.mjs";
import { report } from "./report/markdown.mjs";
import { describeRun } from "./report/provenance.mjs";
import { measureEngine } from "./suites/engine.mjs";
import { measureFamilies } from "./suites/families.mjs";
import { measureGpu } from "./suites/gpu.mjs";
import { measureMlx } from "./suites/mlx.mjs";
import { measurePeers } from "./suites/peers.mjs";
import { measureProcessor } from "./suites/processor.mjs";
import { measureStages } from "./suites/stages.mjs";
import { makeLists } from "./texts/lists.mjs";

// For all processes started from here: ONNX Runtime, which several peers use, sends telemetry to Microsoft.
process.env.ORT_DISABLE_TELEMETRY = "1";

const RESULTS = fileURLToPath(new URL("results", import.meta.url));
const SUITES = {
  engine: measureEngine,
  peers: measurePeers,
  stages: measureStages,
  mlx: measureMlx,
  families: measureFamilies,
  processor: measureProcessor,
  gpu: measureGpu,
};
/** All that is measured of a family. */
const THROUGHPUT_ONLY = {
  rounds: 1,
  equal: {},
  queries: 0,
  busyQueries: 0,
  busyTexts: 0,
  delayTexts: 0,
  randomTexts: 0,
};

/**
 * How much is measured. `suites` names the models of each suite, `perModel` and then `perSuite` what differs there; `equal`
 * says how often batches of each size are embedded; `passes` how often the symbols are, and `symbolsSeconds` limits the time
 * for them of every peer but ours; `compared` are the texts whose vectors are compared. The usual sizes take less than ten
 * minutes on two processors.
 */
const SIZES = {
  smoke: {
    suites: {
      engine: ["tiny-bert", "tiny-nomic"],
      peers: ["tiny-bert", "tiny-nomic"],
      families: ["tiny-distilbert", "tiny-qwen3"],
      gpu: ["tiny-bert"],
      processor: ["tiny-bert"],
    },
    perSuite: {
      gpu: { ...THROUGHPUT_ONLY, gpu: { lengths: [16, 32], counts: [1, 4], rounds: 1 } },
      families: THROUGHPUT_ONLY,
      processor: { ...THROUGHPUT_ONLY, queries: 10, passes: 2 },
    },
    maxTokens: 64,
    equalTokens: 32,
    npm: false,
    rounds: 1,
    functions: 24,
    chunk: 12,
    compared: { fitting: 12, cut: 4 },
    passes: 1,
    symbols: 24,
    symbolsChunk: 12,
    symbolsSeconds: Number.POSITIVE_INFINITY,
    equal: { 1: 2, 8: 1 },
    queries: 10,
    busyQueries: 5,
    busyTexts: 24,
    busyPauseMs: 0,
    delayTexts: 100,
    memoryTexts: 12,
    randomTexts: 100,
    serveTexts: 32,
    qualityPairs: 0,
    randomLongest: 64,
  },
  usual: {
    suites: { engine: ["nomic", "minilm"], peers: ["minilm"] },
    stageTexts: [1, 64],
    maxTokens: 256,
    equalTokens: 128,
    npm: true,
    rounds: 1,
    functions: 256,
    chunk: 64,
    compared: { fitting: 12, cut: 4 },
    passes: 1,
    symbols: 700,
    symbolsChunk: 100,
    symbolsSeconds: Number.POSITIVE_INFINITY,
    equal: { 1: 8, 8: 3, 32: 2 },
    queries: 40,
    busyQueries: 40,
    busyTexts: 64,
    busyPauseMs: 50,
    delayTexts: 1000,
    memoryTexts: 16,
    randomTexts: 10_000,
    serveTexts: 1024,
    qualityPairs: 1000,
    randomLongest: 128,
    perSuite: {
      families: { ...THROUGHPUT_ONLY, symbols: 256, symbolsChunk: 32, symbolsSeconds: 60 },
      gpu: {
        ...THROUGHPUT_ONLY,
        maxTokens: 512,
        functions: 64,
        compared: { fitting: 32, cut: 16 },
        gpu: { lengths: [128, 512], counts: [1, 8, 32, 64], rounds: 3 },
      },
      processor: {
        ...THROUGHPUT_ONLY,
        functions: 256,
        compared: { fitting: 64, cut: 16 },
        passes: 2,
        symbols: 256,
        symbolsChunk: 64,
        symbolsSeconds: 90,
        queries: 40,
      },
    },
    // What does not depend on the model's size is measured on the small one only.
    perModel: {
      nomic: { delayTexts: 0, randomTexts: 0, serveTexts: 0, qualityPairs: 0 },
      // MLX is slow on a CPU.
      "nomic-2-layers": { symbols: 64, symbolsChunk: 32 },
    },
  },
};
SIZES.full = {
  ...SIZES.usual,
  suites: {
    engine: ["nomic", "minilm"],
    peers: ["minilm", "nomic"],
    stages: ["nomic", "minilm"],
    mlx: ["nomic-2-layers"],
    families: Object.keys(FAMILIES),
    processor: ["minilm", "nomic"],
    gpu: ["minilm", "nomic"],
  },
  perModel: {
    ...SIZES.usual.perModel,
    nomic: {
      delayTexts: 0,
      serveTexts: 0,
      qualityPairs: 0,
      rounds: 1,
      functions: 256,
      symbols: 700,
      symbolsChunk: 50,
      symbolsSeconds: 60,
    },
  },
  rounds: 3,
  functions: 704,
  symbols: 25_000,
  symbolsChunk: 500,
  // Then a peer stops; the number of symbols that it has embedded is in the report.
  symbolsSeconds: 150,
  randomLongest: 256,
};

const { values: options } = parseArgs({
  options: {
    suite: { type: "string" },
    model: { type: "string" },
    peers: { type: "string" },
    full: { type: "boolean", default: false },
    smoke: { type: "boolean", default: false },
    "software-gpu": { type: "boolean", default: false },
    package: { type: "string", default: ROOT },
    out: { type: "string", default: RESULTS },
  },
});

/** As `npm test`, installs and builds what a fresh clone lacks. */
async function setUp() {
  await installPackages();
  await compileTypeScript();
  if (!addonIsStale()) return;
  const rust = rustEnvironment();
  if (!rust) throw new Error("the addon has to be built, which needs a Rust toolchain: see https://rustup.rs");
  console.error("building the native addon");
  await buildAddon(rust);
}

async function main() {
  const mode = options.smoke ? "smoke" : options.full ? "full" : "usual";
  const { perModel, perSuite, suites, ...common } = SIZES[mode];
  const peers = options.peers?.split(",");
  const unknown = peers?.find((name) => !PEERS[name]);
  if (unknown) throw new Error(`--peers: no peer is called ${unknown}; there are ${Object.keys(PEERS).join(", ")}`);
  if (options.package !== ROOT) measured.package = path.resolve(options.package);
  if (measured.package === ROOT) await setUp();
  const begin = performance.now();
  const secondsSince = (start) => (performance.now() - start) / 1000;
  const progress = (line) => console.error(`${secondsSince(begin).toFixed(0).padStart(4)} s  ${line}`);
  // Results that are not measured now are kept.
  const results = options.smoke ? {} : readResults();
  for (const suite of options.suite?.split(",") ?? Object.keys(suites)) {
    measured.withLarge = options.full || peers !== undefined || ["processor", "gpu"].includes(suite);
    results[suite] ??= { models: {} };
    for (const name of options.model?.split(",") ?? suites[suite] ?? SIZES.full.suites[suite]) {
      const sizes = { ...common, ...perModel?.[name], ...perSuite[suite], peers };
      if (sizes.gpu) sizes.gpu.software = options["software-gpu"];
      const model = await prepareModel(name, { maxTokens: sizes.maxTokens });
      const lists = makeLists(model.folder, sizes, suite !== "engine");
      const texts = path.join(cacheFolder(), `texts-${name}.json`);
      writeFileSync(texts, JSON.stringify(lists));
      const job = { model, texts, lists, maxTokens: sizes.maxTokens, sizes, progress };
      const run = describeRun(mode);
      const start = performance.now();
      const outcome = await SUITES[suite](job);
      if (outcome.skipped) {
        progress(`${suite}: not measured, since there is no GPU: ${outcome.skipped}`);
        if (Object.keys(results[suite].models).length === 0) delete results[suite];
        break;
      }
      run.seconds = Math.round(secondsSince(start));
      run.load[1] = os.loadavg()[0];
      results[suite].models[name] = { title: model.title, run, ...outcome };
      // After every part, so that an interrupted run leaves what it has.
      write(results);
    }
  }
  if (options.smoke) checkSmoke(results);
  const written = path.join(options.out, "RESULTS.md");
  if (existsSync(written)) console.log(readFileSync(written, "utf8"));
}

/**
 * Checks that in a smoke run every driver of this package and of ONNX Runtime has started, and that all agree.
 *
 * @throws Error naming what is wrong
 */
function checkSmoke({ engine, peers: rounds, families, processor }) {
  const drivers = [
    ...Object.values(engine?.models ?? {}).flatMap(({ samples: { throughput } }) => [
      ...Object.entries(throughput.refused).map(([name, refused]) => ({ name, refused })),
      ...Object.entries(throughput.cosines).map(([name, cosines]) => ({ name, cosines })),
    ]),
    ...[rounds, families, processor]
      .flatMap((suite) => Object.values(suite?.models ?? {}))
      .flatMap(({ peers }) =>
        Object.entries(peers).map(([name, { introduction, cosines }]) => ({
          name,
          refused: introduction.refused,
          cosines,
        })),
      ),
  ];
  for (const { name, refused, cosines } of drivers) {
    if (refused) throw new Error(`${name} did not start: ${refused}`);
    // Tiny random models quantize worse than real ones.
    const least = name.endsWith("int8") ? 0.9 : 0.9999;
    const cosine = Math.min(cosines.fitting, cosines.cut);
    if (!(cosine >= least)) throw new Error(`${name}: cosine ${cosine} to our float32, expected at least ${least}`);
  }
}

function readResults() {
  const file = path.join(options.out, "results.json");
  return existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : {};
}

function write(results) {
  mkdirSync(options.out, { recursive: true });
  const charts = figures(results);
  for (const [file, chart] of Object.entries(charts)) writeFileSync(path.join(options.out, file), chart);
  writeFileSync(path.join(options.out, "RESULTS.md"), report(results, Object.keys(charts)));
  // Four digits: the rest is noise.
  const short = (_, value) => (typeof value === "number" ? Number(value.toPrecision(4)) : value);
  writeFileSync(path.join(options.out, "results.json"), `${JSON.stringify(results, short)}\n`);
}

await main();
