/** `require`, and the synchronous functions. */

const assert = require("node:assert/strict");
const { Embedder, embed, init, isGpu } = require("semantic-search-native");

import("./golden.mjs").then(async ({ assertGolden, done, MODEL, TEXTS }) => {
  assert.equal(typeof Embedder.load, "function");
  await init(MODEL, { backend: "onnx" });
  assert.equal(isGpu(), false);
  assertGolden(embed(TEXTS));
  done();
});
