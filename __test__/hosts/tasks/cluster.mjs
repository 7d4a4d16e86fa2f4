/** Workers of `node:cluster` load models of their own and answer on one port. */

import assert from "node:assert/strict";
import cluster from "node:cluster";
import { once } from "node:events";
import { createServer } from "node:http";
import { Embedder } from "semantic-search-native";
import { assertGolden, done, MODEL, TEXTS } from "./golden.mjs";

if (cluster.isPrimary) {
  const workers = [cluster.fork(), cluster.fork()];
  const listening = await Promise.all(workers.map((worker) => once(worker, "listening")));
  const [[{ port }]] = listening;
  for (let request = 0; request < 4; request++) {
    const answer = await fetch(`http://127.0.0.1:${port}`, { headers: { connection: "close" } });
    assertGolden(await answer.json());
  }
  for (const worker of workers) {
    worker.send("stop");
    const [status] = await once(worker, "exit");
    assert.equal(status, 0);
  }
  done();
} else {
  const embedder = await Embedder.load(MODEL, { backend: "onnx" });
  const server = createServer(async (_, response) => {
    const vectors = await embedder.embed(TEXTS);
    response.end(JSON.stringify(vectors.map((vector) => Array.from(vector))));
  });
  server.listen(0, "127.0.0.1");
  process.once("message", async () => {
    server.close();
    await embedder.close();
    process.disconnect();
  });
}
