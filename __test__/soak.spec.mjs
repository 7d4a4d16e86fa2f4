/** A few seconds of the soak test, and that it detects what it should. */

import assert from "node:assert/strict";
import * as path from "node:path";
import { test } from "node:test";
import { growth } from "../scripts/soak.mjs";
import { ROOT } from "./support/models.mjs";
import { runNode } from "./support/processes.mjs";

function soak(...args) {
  return runNode([path.join(ROOT, "scripts/soak.mjs"), ...args]);
}

test("soak: mixed calls from worker threads give right vectors and leave nothing behind", async () => {
  const { status, stdout, stderr } = await soak("--minutes=0.05", "--rounds=3");
  assert.equal(status, 0, stdout + stderr);
  assert.match(stdout, /round 3\/3: \d+ calls/);
  for (const call of ["embed", "query", "stream", "abort"]) assert.match(stdout, new RegExp(`│ ${call} +│ +[1-9]`));
});

test("soak: an unexpected error is a failure", async () => {
  const { status, stdout, stderr } = await soak("--minutes=0.05", "--dtype=f16");
  assert.equal(status, 1, stdout);
  assert.match(stderr, /FAIL: INVALID_ARGUMENT.*dtype/);
});

test("soak: a wrong vector is a failure", async () => {
  const { status, stdout, stderr } = await soak("--minutes=0.02", "--rounds=1", "--workers=1", "--spoil");
  assert.equal(status, 1, stdout);
  assert.match(stderr, /FAIL: .*wrong vector for text \d+/);
});

test("soak: growth after warm-up is a failure; a peak is not", () => {
  const round = { memory: 2 ** 27, descriptors: 20, threads: 9, processes: 1 };
  const steady = Array.from({ length: 12 }, () => round);
  assert.deepEqual(growth(steady), []);
  assert.deepEqual(growth(steady.with(10, { ...round, descriptors: 500 })), []);
  const leaking = steady.map((_, index) => ({ ...round, descriptors: 20 + 3 * index }));
  assert.match(growth(leaking).join("\n"), /^descriptors grew from 32 to 44/);
});
