/** A fixed number of cases of the fuzzer in `fuzz/javascript.mjs`, with a fixed seed. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { fuzz } from "../fuzz/javascript.mjs";

for (const [target, cases] of Object.entries({ model: 12, hub: 12, serve: 400, tokens: 6000 })) {
  test(`${target}: ${cases} random cases keep the promises`, async () => {
    const { flaws, cases: tried } = await fuzz({ target, seed: 1, cases });
    assert.deepEqual(flaws, []);
    assert.equal(tried, cases);
  });
}
