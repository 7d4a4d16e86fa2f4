/**
 * The addon as a contestant of `run.mjs`: `ours.mjs <model folder> <tasks.json> <package folder>`. It reads one request a
 * line and answers with one line; see `run.mjs` for the protocol.
 */

import { existsSync, readFileSync } from "node:fs";
import * as path from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [modelDir, tasksFile, packageDir] = process.argv.slice(2);
const { Embedder } = await import(pathToFileURL(path.join(packageDir, "dist/embedder.js")));
const { maxTokens, tasks } = JSON.parse(readFileSync(tasksFile, "utf8"));

/** BLAS libraries of this process. */
function blas() {
  const maps = existsSync("/proc/self/maps") ? readFileSync("/proc/self/maps", "utf8").split("\n") : [];
  const names = maps.map((line) => path.basename(line.split(/\s+/).at(-1)));
  return [...new Set(names)].filter((name) => name.includes("blas")).sort();
}

function answer(value) {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

const embedder = await Embedder.load(modelDir, { backend: "mlx", dtype: "f32", maxTokens });
const { version } = JSON.parse(readFileSync(path.join(packageDir, "package.json"), "utf8"));
answer({
  name: `semantic-search-native ${version}, Node.js ${process.version}`,
  device: embedder.isGpu ? "gpu" : "cpu",
  blas: blas(),
});

for await (const line of createInterface({ input: process.stdin })) {
  const { task, want, runs } = JSON.parse(line);
  const { texts } = tasks[task];
  if (want === "vectors") {
    const vectors = await embedder.embed(texts);
    answer(vectors.map((vector) => Array.from(vector)));
    continue;
  }
  const start = performance.now();
  const cpuBefore = process.cpuUsage();
  for (let run = 0; run < runs; run++) await embedder.embed(texts);
  const { user, system } = process.cpuUsage(cpuBefore);
  answer({ wall: (performance.now() - start) / 1000 / runs, cpu: (user + system) / 1e6 / runs });
}
await embedder.close();
