/** What a command says to people (standard error) and what it hands on (standard output). */

import { once } from "node:events";

/**
 * Characters that a terminal obeys instead of showing them, or that show a text in another order: file names, names of
 * models and messages of servers may hold them. Written as JSON writes them, so that JSON stays what it is.
 */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what this is about.
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

/** The text with its control characters made visible; tabs and line feeds stay. */
export function printable(text: string): string {
  return text.replace(CONTROLS, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** As `printable`, for what is to stay on its line. */
export function onOneLine(text: string): string {
  return printable(text).replaceAll("\n", "\\n");
}

/** Writes to standard output, and waits while its reader is slow. A program that reads it gets every name as it is. */
export async function print(text: string): Promise<void> {
  if (!process.stdout.write(process.stdout.isTTY ? printable(text) : text)) await once(process.stdout, "drain");
}

/** Prints a command's result: as JSON, or as text for people. */
export async function printResult(isJson: boolean | undefined, result: unknown, text: string): Promise<void> {
  await print(`${isJson ? JSON.stringify(result) : text}\n`);
}

/** Says something on standard error: a line for people, or with `--json` an object. */
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

/** Replaces the line that shows how far work is; only a terminal has one. */
export function showStatus(text: () => string): void {
  if (!process.stderr.isTTY || performance.now() - statusAt < STATUS_INTERVAL_MS) return;
  statusAt = performance.now();
  hasStatus = true;
  process.stderr.write(`\r\u001b[K${onOneLine(text()).slice(0, (process.stderr.columns || 80) - 1)}`);
}

/** Removes that line. */
export function clearStatus(): void {
  if (!hasStatus) return;
  hasStatus = false;
  process.stderr.write("\r\u001b[K");
}

/** `"1,234"` in any locale: what is printed must not depend on the machine. */
export function grouped(count: number): string {
  return count.toLocaleString("en-US");
}

/** Columns as wide as their widest cell. */
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
