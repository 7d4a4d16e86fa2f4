/** bfloat16 and int8, which are faster where the processor has instructions for them, beside PyTorch's and OpenVINO's. */

import { readFileSync } from "node:fs";
import * as os from "node:os";
import { measurePeers, REFERENCE } from "./peers.mjs";

const EVERYBODY = [REFERENCE, "ours-bf16", "ours-int8", "sentence-transformers-bf16", "openvino-bf16", "openvino-int8"];
/** As Linux spells them in `/proc/cpuinfo`. */
const FLAGS = ["avx2", "avx_vnni", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"];

/**
 * @param {object} job see `engine.mjs`
 * @returns what `measurePeers` returns, and `processor`, whose `flags` are `null` where the system does not tell
 */
export async function measureProcessor(job) {
  const wanted = job.sizes.peers ?? (job.sizes.npm ? EVERYBODY : [REFERENCE, "ours-int8"]);
  // The reference is always there: the others are given as ratios to it.
  const names = [REFERENCE, ...wanted.filter((name) => name !== REFERENCE)];
  return {
    ...(await measurePeers(job, names)),
    processor: { name: os.cpus()[0].model.trim(), flags: processorFlags() },
  };
}

/** @returns {{ [flag: string]: boolean } | null} */
function processorFlags() {
  if (process.platform !== "linux" || process.arch !== "x64") return null;
  const [, line] = /^flags\s*:(.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"));
  const present = line.trim().split(" ");
  return Object.fromEntries(FLAGS.map((flag) => [flag, present.includes(flag)]));
}
