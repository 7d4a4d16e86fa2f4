/** The command line as a child process. */

import { readFileSync } from "node:fs";
import * as path from "node:path";
import { ROOT } from "./models.mjs";
import * as processes from "./processes.mjs";

export const MAIN = path.join(
  ROOT,
  JSON.parse(readFileSync(path.join(ROOT, "package.json"), "utf8")).bin["semantic-search-native"],
);

/** `env` is added to this process's environment, without the variables that would change what is tested. */
const withEnvironment = ({ env, ...options } = {}) => ({
  ...options,
  env: { ...process.env, SEMANTIC_SEARCH_MODEL: "", SEMANTIC_SEARCH_API_KEY: "", ...env },
});

/** Starts it, as `start` of `processes.mjs`. */
export function start(args, options) {
  return processes.startNode([MAIN, ...args], withEnvironment(options));
}

/**
 * Runs it to its end.
 *
 * @param {string[]} args
 * @param {string | Buffer} [input]
 * @param {{ env?: NodeJS.ProcessEnv, cwd?: string }} [options]
 */
export function run(args, input = "", options = {}) {
  return processes.runNode([MAIN, ...args], { ...withEnvironment(options), input });
}
