/** Calls of both backends are aborted, by a signal and by a timeout, and the embedder goes on. */

import assert from "node:assert/strict";
import { AbortError, Embedder } from "semantic-search-native";
import { assertGolden, done, MANY, MODEL, TEXTS } from "./golden.mjs";

for (const backend of ["onnx", "onnx-js"]) {
  const embedder = await Embedder.load(MODEL, { backend });
  const controller = new AbortController();
  let progress = 0;
  const onProgress = () => {
    progress++;
    controller.abort();
  };
  await assert.rejects(embedder.embed(MANY, { signal: controller.signal, onProgress }), AbortError);
  assert.equal(progress, 1);
  await assert.rejects(embedder.embed(MANY, { signal: AbortSignal.timeout(50) }), { name: "AbortError" });
  assertGolden(await embedder.embed(TEXTS));
  await embedder.close();
}
done();
