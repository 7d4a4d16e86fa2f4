/** The process exits in the middle of a batch of either backend. */

import { Embedder } from "semantic-search-native";
import { done, MANY, MODEL } from "./golden.mjs";

for (const backend of ["onnx", "onnx-js"]) {
  const embedder = await Embedder.load(MODEL, { backend });
  await embedder.embed(["works"]);
  embedder.embed(MANY).catch(() => {});
}
setTimeout(() => {
  done();
  process.exit(0);
}, 200);
