/** Turns the observations of `doctor` into a report: facts, comparisons, and a fix for each problem. */

import { accessSync, constants, existsSync, readdirSync, statSync } from "node:fs";
import * as path from "node:path";
import { packageCacheFolder } from "../lib/cache_folder.js";
import { BACKENDS, type BackendName } from "../lib/engine.js";
import { hubSettings } from "../lib/hub/settings.js";
import { maxDifference, type Trial, type TrialOutcome } from "./backend_trial.js";
import type { Machine } from "./machine.js";

export type Trials = Map<BackendName, TrialOutcome>;

/** A problem, or something worth knowing, and what to do about it. */
export interface Finding {
  isProblem: boolean;
  what: string;
  fix: string | null;
}

export type BackendReport =
  | ({ backend: BackendName; works: true } & Omit<Trial, "vectors" | "backend">)
  | { backend: BackendName; works: false; code: string; reason: string };

/** Two backends' vectors of the same texts. */
export interface Parity {
  backend: BackendName;
  against: BackendName;
  maxDifference: number;
  minCosine: number;
  isWithinTolerance: boolean;
}

export interface CacheFolder {
  use: string;
  path: string;
  exists: boolean;
  isWritable: boolean;
  /** `null` if computing it would take too long. */
  bytes: number | null;
}

export interface Report {
  ok: boolean;
  machine: Machine;
  model: string | null;
  backends: BackendReport[];
  parity: Parity[];
  caches: CacheFolder[];
  findings: Finding[];
}

/** Most that a component may differ between backends in float32, and between a text alone and in a batch. */
const TOLERANCE = 1e-5;

/** @param model `null` for the tiny one */
export function diagnose(machine: Machine, model: string | null, trials: Trials): Report {
  const backends = [...trials].map(([backend, outcome]) => backendReport(backend, outcome));
  const parity = compareBackends(trials);
  const caches = [...packageCache(), hubCache()];
  const findings = [
    ...machineFindings(machine),
    ...environmentFindings(),
    ...backendFindings(backends, machine, model),
    ...vectorFindings(backends, parity),
    ...caches.flatMap(cacheFindings),
  ];
  return { ok: !findings.some(({ isProblem }) => isProblem), machine, model, backends, parity, caches, findings };
}

const problem = (what: string, fix: string): Finding => ({ isProblem: true, what, fix });
const note = (what: string, fix: string | null = null): Finding => ({ isProblem: false, what, fix });

function backendReport(backend: BackendName, outcome: TrialOutcome): BackendReport {
  if ("failure" in outcome) {
    const { code, message } = outcome.failure;
    return { backend, works: false, code, reason: message };
  }
  const { vectors: _, ...trial } = outcome.trial;
  return { ...trial, backend, works: true };
}

/** Compares each working backend with the first one. */
function compareBackends(trials: Trials): Parity[] {
  const working = [...trials].flatMap(([backend, outcome]) =>
    "trial" in outcome ? [{ backend, vectors: outcome.trial.vectors }] : [],
  );
  const [reference, ...others] = working;
  if (!reference) return [];
  return others.map(({ backend, vectors }) => {
    const pairs = vectors.map((vector, index) => [vector, reference.vectors[index] ?? []] as const);
    const difference = Math.max(...pairs.map(([a, b]) => maxDifference(a, b)));
    return {
      backend,
      against: reference.backend,
      maxDifference: difference,
      minCosine: Math.min(...pairs.map(([a, b]) => cosine(a, b))),
      isWithinTolerance: difference <= TOLERANCE,
    };
  });
}

function cosine(a: readonly number[], b: readonly number[]): number {
  const dot = (x: readonly number[], y: readonly number[]) => x.reduce((sum, value, i) => sum + value * (y[i] ?? 0), 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

function machineFindings(machine: Machine): Finding[] {
  const findings: Finding[] = [];
  if (Number.parseInt(machine.node, 10) < 20) {
    findings.push(problem(`Node.js ${machine.node} is too old`, "install Node.js 20 or newer"));
  }
  if (machine.libc === "musl") {
    findings.push(
      problem(
        "this Linux uses musl (Alpine), for which there is no ONNX Runtime library",
        "use an image with glibc, such as node:22-slim",
      ),
    );
  }
  if (machine.isTranslated) {
    findings.push(
      problem("this Node.js is for x64 and runs emulated on Apple silicon", "install Node.js for arm64: MLX needs it"),
    );
  }
  if (machine.processorLimit !== null && machine.threads > Math.ceil(machine.processorLimit)) {
    findings.push(
      problem(
        `computations use ${machine.threads} threads, but the container may use only ${machine.processorLimit} processors`,
        `pass threads: ${Math.max(1, Math.floor(machine.processorLimit))} (--threads)`,
      ),
    );
  }
  if (machine.onnxruntimeNode === null) {
    findings.push(problem("the package onnxruntime-node is not installed", "npm install onnxruntime-node"));
  }
  return findings;
}

/** Environment variables that change how everything works. */
function environmentFindings(): Finding[] {
  const findings: Finding[] = [];
  const { SEMANTIC_SEARCH_BACKEND: backend, ORT_DYLIB_PATH: library } = process.env;
  if (backend && !(BACKENDS as readonly string[]).includes(backend)) {
    findings.push(
      problem(
        `SEMANTIC_SEARCH_BACKEND is ${JSON.stringify(backend)}`,
        'unset it, or set it to "mlx", "onnx" or "onnx-js"',
      ),
    );
  } else if (backend && backend !== "auto") {
    findings.push(note(`SEMANTIC_SEARCH_BACKEND makes every "auto" mean ${backend}`, "unset it"));
  }
  if (library && !existsSync(library)) {
    findings.push(problem(`ORT_DYLIB_PATH names ${library}, which does not exist`, "unset it, or correct the path"));
  } else if (library) {
    findings.push(note(`the addon takes ONNX Runtime from ORT_DYLIB_PATH, ${library}`));
  }
  return findings;
}

const MODEL_FIXES: Record<string, string> = {
  MODEL_NOT_FOUND: "check the path or name; the README lists the files of a model folder",
  ACCESS_DENIED: "see the message: the model is private or gated, or the token in HF_TOKEN is wrong",
  DOWNLOAD_FAILED: "see the message; behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT",
  MODEL_INVALID: "fetch the named file again",
  MODEL_UNSUPPORTED: "pass the option that the message names, or choose a model from the README's table",
};

function backendFindings(backends: readonly BackendReport[], machine: Machine, model: string | null): Finding[] {
  const failed = (name: BackendName) => {
    const report = backends.find(({ backend }) => backend === name);
    return report && !report.works ? report : undefined;
  };
  const [onnx, fallback, mlx] = [failed("onnx"), failed("onnx-js"), failed("mlx")];
  const modelFix = onnx && MODEL_FIXES[onnx.code];
  // A wrong model is wrong for all backends: this is one problem, not three.
  if (onnx && modelFix) return [problem(`the model: ${onnx.reason}`, modelFix)];

  const findings: Finding[] = [];
  if (onnx) findings.push(problem(`the addon does not work: ${onnx.reason}`, addonFix(onnx, machine)));
  if (fallback) findings.push(fallbackFinding(fallback, onnx !== undefined, model));
  if (mlx && !onnx) findings.push(...mlxFindings(mlx, machine));
  for (const report of backends) {
    if (report.backend !== "mlx" || !report.works || report.isGpu) continue;
    findings.push(note('mlx computes on the CPU here, which is for tests: "auto" takes onnx'));
  }
  return findings;
}

function addonFix({ code, reason }: { code: string; reason: string }, { arch, platform }: Machine): string {
  if (code === "CRASHED") return 'report this with the output of doctor --json; until then pass backend: "onnx-js"';
  if (code === "TIMEOUT") return "check whether the machine is out of memory or its processors are busy";
  if (/addon cannot be loaded/.test(reason)) {
    return `build it for ${platform} ${arch} (npm run build:native in a clone); without it, the slower JavaScript fallback is used`;
  }
  if (/ONNX Runtime|onnxruntime/i.test(reason)) {
    return "npm install onnxruntime-node, or name a libonnxruntime of version 1.24 or newer: ORT_DYLIB_PATH";
  }
  return "see the message";
}

function fallbackFinding(
  { code, reason }: { code: string; reason: string },
  isNeeded: boolean,
  model: string | null,
): Finding {
  const isMissing = code === "MODEL_NOT_FOUND";
  // Only the addon can write the tiny model's graph.
  if (isMissing && model === null) {
    return note("the JavaScript fallback was not tried: without the addon the tiny model has no graph", "name a model");
  }
  const what = `the JavaScript fallback does not work: ${reason}`;
  if (isMissing) {
    const fix = `semantic-search-native export ${model}${isNeeded ? ", on a machine where the addon works" : ""}`;
    return isNeeded ? problem(what, fix) : note(`${what}; it is not needed while the addon works`, fix);
  }
  return problem(
    what,
    "npm install onnxruntime-node; if it is installed, report this with the output of doctor --json",
  );
}

function mlxFindings({ code, reason }: { code: string; reason: string }, { platform, arch }: Machine): Finding[] {
  const isApple = platform === "darwin" && arch === "arm64";
  if (isApple || code !== "BACKEND_UNAVAILABLE") {
    const fix = 'report this with the output of doctor --json; until then pass backend: "onnx"';
    return [problem(`mlx does not work: ${reason}`, fix)];
  }
  return platform === "linux" ? [note(`mlx: ${reason}`, "npm run build:native -- --mlx=cuda, for an NVIDIA GPU")] : [];
}

function vectorFindings(backends: readonly BackendReport[], parity: readonly Parity[]): Finding[] {
  const advice = "report this with the output of doctor --json; vectors of these backends must not share an index";
  const findings = parity
    .filter(({ isWithinTolerance }) => !isWithinTolerance)
    .map(({ backend, against, maxDifference: difference, minCosine }) =>
      problem(
        `${backend} and ${against} differ by ${difference.toExponential(1)} in a component, by more than ${TOLERANCE} ` +
          `(lowest cosine ${minCosine.toFixed(6)})`,
        advice,
      ),
    );
  for (const report of backends) {
    if (!report.works || report.aloneDifference <= TOLERANCE) continue;
    const by = report.aloneDifference.toExponential(1);
    findings.push(problem(`${report.backend}: a text's vector depends on its neighbors, by ${by}`, advice));
  }
  const prints = new Map(backends.flatMap((report) => (report.works ? [[report.fingerprint, report.backend]] : [])));
  if (prints.size > 1) {
    const names = [...prints.values()].join(", ");
    findings.push(
      problem(
        `backends disagree about what the model is (fingerprints of ${names})`,
        "the ONNX file of the folder has other weights than its safetensors: semantic-search-native export",
      ),
    );
  }
  return findings;
}

function packageCache(): CacheFolder[] {
  const folder = packageCacheFolder();
  return folder === undefined ? [] : [cacheFolder("quantized weights", path.join(folder, "quantized"), true)];
}

/** The cache that all clients of the Hugging Face Hub share. */
function hubCache(): CacheFolder {
  return cacheFolder("models of the Hub", hubSettings({ token: false }).cacheFolder, false);
}

function cacheFolder(use: string, folder: string, isCounted: boolean): CacheFolder {
  const exists = existsSync(folder);
  let existing = folder;
  while (!existsSync(existing) && path.dirname(existing) !== existing) existing = path.dirname(existing);
  let isWritable = statSync(existing).isDirectory();
  try {
    accessSync(existing, constants.W_OK);
  } catch {
    isWritable = false;
  }
  const bytes = exists && isCounted ? sizeOfFiles(folder) : null;
  return { use, path: folder, exists, isWritable, bytes };
}

function sizeOfFiles(folder: string): number {
  const sizes = readdirSync(folder).map((name) => statSync(path.join(folder, name), { throwIfNoEntry: false })?.size);
  return sizes.reduce<number>((sum, bytes) => sum + (bytes ?? 0), 0);
}

function cacheFindings({ use, path: folder, isWritable }: CacheFolder): Finding[] {
  if (isWritable) return [];
  const variable = use === "quantized weights" ? "SEMANTIC_SEARCH_CACHE" : "HF_HUB_CACHE";
  return [
    problem(`the folder for ${use} cannot be written: ${folder}`, `make it writable, or name another: ${variable}`),
  ];
}
