/** One model of each family: how fast this package embeds with it, and how fast the alternatives that can load it. */

import * as path from "node:path";
import { float32Tensors } from "../../scripts/safetensors.mjs";
import { sum } from "../report/statistics.mjs";
import { measurePeers, REFERENCE } from "./peers.mjs";

const OURS = [REFERENCE, "ours-int8"];
/** The columns of the report's table. */
export const COLUMNS = [...OURS, "sentence-transformers", "transformers.js"];

/** @param {object} job see `engine.mjs` */
export async function measureFamilies(job) {
  const { folder, refused } = job.model;
  const wanted = job.sizes.peers ?? (job.sizes.npm ? COLUMNS : OURS);
  // The reference is always there: the others are given as ratios to it.
  const names = COLUMNS.filter((name) => name === REFERENCE || (wanted.includes(name) && !refused[name]));
  const { peers } = await measurePeers(job, names);
  const tensors = [...float32Tensors(path.join(folder, "model.safetensors")).values()];
  return { parameters: sum(tensors.map(({ length }) => length / 4)), peers, refused };
}
