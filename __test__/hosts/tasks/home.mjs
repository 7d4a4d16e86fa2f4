/** A home folder in which nothing can be written: neither the addon nor the fallback writes there. */

import assert from "node:assert/strict";
import { Embedder, pull } from "semantic-search-native";
import { assertGolden, done, MODEL, TEXTS } from "./golden.mjs";

for (const options of [{ dtype: "int8" }, { backend: "onnx-js" }]) {
  const embedder = await Embedder.load(MODEL, options);
  const vectors = await embedder.embed(TEXTS);
  assertGolden(vectors, options.dtype === undefined ? 1e-5 : 0.1);
  await embedder.close();
}
await assert.rejects(pull("org/model"), { code: "DOWNLOAD_FAILED", message: /cannot write into the cache .*HF_HOME/ });
assert.ok(await pull("org/model", { cacheFolder: process.env.CACHE }));
done();
