/** Facts about the machine for `doctor`. What cannot be read is `null`, never guessed. */

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import * as os from "node:os";
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
    /** Processor features that make int8 fast; `null` if they cannot be read. */
    int8Features: int8Features(),
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

/** Names as in the system. */
const FEATURES: Partial<Record<string, string[]>> = {
  x64: ["avx2", "avx512bw", "avx_vnni", "avx512_vnni", "amx_int8"],
  arm64: ["asimddp", "i8mm", "sve"],
};

function int8Features(): string[] | null {
  const wanted = FEATURES[process.arch];
  if (process.platform === "linux" && wanted) {
    const [, flags] = /^(?:flags|Features)\s*:(.*)$/m.exec(read("/proc/cpuinfo") ?? "") ?? [];
    if (flags === undefined) return null;
    const present = flags.split(/\s+/);
    return wanted.filter((feature) => present.includes(feature));
  }
  if (process.platform === "darwin" && process.arch === "arm64") {
    const named = { asimddp: "hw.optional.arm.FEAT_DotProd", i8mm: "hw.optional.arm.FEAT_I8MM" };
    return Object.entries(named).flatMap(([feature, name]) => (sysctl(name) === "1" ? [feature] : []));
  }
  return null;
}
