/**
 * A GPU beside the CPU, by batch size and length: this package on WebGPU, on MLX if the build has it, and on the CPU, and
 * transformers.js on WebGPU. Where there is no GPU, nothing is measured.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { askOrLeaveOut } from "../contestants/contestant.mjs";
import { PEERS, startPeer } from "../contestants/registry.mjs";
import { compareVectors } from "./agreement.mjs";
import { REFERENCE } from "./peers.mjs";

const OURS = "ours-webgpu";
const NAMES = ["ours-mlx-auto", "ours-bf16", "ours-int8", "transformers.js-webgpu"];
const PAUSE_MS = 60;

/** The name of the list with so many texts of so many tokens. */
export const gpuList = (length, count) => `gpu-${length}-${count}`;

/**
 * @param {object} job see `engine.mjs`; with `sizes.gpu.software`, a GPU in software counts as one
 * @returns `{ skipped }` with the reason, or `{ adapter, peers }`; of each peer `seconds[length][count]` is a list
 */
export async function measureGpu({ model, texts, maxTokens, sizes, progress }) {
  const { lengths, counts, rounds, software } = sizes.gpu;
  const peers = {};
  const contestants = new Map();
  try {
    // Ours first: without it there is nothing to measure.
    for (const name of new Set([OURS, REFERENCE, ...(sizes.peers ?? NAMES)])) {
      const contestant = await startPeer(PEERS[name], { model, texts, maxTokens });
      const { introduction } = contestant;
      peers[name] = { title: PEERS[name].title, introduction, cosines: null, seconds: {} };
      if (name === OURS) {
        const { refused, device, adapter } = introduction;
        if (refused) return { skipped: refused };
        if (device !== "gpu" && !software) return { skipped: `${adapter.name} computes on the CPU` };
      }
      if (introduction.refused) continue;
      contestants.set(name, contestant);
      // On a CPU, MLX is for tests.
      if (name === "ours-mlx-auto" && introduction.device !== "gpu") {
        await contestant.end();
        contestants.delete(name);
        peers[name].introduction = { refused: "MLX has no GPU" };
      }
    }
    const ask = (name, request) =>
      askOrLeaveOut(contestants, name, request, (introduction) => {
        peers[name] = { ...peers[name], introduction, seconds: {} };
      });
    const cosines = await compareVectors([...contestants.keys()], REFERENCE, ask);
    for (const name of contestants.keys()) peers[name].cosines = cosines[name];
    const order = [...contestants.keys()];
    for (const length of lengths) {
      for (const count of counts) {
        progress(`${model.name}: ${count} texts of ${length} tokens`);
        // The first time, kernels are compiled.
        for (let round = 0; round <= rounds; round++) {
          for (const name of order) {
            await sleep(PAUSE_MS);
            const answer = await ask(name, { want: "seconds", texts: gpuList(length, count) });
            if (!answer) continue;
            peers[name].seconds[length] ??= {};
            peers[name].seconds[length][count] ??= [];
            if (round > 0) peers[name].seconds[length][count].push(answer.wall);
          }
          order.push(order.shift());
        }
      }
    }
    return { adapter: peers[OURS].introduction.adapter, peers };
  } finally {
    for (const contestant of contestants.values()) await contestant.end();
  }
}
