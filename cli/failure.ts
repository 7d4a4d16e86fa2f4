import { CommanderError } from "commander";

/** Exit codes; `--help` and docs/command-line.md list them. */
export const EXIT_CODES = { ok: 0, failed: 1, usage: 2, interrupted: 130, terminated: 143 } as const;

/** A failure that the command line itself detects. `code` is for programs, like that of `EmbedderError`. */
export class CommandLineError extends Error {
  readonly code: string;
  readonly exitCode: number;

  constructor(code: string, message: string, options: { exitCode?: number; cause?: unknown } = {}) {
    super(message, options);
    this.code = code;
    this.exitCode = options.exitCode ?? EXIT_CODES.failed;
  }
}

/** An error of the file system with its context: `doing` says what failed, and for which file. */
export function fileError(doing: string, cause: unknown): CommandLineError {
  if (cause instanceof CommandLineError) return cause;
  const { code = "UNEXPECTED", message } = cause as NodeJS.ErrnoException;
  return new CommandLineError(code, `${doing}: ${message}`, { cause });
}

/** The reason of the `AbortSignal` that stops a command. */
export class Interruption extends Error {
  constructor(readonly signalName: "SIGINT" | "SIGTERM") {
    super(`interrupted by ${signalName}`);
  }
}

export interface Failure {
  code: string;
  message: string;
  exitCode: number;
}

/** How an error is reported: a code, a line, and the exit code. */
export function failureOf(error: unknown): Failure {
  const { code, message, exitCode, cause } = error as Partial<CommandLineError>;
  const interruption = [error, cause].find((candidate) => candidate instanceof Interruption);
  if (interruption) {
    const status = interruption.signalName === "SIGINT" ? EXIT_CODES.interrupted : EXIT_CODES.terminated;
    return { code: "INTERRUPTED", message: interruption.message, exitCode: status };
  }
  if (error instanceof CommanderError) {
    return { code: "USAGE", message: oneLine(error.message.replace(/^error: /, "")), exitCode: EXIT_CODES.usage };
  }
  const isWrongArgument = code === "INVALID_ARGUMENT";
  return {
    code: typeof code === "string" ? code : "UNEXPECTED",
    message: oneLine(message ?? String(error)),
    exitCode: exitCode ?? (isWrongArgument ? EXIT_CODES.usage : EXIT_CODES.failed),
  };
}

function oneLine(message: string): string {
  return message.replace(/\s*\n\s*/g, " ").trim();
}
