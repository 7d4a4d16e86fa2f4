/** Child processes of tests: their output is collected, and none outlives the test process. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";

const running = new Set();
process.once("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});

/**
 * Starts a program. The caller ends it, or waits for `ended`.
 *
 * @param {string} program
 * @param {string[]} args
 * @param {{ env?: NodeJS.ProcessEnv, cwd?: string, timeoutMs?: number }} [options] `env` is the whole environment, by
 * default this process's; after `timeoutMs` the process is killed
 */
export function start(program, args, { env, cwd, timeoutMs } = {}) {
  const child = spawn(program, args, { env, cwd, timeout: timeoutMs, killSignal: "SIGKILL" });
  running.add(child);
  child.once("close", () => running.delete(child));
  // It may end before it has read everything.
  child.stdin.on("error", () => {});
  const output = { stdout: "", stderr: "" };
  for (const name of Object.keys(output)) {
    child[name].setEncoding("utf8").on("data", (text) => {
      output[name] += text;
    });
  }
  const ended = once(child, "close").then(([status, signal]) => ({ status, signal, ...output }));
  /** Waits until an output matches, and returns the match. Rejects if the process ends before. */
  const says = (pattern, name = "stdout") =>
    new Promise((resolve, reject) => {
      const look = () => {
        const match = pattern.exec(output[name]);
        if (match) resolve(match);
      };
      look();
      child[name].on("data", look);
      ended.then(
        ({ status, signal }) =>
          reject(new Error(`ended (${signal ?? status}) without ${pattern} on ${name}: ${output.stderr}`)),
        reject,
      );
    });
  return { child, output, ended, says };
}

/**
 * Runs a program to its end.
 *
 * @param {string} program
 * @param {string[]} args
 * @param {Parameters<typeof start>[2] & { input?: string | Buffer }} [options]
 */
export function run(program, args, { input = "", ...options } = {}) {
  const { child, ended } = start(program, args, options);
  child.stdin.end(input);
  return ended;
}

/** Starts Node.js, as `start`. */
export const startNode = (args, options) => start(process.execPath, args, options);

/** Runs Node.js to its end, as `run`. */
export const runNode = (args, options) => run(process.execPath, args, options);

/** Runs code in a Node.js process, which must end with status 0; returns the JSON values that it printed, one a line. */
export async function reportsOf(args, options) {
  const { status, signal, stdout, stderr } = await runNode(args, options);
  assert.equal(status, 0, `${signal ?? status}\n${stdout}\n${stderr}`);
  return stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
}

/** Waits until `condition` returns something truthy, for what no event tells. */
export async function until(condition, what, timeoutMs = 60_000) {
  for (const end = Date.now() + timeoutMs; Date.now() < end; ) {
    const result = await condition();
    if (result) return result;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`waited in vain for ${what}`);
}
