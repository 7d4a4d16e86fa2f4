/** The command line as a child process, for tests. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import * as path from "node:path";
import { ROOT } from "./models.mjs";

export const MAIN = path.join(
  ROOT,
  JSON.parse(readFileSync(path.join(ROOT, "package.json"), "utf8")).bin["semantic-search-native"],
);

/** A test that fails must not leave its processes behind. */
const running = new Set();
process.once("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});

/** Starts it. The caller ends it, or waits for `ended`. */
export function start(args, { env = {}, cwd } = {}) {
  const child = spawn(process.execPath, [MAIN, ...args], {
    cwd,
    env: { ...process.env, SEMANTIC_SEARCH_MODEL: "", SEMANTIC_SEARCH_API_KEY: "", ...env },
  });
  running.add(child);
  child.once("close", () => running.delete(child));
  // What a test had still to write is of no interest once the process has ended.
  child.stdin.on("error", () => {});
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"]) {
    child[name].setEncoding("utf8").on("data", (text) => {
      output[name] += text;
    });
  }
  const ended = once(child, "close").then(([status, signal]) => ({ status, signal, ...output }));
  return { child, output, ended };
}

/**
 * Runs it to its end.
 *
 * @param {string[]} args
 * @param {string | Buffer} [input]
 * @param {{ env?: NodeJS.ProcessEnv, cwd?: string }} [options]
 */
export function run(args, input = "", options) {
  const { child, ended } = start(args, options);
  child.stdin.end(input);
  return ended;
}

/** Waits until `condition` gives something. */
export async function until(condition, what, timeoutMs = 20_000) {
  for (const end = Date.now() + timeoutMs; Date.now() < end; ) {
    const result = await condition();
    if (result) return result;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`waited in vain for ${what}`);
}
