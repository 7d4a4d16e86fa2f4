import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import * as path from "node:path";

/** Processors that this process may use, at least 1. Respects a container's quota, which older versions of Node.js ignore. */
export function availableProcessors(cgroups?: string): number {
  return Math.max(1, Math.min(availableParallelism(), Math.floor(processorQuota(cgroups))));
}

/**
 * Processor time that control groups (version 2 or 1) allow, in processors; infinite if there is no limit.
 *
 * @param cgroups Where they are mounted; a container sees its own group there.
 */
export function processorQuota(cgroups = "/sys/fs/cgroup"): number {
  const read = (file: string) => {
    try {
      return readFileSync(path.join(cgroups, file), "utf8");
    } catch {
      return undefined;
    }
  };
  // Microseconds of processor time per period. No limit is "max" in version 2, -1 in version 1.
  const limit = read("cpu.max") ?? `${read("cpu/cpu.cfs_quota_us")} ${read("cpu/cpu.cfs_period_us")}`;
  const [time = Number.NaN, period = Number.NaN] = limit.split(/\s+/).map(Number);
  const processors = time / period;
  return processors > 0 && Number.isFinite(processors) ? processors : Number.POSITIVE_INFINITY;
}
