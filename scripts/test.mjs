/**
 * `npm test`: sets everything up and runs every check. Each step is one line with its time; a failing one shows its
 * output. `npm test -- --only=<step>` runs one step (and the set-up it needs), `--list` names them.
 */

import { readdirSync, readFileSync } from "node:fs";
import * as path from "node:path";
import {
  buildAddon,
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

const GENERATED = ["index.js", "index.d.ts"];

const passed = { tests: 0 };
const failed = { tests: 0 };

const rust = rustEnvironment();
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
  "cargo-fmt": () => run("cargo", ["fmt", "--check"], rust),
  clippy: async () => {
    // With the Node boundary, and without it all tests, which link without Node.
    const variants = [["--lib"], ["--all-targets", "--no-default-features"]];
    for (const variant of variants) {
      await run("cargo", ["clippy", "--locked", ...variant, "--", "-D", "warnings"], rust);
    }
  },
  lint: () => runPackage("@biomejs/biome/bin/biome", ["check", "--error-on-warnings", "."]),
  generated: checkGenerated,
  "cargo-test": cargoTest,
  "node-test": nodeTest,
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

async function cargoTest() {
  // The Node boundary is left out: its symbols exist in a Node process only.
  const running = run("cargo", ["test", "--locked", "--no-default-features"], rust);
  await counted(running, /^test result: \w+\. (\d+) passed; (\d+) failed/gm);
}

async function nodeTest() {
  const specs = readdirSync(path.join(ROOT, "__test__")).filter((name) => name.endsWith(".spec.mjs"));
  const args = ["--test", "--test-reporter=spec", ...specs.map((name) => `__test__/${name}`)];
  const env = {
    SEMANTIC_SEARCH_STARTER_MODEL: starterModel,
    // What the user's shell may carry would change what is tested.
    SEMANTIC_SEARCH_MODEL: undefined,
    SEMANTIC_SEARCH_BACKEND: undefined,
    NODE_OPTIONS: undefined,
    NO_COLOR: "1",
  };
  await counted(run(process.execPath, args, env), /^ℹ pass (\d+).*?^ℹ fail (\d+)/gms);
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
  if (reports.length === 0) throw new CommandError("no tests were run: the command", outcome.output, null);
}

async function step(name, work) {
  const start = performance.now();
  const failedBefore = failed.tests;
  try {
    await work();
    console.log(`ok    ${name} (${((performance.now() - start) / 1000).toFixed(1)} s)`);
    return true;
  } catch (error) {
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
