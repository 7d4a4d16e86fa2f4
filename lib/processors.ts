import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";

/** Processors that this process may use, at least 1. A container's quota counts, which older Node.js does not know of. */
export function availableProcessors(cpuMaxFile?: string): number {
  return Math.max(1, Math.min(availableParallelism(), Math.floor(processorQuota(cpuMaxFile))));
}

/** Processors' worth of time by control group v2; infinite where there is no limit. */
export function processorQuota(cpuMaxFile = "/sys/fs/cgroup/cpu.max"): number {
  let content: string;
  try {
    content = readFileSync(cpuMaxFile, "utf8");
  } catch {
    return Number.POSITIVE_INFINITY;
  }
  // Microseconds of processor time, or "max", per so many of time.
  const [time, period] = content.split(/\s+/).map(Number);
  const processors = (time ?? Number.NaN) / (period ?? Number.NaN);
  return Number.isFinite(processors) ? processors : Number.POSITIVE_INFINITY;
}
