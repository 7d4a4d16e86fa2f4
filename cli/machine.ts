/** Facts about the machine for `doctor`. What cannot be read is `null`, never guessed. */

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import * as os from "node:os";
import { loadAddon } from "../lib/native.js";
import { availableProcessors, processorQuota } from "../lib/processors.js";

export type Machine = ReturnType<typeof describeMachine>;

export function describeMachine() {
  const { version } = require("../../package.json") as { version: string };
  return {
    package: version,
    onnxruntimeNode: onnxruntimeVersion(),
    node: process.versions.node,
    platform: process.platform,
    arch: process.arch,
    release: os.release(),
    /** `"glibc 2.36"` or `"musl"`; `null` outside Linux. */
    libc: libc(),
    processor: os.cpus()[0]?.model.trim() || null,
    processors: os.cpus().length,
    /** How many a computation uses by default. */
    threads: availableProcessors(),
    /** Processor time that a control group allows, in processors; `null` without a limit. */
    processorLimit: processorLimit(),
    memoryBytes: os.totalmem(),
    memoryLimitBytes: memoryLimit(),
    /** The instructions that the backend cpu computes with; `null` without the addon. */
    kernels: kernels(),
    /** Whether this is an x64 Node.js on Apple silicon. */
    isTranslated: process.platform === "darwin" && sysctl("sysctl.proc_translated") === "1",
  };
}

function onnxruntimeVersion(): string | null {
  try {
    return (require("onnxruntime-node/package.json") as { version: string }).version;
  } catch {
    return null;
  }
}

function libc(): string | null {
  if (process.platform !== "linux") return null;
  const { header } = process.report.getReport() as { header?: { glibcVersionRuntime?: string } };
  return header?.glibcVersionRuntime ? `glibc ${header.glibcVersionRuntime}` : "musl";
}

function read(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return undefined;
  }
}

function sysctl(name: string): string | undefined {
  try {
    return execFileSync("sysctl", ["-n", name], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
  } catch {
    return undefined;
  }
}

function processorLimit(): number | null {
  const quota = processorQuota();
  return Number.isFinite(quota) ? quota : null;
}

function memoryLimit(): number | null {
  const text = read("/sys/fs/cgroup/memory.max") ?? read("/sys/fs/cgroup/memory/memory.limit_in_bytes");
  const limit = Number(text);
  // In version 1, "no limit" is a number larger than any memory.
  return text !== undefined && limit > 0 && limit < os.totalmem() ? limit : null;
}

function kernels() {
  try {
    return loadAddon().cpuKernels();
  } catch {
    return null;
  }
}
