/**
 * The addon on MLX compared with Python's MLX, with the same BLAS where both compute on a CPU. Needs a build with MLX.
 *
 * Node.js prints "pthread_create: Invalid argument" where OpenBLAS is preloaded: the thread that would wait for a debugger
 * has too small a stack for OpenBLAS. It is harmless.
 */

import { spawnSync } from "node:child_process";
import { measured } from "../contestants/registry.mjs";
import { measurePeers } from "./peers.mjs";

/** Replaces the BLAS in MLX's wheel, which is many times slower. */
const BLAS = "libopenblas.so.0";

export async function measureMlx(job) {
  const env = environment();
  return { ...(await measurePeers(job, ["ours-mlx", "mlx-py"], env)), preloaded: env.LD_PRELOAD ?? null };
}

function environment() {
  const threads = String(measured.threads);
  const env = { OPENBLAS_NUM_THREADS: threads, OMP_NUM_THREADS: threads };
  if (process.platform !== "linux") return env;
  const preloaded = { ...env, LD_PRELOAD: BLAS };
  const { stderr } = spawnSync(process.execPath, ["-e", ""], {
    env: { ...process.env, ...preloaded },
    encoding: "utf8",
  });
  return stderr.includes("cannot be preloaded") ? env : preloaded;
}
