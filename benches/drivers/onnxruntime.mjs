/**
 * Plain onnxruntime-node with a hand-written loop: 32 texts in order, padded to the longest, pooled in
 * JavaScript. The tokenizer is the one that this package's fallback uses.
 */

import { createRequire } from "node:module";
import * as path from "node:path";
import { in32s, serve, unitRows } from "./protocol.mjs";

await serve(async ({ package: folder, model, maxTokens, pooling }) => {
  const require = createRequire(path.join(folder, "dist/lib/"));
  const ort = require("onnxruntime-node");
  const { readModelDir } = require("./model_dir.js");
  const { TextTokenizer } = require("./fallback/tokenizer/text_tokenizer.js");
  const tokenizer = new TextTokenizer(readModelDir(model, { maxTokens }));
  const session = await ort.InferenceSession.create(path.join(model, "onnx/model.onnx"));

  async function embed(texts) {
    const ids = texts.map((text) => tokenizer.encode(text, false).ids);
    const length = Math.max(...ids.map((row) => row.length));
    const matrix = (valueAt) => {
      const values = new BigInt64Array(ids.length * length);
      for (const [row, tokens] of ids.entries()) {
        for (const [column, id] of tokens.entries()) values[row * length + column] = valueAt(id);
      }
      return new ort.Tensor("int64", values, [ids.length, length]);
    };
    const feeds = { input_ids: matrix(BigInt), attention_mask: matrix(() => 1n), token_type_ids: matrix(() => 0n) };
    const { last_hidden_state: states } = await session.run(feeds);
    const width = states.dims[2];
    const pooled = new Float32Array(ids.length * width);
    for (const [row, tokens] of ids.entries()) {
      const counted = pooling === "cls" ? 1 : tokens.length;
      for (let token = 0; token < counted; token++) {
        const from = (row * length + token) * width;
        // Not divided by the number of tokens: the vector is scaled to length 1 anyway.
        for (let i = 0; i < width; i++) pooled[row * width + i] += states.data[from + i];
      }
    }
    return unitRows(pooled, width);
  }

  const { version } = require("onnxruntime-node/package.json");
  return { name: `onnxruntime-node ${version}`, device: "cpu", embed: (texts) => in32s(texts, embed) };
});
