/** Tables of the manual whose cells are what a test has seen. */

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { ROOT } from "./models.mjs";

/**
 * Compares the table between `<!-- name -->` and `<!-- end of name -->` with rows, or rewrites it if
 * `SEMANTIC_SEARCH_WRITE_TABLES` is set.
 *
 * @param {string} page
 * @param {string} name
 * @param {string[][]} rows the first is the head
 */
export function checkTable(page, name, [head, ...rows]) {
  const file = path.join(ROOT, page);
  const text = readFileSync(file, "utf8");
  const [start, end] = [`<!-- ${name} -->\n`, `<!-- end of ${name} -->\n`];
  const [before, rest, ...more] = text.split(start);
  const [table, after] = rest?.split(end) ?? [];
  assert.ok(after !== undefined && more.length === 0, `${page}: expected one ${start.trim()} … ${end.trim()}`);
  const line = (cells) => `| ${cells.join(" | ")} |\n`;
  const expected = [line(head), `|${"---|".repeat(head.length)}\n`, ...rows.map(line)].join("");
  if (process.env.SEMANTIC_SEARCH_WRITE_TABLES) writeFileSync(file, before + start + expected + end + after);
  else assert.equal(table, expected, `${page} is stale: run the step with --write`);
}
