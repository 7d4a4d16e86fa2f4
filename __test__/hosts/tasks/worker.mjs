/** Worker threads load models of both backends, and are terminated in the middle of a call. */

import { once } from "node:events";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { Embedder } from "semantic-search-native";
import { assertGolden, done, MANY, MODEL, TEXTS } from "./golden.mjs";

if (isMainThread) {
  const embedder = await Embedder.load(MODEL, { backend: "onnx" });
  for (const backend of ["onnx", "onnx-js"]) {
    for (const abandon of [false, true]) {
      const worker = new Worker(new URL(import.meta.url), { workerData: { backend, abandon } });
      const [vectors] = await once(worker, "message");
      assertGolden(vectors);
      if (abandon) await worker.terminate();
      else await once(worker, "exit");
    }
  }
  assertGolden(await embedder.embed(TEXTS));
  await embedder.close();
  done();
} else {
  const embedder = await Embedder.load(MODEL, { backend: workerData.backend });
  parentPort.postMessage(await embedder.embed(TEXTS));
  if (workerData.abandon) await embedder.embed(MANY);
  else await embedder.close();
}
