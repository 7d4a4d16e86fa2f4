/**
 * `node benches/mlx/run.mjs`: the addon on MLX beside Python's MLX, with the same weights, texts and BLAS, in one run.
 *
 * Per round both contestants start as fresh processes. Then each task is timed in one and in the other, by turns, so that
 * what else the machine does meets both; the other one waits meanwhile. A ratio is the median over all such pairs of
 * Python's time by ours. Before any timing their vectors are compared.
 *
 * Protocol, one JSON value a line: a contestant first says `{ name, device, blas }`; `{ task, want: "vectors" }` asks for
 * the vectors of a task, `{ task, want: "seconds", runs }` for the mean `{ wall, cpu }` of so many runs in seconds; `cpu` is
 * that of all threads of the process, which other work on the machine disturbs less.
 *
 * Node.js prints "pthread_create: Invalid argument" where OpenBLAS is preloaded: the thread that would wait for a debugger
 * has too small a stack for OpenBLAS. It is harmless.
 *
 * Options: --rounds=7 --layers=2 --threads=<all> --package=<folder with dist and the addon> --blas=<library|none> --out=<folder>
 */

import { spawn, spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { functionsBelow } from "../../scripts/functions.mjs";
import { installStarterModel, ROOT } from "../../scripts/setup.mjs";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const MAX_TOKENS = 256;
const REAL_TEXTS = 64;
const BATCH_SIZES = [1, 8, 32];
const LENGTHS = [32, 64, 128];
/** Tokens that a request for times computes at least, and a round for each side of a task: short tasks are repeated. */
const TOKENS_PER_REQUEST = 256;
const TOKENS_PER_ROUND = 2048;
const LEAST_COSINE = 0.9999;
/** How long OpenBLAS's threads spin after work, with room: the next contestant shall find the cores free. */
const PAUSE_MS = 60;

const { values: options } = parseArgs({
  options: {
    rounds: { type: "string", default: "7" },
    threads: { type: "string", default: String(os.availableParallelism()) },
    layers: { type: "string", default: "2" },
    package: { type: "string", default: ROOT },
    blas: { type: "string", default: "libopenblas.so.0" },
    out: { type: "string", default: HERE },
  },
});

function run(program, args) {
  const { status, error } = spawnSync(program, args, { stdio: ["ignore", "inherit", "inherit"] });
  if (status !== 0) throw new Error(`${path.basename(program)} failed`, { cause: error });
}

function cacheFolder() {
  const user = process.env.XDG_CACHE_HOME || path.join(os.homedir(), ".cache");
  return path.join(process.env.SEMANTIC_SEARCH_CACHE || path.join(user, "semantic-search-native"), "bench-mlx");
}

/** Python with the pinned packages; made anew when `requirements.txt` changes. */
function installPython(cache) {
  const venv = path.join(cache, "venv");
  const stamp = path.join(venv, "requirements.txt");
  const requirements = path.join(HERE, "requirements.txt");
  if (!existsSync(stamp) || readFileSync(stamp, "utf8") !== readFileSync(requirements, "utf8")) {
    run("python3", ["-m", "venv", "--clear", venv]);
    run(path.join(venv, "bin/pip"), ["install", "--quiet", "--disable-pip-version-check", "-r", requirements]);
    copyFileSync(requirements, stamp);
  }
  return path.join(venv, "bin/python");
}

/** The random model, with the tokenizer of the starter model (BERT's, as NomicBert's). */
function makeModel(cache, python, tokenizerDir) {
  const model = path.join(cache, `nomic-bert-${options.layers}-layers`);
  run(python, [path.join(HERE, "random_model.py"), model, options.layers]);
  for (const file of ["tokenizer.json", "tokenizer_config.json"]) {
    copyFileSync(path.join(tokenizerDir, file), path.join(model, file));
  }
  return model;
}

/** Numbers from 0 to 1, the same in every run. */
function* randomNumbers() {
  let state = 1;
  while (true) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    yield state / 2 ** 32;
  }
}

/** Distinct texts of exactly so many tokens, special ones included. */
function textsOfLength(words, random, count, tokens) {
  const word = () => words[Math.floor(random.next().value * words.length)];
  return Array.from({ length: count }, () => Array.from({ length: tokens - 2 }, word).join(" "));
}

function makeTasks(modelDir) {
  const { vocab } = JSON.parse(readFileSync(path.join(modelDir, "tokenizer.json"), "utf8")).model;
  const words = Object.keys(vocab).filter((token) => /^[a-z]{3,}$/.test(token));
  const random = randomNumbers();
  const equal = LENGTHS.flatMap((tokens) =>
    BATCH_SIZES.map((count) => ({
      name: `${count} × ${tokens} tokens`,
      tokens,
      texts: textsOfLength(words, random, count, tokens),
      runs: Math.ceil(TOKENS_PER_REQUEST / (count * tokens)),
      pairs: Math.ceil(TOKENS_PER_ROUND / Math.max(TOKENS_PER_REQUEST, count * tokens)),
    })),
  );
  const distinct = [...new Set(functionsBelow(ROOT).map(({ text }) => text))];
  // Spread over the whole repository, in its order.
  const texts = Array.from({ length: REAL_TEXTS }, (_, i) => distinct[Math.floor((i * distinct.length) / REAL_TEXTS)]);
  const real = { tokens: null, texts, runs: 1, pairs: 1 };
  return [
    ...equal,
    { ...real, name: `${REAL_TEXTS} functions; Python: 32 by 32 in order`, sorted: false },
    { ...real, name: `${REAL_TEXTS} functions; Python: 32 by 32, sorted by length`, sorted: true },
  ];
}

/** What both contestants find in their environment. */
function environment() {
  const env = { ...process.env, OPENBLAS_NUM_THREADS: options.threads, OMP_NUM_THREADS: options.threads };
  if (process.platform !== "linux" || options.blas === "none") return env;
  const preloaded = { ...env, LD_PRELOAD: options.blas };
  const probe = spawnSync(process.execPath, ["-e", ""], { env: preloaded, encoding: "utf8" });
  if (!probe.stderr.includes("cannot be preloaded")) return preloaded;
  console.error(`${options.blas} is not installed: both use the BLAS of MLX's wheel, which is many times slower`);
  return env;
}

class Contestant {
  #child;
  #lines;

  constructor(program, args, env) {
    this.#child = spawn(program, args, { env, stdio: ["pipe", "pipe", "inherit"] });
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();
  }

  async next() {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error(`${path.basename(this.#child.spawnfile)} ended early`);
    return JSON.parse(value);
  }

  ask(request) {
    this.#child.stdin.write(`${JSON.stringify(request)}\n`);
    return this.next();
  }

  async end() {
    const ended = new Promise((resolve) => this.#child.on("close", resolve));
    this.#child.stdin.end();
    await ended;
  }
}

function dot(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

function cosine(a, b) {
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

/** Least cosine between the two sides over all tasks, and the greatest of neighbouring texts, which shows what it means. */
async function compareVectors(ours, theirs, tasks) {
  let least = 1;
  let neighbours = -1;
  for (const [task, { name, texts }] of tasks.entries()) {
    const [a, b] = [await ours.ask({ task, want: "vectors" }), await theirs.ask({ task, want: "vectors" })];
    if (a.length !== texts.length || b.length !== texts.length) throw new Error(`${name}: a vector is missing`);
    for (const [i, vector] of a.entries()) {
      least = Math.min(least, cosine(vector, b[i]));
      if (i > 0) neighbours = Math.max(neighbours, cosine(vector, b[i - 1]));
    }
    if (!(least >= LEAST_COSINE)) throw new Error(`${name}: the vectors differ, cosine ${least}`);
  }
  return { least, neighbours };
}

function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = (sorted.length - 1) * share;
  const [below, above] = [sorted[Math.floor(place)], sorted[Math.ceil(place)]];
  return below + (above - below) * (place % 1);
}

function median(values) {
  return quantile(values, 0.5);
}

/** Times of one round: per task a list of `{ ours, python }`, each `{ wall, cpu }` in seconds. */
async function timeRound(ours, python, tasks, isOursFirst) {
  const turns = Object.entries(isOursFirst ? { ours, python } : { python, ours });
  const samples = [];
  for (const [task, { runs, pairs, tokens }] of tasks.entries()) {
    // A shape's first run allocates; texts of mixed length have many shapes, whose first runs belong to the matter.
    if (tokens !== null) for (const [, one] of turns) await one.ask({ task, want: "seconds", runs: 1 });
    const taken = [];
    for (let pair = 0; pair < pairs; pair++) {
      const seconds = {};
      for (const [side, contestant] of turns) {
        await sleep(PAUSE_MS);
        seconds[side] = await contestant.ask({ task, want: "seconds", runs });
      }
      taken.push(seconds);
    }
    samples.push(taken);
  }
  return samples;
}

function git(...args) {
  return spawnSync("git", args, { cwd: ROOT, encoding: "utf8" }).stdout.trim();
}

/** The code that was measured; changes beside it do not count. */
function commit() {
  const changed = git("status", "--porcelain", "--", "src", "lib", "embedder.ts", "Cargo.toml", "Cargo.lock");
  return git("rev-parse", "--short=12", "HEAD") + (changed === "" ? "" : ", with uncommitted changes");
}

function report({ tasks, rounds, introductions, equality, load }) {
  const milliseconds = (seconds) => (seconds * 1000).toFixed(seconds < 0.1 ? 1 : 0);
  const row = ({ name }, task) => {
    const pairs = rounds.flatMap((round) => round[task]);
    const of = (side) => median(pairs.map((pair) => pair[side].wall));
    const ratios = (time) => pairs.map(({ ours, python }) => python[time] / ours[time]);
    const wall = ratios("wall");
    const range = `${quantile(wall, 0.25).toFixed(2)}–${quantile(wall, 0.75).toFixed(2)}`;
    const cells = [
      name,
      milliseconds(of("ours")),
      milliseconds(of("python")),
      `**${median(wall).toFixed(2)}×**`,
      range,
    ];
    return `| ${[...cells, `${median(ratios("cpu")).toFixed(2)}×`].join(" | ")} |`;
  };
  const head = (what) => [
    `| ${what} | ours, ms | Python, ms | ratio | middle half | ratio of CPU times |`,
    "|---|--:|--:|--:|--:|--:|",
  ];
  const rows = tasks.map(row);
  const isEqual = (_, task) => tasks[task].tokens !== null;
  const [ours, python] = introductions;
  const blas = (names) => names.map((name) => `\`${name}\``).join(", ") || "not known";
  return `${[
    "# The addon on MLX beside Python's MLX",
    "",
    "`node benches/mlx/run.mjs`",
    "",
    `- Machine: ${os.cpus().length} × ${os.cpus()[0].model.trim()}, ${os.type()} ${os.machine()}; load average ${load.map((value) => value.toFixed(1)).join(" before, ")} after`,
    `- Ours: ${ours.name}, MLX on the ${ours.device}, commit ${commit()}; BLAS in the process: ${blas(ours.blas)}`,
    `- Python: ${python.name}, on the ${python.device}; BLAS in the process: ${blas(python.blas)}`,
    `- BLAS threads of each: ${options.threads}. The preloaded one takes the place of the wheel's libblas, and scipy_openblas is NumPy's own: \`LD_PRELOAD=${environment().LD_PRELOAD ?? ""}\``,
    `- Model: NomicBert, random float32 weights, 768 wide, 12 heads, inner 3072, ${options.layers} layers, mean pooling`,
    `- Vectors: cosine of the two sides ≥ ${equality.least.toFixed(7)}; of neighbouring texts ≤ ${equality.neighbours.toFixed(2)}`,
    `- ${rounds.length} rounds in fresh processes, short tasks several times in each, always one side right after the other: medians; the ratio is Python's time by ours, of each such pair`,
    "",
    "## Equal batches",
    "",
    "Texts of equal length. Python is given token ids, one batch, without a mask; ours is `embed`, tokenization included.",
    "Ours cuts what exceeds its budget of tokens per batch by itself.",
    "",
    ...head("batch"),
    ...rows.filter(isEqual),
    "",
    "## End to end",
    "",
    `${REAL_TEXTS} functions of this repository, at most ${MAX_TOKENS} tokens each, tokenization included. Ours is one call of \`embed\`.`,
    "",
    ...head("texts"),
    ...rows.filter((_, task) => !isEqual(_, task)),
  ].join("\n")}\n`;
}

async function main() {
  const cache = cacheFolder();
  mkdirSync(cache, { recursive: true });
  const python = installPython(cache);
  const modelDir = makeModel(cache, python, await installStarterModel());
  const tasks = makeTasks(modelDir);
  const tasksFile = path.join(cache, "tasks.json");
  writeFileSync(tasksFile, JSON.stringify({ maxTokens: MAX_TOKENS, tasks }));

  const env = environment();
  const start = () => [
    new Contestant(
      process.execPath,
      [path.join(HERE, "ours.mjs"), modelDir, tasksFile, path.resolve(options.package)],
      env,
    ),
    new Contestant(python, [path.join(HERE, "python_mlx.py"), modelDir, tasksFile], env),
  ];
  const load = [os.loadavg()[0]];
  let introductions;
  let equality;
  const rounds = [];
  // The round before the first compares.
  for (let round = -1; round < Number(options.rounds); round++) {
    const [ours, theirs] = start();
    introductions = [await ours.next(), await theirs.next()];
    if (introductions[0].device !== introductions[1].device) throw new Error("one uses a GPU, the other does not");
    if (round < 0) equality = await compareVectors(ours, theirs, tasks);
    else rounds.push(await timeRound(ours, theirs, tasks, round % 2 === 0));
    await Promise.all([ours.end(), theirs.end()]);
    console.error(round < 0 ? "the vectors are equal" : `round ${round + 1} of ${options.rounds}`);
    // After every round, so that a run that is broken off leaves what it has.
    if (rounds.length > 0) write({ tasks, rounds, introductions, equality, load: [load[0], os.loadavg()[0]] });
  }
  console.log(readFileSync(path.join(options.out, "RESULTS.md"), "utf8"));
}

function write(results) {
  const { tasks, rounds } = results;
  const samples = rounds.map((round) => Object.fromEntries(round.map((seconds, task) => [tasks[task].name, seconds])));
  writeFileSync(path.join(options.out, "RESULTS.md"), report(results));
  // A line per round, four digits: differences beyond are noise.
  const lines = samples.map((round) =>
    JSON.stringify(round, (_, value) => (typeof value === "number" ? Number(value.toPrecision(4)) : value)),
  );
  writeFileSync(path.join(options.out, "samples.json"), `[\n${lines.join(",\n")}\n]\n`);
}

await main();
