/** What a command says to people (standard error) and what it hands on (standard output). */

import { once } from "node:events";

/** Writes to standard output, and waits while its reader is slow. */
export async function print(text: string): Promise<void> {
  if (!process.stdout.write(text)) await once(process.stdout, "drain");
}

/** Prints a command's result: as JSON, or as text for people. */
export async function printResult(isJson: boolean | undefined, result: unknown, text: string): Promise<void> {
  await print(`${isJson ? JSON.stringify(result) : text}\n`);
}

/** Says something on standard error: a line for people, or with `--json` an object. */
export function say(isJson: boolean | undefined, line: string, object: object): void {
  clearStatus();
  process.stderr.write(`${isJson ? JSON.stringify(object) : line}\n`);
}

const STATUS_INTERVAL_MS = 100;
let statusAt = 0;
let hasStatus = false;

/** Replaces the line that shows how far work is; only a terminal has one. */
export function showStatus(text: () => string): void {
  if (!process.stderr.isTTY || performance.now() - statusAt < STATUS_INTERVAL_MS) return;
  statusAt = performance.now();
  hasStatus = true;
  process.stderr.write(`\r\u001b[K${text().slice(0, (process.stderr.columns || 80) - 1)}`);
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
export function table(rows: readonly (readonly string[])[]): string {
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
