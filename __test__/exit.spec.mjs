/** The process ends cleanly and when it should, whatever the model is doing; forked processes have models of their own. */

import assert from "node:assert/strict";
import * as path from "node:path";
import { test } from "node:test";
import { BACKENDS, deepModel, model, ROOT } from "./support/models.mjs";
import { runNode } from "./support/processes.mjs";

const PACKAGE = path.join(ROOT, "dist/embedder.js");

/** Runs `body` in a process with a loaded `embedder` and texts for a while of work, `many`. */
async function inChild(backend, body) {
  const code = `
    const { Embedder } = require(${JSON.stringify(PACKAGE)});
    const many = Array.from({ length: 3000 }, (_, index) => index + " word".repeat(60));
    (async () => {
      const embedder = await Embedder.load(process.env.MODEL, { backend: "${backend}" });
      await embedder.embed(["works"]);
      ${body}
    })();`;
  const env = { ...process.env, MODEL: await model("bert_mean") };
  const { status, signal, stdout, stderr } = await runNode(["--expose-gc", "-e", code], { env, timeoutMs: 60_000 });
  assert.equal(status, 0, `${signal} ${stderr}`);
  return stdout;
}

for (const backend of BACKENDS) {
  for (const [when, body] of [
    ["with a model loaded", ""],
    ["in the middle of a batch", "embedder.embed(many); setTimeout(() => process.exit(0), 200);"],
    ["after close", "await embedder.close();"],
    ["while closing", "embedder.embed(many).catch(() => {}); embedder.close(); process.exit(0);"],
    ["after an abort", "embedder.embed(many, { signal: AbortSignal.timeout(50) }).catch(() => {});"],
    ["with weights that wait to be unloaded", "await Embedder.load(process.env.MODEL, { idleTimeoutMs: 60_000 });"],
    ["while loading", "Embedder.load(process.env.MODEL, { backend: embedder.backend, threads: 8 }); process.exit(0);"],
    [
      "as soon as a model is loaded",
      "await Embedder.load(process.env.MODEL, { backend: embedder.backend, threads: 8 }); process.exit(0);",
    ],
    [
      "with models that were collected as garbage",
      `for (let i = 0; i < 5; i++) (await Embedder.load(process.env.MODEL, { backend: embedder.backend })).embed(many);
       gc();
       await new Promise((resolve) => setImmediate(resolve));
       process.exit(0);`,
    ],
    ["in the middle of a stream", "for await (const _ of embedder.stream(many)) process.exit(0);"],
  ]) {
    test(`${backend}: the process ends cleanly ${when}`, () => inChild(backend, body));
  }

  test(`${backend}: work in flight keeps the process alive`, async () => {
    const out = await inChild(backend, "embedder.embed(many.slice(0, 200)).then((v) => console.log(v.length));");
    assert.equal(out.trim(), "200");
  });

  test(`${backend}: a forked process loads the model for itself`, async () => {
    const out = await inChild(
      backend,
      `
      if (process.env.IS_CHILD) return process.send(Array.from((await embedder.embed(["text"]))[0]));
      const { fork } = require("node:child_process");
      const { writeFileSync, mkdtempSync } = require("node:fs");
      const file = mkdtempSync(require("node:os").tmpdir() + "/fork-") + "/child.cjs";
      writeFileSync(file, process.execArgv.at(-1));
      const child = fork(file, { env: { ...process.env, IS_CHILD: "1" }, execArgv: [] });
      const here = embedder.embed([...many.slice(0, 50), "text"]);
      const there = await new Promise((resolve) => child.on("message", resolve));
      console.log(Math.max(...(await here)[50].map((x, i) => Math.abs(x - there[i]))));
      if (child.connected) child.disconnect();`,
    );
    assert.ok(Number(out) <= 1e-6, out);
  });
}

for (const backend of BACKENDS.filter((name) => name !== "onnx-js")) {
  test(`${backend}: the process ends cleanly after init()`, async () => {
    const code = `require(${JSON.stringify(PACKAGE)}).init(process.env.MODEL, { backend: "${backend}", threads: 8 });`;
    const env = { ...process.env, MODEL: await model("bert_mean") };
    const { status, signal, stderr } = await runNode(["-e", code], { env });
    assert.equal(status, 0, `${signal} ${stderr}`);
  });
}

// What a library makes when it is first used must not be destroyed before threads have left it, however late that is.
for (const [first, second] of [
  ["onnx", "mlx"],
  ["mlx", "onnx"],
].filter((pair) => pair.every((name) => BACKENDS.includes(name)))) {
  test(`${second}: the process ends cleanly when it is loaded after much work of ${first}`, async () => {
    for (let run = 0; run < 5; run++) {
      await inChild(
        first,
        `for (let i = 0; i < 40; i++) await embedder.embed([String(i)]);
         const load = () => Embedder.load(process.env.MODEL, { backend: "${second}" });
         const later = [await load(), await load(), await load()];
         await Promise.all(later.map((embedder) => embedder.embed(many.slice(0, 20))));
         for (const embedder of later) embedder.close();
         process.exit(0);`,
      );
    }
  });
}

/** What is enough for some operators on a busy machine, and not for a batch that takes minutes. */
const SOON_MS = 60_000;

/**
 * Runs `body` in a process where `compute()` gives an embedder that computes long texts. It prints the time when it wants to
 * end; the status is 7.
 */
async function endsSoon(backend, body) {
  const compute = `
    const { Embedder } = require(${JSON.stringify(PACKAGE)});
    async function compute() {
      const embedder = await Embedder.load(process.env.MODEL, { backend: "${backend}", maxTokens: 8192, threads: 2 });
      await embedder.embed(["works"]);
      let hasEnded = false;
      const end = () => { hasEnded = true; };
      embedder.embed(["a", "b", "c"].map((name) => name + process.env.LONG_TEXT)).then(end, end);
      await new Promise((resolve) => setTimeout(resolve, 700));
      if (hasEnded) throw new Error("it must take long");
      return embedder;
    }`;
  const env = {
    ...process.env,
    MODEL: await deepModel({ heads: backend === "mlx" ? 2 : 16 }),
    // Minutes of work for each text, whose single operators take a second at most: that is how often it can be interrupted.
    LONG_TEXT: "word ".repeat(backend === "mlx" ? 2000 : 4000),
    COMPUTE: compute,
  };
  const code = `${compute}\n(async () => { ${body} })();`;
  const { status, signal, stdout, stderr } = await runNode(["-e", code], { env, timeoutMs: 120_000 });
  const end = Date.now();
  assert.equal(status, 7, `${signal} ${stdout} ${stderr}`);
  assert.ok(end - Number(stdout) < SOON_MS, `${end - Number(stdout)} ms`);
}

for (const backend of BACKENDS) {
  test(`${backend}: exit does not wait for a batch that takes minutes`, () =>
    endsSoon(backend, "await compute(); process.stdout.write(String(Date.now())); process.exit(7);"));

  test(`${backend}: closing does not wait for a batch that takes minutes`, () =>
    endsSoon(
      backend,
      `const embedder = await compute();
       process.stdout.write(String(Date.now()));
       await embedder.close();
       process.exitCode = 7;`,
    ));

  test(`${backend}: terminating a worker thread does not wait for a batch that takes minutes, and the addon works in another thread`, () =>
    endsSoon(
      backend,
      `const { Worker } = require("node:worker_threads");
       const tell = "require('node:worker_threads').parentPort.postMessage('computes')";
       const worker = new Worker(process.env.COMPUTE + "; compute().then(() => " + tell + ")", { eval: true });
       await new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject));
       process.stdout.write(String(Date.now()));
       await worker.terminate();
       const embedder = await Embedder.load(process.env.MODEL, { backend: "${backend}" });
       await embedder.embed(["works"]);
       process.exit(7);`,
    ));
}
