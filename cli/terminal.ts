/** Messages for people (standard error) and results (standard output). */

import { once } from "node:events";

/**
 * Characters that control a terminal or change the order of a text: names of files and models and messages of servers may
 * contain them. They are escaped as in JSON, so that JSON stays valid.
 */
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are the characters to escape.
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

/** Escapes control characters except tabs and line feeds. */
export function printable(text: string): string {
  return text.replace(CONTROLS, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** As `printable`, but also escapes line feeds. */
export function onOneLine(text: string): string {
  return printable(text).replaceAll("\n", "\\n");
}

/** Writes to standard output, waiting for a slow reader. Escapes control characters only for a terminal. */
export async function print(text: string): Promise<void> {
  if (!process.stdout.write(process.stdout.isTTY ? printable(text) : text)) await once(process.stdout, "drain");
}

/** Prints a command's result: as JSON, or as text for people. */
export async function printResult(isJson: boolean | undefined, result: unknown, text: string): Promise<void> {
  await print(`${isJson ? JSON.stringify(result) : text}\n`);
}

/** Where the summary of a command goes: to standard output with `--json` if the result is in a file, else to standard error. */
export async function printSummary(
  { json, output, quiet }: { json?: boolean; output?: string; quiet?: boolean },
  summary: object,
  line: string,
): Promise<void> {
  if (json && output !== undefined) await printResult(true, summary, line);
  else if (!quiet) say(json, line, { summary });
}

/** Writes a message to standard error: a line for people, or an object with `--json`. */
export function say(isJson: boolean | undefined, line: string, object: object): void {
  note(isJson ? JSON.stringify(object) : line);
}

/** Writes a line to standard error. */
export function note(line: string): void {
  clearStatus();
  process.stderr.write(`${onOneLine(line)}\n`);
}

const STATUS_INTERVAL_MS = 100;
let statusAt = 0;
let hasStatus = false;

/** Shows progress in a line that is replaced each time; on a terminal only. */
export function showStatus(text: () => string): void {
  if (!process.stderr.isTTY || performance.now() - statusAt < STATUS_INTERVAL_MS) return;
  statusAt = performance.now();
  hasStatus = true;
  process.stderr.write(`\r\u001b[K${onOneLine(text()).slice(0, (process.stderr.columns || 80) - 1)}`);
}

const BAR_WIDTH = 24;

/** A bar of which a share, from 0 to 1, is filled. */
export function progressBar(share: number): string {
  const filled = Math.floor(BAR_WIDTH * share);
  return "█".repeat(filled) + "░".repeat(BAR_WIDTH - filled);
}

/** Removes the progress line. */
export function clearStatus(): void {
  if (!hasStatus) return;
  hasStatus = false;
  process.stderr.write("\r\u001b[K");
}

/** `"1,234"` in any locale: output must not depend on the machine. */
export function grouped(count: number): string {
  return count.toLocaleString("en-US");
}

/** Decimal, as the Hub gives sizes. */
export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

/** Asks a question on standard error; whether the answer is yes. @throws AbortError */
export async function confirmed(question: string, signal: AbortSignal): Promise<boolean> {
  const { createInterface } = await import("node:readline/promises");
  // Not as a terminal: Ctrl-C stays a signal.
  const lines = createInterface({ input: process.stdin, output: process.stderr, terminal: false });
  try {
    const answer = await Promise.race([
      lines.question(onOneLine(question), { signal }),
      once(lines, "close", { signal }).then(() => "no"),
    ]);
    return /^y(es)?$/i.test(answer.trim());
  } finally {
    lines.close();
  }
}

/** An argument as it can be pasted into a shell. */
export function quoted(argument: string): string {
  if (/^[\w./@:+%-]+$/.test(argument)) return argument;
  return process.platform === "win32" ? `"${argument}"` : `'${argument.replaceAll("'", "'\\''")}'`;
}

/** Aligns cells in columns. */
export function table(cells: readonly (readonly string[])[]): string {
  const rows = cells.map((row) => row.map((cell) => cell.replaceAll("\n", "\\n")));
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => (row[column] ?? "").length)));
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
