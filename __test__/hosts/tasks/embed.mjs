/** `import`, and vectors of documents and a query. */

import assert from "node:assert/strict";
import { Embedder } from "semantic-search-native";
import { assertClose, assertGolden, done, MODEL, TEXTS } from "./golden.mjs";

const embedder = await Embedder.load(MODEL, { backend: "onnx" });
assert.equal(embedder.backend, "onnx");
const vectors = await embedder.embed(TEXTS);
assertGolden(vectors);
// The model has no prompts, so a query is a text.
assertClose(await embedder.embedQuery(TEXTS[0]), Array.from(vectors[0]));
await embedder.close();
done();
