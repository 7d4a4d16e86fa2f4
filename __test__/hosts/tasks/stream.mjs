/** A stream of vectors from an async generator, which is closed if the consumer leaves early. */

import assert from "node:assert/strict";
import { Embedder } from "semantic-search-native";
import { assertGolden, done, MANY, MODEL, TEXTS } from "./golden.mjs";

const embedder = await Embedder.load(MODEL, { backend: "onnx" });
let isClosed = false;
async function* source(texts) {
  try {
    yield* texts;
  } finally {
    isClosed = true;
  }
}

const vectors = [];
for await (const { index, vector } of embedder.stream(source(TEXTS))) vectors[index] = vector;
assertGolden(vectors);

isClosed = false;
for await (const { vector } of embedder.stream(source(MANY))) {
  assert.equal(vector.length, embedder.dimension);
  break;
}
assert.ok(isClosed);
await embedder.close();
done();
