/** Nothing crashes the host process: panics, refused threads, and lack of files or memory are errors. */

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import * as path from "node:path";
import { test } from "node:test";
import { BACKENDS, changedModel, model, ROOT } from "./support/models.mjs";
import { run } from "./support/processes.mjs";

const PACKAGE = path.join(ROOT, "dist/embedder.js");
const IS_LINUX = process.platform === "linux";

/**
 * Runs `body` in a process of its own and returns what it gives to `report`. The process has to end by itself, and to
 * leave its standard error alone.
 *
 * @param {string} folder of the model, as `MODEL`
 * @param {string} body
 * @param {{ env?: object, limits?: string }} surroundings `limits`: arguments of `ulimit`
 */
async function inChild(folder, body, { env = {}, limits } = {}) {
  const code = `
    const { Embedder, embed, exportOnnx, init } = require(${JSON.stringify(PACKAGE)});
    const MODEL = process.env.MODEL;
    const report = (value) => console.log(JSON.stringify(value));
    const outcome = async (call) => {
      try {
        const value = await call();
        return Array.isArray(value) ? value.length : "fine";
      } catch ({ name, code, message }) {
        return { name, code, message };
      }
    };
    (async () => { ${body} })();`;
  const options = { env: { ...process.env, ...env, MODEL: folder }, timeoutMs: 120_000 };
  const node = [process.execPath, ["-e", code]];
  const [command, args] = limits ? ["sh", ["-c", `ulimit ${limits} && exec "$0" "$@"`, node[0], ...node[1]]] : node;
  const { status, signal, stdout, stderr } = await run(command, args, options);
  assert.equal(status, 0, `${signal} ${stderr}`);
  assert.equal(stderr, "");
  return stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
}

/** `merges` whose second half is shorter than the prefix that the library cuts off it. */
const PANICKING_TOKENIZER = (json) => ({
  ...json,
  normalizer: null,
  pre_tokenizer: null,
  post_processor: null,
  model: {
    type: "BPE",
    vocab: { a: 0, b: 1, ab: 2 },
    merges: [["a", "b"]],
    continuing_subword_prefix: "##",
  },
});

for (const backend of BACKENDS.filter((name) => name !== "onnx-js")) {
  test(`${backend}: a panic in a library while loading is an error`, async () => {
    const folder = await changedModel("bert_mean", { "tokenizer.json": PANICKING_TOKENIZER });
    const [loaded, initialized] = await inChild(
      folder,
      `report(await outcome(() => Embedder.load(MODEL, { backend: "${backend}" })));
       report(await outcome(() => init(MODEL, { backend: "${backend}" })));`,
    );
    for (const error of [loaded, initialized]) {
      assert.equal(error.code, "MODEL_INVALID", error.message);
      assert.match(error.message, /tokenizer\.json: .*tokenizers-.*\.rs:\d+/);
    }
  });

  // Rust asks the system for a stack of this size, and the system refuses.
  test(`${backend}: a thread that cannot be started is an error, and the process ends`, {
    skip: !IS_LINUX,
  }, async () => {
    const outcomes = await inChild(
      await model("bert_mean"),
      `report(await outcome(() => Embedder.load(MODEL, { backend: "${backend}" })));
       report(await outcome(() => init(MODEL, { backend: "${backend}" })));
       report(await outcome(() => exportOnnx(MODEL)));`,
      { env: { RUST_MIN_STACK: String(2 ** 60) } },
    );
    assert.equal(outcomes.length, 3);
    for (const error of outcomes) {
      assert.equal(error.code, "RESOURCE_EXHAUSTED", error.message);
      assert.match(error.message, /no thread could be started/);
    }
  });
}

test("running out of file descriptors while the addon is loaded is not remembered", { skip: !IS_LINUX }, async () => {
  const [refused, loaded] = await inChild(
    await model("bert_mean"),
    `const { closeSync, openSync } = require("node:fs");
     const open = [];
     try {
       for (;;) open.push(openSync(MODEL + "/config.json"));
     } catch {}
     report(await outcome(() => Embedder.load(MODEL, { backend: "onnx" })));
     open.forEach(closeSync);
     const { backend } = await Embedder.load(MODEL);
     report(backend);`,
    { limits: "-n 80" },
  );
  assert.equal(refused.code, "BACKEND_UNAVAILABLE");
  assert.match(refused.message, /[Tt]oo many open files/);
  assert.ok(BACKENDS.filter((name) => name !== "onnx-js").includes(loaded), loaded);
});

test("vectors that do not fit into memory are an error, and the next call works", { skip: !IS_LINUX }, async () => {
  // A million vectors of six times 48 dimensions are 1.1 GB, more than is left once a model is loaded.
  const [start] = await inChild(
    "",
    'report(Number(require("node:fs").readFileSync("/proc/self/status", "utf8").match(/VmSize:\\s+(\\d+)/)[1]))',
  );
  const folder = await changedModel("bert_mean", {
    "1_Pooling/config.json": (json) => ({
      ...json,
      pooling_mode: ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"],
    }),
  });
  const [refused, next] = await inChild(
    folder,
    `const embedder = await Embedder.load(MODEL, { backend: "onnx", threads: 1 });
     await embedder.embed(["works"]);
     const texts = Array.from({ length: 1e6 }, (_, index) => String(index));
     report(await outcome(() => embedder.embed(texts)));
     report(await outcome(() => embedder.embed(["works"])));
     await embedder.close();`,
    { limits: `-v ${start + 1_300_000}` },
  );
  assert.equal(refused.code, "RESOURCE_EXHAUSTED", refused.message);
  assert.match(refused.message, /no memory for the vectors \(1099 MB\)/);
  assert.equal(next, 1);
});

test("the addon refuses what is not a text with a code, whoever calls it", () => {
  const { Call } = createRequire(import.meta.url)("../index.js");
  // biome-ignore lint/suspicious/noSparseArray: the hole is the point.
  for (const texts of ["text", undefined, { length: 1 }, [7], ["a", null], ["a", , "c"], new Array(5)]) {
    assert.throws(() => new Call().push(texts), {
      code: "INVALID_ARGUMENT",
      message: /texts: expected an array of strings/,
    });
  }
  // More than any machine has, and no element.
  assert.throws(() => new Call().push(new Array(2 ** 32 - 1)), { code: /RESOURCE_EXHAUSTED|INVALID_ARGUMENT/ });
  new Call().push(["a", "", "\ud800", "😀"]);
});
