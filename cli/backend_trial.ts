/**
 * Tries one backend for `doctor`, in a separate process: a library that crashes its process is one of the problems to be
 * found.
 */

import { fork } from "node:child_process";
import type { Adapter } from "../lib/engine.js";
import type { LoadOptions } from "../lib/load_options.js";

export interface TrialRequest {
  model: string;
  options: LoadOptions;
  texts: readonly string[];
  /** How long to measure the speed of texts, and then of queries; 0 skips it. */
  measureMs: number;
  /** Whether to write the ONNX graph into the model folder afterwards. */
  exportsGraph: boolean;
}

export interface Trial {
  backend: string;
  isGpu: boolean;
  adapter: Adapter | null;
  dimension: number;
  maxTokens: number;
  pooling: readonly string[];
  fingerprint: string;
  loadMs: number;
  vectors: number[][];
  /** Largest difference in a component if a text is computed alone. */
  aloneDifference: number;
  textsPerSecond: number | null;
  queryP50Ms: number | null;
}

export interface TrialFailure {
  code: string;
  message: string;
}

export type TrialOutcome = { trial: Trial } | { failure: TrialFailure };

/** If loading and computing take longer, something is wrong. */
const TIMEOUT_MS = 180_000;

/** Runs a trial in a child process, which the signal ends. */
export function tryBackend(request: TrialRequest, signal: AbortSignal): Promise<TrialOutcome> {
  return new Promise((resolve, reject) => {
    const child = fork(__filename, { execArgv: [], stdio: ["ignore", "ignore", "pipe", "ipc"], timeout: TIMEOUT_MS });
    const end = () => {
      child.kill("SIGKILL");
      reject(signal.reason);
    };
    signal.addEventListener("abort", end, { once: true });
    let complaints = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      complaints = (complaints + text).slice(-2000);
    });
    let outcome: TrialOutcome | undefined;
    child.on("message", (message) => {
      outcome = message as TrialOutcome;
    });
    child.on("error", ({ message }) => resolve({ failure: { code: "CRASHED", message } }));
    child.on("close", (status, killedBy) => {
      signal.removeEventListener("abort", end);
      const last = complaints.trim().split("\n").at(-1) ?? "";
      const message = `the process ended with ${killedBy ?? `exit code ${status}`}${last && `: ${last}`}`;
      resolve(outcome ?? { failure: { code: killedBy === "SIGTERM" ? "TIMEOUT" : "CRASHED", message } });
    });
    child.send(request);
  });
}

async function runTrial({ model, options, texts, measureMs, exportsGraph }: TrialRequest): Promise<TrialOutcome> {
  const { Embedder, exportOnnx } = await import("../embedder.js");
  try {
    const start = performance.now();
    const embedder = await Embedder.load(model, { ...options, queryCacheSize: 0 });
    const loadMs = performance.now() - start;
    const vectors = await embedder.embed(texts);
    let aloneDifference = 0;
    for (const [index, text] of texts.entries()) {
      const [alone = new Float32Array()] = await embedder.embed([text]);
      aloneDifference = Math.max(aloneDifference, maxDifference(alone, vectors[index] ?? alone));
    }
    const { backend, isGpu, dimension, maxTokens, pooling, fingerprint } = embedder;
    const textsPerSecond = measureMs > 0 ? await measureTexts(embedder, measureMs) : null;
    const queryP50Ms = measureMs > 0 ? await measureQueries(embedder, measureMs) : null;
    const { adapter } = await embedder.info();
    await embedder.close();
    if (exportsGraph) await exportOnnx(model, options);
    return {
      trial: {
        ...{ backend, isGpu, adapter, dimension, maxTokens, pooling, fingerprint, loadMs, aloneDifference },
        ...{ textsPerSecond, queryP50Ms, vectors: vectors.map((vector) => Array.from(vector)) },
      },
    };
  } catch (error) {
    const { code = "UNEXPECTED", message } = error as { code?: string; message: string };
    return { failure: { code, message } };
  }
}

/** About sixty tokens, like a short function; each text differs, since equal ones are computed once. */
function sampleText(index: number): string {
  return `function clamp${index}(value, low, high) {\n  // Returns the value, or the nearer of the two limits.\n  if (value < low) return low;\n  return value > high ? high : value + ${index} - ${index};\n}`;
}

type Embedding = Pick<import("../embedder.js").Embedder, "embed" | "embedQuery">;

async function measureTexts(embedder: Embedding, durationMs: number): Promise<number> {
  const BATCH = 16;
  let texts = 0;
  const start = performance.now();
  while (performance.now() - start < durationMs) {
    await embedder.embed(Array.from({ length: BATCH }, (_, index) => sampleText(texts + index)));
    texts += BATCH;
  }
  return texts / ((performance.now() - start) / 1000);
}

async function measureQueries(embedder: Embedding, durationMs: number): Promise<number> {
  const times: number[] = [];
  for (const end = performance.now() + durationMs; times.length < 50 && performance.now() < end; ) {
    const start = performance.now();
    await embedder.embedQuery(`where is value ${times.length} kept between its limits?`);
    times.push(performance.now() - start);
  }
  times.sort((a, b) => a - b);
  return times[times.length >> 1] ?? Number.NaN;
}

export function maxDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let max = 0;
  for (let index = 0; index < a.length; index++) max = Math.max(max, Math.abs((a[index] ?? 0) - (b[index] ?? 0)));
  return max;
}

// This file is also the program of the child process.
if (require.main === module) {
  process.once("disconnect", () => process.exit());
  process.once("message", (request) => {
    runTrial(request as TrialRequest).then((outcome) => process.send?.(outcome, () => process.disconnect()));
  });
}
