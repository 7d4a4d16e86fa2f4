/**
 * A program for tests that may end with a crash: runs an exported BERT with onnxruntime-node, on the GPU and on the CPU.
 *
 *     node webgpu_session.mjs <file.onnx> <step> …
 *
 * `create`, `run` and `release` are steps of a session on the GPU; `+<file>` and `-<file>` make and remove a file. Each is a
 * line of JSON.
 */

import { readFileSync, rmSync, writeFileSync } from "node:fs";
import * as ort from "onnxruntime-node";

/** Two texts of eight tokens. */
const IDS = [2, 5, 6, 7, 8, 9, 10, 3, 2, 5, 6, 7, 3, 9, 10, 3];

const [file, ...steps] = process.argv.slice(2);
const logSeverityLevel = 3;
let session;

async function output(from) {
  const ids = new ort.Tensor("int64", BigInt64Array.from(IDS, BigInt), [2, 8]);
  const [name] = from.outputNames;
  return Array.from((await from.run({ input_ids: ids }))[name].data);
}

async function take(step) {
  if (step.startsWith("+")) writeFileSync(step.slice(1), "");
  else if (step.startsWith("-")) rmSync(step.slice(1));
  else if (step === "create") {
    session = await ort.InferenceSession.create(file, { executionProviders: ["webgpu"], logSeverityLevel });
  } else if (step === "run") {
    const start = performance.now();
    const numbers = await output(session);
    return { numbers, ms: performance.now() - start };
  } else if (step === "release") await session.release();
  else if (step === "cpu")
    return { numbers: await output(await ort.InferenceSession.create(file, { logSeverityLevel })) };
  else if (step === "libraries") {
    const paths = readFileSync("/proc/self/maps", "utf8").match(/\/.*libvulkan.*$/gm) ?? [];
    return { libraries: [...new Set(paths)] };
  } else throw new TypeError(`no step ${step}`);
  return {};
}

for (const step of steps) {
  const outcome = await take(step).catch((error) => ({ error: error.message }));
  console.log(JSON.stringify({ step, ...outcome }));
}
