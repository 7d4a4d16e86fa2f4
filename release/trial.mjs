/**
 * Installs the packed package as its users do, and uses it: from a registry on this machine, into empty folders, without
 * scripts, without a compiler. On Linux where namespaces may be made, also without any network but the loopback.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { ROOT, run } from "../scripts/setup.mjs";
import { starterModelFolder } from "../scripts/starter-model.mjs";
import { libraryName, MANIFEST, NAMED, packageName, thisPlatform } from "./platforms.mjs";
import { installInto, publishLocally, startRegistry } from "./registry.mjs";

const UNSHARE = ["--net", "--map-root-user"];

/**
 * @param {string[]} archives packages to publish
 * @returns {Promise<string[]>} what was seen, a line each
 */
export async function tryRelease(archives) {
  const folder = mkdtempSync(path.join(os.tmpdir(), "release-"));
  try {
    const registry = await startRegistry({ folder, isOffline: false });
    try {
      await publishLocally(archives, registry);
      // Brings what else is installed into the registry, which is then cut off.
      await installForUser(path.join(folder, "warm"), registry);
    } finally {
      await registry.stop();
    }
    const isIsolated = hasNamespaces();
    const [program, ...args] = [
      ...(isIsolated ? ["unshare", ...UNSHARE] : []),
      ...[process.execPath, fileURLToPath(import.meta.url), folder, String(isIsolated)],
    ];
    if (!isIsolated) console.warn("no namespaces here: the installation has a network, of which nothing is expected");
    const seen = await run(program, args);
    return seen.trim().split("\n");
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** `unshare` gives a process a network of its own, in which there is only the loopback. */
function hasNamespaces() {
  if (process.platform !== "linux") return false;
  return spawnSync("unshare", [...UNSHARE, "ip", "link", "set", "lo", "up"]).status === 0;
}

/** A user installs the package, and those that depend on it. */
function installForUser(folder, registry) {
  return installInto(folder, Object.fromEntries(NAMED.map((name) => [name, MANIFEST.version])), registry);
}

/** What runs without a network. */
async function tryOffline(folder) {
  const registry = await startRegistry({ folder, isOffline: true });
  try {
    const user = path.join(folder, "user");
    await installForUser(user, registry);
    use(user, path.join(folder, "bin"));
  } finally {
    await registry.stop();
  }
}

/** @param {string} bin a folder to make, with the only program that is found */
function use(user, bin) {
  mkdirSync(bin);
  symlinkSync(process.execPath, path.join(bin, "node"));
  const model = starterModelFolder();
  const env = { PATH: bin, HOME: path.join(user, "home"), SEMANTIC_SEARCH_MODEL: model };
  const node = (...args) => {
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: user, env, encoding: "utf8" });
    assert.equal(status, 0, `node ${args.join(" ")}\n${stdout}\n${stderr}`);
    return stdout;
  };

  const installed = path.join(user, "node_modules");
  const platform = path.join(installed, packageName(thisPlatform()));
  assert.ok(existsSync(path.join(platform, libraryName(thisPlatform()))), "the platform package has the library");
  assert.ok(!existsSync(path.join(installed, "onnxruntime-node")), "no second ONNX Runtime is installed");

  const [, sample] = /^## Use\n.*?```js\n(.*?)```/ms.exec(readFileSync(path.join(ROOT, "README.md"), "utf8"));
  const [named] = /"[\w-]+\/[\w-]+"/.exec(sample);
  writeFileSync(path.join(user, "readme.mjs"), sample.replace(named, JSON.stringify(model)));
  const scores = JSON.parse(node("readme.mjs"));
  assert.ok(scores[0] > scores[1], `README's example ranks the addition first: ${scores}`);
  console.log(`README's example: ${scores.map((score) => score.toFixed(3)).join(" and ")}`);

  const main = path.join(installed, MANIFEST.name, MANIFEST.bin[MANIFEST.name]);
  const report = JSON.parse(node(main, "doctor", "--json", "--measure=0", model));
  assert.deepEqual(
    report.findings.filter(({ isProblem }) => isProblem),
    [],
  );
  writeFileSync(path.join(user, "lines.txt"), "the time\na place\n");
  const lines = node(main, "embed", model, "lines.txt").trim().split("\n");
  assert.deepEqual(
    lines.map((line) => JSON.parse(line).vector.length),
    [384, 384],
  );
  console.log("command line: doctor reports no problem, embed gives 2 vectors");

  cpSync(path.join(ROOT, "lib/hub"), path.join(user, "project"), { recursive: true });
  node(main, "index", "project");
  const question = "resume an interrupted download";
  const [hit] = JSON.parse(node(main, "search", question, "project", "--json")).hits;
  console.log(`code-search: "${question}": ${hit.path}`);

  // The clone's, as any other of the process: under one name, the linker would give both of them the first one.
  const other = path.join(ROOT, "node_modules/onnxruntime-node");
  writeFileSync(
    path.join(user, "two.cjs"),
    `const { Embedder } = require(${JSON.stringify(MANIFEST.name)});
    Embedder.load(process.env.SEMANTIC_SEARCH_MODEL, { backend: "onnx" }).then((embedder) => {
      require(${JSON.stringify(other)});
      if (process.platform === "linux") console.log(require("node:fs").readFileSync("/proc/self/maps", "utf8"));
      return embedder.close();
    });`,
  );
  const mapped = node("two.cjs");
  if (process.platform === "linux") {
    for (const file of [path.join(platform, libraryName(thisPlatform())), `${other}/`])
      assert.ok(mapped.includes(file), file);
    console.log("another onnxruntime-node in the same process has its own library");
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [folder, isIsolated] = process.argv.slice(2);
  if (isIsolated === "true") {
    await run("ip", ["link", "set", "lo", "up"]);
    assert.equal(await run("ip", ["route"]), "", "there is no way out of this network");
  }
  await tryOffline(folder);
}
