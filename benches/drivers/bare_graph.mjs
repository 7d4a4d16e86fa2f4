/**
 * The graph that this package exports, run by onnxruntime-node with all threads on prepared ids, one text at a time:
 * the least that a query costs.
 */

import { createRequire } from "node:module";
import * as path from "node:path";
import { serve } from "./protocol.mjs";

await serve(async ({ package: folder, model, maxTokens, threads }) => {
  const require = createRequire(path.join(folder, "dist/lib/"));
  const ort = require("onnxruntime-node");
  const { readModelDir } = require("./model_dir.js");
  const { TextTokenizer } = require("./fallback/tokenizer/text_tokenizer.js");
  const tokenizer = new TextTokenizer(readModelDir(model, { maxTokens }));
  const file = path.join(model, "semantic-search-native.onnx");
  const session = await ort.InferenceSession.create(file, { intraOpNumThreads: threads });
  const tensors = new Map();
  return {
    name: "the exported graph alone",
    device: "cpu",
    prepare: (texts) => {
      for (const text of texts) {
        const { ids } = tokenizer.encode(text, true);
        tensors.set(text, new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]));
      }
    },
    embed: async (texts) => {
      const states = [];
      for (const text of texts) {
        const { last_hidden_state: output } = await session.run({ input_ids: tensors.get(text) });
        states.push(output.data);
      }
      return states;
    },
  };
});
