/**
 * A program for tests that load models where the environment of the process matters, or may end it:
 *
 *     node embedder_steps.mjs <step> …
 *
 * A step is JSON: `{ "load": name, "model": folder, "options": {} }`, `{ "embed": name, "texts": [] }`, `{ "write": file }`
 * and `{ "remove": file }`. Each prints a line of JSON.
 */

import { rmSync, writeFileSync } from "node:fs";
import { api } from "./models.mjs";

const loaded = new Map();

const STEPS = {
  load: async (name, { model, options }) => {
    const embedder = await api.Embedder.load(model, options);
    loaded.set(name, embedder);
    const { backend, isGpu, adapter, fallbackReason } = await embedder.info();
    return { backend, isGpu, adapter, fallbackReason };
  },
  embed: async (name, { texts }) => {
    const vectors = await loaded.get(name).embed(texts);
    return { vectors: vectors.map((vector) => Array.from(vector)) };
  },
  write: (file) => writeFileSync(file, ""),
  remove: (file) => rmSync(file),
};

for (const argument of process.argv.slice(2)) {
  const step = JSON.parse(argument);
  const [kind] = Object.keys(step);
  let outcome;
  try {
    outcome = await STEPS[kind](step[kind], step);
  } catch ({ code, message }) {
    outcome = { code, message };
  }
  console.log(JSON.stringify({ ...outcome }));
}
