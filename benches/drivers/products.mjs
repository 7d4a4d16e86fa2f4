/**
 * The limit of this machine: the matrix products that the texts need and nothing else, on as many worker threads as there
 * are processors, each with a session of one thread. Texts of equal length run together up to 512 tokens, and the next
 * batch goes to the next free thread, as in this package.
 */

import { createRequire } from "node:module";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { serve } from "./protocol.mjs";

const BATCH_TOKENS = 512;

/** `[texts, tokens]` of each batch, the longest texts first. */
function batchesOf(lengths) {
  const batches = [];
  for (const length of [...lengths].sort((a, b) => b - a)) {
    const last = batches.at(-1);
    if (last?.[1] === length && (last[0] + 1) * length <= BATCH_TOKENS) last[0]++;
    else batches.push([1, length]);
  }
  return batches;
}

if (isMainThread) {
  await serve(async ({ package: folder, model, maxTokens, threads, pooling }) => {
    const require = createRequire(path.join(folder, "dist/lib/"));
    const { readModelDir } = require("./model_dir.js");
    const { TextTokenizer } = require("./fallback/tokenizer/text_tokenizer.js");
    const tokenizer = new TextTokenizer(readModelDir(model, { maxTokens }));
    const { n_embd, hidden_size, n_head, num_attention_heads } = require(path.join(model, "config.json"));
    const data = {
      folder,
      file: path.join(model, "products.onnx"),
      width: n_embd ?? hidden_size,
      heads: n_head ?? num_attention_heads,
      cls: pooling === "cls",
    };
    const file = fileURLToPath(import.meta.url);
    const workers = Array.from({ length: threads }, () => new Worker(file, { workerData: data, execArgv: [] }));
    const message = (worker) => new Promise((resolve) => worker.once("message", resolve));
    await Promise.all(workers.map(message));

    const lengths = new Map();
    return {
      name: "matrix products alone",
      device: "cpu",
      prepare: (texts) => {
        for (const text of texts) lengths.set(text, tokenizer.encode(text, false).ids.length);
      },
      embed: async (texts) => {
        const batches = batchesOf(texts.map((text) => lengths.get(text)));
        const next = new Int32Array(new SharedArrayBuffer(4));
        await Promise.all(
          workers.map((worker) => {
            const finished = message(worker);
            worker.postMessage({ batches, next });
            return finished;
          }),
        );
        return [];
      },
    };
  });
} else {
  const { folder, file, width, heads, cls } = workerData;
  const ort = createRequire(path.join(folder, "dist/lib/"))("onnxruntime-node");
  const session = await ort.InferenceSession.create(file, { intraOpNumThreads: 1, interOpNumThreads: 1 });

  // Every tensor is the beginning of one of two tables. A head's numbers are such that its products neither grow nor vanish
  // from layer to layer.
  const headWidth = width / heads;
  const table = (scale) => Float32Array.from({ length: BATCH_TOKENS * width }, (_, i) => scale * Math.sin(i * 1.7));
  const tables = { states: table(1), heads: table((headWidth * 128) ** -0.25) };
  const tensor = (name, shape) => {
    const count = shape.reduce((product, size) => product * size, 1);
    return new ort.Tensor("float32", tables[name].subarray(0, count), shape);
  };
  const feeds = (texts, length) => ({
    tokens: tensor("states", [texts * length, width]),
    heads: tensor("heads", [texts * heads, length, headWidth]),
    heads_transposed: tensor("heads", [texts * heads, headWidth, length]),
    ...(cls && {
      firsts: tensor("states", [texts, width]),
      first_heads: tensor("states", [texts * heads, 1, headWidth]),
    }),
  });
  parentPort.on("message", async ({ batches, next }) => {
    for (let batch = Atomics.add(next, 0, 1); batch < batches.length; batch = Atomics.add(next, 0, 1)) {
      await session.run(feeds(...batches[batch]));
    }
    parentPort.postMessage("done");
  });
  parentPort.postMessage("ready");
}
