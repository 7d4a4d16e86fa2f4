/** The package outside of `node_modules`, as in a clone, on both backends. */

import { createRequire } from "node:module";
import { assertGolden, done, MODEL, TEXTS } from "./golden.mjs";

const { Embedder } = createRequire(import.meta.url)("../clone/dist/embedder.js");
for (const backend of ["onnx", "onnx-js"]) {
  const embedder = await Embedder.load(MODEL, { backend });
  assertGolden(await embedder.embed(TEXTS));
  await embedder.close();
}
done();
