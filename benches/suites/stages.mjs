/** Where the time of a call goes: each stage timed alone, in the order in which a call passes through them. */

import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { cacheFolder, stageTimer } from "../contestants/install.mjs";
import { LIMITS, measured, PEERS, startPeer } from "../contestants/registry.mjs";
import { median } from "../report/statistics.mjs";

const RUNS = 9;

/**
 * Seconds of processor time, by number of texts and stage. What the forward pass takes beyond its matrix products is
 * attention's softmax, norms, activations and moving data.
 */
export async function measureStages(job) {
  const { program, missing } = stageTimer();
  if (missing) return { missing };
  const calls = {};
  for (const count of job.sizes.stageTexts) {
    job.progress(`${job.model.name}: stages of a call with ${count} texts`);
    const { tokenize, plan, forward, finish } = timeInRust(program, job, count);
    const products = await timeFromOutside(job, LIMITS.products, { want: "seconds", texts: "functions", to: count });
    const boundary = await timeFromOutside(job, PEERS["ours-f32"], { want: "boundary", texts: "functions", to: count });
    calls[count] = {
      "matrix products": Math.min(products, forward),
      "rest of the forward pass": Math.max(0, forward - products),
      tokenize,
      "plan and finish": plan + finish,
      "boundary to JavaScript": boundary,
    };
  }
  return { calls };
}

function timeInRust(program, { model, lists, maxTokens }, count) {
  const texts = path.join(cacheFolder(), "texts-of-stages.json");
  writeFileSync(texts, JSON.stringify(lists.functions.slice(0, count)));
  const { addonOptions } = createRequire(import.meta.url)(path.join(measured.package, "dist/lib/native.js"));
  const home = path.join(cacheFolder(), "criterion");
  const { status, stderr } = spawnSync(program, ["--bench"], {
    encoding: "utf8",
    env: {
      ...process.env,
      BENCH_MODEL: model.folder,
      BENCH_TEXTS: texts,
      BENCH_MAX_TOKENS: String(maxTokens),
      CRITERION_HOME: home,
      ORT_DYLIB_PATH: process.env.ORT_DYLIB_PATH ?? addonOptions({}).onnxRuntimeLibrary,
    },
  });
  if (status !== 0) throw new Error(`stages failed: ${stderr.trim().split("\n").at(-1)}`);
  const estimate = (stage) => {
    const file = path.join(home, stage, "new/estimates.json");
    return JSON.parse(readFileSync(file, "utf8")).median.point_estimate / 1e9;
  };
  return Object.fromEntries(["tokenize", "plan", "forward", "finish"].map((stage) => [stage, estimate(stage)]));
}

async function timeFromOutside({ model, texts, maxTokens }, peer, request) {
  const contestant = await startPeer(peer, { model, texts, maxTokens, threads: 1 });
  const seconds = [];
  for (let run = 0; run < RUNS; run++) {
    const answer = await contestant.ask(request);
    seconds.push(answer.wall ?? answer.seconds);
  }
  await contestant.end();
  return median(seconds);
}
