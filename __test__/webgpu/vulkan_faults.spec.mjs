/** The software GPU, and each fault of `tests/vulkan_faults`, as ONNX Runtime's WebGPU provider sees them. */

import assert from "node:assert/strict";
import * as path from "node:path";
import { test } from "node:test";
import { model, ROOT, temporaryFolder } from "../support/models.mjs";
import { runNode } from "../support/processes.mjs";
import { withVulkanFaults } from "../support/vulkan_faults.mjs";

const PROGRAM = path.join(ROOT, "__test__/support/webgpu_session.mjs");
/** Of numbers of magnitude 1. */
const TOLERANCE = 1e-5;

/** Runs the steps in a process that sees the GPU of the environment. */
async function session(env, ...steps) {
  const file = path.join(await model("bert_mean"), "semantic-search-native.onnx");
  const options = { env: { ...env, ORT_DISABLE_TELEMETRY: "1" }, timeoutMs: 120_000 };
  const { status, signal, stdout, stderr } = await runNode([PROGRAM, file, ...steps], options);
  const lines = stdout.split("\n").filter((line) => line.startsWith("{"));
  return { status, signal, stderr, outcomes: lines.map((line) => JSON.parse(line)) };
}

/** The same, which must come to its end. */
async function outcomesOf(env, ...steps) {
  const { status, signal, stderr, outcomes } = await session(env, ...steps);
  assert.equal(status, 0, `${signal ?? status}\n${stderr}`);
  return outcomes;
}

function assertEqualNumbers({ error, numbers }, expected) {
  assert.equal(error, undefined);
  assert.equal(numbers.length, expected.length);
  for (const [index, number] of numbers.entries()) {
    assert.ok(Math.abs(number - expected[index]) <= TOLERANCE, `${index}: ${number}, not ${expected[index]}`);
  }
}

test("the software GPU computes as the CPU does", async () => {
  const [cpu, , gpu] = await outcomesOf(process.env, "cpu", "create", "run");
  assertEqualNumbers(gpu, cpu.numbers);
});

test("without a fault, the library changes no bit", async () => {
  const [, without, loader] = await outcomesOf(process.env, "create", "run", "libraries");
  const [, within, loaders] = await outcomesOf(withVulkanFaults(), "create", "run", "libraries");
  assert.deepEqual(within.numbers, without.numbers);
  assert.deepEqual(loader.libraries, [process.env.VULKAN_LOADER]);
  assert.deepEqual(loaders.libraries.sort(), [process.env.SEMANTIC_SEARCH_VULKAN_FAULTS, ...loader.libraries].sort());
});

test("none: there is no device", async () => {
  const [{ error }] = await outcomesOf(withVulkanFaults("none"), "create");
  assert.match(error, /Failed to get a WebGPU adapter: No supported adapters/);
});

test("old: WebGPU refuses the device", async () => {
  const { status, outcomes, stderr } = await session(withVulkanFaults("old"), "create");
  assert.equal(status, 0, stderr);
  assert.match(outcomes[0].error, /Failed to get a WebGPU adapter: No supported adapters/);
  assert.match(stderr, /shaderUniform\*ArrayDynamicIndexing required/);
});

test("discrete: computes as before", async () => {
  const [cpu, , gpu] = await outcomesOf(withVulkanFaults("discrete"), "cpu", "create", "run");
  assertEqualNumbers(gpu, cpu.numbers);
});

test("wrong: half of the numbers are 1, while the switch is there", async () => {
  const file = path.join(temporaryFolder(), "switch");
  const steps = ["cpu", "create", "run", `+${file}`, "run", `-${file}`, "run"];
  const [cpu, , before, , wrong, , after] = await outcomesOf(withVulkanFaults(`wrong=${file}`), ...steps);
  assertEqualNumbers(before, cpu.numbers);
  const half = cpu.numbers.length / 2;
  assertEqualNumbers(wrong, [...Array(half).fill(1), ...cpu.numbers.slice(half)]);
  assertEqualNumbers(after, cpu.numbers);
});

test("lost: the session stays lost, and a new one works", async () => {
  const file = path.join(temporaryFolder(), "switch");
  const steps = ["cpu", "create", "run", `+${file}`, "run", `-${file}`, "run", "release", "create", "run"];
  const [cpu, , before, , lost, , still, , , anew] = await outcomesOf(withVulkanFaults(`lost=${file}`), ...steps);
  assertEqualNumbers(before, cpu.numbers);
  assert.match(lost.error, /\[Device\] is lost/);
  assert.match(still.error, /\[Device\] is lost/);
  assertEqualNumbers(anew, cpu.numbers);
});

test("memory: nothing is computed, and a new session works", async () => {
  const file = path.join(temporaryFolder(), "switch");
  const steps = ["cpu", `+${file}`, "create", "run", "release", `-${file}`, "create", "run"];
  const { status, signal, stderr, outcomes } = await session(withVulkanFaults(`memory=${file}`), ...steps);
  assert.equal(status, 0, `${signal ?? status}\n${stderr}`);
  const [cpu, , , failed, , , , anew] = outcomes;
  assert.match(stderr, /vkAllocateMemory failed with VK_ERROR_OUT_OF_DEVICE_MEMORY/);
  assert.match(failed.error, /is invalid due to a previous error/);
  assertEqualNumbers(anew, cpu.numbers);
});

test("slow: a submission takes 50 ms", async () => {
  const [cpu, , , gpu] = await outcomesOf(withVulkanFaults("slow"), "cpu", "create", "run", "run");
  assertEqualNumbers(gpu, cpu.numbers);
  assert.ok(gpu.ms >= 50, `${gpu.ms} ms`);
});

test("two faults, separated by a comma", async () => {
  const [, , gpu] = await outcomesOf(withVulkanFaults("slow,wrong"), "create", "run", "run");
  assert.equal(gpu.numbers[0], 1);
  assert.ok(gpu.ms >= 50, `${gpu.ms} ms`);
});

test("a fault that is misspelt ends the process", async () => {
  const { signal, stderr } = await session(withVulkanFaults("lots"), "create");
  assert.equal(signal, "SIGABRT");
  assert.match(stderr, /VULKAN_FAULTS: "lots" is none of \["none", /);
});
