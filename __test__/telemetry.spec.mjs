/** No telemetry: no socket is opened and no file is written, on any backend, in any thread. */

import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { BACKENDS, model, ROOT, temporaryFolder } from "./support/models.mjs";
import { run } from "./support/processes.mjs";

const USE = `
  const { Embedder } = require(${JSON.stringify(path.join(ROOT, "dist/embedder.js"))});
  Embedder.load(process.env.MODEL, { backend: process.env.BACKEND }).then(async (embedder) => {
    await embedder.embed(["the time"]);
    await embedder.close();
  });`;
const IN_WORKER = `new (require("node:worker_threads").Worker)(${JSON.stringify(USE)}, { eval: true });`;

/** Calls that open a socket or change the file system. `socketpair`, over which a process talks to its child, is none. */
const WATCHED =
  "socket,connect,open,openat,creat,mkdir,mkdirat,link,linkat,symlink,symlinkat,rename,renameat,renameat2";

/** Runs Node.js where the user has nothing but empty folders; returns what should not have happened. */
async function traces(args, env) {
  const home = temporaryFolder();
  const folders = Object.fromEntries(
    ["HOME", "USERPROFILE", "XDG_CACHE_HOME", "LOCALAPPDATA", "TMPDIR", "TMP", "TEMP"].map((variable) => {
      const folder = path.join(home, variable);
      mkdirSync(folder);
      return [variable, folder];
    }),
  );
  const log = path.join(temporaryFolder(), "strace");
  writeFileSync(log, "");
  const watching = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "signal=none", "-e", `trace=${WATCHED}`, "-o", log];
  const [program, ...before] = [...(process.platform === "linux" ? watching : []), process.execPath];
  // ONNX Runtime is silent where a variable tells it that it is being tested: there are none but these.
  const { PATH, SystemRoot } = process.env;
  const { status, stderr, signal } = await run(program, [...before, ...args], {
    env: { PATH, ...(SystemRoot && { SystemRoot }), ...folders, MODEL: await model("bert_mean"), ...env },
    input: "the time",
    timeoutMs: 120_000,
  }).catch(({ message }) => assert.fail(`${message}; this test needs strace: apt-get install strace`));
  assert.equal(status, 0, `${signal} ${stderr}`);
  const written = readdirSync(home, { recursive: true }).filter((name) => path.dirname(name) !== ".");
  return [...written, ...readFileSync(log, "utf8").split("\n").filter(isUnwanted)];
}

/** Whether a line of the trace opens a socket, or a file to write into. */
function isUnwanted(line) {
  const [, call, args] = /^\d+ +(\w+)\((.*)/.exec(line) ?? [];
  if (call === undefined) return false;
  if (call !== "open" && call !== "openat") return true;
  return /O_WRONLY|O_RDWR|O_CREAT/.test(args) && !/"\/(dev|proc)\//.test(args);
}

for (const backend of BACKENDS) {
  for (const [where, code] of [
    ["the main thread", USE],
    ["a worker thread", IN_WORKER],
  ]) {
    test(`${backend} in ${where} opens no socket and writes no file`, async () => {
      assert.deepEqual(await traces(["-e", code], { BACKEND: backend }), []);
    });
  }

  test(`the command line with ${backend} opens no socket and writes no file`, async () => {
    const args = [path.join(ROOT, "dist/cli/main.js"), "embed", await model("bert_mean")];
    assert.deepEqual(await traces(args, { SEMANTIC_SEARCH_BACKEND: backend }), []);
  });
}
