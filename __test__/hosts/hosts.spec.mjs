/**
 * The packed package in other hosts than the Node.js that runs the tests, and left out of bundles. What passed is in
 * tables of docs/hosts.md, which `npm test -- --only=hosts --write` rewrites. Linux x64 only.
 */

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { chmodSync, copyFileSync, cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import * as path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { inspect } from "node:util";
import { hubWith, localCertificate, track } from "../support/hub.mjs";
import { startProxy } from "../support/hub_server.mjs";
import { installedPackage, NAME } from "../support/installed_package.mjs";
import { assertClose, golden, model, temporaryFolder } from "../support/models.mjs";
import { run, start, until } from "../support/processes.mjs";
import { checkTable } from "../support/tables.mjs";

const PAGE = "docs/hosts.md";
const HERE = fileURLToPath(new URL(".", import.meta.url));
const installed = (file) => path.join(HERE, "node_modules", file);
const versionOf = (name, folder = HERE) =>
  JSON.parse(readFileSync(path.join(folder, "node_modules", name, "package.json"), "utf8")).version;

const NODE = [installed("node-24/bin/node")];
/** Commands, to which the file to run is added. */
const HOSTS = {
  "Node.js 20": [installed("node-20/bin/node")],
  "Node.js 22": [installed("node-22/bin/node")],
  "Node.js 24": NODE,
  Bun: [installed("@oven/bun-linux-x64/bin/bun")],
  Deno: [installed("@deno/linux-x64-glibc/deno"), "run", "--allow-all"],
};

const MODEL = await model("bert_mean");
const CASES = golden("bert_mean").cases.filter(({ name }) =>
  ["sentence", "code", "empty", "one_word", "emoji", "cjk"].includes(name),
);
const TEXTS = CASES.map(({ text }) => text);
const GOLDEN = path.join(temporaryFolder(), "golden.json");
writeFileSync(GOLDEN, JSON.stringify(CASES));

const certificate = await localCertificate();
assert.ok(certificate, "openssl, which makes a certificate for the Hub of this machine, is not installed");
const { hub } = await hubWith({}, { tls: certificate.tls });

/** Whether a folder is `onnxruntime-node`'s for another system, which would only take time to copy. */
const isForeign = (file) => /napi-v6\/(darwin|win32|linux\/arm64)$/.test(file);
const packages = path.join(installedPackage(), "node_modules");

/** A user's project, in which the package and its dependencies are files, as npm installs them. */
function project(folder = path.join(temporaryFolder(), "project")) {
  const options = { recursive: true, dereference: true, filter: (file) => !isForeign(file) };
  cpSync(packages, path.join(folder, "node_modules"), options);
  cpSync(path.join(HERE, "tasks"), path.join(folder, "tasks"), { recursive: true });
  writeFileSync(path.join(folder, "package.json"), JSON.stringify({ name: "project", private: true }));
  return folder;
}

const PROJECT = project();
cpSync(path.join(PROJECT, "node_modules", NAME), path.join(PROJECT, "clone"), { recursive: true });
const ODD_PROJECT = project(path.join(temporaryFolder(), `a b#c%20d'e"f ü 日本 &$(x)`));

/** All that programs get from the environment. */
function environment(changes = {}) {
  const folder = temporaryFolder();
  return {
    PATH: process.env.PATH,
    HOME: path.join(folder, "home"),
    NO_COLOR: "1",
    ORT_DISABLE_TELEMETRY: "1",
    NEXT_TELEMETRY_DISABLED: "1",
    DENO_NO_UPDATE_CHECK: "1",
    DENO_DIR: path.join(folder, "deno"),
    HF_ENDPOINT: hub.endpoint,
    NODE_EXTRA_CA_CERTS: certificate.file,
    CACHE: path.join(folder, "hub"),
    MODEL,
    GOLDEN,
    ...changes,
  };
}

/** The processes that have a variable in their environment. */
function processesWith(name, value) {
  return readdirSync("/proc").filter((id) => {
    if (!/^\d+$/.test(id)) return false;
    try {
      return readFileSync(`/proc/${id}/environ`, "utf8").split("\0").includes(`${name}=${value}`);
    } catch {
      // It has ended, or is somebody else's.
      return false;
    }
  });
}

/** Runs a task to its last statement; no process of it may remain. */
async function runTask(command, file, { cwd = PROJECT, env } = {}) {
  const [program, ...args] = [...command, file];
  const RUN = randomUUID();
  const options = { cwd, env: environment({ ...env, RUN }), timeoutMs: 120_000 };
  const { status, signal, stdout, stderr } = await run(program, args, options);
  assert.equal(status, 0, `${signal}\n${stdout}\n${stderr}`);
  assert.deepEqual([stdout, stderr], ["done\n", ""]);
  await until(() => processesWith("RUN", RUN).length === 0, "the end of all its processes", 10_000);
}

const task = (name, options) => (host) => runTask(host, `tasks/${name}`, options);

function assertGolden(vectors) {
  assert.equal(vectors.length, CASES.length);
  for (const [index, { name, vector }] of CASES.entries()) assertClose(vectors[index], vector, 1e-5, name);
}

const postJson = (url, body) =>
  fetch(url, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

/** The command line's server answers, also a request in progress while SIGTERM stops it. */
async function serve([program, ...flags]) {
  const main = path.join("node_modules", NAME, "dist/cli/main.js");
  const server = start(program, [...flags, main, "serve", MODEL, "--port=0"], {
    cwd: PROJECT,
    env: environment(),
    timeoutMs: 120_000,
  });
  try {
    const [, url] = await server.says(/^(http:\S+)\n/);
    const embed = async (input) => {
      const response = await postJson(`${url}/v1/embeddings`, { model: path.basename(MODEL), input });
      assert.equal(response.status, 200);
      return (await response.json()).data.map(({ embedding }) => embedding);
    };
    // An empty string is not allowed in OpenAI's API.
    const chosen = CASES.filter(({ text }) => text !== "");
    for (const [index, vector] of (await embed(chosen.map(({ text }) => text))).entries()) {
      assertClose(vector, chosen[index].vector, 1e-5, chosen[index].name);
    }
    const many = embed(Array.from({ length: 2000 }, (_, index) => `${index}${" word".repeat(60)}`));
    const isComputing = async () => {
      const metrics = await (await fetch(`${url}/metrics`)).text();
      return Number(/requests_in_flight (\d+)/.exec(metrics)?.[1]) > 1;
    };
    await Promise.race([many, until(isComputing, "the request to be in progress")]);
    server.child.kill("SIGTERM");
    assert.equal((await many).length, 2000);
    const { status, signal, stderr } = await server.ended;
    assert.equal(status, 0, `${signal} ${stderr}`);
  } finally {
    server.child.kill("SIGKILL");
    await server.ended;
  }
}

async function download(host) {
  await runTask(host, "tasks/pull.mjs");
  const proxy = track(await startProxy());
  await runTask(host, "tasks/pull.mjs", { env: { HTTPS_PROXY: proxy.url } });
  assert.match(proxy.asked[0], /^CONNECT /);
}

async function inOddFolder(host) {
  const folder = path.join(ODD_PROJECT, "a model");
  cpSync(MODEL, folder, { recursive: true });
  for (const name of ["embed.mjs", "fallback.mjs", "worker.mjs"]) {
    await runTask(host, `tasks/${name}`, { cwd: ODD_PROJECT, env: { MODEL: folder } });
  }
}

const HOST_CHECKS = {
  "`import`; vectors of documents and queries": task("embed.mjs"),
  "`require`; the synchronous functions": task("require.cjs"),
  streams: task("stream.mjs"),
  "`signal`, `onProgress`": task("abort.mjs"),
  "errors: class, code, message": task("errors.mjs"),
  "the JavaScript fallback": task("fallback.mjs"),
  "worker threads, also terminated in a call": task("worker.mjs"),
  "`node:cluster`": task("cluster.mjs"),
  "`process.exit()` in a call": task("exit.mjs"),
  "download from a Hub by HTTPS, also through a proxy": download,
  "`serve`, and its end by SIGTERM": serve,
  "the package outside of `node_modules`": task("clone.mjs"),
  "no `HOME`": task("bundle.mjs", { env: { HOME: undefined } }),
  "a `HOME` in which nothing can be written": task("home.mjs", { env: { HOME: "/sys" } }),
  "folders with spaces, quotes, `#`, `%`, `&`, `$`, Unicode": inOddFolder,
};

// Before the first test: while nothing but a module is waited for, Node.js takes the tests for finished.
const versions = new Map();
for (const [name, [program]] of Object.entries(HOSTS)) {
  const { stdout } = await run(program, ["--version"], { env: environment() });
  versions.set(name, `${name.split(" ")[0]} ${/\d+\.\d+\.\d+/.exec(stdout)[0]}`);
}

const hostTable = [["", ...versions.values()], ...Object.keys(HOST_CHECKS).map((what) => [what])];
for (const [name, command] of Object.entries(HOSTS)) {
  for (const [index, [what, check]] of Object.entries(HOST_CHECKS).entries()) {
    test(`${name}: ${what}`, async () => {
      const row = hostTable[index + 1];
      row.push("no");
      await check(command);
      row.splice(-1, 1, "yes");
    });
  }
}

test(`${PAGE} has the table of hosts`, () => checkTable(PAGE, "hosts", hostTable));

/** A setting of a configuration as the manual shows it. */
const code = (value) => `\`${inspect(value, { breakLength: Number.POSITIVE_INFINITY }).replaceAll("'", '"')}\``;

const ENTRY = path.join(PROJECT, "tasks/bundle.mjs");
/** Where a bundle finds the package that is left out of it. */
const output = (name) => path.join(PROJECT, "bundles", name);

const ESBUILD = ["--platform=node", `--external:${NAME}`];

async function esbuild(format, file) {
  const args = [ENTRY, "--bundle", ...ESBUILD, `--format=${format}`, `--outfile=${file}`, "--log-level=warning"];
  const { status, stderr } = await run(installed(".bin/esbuild"), args, { cwd: PROJECT, env: environment() });
  assert.equal(status, 0, stderr);
  assert.equal(stderr, "");
  await runTask(NODE, file);
}

async function compileByWebpack(file, settings) {
  const { default: compile } = await import("webpack");
  const configuration = {
    mode: "production",
    target: "node",
    context: PROJECT,
    entry: ENTRY,
    output: { path: path.dirname(file), filename: path.basename(file) },
    ...settings,
  };
  if (settings.externalsType === "module") {
    Object.assign(configuration, { experiments: { outputModule: true } });
    Object.assign(configuration.output, { module: true });
  }
  const compiler = compile(configuration);
  return new Promise((resolve, reject) => compiler.run((error, stats) => (error ? reject(error) : resolve(stats))));
}

async function webpack(file, settings) {
  const stats = await compileByWebpack(file, settings);
  assert.ok(!stats.hasErrors() && !stats.hasWarnings(), stats.toString());
  await runTask(NODE, file);
}

const WEBPACK_MODULE = { externalsType: "module", externals: { [NAME]: NAME } };
const WEBPACK_COMMONJS = { externals: { [NAME]: `commonjs ${NAME}` } };

async function vite(folder, ssr) {
  const { build } = await import("vite");
  await build({
    root: PROJECT,
    configFile: false,
    logLevel: "error",
    ssr,
    build: { ssr: ENTRY, outDir: folder, emptyOutDir: true },
  });
  const [file] = readdirSync(folder);
  await runTask(NODE, path.join(folder, file));
}

const VITE = { noExternal: true, external: [NAME] };

/** The files that a program needs, in a folder without others. */
async function trace() {
  const { nodeFileTrace } = await import("@vercel/nft");
  const { fileList } = await nodeFileTrace([ENTRY], { base: PROJECT });
  const folder = temporaryFolder();
  for (const file of fileList) {
    mkdirSync(path.dirname(path.join(folder, file)), { recursive: true });
    copyFileSync(path.join(PROJECT, file), path.join(folder, file));
  }
  await runTask(NODE, "tasks/bundle.mjs", { cwd: folder });
}

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

const NEXT = { serverExternalPackages: [NAME] };

/** Builds the application, starts it without what it was built from, and asks it for vectors. */
async function next(settings, startServer) {
  const folder = path.join(temporaryFolder(), "app");
  cpSync(path.join(HERE, "next"), folder, { recursive: true });
  project(folder);
  writeFileSync(path.join(folder, "next.config.mjs"), `export default ${JSON.stringify(settings)};\n`);
  const program = path.join(folder, "node_modules/next/dist/bin/next");
  const build = await run(NODE[0], [program, "build"], { cwd: folder, env: environment(), timeoutMs: 300_000 });
  assert.equal(build.status, 0, build.stdout + build.stderr);
  const port = await freePort();
  const { args, cwd } = startServer(folder, program);
  const env = environment({ PORT: `${port}`, HOSTNAME: "127.0.0.1" });
  const server = start(NODE[0], args, { cwd, env, timeoutMs: 120_000 });
  try {
    await server.says(/Ready in/);
    for (const backend of ["onnx", "onnx-js"]) {
      const response = await postJson(`http://127.0.0.1:${port}/?backend=${backend}`, TEXTS);
      assert.equal(response.status, 200, server.output.stderr);
      assertGolden(await response.json());
    }
  } finally {
    server.child.kill("SIGTERM");
    await server.ended;
  }
}

function standalone(folder) {
  // Without the folder that it was copied from, where it could find what was left out.
  const alone = path.join(temporaryFolder(), "standalone");
  cpSync(path.join(folder, ".next/standalone"), alone, { recursive: true, verbatimSymlinks: true });
  return { args: ["server.js"], cwd: alone };
}

/** Node.js with a program in it, beside `node_modules`. */
async function executable() {
  const folder = project();
  const file = path.join(folder, "program");
  const settings = { main: "tasks/executable.cjs", output: "program.blob", disableExperimentalSEAWarning: true };
  writeFileSync(path.join(folder, "sea.json"), JSON.stringify(settings));
  const options = { cwd: folder, env: environment() };
  const prepared = await run(NODE[0], ["--experimental-sea-config", "sea.json"], options);
  assert.equal(prepared.status, 0, prepared.stderr);
  copyFileSync(NODE[0], file);
  chmodSync(file, 0o755);
  const fuse = "NODE_SEA_FUSE_fce680ab2cc467b6e072b8b5df1996b2";
  const args = [installed("postject/dist/cli.js"), file, "NODE_SEA_BLOB", "program.blob", "--sentinel-fuse", fuse];
  const injected = await run(NODE[0], args, options);
  assert.equal(injected.status, 0, injected.stdout + injected.stderr);
  await runTask([], file, { cwd: folder });
}

const esbuildVersion = `esbuild ${versionOf("esbuild")}`;
const webpackVersion = `webpack ${versionOf("webpack")}`;
const nextVersion = `Next.js ${versionOf("next", path.join(HERE, "next"))}`;
/** Tool, setting, check, and what passes. */
const BUNDLERS = [
  [`${esbuildVersion}, ES module`, `\`${ESBUILD.join(" ")}\``, () => esbuild("esm", output("esbuild.mjs"))],
  [`${esbuildVersion}, CommonJS`, `\`${ESBUILD.join(" ")}\``, () => esbuild("cjs", output("esbuild.cjs"))],
  [`${webpackVersion}, ES module`, code(WEBPACK_MODULE), () => webpack(output("webpack.mjs"), WEBPACK_MODULE)],
  [`${webpackVersion}, CommonJS`, code(WEBPACK_COMMONJS), () => webpack(output("webpack.cjs"), WEBPACK_COMMONJS)],
  [`Vite ${versionOf("vite")}, SSR`, "none", () => vite(output("vite"), {})],
  [`Vite ${versionOf("vite")}, SSR, all bundled`, code({ ssr: VITE }), () => vite(output("vite-all"), VITE)],
  [
    `${nextVersion}, \`next start\``,
    code(NEXT),
    () => next(NEXT, (cwd, program) => ({ args: [program, "start"], cwd })),
  ],
  [
    `${nextVersion}, standalone`,
    code({ ...NEXT, output: "standalone" }),
    () => next({ ...NEXT, output: "standalone" }, standalone),
  ],
  [`@vercel/nft ${versionOf("@vercel/nft")}`, "none", trace],
  [
    `${versions.get("Node.js 24")}, single executable`,
    "`createRequire(process.execPath)`, and `node_modules` beside it",
    executable,
    "yes, without the fallback",
  ],
];

const bundlerTable = [["tool", "setting", "runs"]];
for (const [tool, setting, check, outcome = "yes"] of BUNDLERS) {
  test(tool, async () => {
    const row = [tool, setting, "no"];
    bundlerTable.push(row);
    await check();
    row[2] = outcome;
  });
}

test(`${PAGE} has the table of bundlers`, () => checkTable(PAGE, "bundlers", bundlerTable));

test("without their settings, esbuild and webpack stop at the addon", async () => {
  const args = [ENTRY, "--bundle", "--platform=node", "--format=esm", `--outfile=${output("none.mjs")}`];
  const { status, stderr } = await run(installed(".bin/esbuild"), args, { cwd: PROJECT, env: environment() });
  assert.notEqual(status, 0);
  assert.match(stderr, /No loader is configured for "\.node" files: node_modules\/semantic-search-native/);
  const stats = await compileByWebpack(output("none.cjs"), { mode: "none" });
  assert.match(
    stats.toString({ all: false, errors: true }),
    /semantic-search-native\S*\.node 1:0\nModule parse failed/,
  );
});
