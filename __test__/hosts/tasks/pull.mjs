/** A model is downloaded by name, from a Hub of this machine. */

import assert from "node:assert/strict";
import { Embedder, pull } from "semantic-search-native";
import { assertGolden, done, TEXTS } from "./golden.mjs";

await assert.rejects(pull("org/absent"), { code: "MODEL_NOT_FOUND" });
const embedder = await Embedder.load("org/model", { backend: "onnx" });
assertGolden(await embedder.embed(TEXTS));
await embedder.close();
done();
