/**
 * `npm run soak -- --minutes=10 --backend=onnx --seed=1`: everything that callers do, at once, for as long as asked.
 *
 * Worker threads embed, stream, query, abort, leave streams early, pass what is wrong, close and load again. Each vector
 * is compared with one that was computed before; each error must be one that the call asked for. Work comes in rounds:
 * after each, no model is loaded and no worker runs, so that memory, descriptors and threads of the process and its
 * children are to be what they were. A wrong vector, any other error, a call that does not end, or growth is a failure:
 * exit code 1.
 *
 * Options: `--minutes`, `--rounds` (how many they are divided into), `--backend` (onnx, cpu, onnx-js, mlx, webgpu), `--dtype` (f32, bf16,
 * int8), `--seed`, `--workers`, `--model` (a folder; default: a small model of the tests), `--spoil` (expects wrong vectors,
 * to see that they are found).
 */

import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import * as v8 from "node:v8";
import * as vm from "node:vm";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { Random } from "./random.mjs";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const { Embedder, EmbedderError, exportOnnx } = createRequire(import.meta.url)("../dist/embedder.js");

/** Calls that a worker has open at a time. */
const LANES = 4;
/** Calls of a lane in a round, however slow the machine is. */
const FEWEST_CALLS = 6;
/** Far more than any call takes, also where other programs take nearly all of the machine. */
const HANG_MS = 600_000;
const ENCODINGS = ["float32", "int8", "binary"];
/** Largest difference of two float32 vectors' numbers where they need not be the same bits. */
const TOLERANCE = 1e-5;

/** Texts of many lengths, with repetitions and what tokenizers stumble over. */
function makeTexts(random) {
  const words = [
    "return",
    "sum",
    "of",
    "two",
    "numbers",
    "İstanbul",
    "漢字",
    "e\u0301",
    "\u0000",
    "[MASK]",
    "🙂",
    "x".repeat(99),
  ];
  const text = (length) => Array.from({ length }, () => random.of(words)).join(" ");
  const texts = Array.from({ length: 240 }, (_, index) => text(index % 7 === 0 ? random.below(600) : random.below(40)));
  return [...texts, "", " ", ...texts.slice(0, 20)];
}

// ---- A worker's life

class Failure extends Error {}

/** Runs calls in some lanes until told to end, and counts them. */
async function work({ model, options, texts, expected, isExact, seed, untilMs }) {
  const counts = {};
  let embedder = await Embedder.load(model, options);
  const { fingerprint } = embedder;

  const count = (name) => (counts[name] = (counts[name] ?? 0) + 1);

  function check(what, index, vector, kind, encoding = "float32") {
    const reference = expected[kind][encoding][index];
    const isEqual =
      isExact || encoding !== "float32"
        ? vector.length === reference.length && vector.every((number, place) => Object.is(number, reference[place]))
        : vector.length === reference.length &&
          vector.every((number, place) => Math.abs(number - reference[place]) <= TOLERANCE);
    // Without exactness a number may lie on either side of a step.
    if (!isEqual && (isExact || encoding === "float32")) {
      throw new Failure(`${what}: wrong vector for text ${index} (${kind}, ${encoding})`);
    }
  }

  const some = (random) => Array.from({ length: 1 + random.below(60) }, () => random.below(texts.length));

  const OPERATIONS = {
    async embed(random) {
      const indices = some(random);
      const [kind, encoding] = [random.of(["query", "document"]), random.of(ENCODINGS)];
      const vectors = await embedder.embed(
        indices.map((index) => texts[index]),
        { kind, encoding },
      );
      for (const [place, index] of indices.entries()) check("embed", index, vectors[place], kind, encoding);
    },
    async query(random) {
      const index = random.below(texts.length);
      check("embedQuery", index, await embedder.embedQuery(texts[index]), "query");
    },
    async stream(random) {
      const indices = some(random);
      const leaveAt = random.of([1, 5, Number.POSITIVE_INFINITY]);
      let seen = 0;
      for await (const { index, vector } of embedder.stream(indices.map((index) => texts[index]))) {
        check("stream", indices[index], vector, "document");
        if (++seen >= leaveAt) break;
      }
      if (leaveAt > indices.length && seen !== indices.length)
        throw new Failure(`stream: ${seen} of ${indices.length} vectors`);
    },
    async abort(random) {
      const indices = some(random);
      const signal = AbortSignal.timeout(random.below(20));
      try {
        const vectors = await embedder.embed(
          indices.map((index) => texts[index]),
          { signal },
        );
        for (const [place, index] of indices.entries()) check("embed with a signal", index, vectors[place], "document");
      } catch (error) {
        if (!(error instanceof EmbedderError) || error.code !== "ABORT_ERR") throw error;
      }
    },
    async "wrong argument"(random) {
      const calls = [
        () => embedder.embed("text"),
        () => embedder.embed(["text", 1]),
        () => embedder.embed(["text"], { kind: "both" }),
        () => embedder.embed(["text"], { kinds: "query" }),
        () => embedder.embedQuery(null),
        async () => embedder.stream(1),
        async () => {
          for await (const _ of embedder.stream(["text", undefined]));
        },
      ];
      await refused("INVALID_ARGUMENT", random.of(calls));
    },
    async "wrong model"() {
      await refused("MODEL_NOT_FOUND", () => Embedder.load("./no/such/folder", options));
    },
    async info() {
      const info = await embedder.info();
      if (info.fingerprint !== fingerprint) throw new Failure("info: another fingerprint");
    },
    /** Under the calls of the other lanes. */
    async reload() {
      const old = embedder;
      embedder = await Embedder.load(model, options);
      if (embedder.fingerprint !== fingerprint) throw new Failure("reload: another fingerprint");
      await old.close();
    },
  };
  const CHOICES = ["embed", "embed", "embed", "query", "query", "query", "stream", "stream", "abort", "abort"];
  const RARE = ["wrong argument", "wrong model", "info", "reload"];

  async function refused(code, call) {
    const error = await call().then(
      () => new Failure(`expected ${code}, but the call went through`),
      (error) => error,
    );
    if (!(error instanceof EmbedderError) || error.code !== code) throw error;
  }

  async function lane(number) {
    const random = new Random(seed + number);
    for (let calls = 0; calls < FEWEST_CALLS || Date.now() < untilMs; calls++) {
      const name = random.below(8) === 0 ? random.of(RARE) : random.of(CHOICES);
      const used = embedder;
      let timer;
      const hang = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Failure(`${name} did not end within ${HANG_MS / 1000} s`)), HANG_MS);
      });
      try {
        await Promise.race([OPERATIONS[name](random), hang]);
        count(name);
      } catch (error) {
        // What another lane has closed.
        if (error instanceof EmbedderError && error.code === "CLOSED" && used !== embedder)
          count("closed under a call");
        else throw error;
      } finally {
        clearTimeout(timer);
      }
      parentPort.postMessage({ alive: true });
    }
  }

  await Promise.all(Array.from({ length: LANES }, (_, number) => lane(number)));
  await embedder.close();
  parentPort.postMessage({ counts });
}

// ---- The main thread

function settings() {
  const { values } = parseArgs({
    options: {
      minutes: { type: "string", default: "10" },
      rounds: { type: "string", default: "12" },
      backend: { type: "string", default: "onnx" },
      dtype: { type: "string", default: "f32" },
      seed: { type: "string", default: "1" },
      workers: { type: "string", default: "2" },
      model: { type: "string" },
      spoil: { type: "boolean", default: false },
    },
  });
  const number = (name) => {
    const parsed = Number(values[name]);
    if (!(parsed > 0)) throw new Error(`--${name}: expected a positive number, found ${values[name]}`);
    return parsed;
  };
  const numbers = {
    minutes: number("minutes"),
    rounds: number("rounds"),
    seed: number("seed"),
    workers: number("workers"),
  };
  return { ...values, ...numbers };
}

/**
 * Process ids of this process and of everything below it that runs. Linux only: elsewhere this process alone. What has
 * ended and is waited for by nobody does not count: Node.js leaves such an entry of a child process whose worker thread was
 * terminated (docs/hosts.md).
 */
function family() {
  if (process.platform !== "linux") return [process.pid];
  const children = new Map();
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    const [state, parent] =
      readProcess(pid, "stat")
        ?.replace(/^.*\) /s, "")
        .split(" ") ?? [];
    if (parent && state !== "Z") children.set(parent, [...(children.get(parent) ?? []), pid]);
  }
  const below = (pid) => [pid, ...(children.get(pid) ?? []).flatMap(below)];
  return below(String(process.pid));
}

/** A file of /proc; nothing where the process has ended. */
function readProcess(pid, file) {
  try {
    return readFileSync(`/proc/${pid}/${file}`, "utf8");
  } catch {
    return undefined;
  }
}

function usage() {
  if (process.platform !== "linux")
    return { memory: process.memoryUsage.rss(), descriptors: 0, threads: 0, processes: 1 };
  const processes = family();
  const entries = (pid, folder) => {
    try {
      return readdirSync(`/proc/${pid}/${folder}`).length;
    } catch {
      return 0;
    }
  };
  const sum = (of) => processes.reduce((total, pid) => total + of(pid), 0);
  const resident = (pid) => 1024 * Number(/^VmRSS:\s+(\d+)/m.exec(readProcess(pid, "status") ?? "")?.[1] ?? 0);
  return {
    memory: sum(resident),
    descriptors: sum((pid) => entries(pid, "fd")),
    threads: sum((pid) => entries(pid, "task")),
    processes: processes.length,
  };
}

/** How much each may grow: what allocators and lazily started pools of threads keep. */
const SLACK = { memory: 48 * 2 ** 20, descriptors: 2, threads: 4, processes: 0 };

/** What grew between the rounds of the second third, after warm-up, and those of the last. */
export function growth(samples) {
  const third = Math.max(1, Math.floor(samples.length / 3));
  const middle = samples.slice(third, 2 * third);
  const last = samples.slice(-third);
  const failures = [];
  for (const [name, slack] of Object.entries(SLACK)) {
    // The lowest: what is kept for good is there after every round.
    const before = Math.min(...middle.map((sample) => sample[name]));
    const after = Math.min(...last.map((sample) => sample[name]));
    if (after > before + slack)
      failures.push(`${name} grew from ${before} to ${after} between rounds without any model`);
  }
  return failures;
}

/** One round of workers; resolves to what they counted. One of them is terminated in the middle of its calls. */
async function round(shared, workers, seed, milliseconds) {
  const untilMs = Date.now() + milliseconds;
  const random = new Random(seed);
  const totals = {};
  const lives = Array.from({ length: workers }, (_, index) => {
    const worker = new Worker(fileURLToPath(import.meta.url), {
      workerData: { ...shared, untilMs, seed: seed + 100 * index },
    });
    const isKilled = index > 0 && index === workers - 1;
    return new Promise((resolve, reject) => {
      let watchdog;
      const watch = () => {
        clearTimeout(watchdog);
        const hung = () => reject(new Failure(`a worker's event loop was blocked for ${HANG_MS / 1000} s`));
        watchdog = setTimeout(hung, HANG_MS);
      };
      watch();
      const killer = isKilled && setTimeout(() => worker.terminate(), milliseconds * (0.3 + 0.6 * random.next()));
      worker.on("message", ({ counts }) => {
        watch();
        for (const [name, count] of Object.entries(counts ?? {})) totals[name] = (totals[name] ?? 0) + count;
      });
      worker.on("error", reject);
      worker.on("exit", () => {
        clearTimeout(watchdog);
        clearTimeout(killer);
        resolve();
      });
    });
  });
  await Promise.all(lives);
  return totals;
}

async function main() {
  const { minutes, rounds, backend, dtype, seed, workers, model: given, spoil } = settings();
  v8.setFlagsFromString("--expose-gc");
  const collectGarbage = vm.runInNewContext("gc");
  const scratch = mkdtempSync(path.join(os.tmpdir(), "semantic-search-soak-"));
  const model = path.join(scratch, "model");
  const failures = [];
  const totals = {};
  const samples = [];
  try {
    cpSync(given ?? path.join(ROOT, "tests/fixtures/nomic_cls"), model, { recursive: true, dereference: true });
    process.env.SEMANTIC_SEARCH_CACHE = path.join(scratch, "cache");
    if (backend === "onnx-js") await exportOnnx(model, { dtype });
    const options = { backend, dtype, maxTokens: 256, threads: 2 };
    const texts = makeTexts(new Random(seed));
    const expected = await references(model, options, texts);
    if (spoil) for (const vector of expected.document.float32) vector.fill(0);
    const shared = { model, options, texts, expected, isExact: !["mlx", "webgpu"].includes(backend) };
    const start = Date.now();
    for (let number = 0; number < rounds && failures.length === 0; number++) {
      const left = start + minutes * 60_000 - Date.now();
      const counts = await round(
        shared,
        workers,
        seed * 1000 + number * 10_000,
        Math.max(500, left / (rounds - number)),
      );
      for (const [name, count] of Object.entries(counts)) totals[name] = (totals[name] ?? 0) + count;
      collectGarbage();
      const { memory, descriptors, threads, processes } = usage();
      samples.push({ memory, descriptors, threads, processes });
      console.log(
        `round ${number + 1}/${rounds}: ${Object.values(counts).reduce((a, b) => a + b, 0)} calls, ` +
          `${(memory / 2 ** 20).toFixed(0)} MiB, ${descriptors} descriptors, ${threads} threads, ${processes} processes`,
      );
    }
    failures.push(...growth(samples));
  } catch (error) {
    failures.push(error instanceof EmbedderError ? `${error.code}: ${error.stack}` : error.stack);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  console.table(totals);
  for (const failure of failures) console.error(`FAIL: ${failure}`);
  console.log(
    failures.length === 0 ? "passed" : `failed; again with --seed=${seed} --backend=${backend} --dtype=${dtype}`,
  );
  // Whatever still hangs must not hold the process.
  process.exit(failures.length === 0 ? 0 : 1);
}

/** The vectors of all texts, of each kind and encoding. */
async function references(model, options, texts) {
  const embedder = await Embedder.load(model, options);
  const expected = {};
  for (const kind of ["query", "document"]) {
    expected[kind] = {};
    for (const encoding of ENCODINGS) expected[kind][encoding] = await embedder.embed(texts, { kind, encoding });
  }
  await embedder.close();
  return expected;
}

if (!isMainThread) await work(workerData);
else if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
