/** The JavaScript fallback, in its process: vectors, a stream, and the process's end. */

import assert from "node:assert/strict";
import { Embedder } from "semantic-search-native";
import { assertGolden, done, MODEL, TEXTS } from "./golden.mjs";

const embedder = await Embedder.load(MODEL, { backend: "onnx-js" });
assert.equal(embedder.backend, "onnx-js");
assertGolden(await embedder.embed(TEXTS));
const vectors = [];
for await (const { index, vector } of embedder.stream(TEXTS)) vectors[index] = vector;
assertGolden(vectors);
// Not closed: it does not keep this process alive, and ends with it.
done();
