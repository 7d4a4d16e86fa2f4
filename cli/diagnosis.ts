/** Turns the observations of `doctor` into a report: facts, comparisons, and a fix for each problem. */

import { accessSync, constants, existsSync, statSync } from "node:fs";
import * as path from "node:path";
import { BACKENDS, type BackendName } from "../lib/engine.js";
import { hubSettings } from "../lib/hub/settings.js";
import { maxDifference, type Trial, type TrialOutcome } from "./backend_trial.js";
import type { Machine } from "./machine.js";
import { quoted } from "./terminal.js";

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
const toleranceOf = (backend: BackendName) => (backend === "webgpu" ? 1e-3 : 1e-5);

/** @param model `null` for the tiny one */
export function diagnose(machine: Machine, model: string | null, trials: Trials): Report {
  const backends = [...trials].map(([backend, outcome]) => backendReport(backend, outcome));
  const parity = compareBackends(trials);
  const caches = [hubCache()];
  const findings = new Findings();
  checkMachine(findings, machine);
  checkEnvironment(findings);
  checkBackends(findings, backends, machine, model);
  checkVectors(findings, backends, parity);
  for (const cache of caches) checkCache(findings, cache);
  const { list } = findings;
  return { ok: !list.some(({ isProblem }) => isProblem), machine, model, backends, parity, caches, findings: list };
}

class Findings {
  readonly list: Finding[] = [];

  problem(what: string, fix: string): void {
    this.list.push({ isProblem: true, what, fix });
  }

  note(what: string, fix: string | null = null): void {
    this.list.push({ isProblem: false, what, fix });
  }
}

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
      isWithinTolerance: difference <= toleranceOf(backend),
    };
  });
}

function cosine(a: readonly number[], b: readonly number[]): number {
  const dot = (x: readonly number[], y: readonly number[]) => x.reduce((sum, value, i) => sum + value * (y[i] ?? 0), 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

function checkMachine(findings: Findings, machine: Machine): void {
  const { node, libc, isTranslated, processorLimit, threads } = machine;
  if (Number.parseInt(node, 10) < 20) findings.problem(`Node.js ${node} is too old`, "install Node.js 20 or newer");
  if (libc === "musl") {
    const what = "this Linux uses musl (Alpine), for which there is no ONNX Runtime library";
    findings.problem(what, "use an image with glibc, such as node:22-slim");
  }
  if (isTranslated) {
    const what = "this Node.js is for x64 and runs emulated on Apple silicon";
    findings.problem(what, "install Node.js for arm64: MLX needs it");
  }
  if (processorLimit !== null && threads > Math.ceil(processorLimit)) {
    const what = `computations use ${threads} threads, but the container may use only ${processorLimit} processors`;
    findings.problem(what, `pass threads: ${Math.max(1, Math.floor(processorLimit))} (--threads)`);
  }
}

/** Environment variables that change how everything works. */
function checkEnvironment(findings: Findings): void {
  const { SEMANTIC_SEARCH_BACKEND: backend, ORT_DYLIB_PATH: library } = process.env;
  if (backend && !(BACKENDS as readonly string[]).includes(backend)) {
    const fix = 'unset it, or set it to "mlx", "webgpu", "onnx", "cpu" or "onnx-js"';
    findings.problem(`SEMANTIC_SEARCH_BACKEND is ${JSON.stringify(backend)}`, fix);
  } else if (backend && backend !== "auto") {
    findings.note(`SEMANTIC_SEARCH_BACKEND makes every "auto" mean ${backend}`, "unset it");
  }
  if (library && !existsSync(library)) {
    findings.problem(`ORT_DYLIB_PATH names ${library}, which does not exist`, "unset it, or correct the path");
  } else if (library) {
    findings.note(`the addon takes ONNX Runtime from ORT_DYLIB_PATH, ${library}`);
  }
}

const MODEL_FIXES: Record<string, string> = {
  MODEL_NOT_FOUND: "check the path or name; docs/models.md lists the files of a model folder",
  ACCESS_DENIED: "see the message: the model is private or gated, or the token in HF_TOKEN is wrong",
  DOWNLOAD_FAILED: "see the message; behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT",
  MODEL_INVALID: "fetch the named file again",
  MODEL_UNSUPPORTED: "pass the option that the message names, or choose a model of docs/models.md",
};

function checkBackends(
  findings: Findings,
  backends: readonly BackendReport[],
  machine: Machine,
  model: string | null,
): void {
  const failed = (name: BackendName) => {
    const report = backends.find(({ backend }) => backend === name);
    return report && !report.works ? report : undefined;
  };
  const [onnx, cpu, fallback, mlx] = [failed("onnx"), failed("cpu"), failed("onnx-js"), failed("mlx")];
  const webgpu = failed("webgpu");
  const modelFix = onnx && MODEL_FIXES[onnx.code];
  // A wrong model is wrong for all backends: this is one problem, not five.
  if (onnx && modelFix) {
    findings.problem(`the model: ${onnx.reason}`, modelFix);
    return;
  }
  if (onnx) findings.problem(`the addon does not work: ${onnx.reason}`, addonFix(onnx, machine));
  if (cpu && !onnx) findings.problem(`the addon's own kernels do not work: ${cpu.reason}`, addonFix(cpu, machine));
  if (fallback) checkFallback(findings, fallback, machine, onnx !== undefined, model);
  if (webgpu && !onnx) checkWebGpu(findings, webgpu);
  if (mlx && !onnx) checkMlx(findings, mlx, machine);
  if (backends.some((report) => report.backend === "mlx" && report.works && !report.isGpu)) {
    findings.note('mlx computes on the CPU here, which is for tests: "auto" takes onnx');
  }
}

function addonFix({ code, reason }: { code: string; reason: string }, { arch, platform }: Machine): string {
  if (code === "CRASHED") return 'report this with the output of doctor --json; until then pass backend: "onnx-js"';
  if (code === "TIMEOUT") return "check whether the machine is out of memory or its processors are busy";
  if (/addon cannot be loaded/.test(reason)) {
    return `npm install on this machine, for ${platform} ${arch}, without --omit=optional; or npm run build:native in a clone`;
  }
  if (/ONNX Runtime|onnxruntime/i.test(reason)) {
    return "install the package again, or name a libonnxruntime of version 1.24 or newer: ORT_DYLIB_PATH";
  }
  return "see the message";
}

function checkFallback(
  findings: Findings,
  { code, reason }: { code: string; reason: string },
  { onnxruntimeNode }: Machine,
  isNeeded: boolean,
  model: string | null,
): void {
  const what = `the JavaScript fallback does not work: ${reason}`;
  if (onnxruntimeNode === null) {
    const what = "the JavaScript fallback needs the package onnxruntime-node, which is not installed";
    if (isNeeded) findings.problem(what, "npm install onnxruntime-node");
    else findings.note(`${what}; it is not needed while the addon works`, "npm install onnxruntime-node");
  } else if (code !== "MODEL_NOT_FOUND") {
    findings.problem(what, "report this with the output of doctor --json");
  } else if (model === null) {
    // Only the addon can write the tiny model's graph.
    const what = "the JavaScript fallback was not tried: without the addon the tiny model has no graph";
    findings.note(what, "name a model");
  } else if (isNeeded) {
    findings.problem(what, `${exportCommand(model)}, on a machine where the addon works`);
  } else {
    findings.note(`${what}; it is not needed while the addon works`, exportCommand(model));
  }
}

function exportCommand(model: string): string {
  return `semantic-search-native export ${quoted(model)}`;
}

function checkWebGpu(findings: Findings, { code, reason }: { code: string; reason: string }): void {
  if (code === "BACKEND_UNAVAILABLE") findings.note(`webgpu: ${reason}`, "with a GPU, install its driver for Vulkan");
  else
    findings.problem(
      `webgpu does not work: ${reason}`,
      'update the driver of the GPU; until then pass backend: "onnx"',
    );
}

function checkMlx(
  findings: Findings,
  { code, reason }: { code: string; reason: string },
  { platform, arch }: Machine,
): void {
  if ((platform === "darwin" && arch === "arm64") || code !== "BACKEND_UNAVAILABLE") {
    const fix = 'report this with the output of doctor --json; until then pass backend: "onnx"';
    findings.problem(`mlx does not work: ${reason}`, fix);
  } else if (platform === "linux") {
    const fix =
      arch === "x64" ? "npm install semantic-search-native-linux-x64-cuda" : "npm run build:native -- --mlx=cuda";
    findings.note(`mlx: ${reason}`, `${fix}, for an NVIDIA GPU`);
  }
}

function checkVectors(findings: Findings, backends: readonly BackendReport[], parity: readonly Parity[]): void {
  const advice = "report this with the output of doctor --json; vectors of these backends must not share an index";
  for (const { backend, against, maxDifference: difference, minCosine, isWithinTolerance } of parity) {
    if (isWithinTolerance) continue;
    const what =
      `${backend} and ${against} differ by ${difference.toExponential(1)} in a component, by more than ${toleranceOf(backend)} ` +
      `(lowest cosine ${minCosine.toFixed(6)})`;
    findings.problem(what, advice);
  }
  const working = backends.flatMap((report) => (report.works ? [report] : []));
  for (const { backend, aloneDifference } of working) {
    if (aloneDifference <= toleranceOf(backend)) continue;
    const by = aloneDifference.toExponential(1);
    findings.problem(`${backend}: a text's vector depends on the other texts of its batch, by ${by}`, advice);
  }
  const fingerprints = new Map(working.map(({ fingerprint, backend }) => [fingerprint, backend]));
  if (fingerprints.size > 1) {
    const what = `backends disagree about what the model is (fingerprints of ${[...fingerprints.values()].join(", ")})`;
    const fix = "the ONNX file of the folder has other weights than its safetensors: semantic-search-native export";
    findings.problem(what, fix);
  }
}

/** The cache that all clients of the Hugging Face Hub share. */
function hubCache(): CacheFolder {
  const folder = hubSettings({ token: false }).cacheFolder;
  const exists = existsSync(folder);
  let existing = folder;
  while (!existsSync(existing) && path.dirname(existing) !== existing) existing = path.dirname(existing);
  let isWritable = statSync(existing).isDirectory();
  try {
    accessSync(existing, constants.W_OK);
  } catch {
    isWritable = false;
  }
  return { use: "models of the Hub", path: folder, exists, isWritable };
}

function checkCache(findings: Findings, { use, path: folder, isWritable }: CacheFolder): void {
  if (isWritable) return;
  const fix = "make it writable, or name another: HF_HUB_CACHE";
  findings.problem(`the folder for ${use} cannot be written: ${folder}`, fix);
}
