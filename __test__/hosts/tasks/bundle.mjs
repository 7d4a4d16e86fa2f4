/** Both backends, without the `await` at top level that CommonJS does not have. */

import { Embedder } from "semantic-search-native";
import { assertGolden, done, MODEL, TEXTS } from "./golden.mjs";

async function main() {
  for (const backend of ["onnx", "onnx-js"]) {
    const embedder = await Embedder.load(MODEL, { backend });
    assertGolden(await embedder.embed(TEXTS));
    await embedder.close();
  }
  done();
}

main();
