/** The texts of standard input or files, for the commands that read them. */

import { createReadStream, fstat } from "node:fs";
import { stat } from "node:fs/promises";
import { promisify } from "node:util";
import { type Command, Option } from "commander";
import { CommandLineError, fileError } from "./failure.js";
import { grouped, say } from "./terminal.js";
import { linesOf, type TextFormat, textOf } from "./text_lines.js";

/** A text, and where it comes from. */
export interface InputText {
  text: string;
  origin: Origin;
}

export interface Origin {
  /** The input file; only if there are several. */
  file?: string;
  /** Line of the text in its input, from 1. */
  line: number;
  /** The `id` of the JSON line. */
  id?: unknown;
}

/** The flags that say what a line is. */
export interface InputFlags {
  inputFormat: TextFormat["format"];
  field: string;
}

export function addInputOptions(command: Command): Command {
  return command
    .addOption(new Option("-i, --input-format <format>", "what a line is").choices(["lines", "jsonl"]).default("lines"))
    .option("-f, --field <name>", "with jsonl: the field that contains the text", "text");
}

/** Runs before the model is loaded, so that mistakes are reported at once. */
export async function checkInput(file: string): Promise<void> {
  const name = file === "-" ? "standard input" : file;
  const found = await (file === "-" ? promisify(fstat)(0) : stat(file)).catch((error) => {
    throw fileError(`cannot read ${name}`, error);
  });
  // Node.js reads a folder as standard input like an empty file.
  if (found.isDirectory()) throw new CommandLineError("EISDIR", `${name} is a folder: name the files in it`);
}

/** The file may also be a pipe or a device. */
async function* contentOf(file: string): AsyncGenerator<Buffer> {
  try {
    yield* file === "-" ? process.stdin : createReadStream(file);
  } catch (error) {
    throw fileError(`cannot read ${file === "-" ? "standard input" : file}`, error);
  }
}

/**
 * The texts of all lines, in order. A line without a text is reported on standard error.
 *
 * @param onBadLine Called for each of these.
 */
export async function* textsOf(
  inputs: readonly string[],
  { inputFormat: format, field, json }: InputFlags & { json?: boolean },
  onBadLine: () => void,
): AsyncGenerator<InputText> {
  for (const file of inputs) {
    for await (const line of linesOf(contentOf(file))) {
      const found = "problem" in line ? line : textOf(line.bytes, { format, field });
      if (!found) continue;
      if ("problem" in found) {
        onBadLine();
        const name = file === "-" ? "stdin" : file;
        const { problem } = found;
        say(json, `${name}:${line.number}: ${problem}`, { badLine: { file: name, line: line.number, problem } });
        continue;
      }
      const { text, ...id } = found;
      yield { text, origin: { ...(inputs.length > 1 && { file }), line: line.number, ...id } };
    }
  }
}

/** @param done What became of the other lines. @throws CommandLineError if there were bad lines. */
export function checkBadLines(badLines: number, done: string): void {
  if (badLines === 0) return;
  const lines = badLines === 1 ? "1 line was" : `${grouped(badLines)} lines were`;
  throw new CommandLineError("BAD_LINES", `${lines} skipped, see above; the others are ${done}`);
}
