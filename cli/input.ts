/** The texts of standard input or files, for the commands that read them. */

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { CommandLineError, fileError } from "./failure.js";
import { say } from "./terminal.js";
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

/** Runs before the model is loaded, so that mistakes are reported at once. */
export async function checkInput(file: string): Promise<void> {
  if (file === "-") return;
  const found = await stat(file).catch((error) => {
    throw fileError(`cannot read ${file}`, error);
  });
  if (found.isDirectory()) throw new CommandLineError("EISDIR", `${file} is a folder: name the files in it`);
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
  format: TextFormat,
  isJson: boolean | undefined,
  onBadLine: () => void,
): AsyncGenerator<InputText> {
  for (const file of inputs) {
    for await (const line of linesOf(contentOf(file))) {
      const found = "problem" in line ? line : textOf(line.bytes, format);
      if (!found) continue;
      if ("problem" in found) {
        onBadLine();
        const name = file === "-" ? "stdin" : file;
        const { problem } = found;
        say(isJson, `${name}:${line.number}: ${problem}`, { badLine: { file: name, line: line.number, problem } });
        continue;
      }
      const { text, ...id } = found;
      yield { text, origin: { ...(inputs.length > 1 && { file }), line: line.number, ...id } };
    }
  }
}
