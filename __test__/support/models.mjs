/** Model folders for tests: the fixtures with an exported ONNX graph, changed copies of them, and golden vectors. */

import assert from "node:assert/strict";
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { decodeSafetensors, encodeSafetensors } from "../../scripts/safetensors.mjs";
import { starterModelFolder } from "../../scripts/starter-model.mjs";

const require = createRequire(import.meta.url);
/** The compiled package, as `require("semantic-search-native")` gives it. */
export const api = require("../../dist/embedder.js");

export const ROOT = fileURLToPath(new URL("../..", import.meta.url));
/** Whether the addon under test has MLX, as `npm test` sets it. */
export const HAS_MLX = process.env.SEMANTIC_SEARCH_TEST_MLX === "1";
export const BACKENDS = ["onnx", "cpu", "onnx-js", ...(HAS_MLX ? ["mlx"] : [])];
/** Asserts that "auto" took the addon: on a machine without a GPU, `fallbackReason` says so. */
export function assertNothingFailed({ isGpu, fallbackReason }) {
  if (isGpu) return;
  if (HAS_MLX) assert.match(fallbackReason, /the mlx backend is not available: there is no GPU/);
  assert.match(fallbackReason, /the webgpu backend is not available: (no GPU was found|.* computes on the CPU)$/);
}
export const FIXTURES = readdirSync(path.join(ROOT, "tests/fixtures/golden"))
  .map((file) => path.basename(file, ".json"))
  .filter((name) => existsSync(path.join(ROOT, "tests/fixtures", name)));
export const STARTER_MODEL = process.env.SEMANTIC_SEARCH_STARTER_MODEL ?? starterModelFolder();

const scratch = mkdtempSync(path.join(os.tmpdir(), "semantic-search-test-"));
process.on("exit", () => rmSync(scratch, { recursive: true, force: true }));

/** An empty folder that is removed when the test process ends. */
export function temporaryFolder() {
  return mkdtempSync(path.join(scratch, "folder-"));
}

const runnable = new Map();

/** A copy of a fixture that every backend can run. It is shared: tests that change it use `changedModel`. */
export function model(name) {
  if (!runnable.has(name)) {
    const folder = path.join(scratch, name);
    cpSync(path.join(ROOT, "tests/fixtures", name), folder, { recursive: true });
    runnable.set(
      name,
      api.exportOnnx(folder).then(() => folder),
    );
  }
  return runnable.get(name);
}

/**
 * A copy of `model(name)` with some files changed.
 *
 * @param {string} name
 * @param {{ [file: string]: null | string | Buffer | ((content: any) => any) }} changes `null` removes the file, a
 * function gets and returns parsed JSON
 */
export async function changedModel(name, changes) {
  const folder = temporaryFolder();
  cpSync(await model(name), folder, { recursive: true });
  for (const [file, change] of Object.entries(changes)) {
    const target = path.join(folder, file);
    if (change === null) rmSync(target);
    else if (typeof change !== "function") writeFileSync(target, change);
    else writeFileSync(target, JSON.stringify(change(JSON.parse(readFileSync(target, "utf8")))));
  }
  return folder;
}

/**
 * A deep model: the fixture with copies of its first layer. With 100 layers, a text of some thousand words takes minutes.
 *
 * @param {{ heads?: number, layers?: number }} [options]
 */
export async function deepModel({ heads = 2, layers = 100 } = {}) {
  const { header, headerLength, data } = decodeSafetensors(
    readFileSync(path.join(ROOT, "tests/fixtures/nomic_cls/model.safetensors")),
  );
  const parts = [data];
  let end = data.length;
  for (const [name, { data_offsets: offsets, ...rest }] of Object.entries(header)) {
    if (!name.startsWith("encoder.layers.0.")) continue;
    for (let layer = 2; layer < layers; layer++) {
      const part = data.subarray(...offsets);
      parts.push(part);
      header[name.replace(".0.", `.${layer}.`)] = { ...rest, data_offsets: [end, end + part.length] };
      end += part.length;
    }
  }
  const folder = await changedModel("nomic_cls", {
    "model.safetensors": encodeSafetensors({ header, headerLength, data: Buffer.concat(parts) }),
    "config.json": (config) => ({ ...config, n_layer: layers, n_head: heads }),
    "semantic-search-native.onnx": null,
  });
  await api.exportOnnx(folder);
  return folder;
}
/** Golden cases of a fixture, with repeated texts expanded. */
export function golden(name) {
  const file = JSON.parse(readFileSync(path.join(ROOT, "tests/fixtures/golden", `${name}.json`), "utf8"));
  for (const entry of file.cases ?? []) {
    if (typeof entry.text !== "string") entry.text = entry.text.repeat.repeat(entry.text.times);
  }
  return file;
}

/** Loads a model, passes the embedder to `use`, and closes it whatever happens. */
export async function withEmbedder(folder, options, use) {
  const embedder = await api.Embedder.load(folder, options);
  try {
    return await use(embedder);
  } finally {
    await embedder.close();
  }
}

export function maxDifference(a, b) {
  assert.equal(a.length, b.length, "vectors of different length");
  return a.reduce((max, value, index) => Math.max(max, Math.abs(value - b[index])), 0);
}

/** Of vectors of length 1. */
export function cosine(a, b) {
  return a.reduce((sum, value, index) => sum + value * b[index], 0);
}

export function assertClose(actual, expected, tolerance, what) {
  const difference = maxDifference(actual, expected);
  assert.ok(difference <= tolerance, `${what}: differs by ${difference}, more than ${tolerance}`);
}

/** Matches an `EmbedderError` with this code whose message has all the parts, strings or regular expressions. */
export function embedderError(code, ...parts) {
  return (error) => {
    assert.equal(error.name, "EmbedderError", String(error.stack));
    assert.equal(error.code, code, error.message);
    assert.ok(error instanceof api.EmbedderError);
    for (const part of parts) {
      const isThere = part instanceof RegExp ? part.test(error.message) : error.message.includes(part);
      assert.ok(isThere, `${part} in: ${error.message}`);
    }
    return true;
  };
}
