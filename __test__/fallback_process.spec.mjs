/** The child process of the JavaScript fallback: what happens to it, or to the process that started it, harms nothing else. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createRequire } from "node:module";
import * as path from "node:path";
import { test } from "node:test";
import { embedderError, model, ROOT, STARTER_MODEL, withEmbedder } from "./support/models.mjs";
import { runNode, startNode, until } from "./support/processes.mjs";

const require = createRequire(import.meta.url);
const childProcess = require("node:child_process");
const FALLBACK = { backend: "onnx-js" };
const long = (count) => Array.from({ length: count }, (_, index) => `${index}${" word".repeat(60)}`);

/** Calls `use` and returns the processes that the fallback started meanwhile. */
async function startedDuring(use) {
  const { fork } = childProcess;
  const started = [];
  childProcess.fork = (...args) => {
    const child = fork(...args);
    started.push(child);
    return child;
  };
  try {
    await use(started);
  } finally {
    childProcess.fork = fork;
  }
  return started;
}

/** A host that prints the ids of the processes which the fallback starts in it, and runs `body` with `embedder` and texts for a while. */
const host = (body) => `
  const cp = require("node:child_process");
  const fork = cp.fork;
  const children = [];
  cp.fork = (...args) => {
    const child = fork(...args);
    children.push(child);
    require("node:fs").writeSync(1, child.pid + "\\n");
    return child;
  };
  const { Embedder } = require(${JSON.stringify(path.join(ROOT, "dist/embedder.js"))});
  const many = Array.from({ length: 20000 }, (_, index) => index + " word".repeat(60));
  (async () => {
    let embedder = await Embedder.load(process.env.MODEL, { backend: "onnx-js" });
    ${body}
  })();`;

async function environment(more) {
  return { ...process.env, MODEL: await model("bert_mean"), ...more };
}

/** Runs a host to its end. */
async function runHost(body, { flags = [], env = {} } = {}) {
  const options = { env: await environment(env), timeoutMs: 120_000 };
  const { status, signal, stdout, stderr } = await runNode([...flags, "-e", host(body)], options);
  assert.equal(status, 0, `${signal} ${stdout} ${stderr}`);
  const [pid, ...out] = stdout.trim().split("\n");
  return { pid: Number(pid), out, stderr };
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    assert.equal(error.code, "ESRCH");
    return false;
  }
}

const ends = (pid) => until(() => !isAlive(pid), `the end of process ${pid}`);

for (const [how, body] of [
  ["by process.exit() in the middle of a call", "embedder.embed(many, { onProgress: () => process.exit(0) });"],
  ["by itself", ""],
  ["after close", "await embedder.close();"],
]) {
  test(`a host that ends ${how} leaves no process behind`, async () => {
    const { pid, out, stderr } = await runHost(body);
    assert.deepEqual([out, stderr], [[], ""]);
    await ends(pid);
  });
}

test("a host that is killed in the middle of a call leaves no process behind", async () => {
  const body = "embedder.embed(many, { onProgress: () => console.log('computing') });";
  const { child, says } = startNode(["-e", host(body)], { env: await environment() });
  const [, id] = await says(/^(\d+)\ncomputing/);
  const pid = Number(id);
  assert.ok(isAlive(pid));
  child.kill("SIGKILL");
  await ends(pid);
});

test("a worker thread that is terminated in the middle of a call leaves no process behind, and the host lives", async () => {
  const body = `
    await embedder.close();
    const { Worker } = require("node:worker_threads");
    const worker = new Worker(process.env.IN_WORKER, { eval: true });
    const [pid] = await require("node:events").once(worker, "message");
    const status = await worker.terminate();
    console.log(pid);
    console.log("terminated", status);`;
  const inWorker = `
    const cp = require("node:child_process");
    const fork = cp.fork;
    let pid;
    cp.fork = (...args) => { const child = fork(...args); pid = child.pid; return child; };
    const { Embedder } = require(${JSON.stringify(path.join(ROOT, "dist/embedder.js"))});
    Embedder.load(process.env.MODEL, { backend: "onnx-js" }).then((embedder) => {
      const texts = Array.from({ length: 1000 }, (_, index) => index + " word".repeat(400));
      embedder.embed(texts, { onProgress: () => require("node:worker_threads").parentPort.postMessage(pid) });
    });`;
  const { out } = await runHost(body, { env: { MODEL: STARTER_MODEL, IN_WORKER: inWorker } });
  assert.equal(out[1], "terminated 1");
  await ends(Number(out[0]));
});

test("an embedder that was collected as garbage leaves no process behind", async () => {
  const body = `
    await embedder.embed(["a"]);
    embedder = undefined;
    const gone = require("node:events").once(children[0], "exit");
    const timer = setInterval(gc, 20);
    console.log((await gone)[1]);
    clearInterval(timer);`;
  const { out } = await runHost(body, { flags: ["--expose-gc"] });
  assert.deepEqual(out, ["SIGKILL"]);
});

test("signals of the terminal do not end the process: they are the host's to handle", async () => {
  const started = await startedDuring(async (children) => {
    await withEmbedder(await model("bert_mean"), FALLBACK, async (embedder) => {
      const call = embedder.embed(long(200));
      for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.kill(children[0].pid, signal);
      assert.equal((await call).length, 200);
    });
  });
  assert.equal(started.length, 1);
});

test("a crash fails the calls in progress, and the next call has a new process", async () => {
  const children = await startedDuring(async (started) => {
    await withEmbedder(await model("bert_mean"), FALLBACK, async (embedder) => {
      const [before] = await embedder.embed(["the time"]);
      const calls = [embedder.embed(long(3000)), embedder.embedQuery("a query"), embedder.embed(long(300))];
      await calls[1];
      process.kill(started[0].pid, "SIGSEGV");
      for (const call of [calls[0], calls[2]]) {
        await assert.rejects(call, embedderError("INFERENCE_FAILED", "process of its own", "SIGSEGV"));
      }
      // Two calls at once share the new one.
      const [[after], [other]] = await Promise.all([embedder.embed(["the time"]), embedder.embed(["other"])]);
      assert.deepEqual(after, before);
      assert.equal(other.length, before.length);
      assert.equal(started.length, 2);
      // One that ends while nothing is asked of it is not missed.
      started[1].ref();
      process.kill(started[1].pid, "SIGKILL");
      await once(started[1], "close");
      assert.deepEqual((await embedder.embed(["the time"]))[0], before);
      assert.equal((await embedder.info()).calls, 0);
    });
  });
  assert.equal(children.length, 3);
  for (const { pid } of children) assert.ok(!isAlive(pid));
});

test("closing ends the process at once, and calls with it", async () => {
  const [child] = await startedDuring(async () => {
    await withEmbedder(await model("bert_mean"), FALLBACK, async (embedder) => {
      let call;
      await new Promise((resolve) => {
        call = assert.rejects(embedder.embed(long(3000), { onProgress: resolve }), embedderError("CLOSED"));
      });
      await embedder.close();
      await call;
      await assert.rejects(embedder.embed(["a"]), embedderError("CLOSED"));
    });
  });
  assert.ok(!isAlive(child.pid));
});

test("where no process can be started, the backend is unavailable", async () => {
  const folder = await model("bert_mean");
  const load = () => withEmbedder(folder, FALLBACK, () => {});
  const { execPath } = process;
  try {
    for (const [program, reason] of [
      [path.join(ROOT, "no-such-program"), "ENOENT"],
      // Like a packed program that does something else when it is given a file.
      ...(process.platform === "win32" ? [] : [["/bin/true", "exit code 0"]]),
    ]) {
      process.execPath = program;
      await assert.rejects(load(), embedderError("BACKEND_UNAVAILABLE", "cannot start its process", reason));
    }
  } finally {
    process.execPath = execPath;
  }
  process.env.SEMANTIC_SEARCH_FALLBACK_PROCESS = "1";
  try {
    await assert.rejects(load(), embedderError("BACKEND_UNAVAILABLE", "runs this program instead"));
  } finally {
    delete process.env.SEMANTIC_SEARCH_FALLBACK_PROCESS;
  }
  await load();
});

test("where the permission model allows no child processes, the backend is unavailable", async () => {
  const code = `
    const { Embedder } = require(${JSON.stringify(path.join(ROOT, "dist/embedder.js"))});
    Embedder.load(process.env.MODEL, { backend: "onnx-js" }).catch(({ code, message }) => console.log(code, message));`;
  const permission = process.allowedNodeEnvironmentFlags.has("--permission")
    ? "--permission"
    : "--experimental-permission";
  const flags = [permission, "--allow-fs-read=*", "--no-warnings"];
  const { stdout, stderr } = await runNode([...flags, "-e", code], { env: await environment() });
  assert.match(
    stdout,
    /^BACKEND_UNAVAILABLE the onnx-js backend cannot start its process: .*--allow-child-process/,
    stderr,
  );
});

test("the process gets the host's environment without its debugger, and telemetry is off", () => {
  const { childEnvironment } = require("../dist/lib/fallback/process.js");
  for (const [given, expected] of [
    ["--inspect", ""],
    ["--inspect-brk=127.0.0.1:9229 --require ./pnp.cjs", " --require ./pnp.cjs"],
    ["--max-old-space-size=4096 --inspect-port 0 --no-warnings", "--max-old-space-size=4096  --no-warnings"],
    ["--debug-port=9000", ""],
    [undefined, undefined],
  ]) {
    const { NODE_OPTIONS, PATH, ORT_DISABLE_TELEMETRY } = childEnvironment({ NODE_OPTIONS: given, PATH: "/bin" });
    assert.deepEqual([NODE_OPTIONS, PATH, ORT_DISABLE_TELEMETRY], [expected, "/bin", "1"]);
  }
  assert.equal(childEnvironment({ ORT_DISABLE_TELEMETRY: "0" }).ORT_DISABLE_TELEMETRY, "0");
});
