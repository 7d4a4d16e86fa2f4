/** How commands fail. */

import { inspect } from "node:util";
import { CommanderError } from "commander";

/** Exit codes; `--help` lists them. */
export const EXIT_CODES = { failed: 1, usage: 2, SIGINT: 130, SIGTERM: 143 };

/** A failure with a message for people and no stack. `code` is for programs, like that of `EmbedderError`. */
export class Failure extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {number} [exitCode]
   */
  constructor(code, message, exitCode = EXIT_CODES.failed) {
    super(message);
    this.code = code;
    this.exitCode = exitCode;
  }
}

/** @param {string} message */
export function usage(message) {
  return new Failure("USAGE", message, EXIT_CODES.usage);
}

/**
 * How an error is reported: a code, a line, and the exit code. One without a code is a mistake of this program, whose
 * place is worth knowing.
 *
 * @param {unknown} error
 */
export function failureOf(error) {
  if (error instanceof CommanderError) {
    return { code: "USAGE", message: oneLine(error.message.replace(/^error: /, "")), exitCode: EXIT_CODES.usage };
  }
  const { code, message, exitCode = EXIT_CODES.failed } = /** @type {Partial<Failure>} */ (error);
  if (typeof code !== "string") return { code: "UNEXPECTED", message: inspect(error), exitCode };
  return { code, message: oneLine(String(message)), exitCode };
}

/** @param {string} message */
function oneLine(message) {
  return message.replace(/\s*\n\s*/g, " ").trim();
}
