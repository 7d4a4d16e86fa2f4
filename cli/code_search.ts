import type { Command } from "commander";
import { CommandLineError, EXIT_CODES } from "./failure.js";

/** The commands of the second package, which brings tree-sitter and SQLite. */
const COMMANDS = new Map([
  ["index", "make the index of a folder of source code, or bring it up to date"],
  ["search", "find code in a folder that answers a question"],
  ["similar", "find code that is like the code at a line"],
  ["watch", "bring the index of a folder up to date after each change"],
  ["mcp", "serve code searches to agents by the Model Context Protocol"],
]);
const PACKAGE = "semantic-search-native-code-search";

/** What the second package exports. */
interface CodeSearchCommand {
  /** Runs a command to its end, and says on standard error what goes wrong. Resolves to the exit code. */
  run(args: readonly string[], program: string): Promise<number>;
}

/** The commands for the help and for completions. They run where the second package is missing, and say so. */
export function addCodeSearch(program: Command): void {
  program.commandsGroup("Code search:");
  for (const [name, description] of COMMANDS) {
    program
      .command(name)
      .description(description)
      .argument("[arguments...]", `those of ${PACKAGE}, which lists them once it is installed`)
      .allowUnknownOption()
      .addHelpText("after", `\n${missing(name)}`)
      .action(() => {
        throw new CommandLineError("USAGE", missing(name), { exitCode: EXIT_CODES.usage });
      });
  }
}

/**
 * Leaves the command line to the second package if it has the command, or its help is wanted.
 *
 * @returns whether that is so
 */
export async function runCodeSearch(args: readonly string[], program: string): Promise<boolean> {
  const [name = ""] = args[0] === "help" ? args.slice(1) : args;
  const codeSearch = COMMANDS.has(name) ? await load() : undefined;
  if (!codeSearch) return false;
  process.exitCode = await codeSearch.run(args, program);
  return true;
}

/** `undefined` where the second package is not installed. */
async function load(): Promise<CodeSearchCommand | undefined> {
  const specifier = `${PACKAGE}/command`;
  try {
    require.resolve(specifier);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "MODULE_NOT_FOUND") return undefined;
    throw error;
  }
  return import(specifier);
}

function missing(name: string): string {
  return `"${name}" is in the package ${PACKAGE}: npm install ${PACKAGE}`;
}
