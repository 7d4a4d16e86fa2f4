#!/usr/bin/env node
/**
 * The command line `semantic-search-native`. A file per command; each loads what is heavy when it runs, so that
 * `--help` answers at once.
 */

import { Command, CommanderError } from "commander";
import { addDoctor } from "./doctor.js";
import { addEmbed } from "./embed.js";
import { addExport } from "./export.js";
import { EXIT_CODES, failureOf, fileError } from "./failure.js";
import { addModels } from "./models.js";
import { addPull } from "./pull.js";
import { addServe } from "./serve.js";
import { say } from "./terminal.js";

const HELP = `
Exit codes:
  0    done; also where the reader of the output has left (| head)
  1    failed, or a problem was found: lines that could not be embedded, an ailment that doctor names
  2    the command was called wrongly
  130  interrupted by Ctrl-C (143: by SIGTERM); serve ends with 0 after a graceful shutdown

Errors are one line on standard error, "error [CODE]: message", or with --json {"error":{"code":…,"message":…}}.
"semantic-search-native <command> --help" explains a command and shows examples.`;

function commandLine(): Command {
  const { version } = require("../../package.json") as { version: string };
  const program = new Command("semantic-search-native")
    .description("Text and code embeddings for semantic search, computed on this machine.")
    .version(version, "-V, --version", "print the version")
    .helpOption("-h, --help", "explain, with examples")
    .helpCommand(false)
    .addHelpText("after", HELP)
    // Errors come to the same end as those of the commands.
    .exitOverride()
    .configureOutput({ outputError: () => {} });
  for (const add of [addPull, addModels, addEmbed, addServe, addExport, addDoctor]) add(program);
  return program;
}

async function main(argv: string[]): Promise<void> {
  try {
    await commandLine().parseAsync(argv);
  } catch (error) {
    // Help and version, which were asked for and are printed.
    if (error instanceof CommanderError && error.exitCode === 0) return;
    const { exitCode, ...failure } = failureOf(error);
    process.exitCode = exitCode;
    // Called without a command: the help is on standard error already.
    if (error instanceof CommanderError && error.code === "commander.help") return;
    const hint = failure.code === "USAGE" ? " (--help explains)" : "";
    say(argv.includes("--json"), `error [${failure.code}]: ${failure.message}${hint}`, { error: failure });
  }
}

process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  // Whoever read the output has enough of it, as `head` has: no reason to complain.
  if (error.code === "EPIPE") process.exit(EXIT_CODES.ok);
  const { code, message } = fileError("cannot write to standard output", error);
  say(process.argv.includes("--json"), `error [${code}]: ${message}`, { error: { code, message } });
  process.exit(EXIT_CODES.failed);
});
process.stderr.on("error", () => {});

void main(process.argv);
