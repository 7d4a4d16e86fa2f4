/**
 * `npm test`: sets everything up and runs every check. Each step is one line with its time; a failing one shows its
 * output, and one that cannot run here says why. `npm test -- --only=<step>` runs one step (and the set-up it needs),
 * `--list` names them; with `--write`, the step `hosts` rewrites its tables in docs/hosts.md. After
 * `npm run build:native -- --mlx=…` MLX is tested as well.
 */

import { spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { withVulkanFaults } from "../__test__/support/vulkan_faults.mjs";
import { PLATFORMS, thisPlatform } from "../release/platforms.mjs";
import { checkLicenses } from "./licenses.mjs";
import { buildReference } from "./reference.mjs";
import {
  buildAddon,
  builtVariant,
  CommandError,
  compileTypeScript,
  installPackages,
  installStarterModel,
  ROOT,
  reportFailure,
  run,
  runPackage,
  rustEnvironment,
} from "./setup.mjs";
import { bringSoftwareGpu, softwareGpuEnvironment } from "./software-gpu.mjs";

const GENERATED = ["index.js", "index.d.ts"];
const CODE_SEARCH = "packages/code-search";
const INTEGRATIONS = "__test__/integrations";
const HOSTS = "__test__/hosts";

const passed = { tests: 0 };
const failed = { tests: 0 };

const rust = rustEnvironment();
/** Set where the build that is tested has MLX on Linux. */
const mlxVariant = builtVariant();
const isAppleSilicon = process.platform === "darwin" && process.arch === "arm64";
/** Makes tests of MLX fail where they would be skipped without MLX. */
const mlxRequired = { SEMANTIC_SEARCH_TEST_MLX: mlxVariant || isAppleSilicon ? "1" : undefined };
const XTASK = ["--manifest-path", "xtask/Cargo.toml"];
const BENCHES = ["drivers/candle", "suites/stage_timer"].map((crate) => [
  "--manifest-path",
  `benches/${crate}/Cargo.toml`,
]);
const FUZZ = ["--manifest-path", "fuzz/Cargo.toml"];
const LOOM = ["--manifest-path", "tests/loom/Cargo.toml"];
const VULKAN_FAULTS = ["--manifest-path", "tests/vulkan_faults/Cargo.toml"];
/** Fixtures whose thousands of tokens take half a minute there. */
const SLOW_ON_SOFTWARE_GPU = ["nomic_mean_dynamic"];
/** Fixtures whose attention has a mask that another has as well. */
const ALIKE_STEP_BY_STEP = [
  "bert_cls_bf16",
  "bert_cls_f16",
  "bert_dense",
  "distilbert",
  "gemma3",
  "gte_new",
  "jina_bert_qk",
  "nomic_moe",
  "nomic_partial",
  "qwen2",
  "roberta",
  "static_embedding",
  "static_mapped",
  "static_model2vec",
  "xlm_roberta",
];
const QEMU = "qemu-x86_64-static";
/** Older processors, by QEMU's names, and the levels of `src/runtime/cpu/level.rs` that they have. */
const PROCESSORS = { Haswell: "portable,avx2", Nehalem: "portable" };
const committed = new Map(GENERATED.map((name) => [name, readIfPresent(name)]));
let starterModel;

const SET_UP = {
  packages: installPackages,
  addon: () => buildAddon(rust),
  // After the addon: its generated types are part of the program.
  tsc: compileTypeScript,
  "starter-model": async () => {
    starterModel = await installStarterModel();
  },
};

const CHECKS = {
  "cargo-fmt": async () => {
    for (const crate of [[], XTASK, FUZZ, LOOM, VULKAN_FAULTS, ...BENCHES])
      await run("cargo", ["fmt", "--check", ...crate], rust);
  },
  clippy,
  lint: () => runPackage("@biomejs/biome/bin/biome", ["check", "--error-on-warnings", "."]),
  licenses: () => checkLicenses(rust),
  generated: checkGenerated,
  "cargo-test": cargoTest,
  ...(mlxVariant && { "cargo-test-mlx": cargoTestMlx }),
  ...(hasQemu() && { processors }),
  webgpu,
  // The queue under all interleavings of its threads. In a folder of its own: nothing else is built with optimization.
  loom: () => countedCargoTest([...LOOM, "--target-dir", "target/loom"]),
  // Before the tests that run the samples of the manual.
  integrations: async () => {
    await installPackages(INTEGRATIONS);
    await nodeTest(INTEGRATIONS);
  },
  "node-test": () => nodeTest("__test__"),
  "code-search": async () => {
    await installPackages(CODE_SEARCH);
    await runPackage("typescript/bin/tsc", ["--project", CODE_SEARCH, "--noEmit"]);
    await nodeTest(`${CODE_SEARCH}/test`);
  },
  reference: buildReference,
  ...(process.platform === "linux" && process.arch === "x64" && { hosts }),
  bench: smokeBench,
  release: async () => {
    await installPackages("release");
    await nodeTest("release/test");
    // Builds the package of this platform, if there is one, and installs it from a registry on this machine.
    if (Object.hasOwn(PLATFORMS, thisPlatform())) {
      await run(process.execPath, [path.join(ROOT, "release/main.mjs"), "dry-run"], rust);
    }
  },
};

function readIfPresent(name) {
  try {
    return readFileSync(path.join(ROOT, name), "utf8");
  } catch {
    return undefined;
  }
}

/** The build of the set-up has regenerated the files: they must be what was there before. */
async function checkGenerated() {
  const stale = GENERATED.filter((name) => readIfPresent(name) !== committed.get(name));
  if (stale.length > 0) throw new Error(`${stale.join(" and ")} had to be regenerated: commit the new version`);
}

/** What cargo needs to build with MLX. The set-up may have moved the configuration, so it is read anew. */
function withMlx() {
  return ["--features", "mlx", "--config", builtVariant().config];
}

async function clippy() {
  const tests = ["--all-targets", "--no-default-features"];
  // The Node boundary as it is built here; without it all tests, which link without Node.
  const beside = [
    ...BENCHES,
    [...FUZZ, "--no-default-features"],
    ...[LOOM, VULKAN_FAULTS].map((crate) => [...crate, "--all-targets"]),
  ].map((crate) => [...crate, "--target-dir", "target"]);
  const variants = mlxVariant
    ? [["--lib", ...withMlx()], tests, [...tests, ...withMlx()], ["--all-targets", ...XTASK], ...beside]
    : [["--lib"], tests, ...beside];
  for (const variant of variants) {
    await run("cargo", ["clippy", "--locked", ...variant, "--", "-D", "warnings"], rust);
  }
}

/** `cargo test`, its tests counted. */
async function countedCargoTest(args, env) {
  await countedRustTest(run("cargo", ["test", "--locked", ...args], { ...rust, ...env }));
}

function countedRustTest(running) {
  return counted(running, /^test result: \w+\. (\d+) passed; (\d+) failed/gm);
}

// The Node boundary is left out of both: its symbols exist in a Node process only. MLX is tested in one thread.

async function cargoTest() {
  if (isAppleSilicon) await countedCargoTest(["--no-default-features", "--", "--test-threads=1"], mlxRequired);
  else await countedCargoTest(["--no-default-features"]);
}

async function cargoTestMlx() {
  await countedCargoTest(XTASK);
  await countedCargoTest(["--no-default-features", ...withMlx(), "--", "--test-threads=1"], mlxRequired);
}

/** QEMU emulates a processor for programs that were built for this one. */
function hasQemu() {
  return process.platform === "linux" && process.arch === "x64" && spawnSync(QEMU, ["--version"]).status === 0;
}

/**
 * The backend cpu on processors without the newer instructions, which end a program there. The tests are those that
 * `cargo-test` compiled.
 */
async function processors() {
  const targets = ["--lib", "--test=golden", "--no-run", "--quiet", "--message-format=json"];
  const printed = await run("cargo", ["test", "--locked", "--no-default-features", ...targets], rust);
  const messages = printed.split("\n").filter((line) => line.startsWith("{"));
  const built = messages.map((line) => JSON.parse(line)).filter(({ executable }) => executable);
  const programOf = (kind) => built.find(({ target }) => target.kind.includes(kind)).executable;
  const emulated = async ([processor, levels]) => {
    const env = {
      SEMANTIC_SEARCH_CPU: undefined,
      SEMANTIC_SEARCH_TEST_LEVELS: levels,
      // Its thousands of tokens take a minute.
      SEMANTIC_SEARCH_TEST_WITHOUT: "nomic_mean_dynamic",
    };
    const emulate = (program, filter) => countedRustTest(run(QEMU, ["-cpu", processor, program, filter], env));
    await emulate(programOf("rlib"), "runtime::cpu");
    await emulate(programOf("test"), "vectors_of_cpu");
  };
  const outcomes = await Promise.allSettled(Object.entries(PROCESSORS).map(emulated));
  const failure = outcomes.find(({ status }) => status === "rejected");
  if (failure) throw failure.reason;
}

/** The backend webgpu on a GPU that computes on the CPU, and with the faults that a GPU may have. */
async function webgpu() {
  const { folder, reason } = await bringSoftwareGpu();
  if (!folder) throw new Skipped(reason);
  await run("cargo", ["build", "--locked", ...VULKAN_FAULTS, "--target-dir", "target"], rust);
  // Under the name that programs open, in a folder that is searched where a test wants it.
  const faults = path.join(ROOT, "target/vulkan_faults/libvulkan.so.1");
  mkdirSync(path.dirname(faults), { recursive: true });
  copyFileSync(path.join(ROOT, "target/debug/libvulkan_faults.so"), faults);
  const env = {
    ...softwareGpuEnvironment(folder),
    SEMANTIC_SEARCH_TEST_WEBGPU: "1",
    SEMANTIC_SEARCH_VULKAN_FAULTS: faults,
  };
  await countedCargoTest([...VULKAN_FAULTS, "--target-dir", "target"], env);
  // Attention as one operator is wrong with this GPU's subgroups, so with them it is computed step by step.
  const without = (fixtures) => ({ SEMANTIC_SEARCH_TEST_WITHOUT: fixtures.join() });
  const whole = { ...withVulkanFaults("whole", env), ...without(SLOW_ON_SOFTWARE_GPU) };
  const stepByStep = { ...env, ...without([...SLOW_ON_SOFTWARE_GPU, ...ALIKE_STEP_BY_STEP]) };
  const rustTest = (kind, filter, env) => countedCargoTest(["--no-default-features", kind, "--", ...filter], env);
  await rustTest("--lib", ["webgpu"], env);
  await rustTest("--test=golden", ["vectors_of_webgpu"], whole);
  await rustTest("--test=golden", ["vectors_of_webgpu"], stepByStep);
  await rustTest("--test=properties", ["alone", "equal_texts", "stay_within", "--skip=cpu"], whole);
  await nodeTest("__test__/webgpu", env);
}

/** Other hosts and bundlers, which have packages of their own. `--write` rewrites the tables of what passed. */
async function hosts() {
  for (const folder of [HOSTS, `${HOSTS}/next`]) await installPackages(folder);
  await nodeTest(HOSTS, { SEMANTIC_SEARCH_WRITE_TABLES: process.argv.includes("--write") ? "1" : undefined });
}

/** @param {string} folder of the specs */
async function nodeTest(folder, more = {}) {
  const specs = readdirSync(path.join(ROOT, folder)).filter((name) => name.endsWith(".spec.mjs"));
  const args = ["--test", "--test-reporter=spec", ...specs.map((name) => `${folder}/${name}`)];
  const env = {
    SEMANTIC_SEARCH_STARTER_MODEL: starterModel,
    ...mlxRequired,
    // What the user's shell may carry would change what is tested.
    SEMANTIC_SEARCH_MODEL: undefined,
    SEMANTIC_SEARCH_BACKEND: undefined,
    NODE_OPTIONS: undefined,
    NO_COLOR: "1",
    ...more,
  };
  await counted(run(process.execPath, args, env), /^ℹ pass (\d+).*?^ℹ fail (\d+)/gms);
}

/** The benchmark on tiny models: that it still works, not how fast anything is. */
async function smokeBench() {
  const out = mkdtempSync(path.join(os.tmpdir(), "semantic-search-bench-"));
  try {
    const env = { SEMANTIC_SEARCH_BACKEND: undefined, NODE_OPTIONS: undefined, SEMANTIC_SEARCH_CACHE: out };
    await run(process.execPath, ["benches/run.mjs", "--smoke", `--out=${out}`], env);
  } finally {
    rmSync(out, { recursive: true, force: true });
  }
}

/** Adds the numbers of passed and failed tests that a run reports to the totals, whether it failed or not. */
async function counted(running, summary) {
  const outcome = await running.then(
    (output) => ({ output }),
    (error) => ({ output: error.output ?? "", error }),
  );
  const reports = [...outcome.output.matchAll(summary)];
  for (const [, good, bad] of reports) {
    passed.tests += Number(good);
    failed.tests += Number(bad);
  }
  if (outcome.error) throw outcome.error;
  if (reports.every(([, good, bad]) => good === "0" && bad === "0"))
    throw new CommandError("no tests were run: the command", outcome.output, null);
}

/** Why a step cannot run on this machine. */
class Skipped extends Error {}

async function step(name, work) {
  const start = performance.now();
  const failedBefore = failed.tests;
  try {
    await work();
    console.log(`ok    ${name} (${((performance.now() - start) / 1000).toFixed(1)} s)`);
    return true;
  } catch (error) {
    if (error instanceof Skipped) {
      console.log(`skip  ${name}: ${error.message}`);
      return true;
    }
    reportFailure(error);
    console.log(`FAIL  ${name} (${((performance.now() - start) / 1000).toFixed(1)} s)`);
    // A check without tests of its own, or one that failed before it came to them, counts as one.
    if (failed.tests === failedBefore) failed.tests++;
    return false;
  }
}

async function main() {
  const only = process.argv.find((argument) => argument.startsWith("--only="))?.slice("--only=".length);
  if (process.argv.includes("--list") || (only !== undefined && !(only in CHECKS))) {
    console.log(`steps: ${Object.keys(CHECKS).join(", ")}`);
    process.exitCode = only === undefined ? 0 : 1;
    return;
  }
  if (!rust) {
    console.error("npm test needs a Rust toolchain (cargo): see https://rustup.rs. `npm run demo` works without one.");
    process.exitCode = 1;
    return;
  }
  let isSetUp = true;
  for (const [name, work] of Object.entries(SET_UP)) isSetUp &&= await step(name, work);
  for (const [name, work] of Object.entries(CHECKS)) {
    if (isSetUp && (only === undefined || only === name)) await step(name, work);
  }
  console.log(`${passed.tests} passed, ${failed.tests} failed`);
  process.exitCode = failed.tests === 0 ? 0 : 1;
}

await main();
