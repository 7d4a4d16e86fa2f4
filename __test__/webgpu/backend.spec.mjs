/** The backend webgpu on a software GPU: its vectors, and what happens with a GPU that fails. */

import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { readPythonPackage } from "../../scripts/starter-model.mjs";
import { api, golden, maxDifference, model, ROOT, temporaryFolder } from "../support/models.mjs";
import { runNode, start } from "../support/processes.mjs";
import { withVulkanFaults } from "../support/vulkan_faults.mjs";

const PROGRAM = path.join(ROOT, "__test__/support/embedder_steps.mjs");
const NAME = "bert_mean";
const TEXTS = ["where is a token checked?", "def area(radius): return 3.14 * radius ** 2 ".repeat(12), ""];
const folder = await model(NAME);

const load = (backend, options) => ({ load: backend, model: folder, options: { backend, ...options } });
const embed = (name) => ({ embed: name, texts: TEXTS });

/** The outcomes of steps in a process of its own, with a cache folder of its own unless one is given. */
async function outcomesOf(faults, steps, env = {}) {
  const environment = { ...withVulkanFaults(faults), SEMANTIC_SEARCH_CACHE: temporaryFolder(), ...env };
  const args = [PROGRAM, ...steps.map((step) => JSON.stringify(step))];
  const { status, signal, stdout, stderr } = await runNode(args, { env: environment, timeoutMs: 180_000 });
  assert.equal(status, 0, `${signal ?? status}\n${stderr}`);
  assert.equal(stderr, "");
  return stdout
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
}

function assertEqualVectors({ vectors, message }, expected) {
  assert.equal(message, undefined);
  for (const [index, vector] of vectors.entries()) {
    const difference = maxDifference(vector, expected[index]);
    assert.ok(difference <= 1e-5, `text ${index}: ${difference}`);
  }
}

const reference = await (async () => {
  const embedder = await api.Embedder.load(folder, { backend: "onnx" });
  const vectors = await embedder.embed(TEXTS);
  await embedder.close();
  return vectors;
})();

test("vectors are those of the CPU, and the GPU is named", async () => {
  const [loaded, embedded] = await outcomesOf("", [load("webgpu"), embed("webgpu")]);
  const { name, driver, memoryBytes, arrayBytes } = loaded.adapter;
  assert.deepEqual([loaded.backend, loaded.isGpu, loaded.fallbackReason], ["webgpu", false, null]);
  assert.match(name, /SwiftShader/);
  assert.match(driver, /SwiftShader driver/);
  assert.ok(memoryBytes >= 1 << 28 && arrayBytes >= 1 << 27, `${memoryBytes}, ${arrayBytes}`);
  assertEqualVectors(embedded, reference);
});

test("a golden query with its prompt", async () => {
  const { cases } = golden(NAME);
  const { text, vector } = cases.find(({ kind, pooling, maxTokens }) => kind === "document" && !pooling && !maxTokens);
  const steps = [load("webgpu"), { embed: "webgpu", texts: [text] }];
  const [, embedded] = await outcomesOf("", steps);
  assertEqualVectors(embedded, [vector]);
});

test("auto leaves a GPU in software alone", async () => {
  const [loaded, embedded] = await outcomesOf("", [load("auto"), embed("auto")]);
  assert.deepEqual([loaded.backend, loaded.adapter], ["onnx", null]);
  assert.match(loaded.fallbackReason, /webgpu backend is not available: SwiftShader.* computes on the CPU$/);
  assertEqualVectors(embedded, reference);
});

test("auto refuses a GPU that is slower than the CPU, and remembers; who names it gets it", async () => {
  const env = { SEMANTIC_SEARCH_CACHE: temporaryFolder() };
  const [loaded] = await outcomesOf("discrete", [load("auto")], env);
  assert.equal(loaded.backend, "onnx");
  const slow =
    /webgpu backend is not available: SwiftShader.* takes (\d+\.\d) times as long for this model as the CPU$/;
  const [, slowness] = slow.exec(loaded.fallbackReason);
  const [again, named] = await outcomesOf("discrete", [load("auto"), load("webgpu")], env);
  assert.equal(slow.exec(again.fallbackReason)?.[1], slowness, "it was not measured again");
  assert.deepEqual([named.backend, named.isGpu], ["webgpu", true]);
});

test("a GPU that computes wrong numbers is refused, with the cosine", async () => {
  const [named, auto] = await outcomesOf("discrete,wrong", [load("webgpu"), load("auto")]);
  assert.equal(named.code, "BACKEND_UNAVAILABLE");
  assert.match(named.message, /vectors of SwiftShader.* differ from those of the CPU: cosine -?0\.\d+$/);
  assert.equal(auto.backend, "onnx");
  assert.match(auto.fallbackReason, /vectors of SwiftShader.* differ from those of the CPU/);
});

test("no GPU", async () => {
  const [named, auto] = await outcomesOf("none", [load("webgpu"), load("auto")]);
  assert.equal(named.code, "BACKEND_UNAVAILABLE");
  assert.match(named.message, /Failed to get a WebGPU adapter: No supported adapters/);
  assert.equal(auto.backend, "onnx");
  assert.match(auto.fallbackReason, /webgpu backend is not available: no GPU was found$/);
});

test("a driver that is too old", async () => {
  const args = [load("webgpu"), load("auto")].map((step) => JSON.stringify(step));
  const env = { ...withVulkanFaults("discrete,old"), SEMANTIC_SEARCH_CACHE: temporaryFolder() };
  // Dawn itself writes to the standard error why.
  const { stdout } = await runNode([PROGRAM, ...args], { env, timeoutMs: 60_000 });
  const [named, auto] = stdout
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
  assert.match(named.message, /Failed to get a WebGPU adapter: No supported adapters/);
  assert.equal(auto.backend, "onnx");
  assert.match(auto.fallbackReason, /webgpu.*No supported adapters/);
});

test("no memory on the GPU", async () => {
  const file = path.join(temporaryFolder(), "switch");
  const steps = [{ write: file }, load("webgpu"), { remove: file }, load("webgpu"), embed("webgpu")];
  const [, failed, , loaded, embedded] = await outcomesOf(`memory=${file}`, steps);
  assert.equal(failed.code, "BACKEND_UNAVAILABLE");
  assert.match(failed.message, /VK_ERROR_OUT_OF_DEVICE_MEMORY/);
  // It was not the fault of its arithmetic, and is not remembered.
  assert.equal(loaded.backend, "webgpu");
  assertEqualVectors(embedded, reference);
});

test("a lost GPU fails the calls of all models once, and the next call loads again", async () => {
  const file = path.join(temporaryFolder(), "switch");
  const other = { ...load("webgpu", { maxTokens: 64 }), load: "other" };
  const steps = [load("webgpu"), other, embed("webgpu"), embed("other"), { write: file }, embed("webgpu")];
  steps.push({ remove: file }, embed("webgpu"), embed("webgpu"), embed("other"), embed("other"));
  const outcomes = await outcomesOf(`lost=${file}`, steps);
  const [, , before, otherBefore, , lost, , anew, again, otherLost, otherAnew] = outcomes;
  assert.equal(lost.code, "DEVICE_LOST");
  assert.match(lost.message, /^the GPU failed: .*is lost.*; the model has to be loaded again$/);
  assert.equal(otherLost.code, "DEVICE_LOST");
  assert.deepEqual([anew.vectors, again.vectors], [before.vectors, before.vectors]);
  assert.deepEqual(otherAnew.vectors, otherBefore.vectors);
});

test("a library without WebGPU", async () => {
  const [, version] = /"onnxruntime-node": "([^"]+)"/.exec(
    readFileSync(path.join(ROOT, "package.json"), "utf8").split("devDependencies")[1],
  );
  const name = `onnxruntime/capi/libonnxruntime.so.${version}`;
  const entries = await readPythonPackage(`onnxruntime==${version}`, (entry) => entry === name);
  const library = path.join(temporaryFolder(), "libonnxruntime.so.1");
  writeFileSync(library, entries.get(name));
  const [named, auto] = await outcomesOf("", [load("webgpu"), load("auto")], { ORT_DYLIB_PATH: library });
  assert.match(named.message, /this library of ONNX Runtime was built without WebGPU$/);
  assert.equal(auto.backend, "onnx");
  assert.match(auto.fallbackReason, /was built without WebGPU$/);
});

test("a GPU that ends the process is left alone by auto, until it is named", async () => {
  const env = { ...withVulkanFaults("discrete,slow"), SEMANTIC_SEARCH_CACHE: temporaryFolder() };
  const verdicts = path.join(env.SEMANTIC_SEARCH_CACHE, "webgpu");
  const { child, ended } = start(process.execPath, [PROGRAM, JSON.stringify(load("auto"))], { env });
  const read = () => {
    const [name] = existsSync(verdicts) ? readdirSync(verdicts).filter((file) => file.endsWith(".json")) : [];
    return (
      name && { file: path.join(verdicts, name), verdict: JSON.parse(readFileSync(path.join(verdicts, name), "utf8")) }
    );
  };
  while (!read()) await new Promise((resolve) => setTimeout(resolve, 20));
  child.kill("SIGKILL");
  await ended;
  const { file, verdict } = read();
  assert.equal(verdict.attempts, 1);
  writeFileSync(file, JSON.stringify({ ...verdict, attempts: 3 }));
  const [auto, named, after] = await outcomesOf("discrete,slow", [load("auto"), load("webgpu"), load("auto")], env);
  assert.match(auto.fallbackReason, /the process ended 3 times while SwiftShader.* was tried/);
  assert.equal(named.backend, "webgpu");
  assert.match(after.fallbackReason, /times as long for this model as the CPU$/);
});

test("attention is computed step by step where it is wrong as one operator, and each GPU has a verdict of its own", async () => {
  const env = { SEMANTIC_SEARCH_CACHE: temporaryFolder() };
  const folder = path.join(env.SEMANTIC_SEARCH_CACHE, "webgpu");
  const verdicts = () =>
    readdirSync(folder).map((name) => JSON.parse(readFileSync(path.join(folder, name), "utf8")).attention);
  // This GPU's subgroups of four are fewer than the operator expects.
  for (const [faults, expected] of [
    ["whole", ["fused"]],
    ["", ["fused", "stepByStep"]],
  ]) {
    const [, embedded] = await outcomesOf(faults, [load("webgpu"), embed("webgpu")], env);
    assertEqualVectors(embedded, reference);
    assert.deepEqual(verdicts().sort(), expected);
  }
});

test("a verdict that is damaged counts for nothing", async () => {
  const env = { SEMANTIC_SEARCH_CACHE: temporaryFolder() };
  const verdicts = path.join(env.SEMANTIC_SEARCH_CACHE, "webgpu");
  await outcomesOf("", [load("webgpu")], env);
  const [name] = readdirSync(verdicts);
  const file = path.join(verdicts, name);
  for (const damaged of ["{", '{"attention": "fused", "extra": 1}']) {
    writeFileSync(file, damaged);
    const [loaded, embedded] = await outcomesOf("", [load("webgpu"), embed("webgpu")], env);
    assert.equal(loaded.backend, "webgpu");
    assertEqualVectors(embedded, reference);
    assert.equal(JSON.parse(readFileSync(file, "utf8")).attempts, 0);
  }
});
