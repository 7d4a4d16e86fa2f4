/** Errors of JavaScript, of the addon and of the fallback's process have class, code and message. */

import assert from "node:assert/strict";
import { Embedder, EmbedderError } from "semantic-search-native";
import { done, MODEL } from "./golden.mjs";

function error(code, message) {
  return (thrown) => {
    assert.ok(thrown instanceof EmbedderError && thrown instanceof Error);
    assert.equal(thrown.code, code);
    assert.match(thrown.message, message);
    return true;
  };
}

await assert.rejects(Embedder.load(MODEL, { maxToken: 8 }), error("INVALID_ARGUMENT", /maxToken/));
for (const backend of ["onnx", "onnx-js"]) {
  await assert.rejects(Embedder.load(`${MODEL}/nowhere`, { backend }), error("MODEL_NOT_FOUND", /nowhere/));
  const embedder = await Embedder.load(MODEL, { backend });
  await assert.rejects(embedder.embed(["a", 1]), error("INVALID_ARGUMENT", /text 1|texts\[1\]/));
  const tokens = Uint32Array.of(embedder.vocabularySize);
  await assert.rejects(embedder.embed([tokens]), error("INVALID_ARGUMENT", /token id/));
  await embedder.close();
  await assert.rejects(embedder.embed(["a"]), error("CLOSED", /closed/));
}
done();
