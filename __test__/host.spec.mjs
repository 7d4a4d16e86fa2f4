/** Nothing brings the host down: what a model's files, the system or a limit refuse is an error, and the process goes on. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import * as path from "node:path";
import { test } from "node:test";
import { BACKENDS, model, ROOT } from "./models.mjs";

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
function inChild(folder, body, { env = {}, limits } = {}) {
  const code = `
    const { Embedder } = require(${JSON.stringify(PACKAGE)});
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
  const options = { env: { ...process.env, ...env, MODEL: folder }, encoding: "utf8", timeout: 120_000 };
  const node = [process.execPath, ["-e", code]];
  const [command, args] = limits ? ["sh", ["-c", `ulimit ${limits} && exec "$0" "$@"`, node[0], ...node[1]]] : node;
  const { status, signal, stdout, stderr } = spawnSync(command, args, options);
  assert.equal(status, 0, `${signal} ${stderr}`);
  assert.equal(stderr, "");
  return stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
}

test("want of open files while the addon is loaded is not remembered", { skip: !IS_LINUX }, async () => {
  const [refused, loaded] = inChild(
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
