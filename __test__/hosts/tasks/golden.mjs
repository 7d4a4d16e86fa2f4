/** What the tasks have in common: the model, texts, and the vectors that sentence-transformers has for them. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

/** A folder that every backend can run. */
export const MODEL = process.env.MODEL;
const cases = JSON.parse(readFileSync(process.env.GOLDEN, "utf8"));
export const TEXTS = cases.map(({ text }) => text);
/** Work for some seconds. */
export const MANY = Array.from({ length: 20_000 }, (_, index) => index + " word".repeat(60));

export function assertGolden(vectors, tolerance = 1e-5) {
  assert.equal(vectors.length, cases.length);
  for (const [index, { vector }] of cases.entries()) assertClose(vectors[index], vector, tolerance);
}

export function assertClose(actual, expected, tolerance = 1e-5) {
  assert.equal(actual.length, expected.length);
  const difference = Math.max(...expected.map((value, index) => Math.abs(value - actual[index])));
  assert.ok(difference <= tolerance, `differs by ${difference}`);
}

/** The last statement of every task: one that ends before it has failed, whatever its exit code. */
export function done() {
  console.log("done");
}
