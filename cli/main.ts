#!/usr/bin/env node
/**
 * The command line `semantic-search-native`. Each command has its file, which loads heavy modules only when it runs, so
 * that `--help` is fast.
 */

import { Command, CommanderError } from "commander";
import { addCodeSearch, runCodeSearch } from "./code_search.js";
import { addCompletions } from "./completions.js";
import { addDoctor } from "./doctor.js";
import { addEmbed } from "./embed.js";
import { addExport } from "./export.js";
import { EXIT_CODES, failureOf, fileError } from "./failure.js";
import { addModels } from "./models.js";
import { addPull } from "./pull.js";
import { addRerank } from "./rerank.js";
import { addRm } from "./rm.js";
import { addServe } from "./serve.js";
import { say } from "./terminal.js";

const HELP = `
Exit codes:
  0    success, also if the reader of the output has stopped reading (| head)
  1    failure, also if lines could not be read or doctor reports a problem
  2    wrong usage
  130  interrupted by Ctrl-C (143: by SIGTERM); serve ends with 0 after a graceful shutdown

Errors are one line on standard error, "error [CODE]: message", or with --json {"error":{"code":…,"message":…}}.
Run "semantic-search-native <command> --help" for details and examples.`;

const COMMANDS = [
  ...[addPull, addModels, addRm, addEmbed, addRerank, addServe, addExport, addDoctor, addCompletions],
  addCodeSearch,
];

const NAME = "semantic-search-native";

function commandLine(): Command {
  const { version } = require("../../package.json") as { version: string };
  const program = new Command(NAME)
    .description("Text and code embeddings for semantic search, and rerankers, computed on this machine.")
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

async function main(argv: string[]): Promise<void> {
  try {
    if (await runCodeSearch(argv.slice(2), NAME)) return;
    await commandLine().parseAsync(argv);
  } catch (error) {
    // Help or version, which are already printed.
    if (error instanceof CommanderError && error.exitCode === 0) return;
    const { exitCode, ...failure } = failureOf(error);
    process.exitCode = exitCode;
    // Without a command, the help is already on standard error.
    if (error instanceof CommanderError && error.code === "commander.help") return;
    const hint = failure.code === "USAGE" ? " (see --help)" : "";
    say(argv.includes("--json"), `error [${failure.code}]: ${failure.message}${hint}`, { error: failure });
  }
}

process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  // The reader has closed the pipe, as `head` does: not an error.
  if (error.code === "EPIPE") process.exit(EXIT_CODES.ok);
  const { code, message } = fileError("cannot write to standard output", error);
  say(process.argv.includes("--json"), `error [${code}]: ${message}`, { error: { code, message } });
  process.exit(EXIT_CODES.failed);
});
process.stderr.on("error", () => {});

void main(process.argv);
