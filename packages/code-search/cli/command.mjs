/** The commands, without what they need to work: `--help` is fast. */

import { createRequire } from "node:module";
import { Command, CommanderError } from "commander";
import { failureOf } from "./failure.mjs";
import { addIndex } from "./index.mjs";
import { addMcp } from "./mcp.mjs";
import { addSearch } from "./search.mjs";
import { addSimilar } from "./similar.mjs";
import { complain } from "./terminal.mjs";
import { addWatch } from "./watch.mjs";

const HELP = `
The index of a folder is in its .code-search/. What .gitignore and .codesearchignore leave out is not in it.

Settings come from options, else from SEMANTIC_SEARCH_MODEL and SEMANTIC_SEARCH_DEVICE, else from code-search.json in the
folder or above it in its repository, else from semantic-search-native/code-search.json in ~/.config:
  { "model": "nomic-ai/CodeRankEmbed", "device": "cpu", "limit": 20 }

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted by Ctrl-C (143: by SIGTERM); the index goes on where it was.`;

const COMMANDS = [addIndex, addSearch, addSimilar, addWatch, addMcp];
const { version } = createRequire(import.meta.url)("../package.json");

/** @param {string} name of the program, as its user calls it */
function commandLine(name) {
  const program = new Command(name)
    .description("Searches a folder of source code by meaning and by words, on this machine.")
    .version(version, "-V, --version", "print the version")
    .helpOption("-h, --help", "show help, with examples")
    .helpCommand("help [command]", "show the help of a command")
    .addHelpText("after", HELP)
    // Errors are reported below, like those of the commands.
    .exitOverride()
    .configureOutput({ outputError: () => {} });
  for (const add of COMMANDS) add(program);
  return program;
}

/**
 * Runs a command to its end.
 *
 * @param {string[]} args
 * @param {string} [name] of the program, for its help
 * @returns {Promise<number>} the exit code
 */
export async function run(args, name = "code-search") {
  try {
    await commandLine(name).parseAsync(args, { from: "user" });
    return 0;
  } catch (error) {
    // Help or version, which are already printed.
    if (error instanceof CommanderError && error.exitCode === 0) return 0;
    const { exitCode, ...failure } = failureOf(error);
    // Without a command, the help is already on standard error.
    if (error instanceof CommanderError && error.code === "commander.help") return exitCode;
    const hint = failure.code === "USAGE" ? " (see --help)" : "";
    const line = `error [${failure.code}]: ${failure.message}${hint}`;
    complain(args.includes("--json") ? JSON.stringify({ error: failure }) : line);
    return exitCode;
  }
}
