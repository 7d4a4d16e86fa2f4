/** fastembed for Node.js over the folder's ONNX export. It takes the first token's state whatever the model says. */

import { readFileSync } from "node:fs";
import * as path from "node:path";
import { pathToFileURL } from "node:url";
import { serve } from "./protocol.mjs";

await serve(async ({ npm, model, maxTokens }) => {
  const folder = path.join(npm, "node_modules/fastembed");
  const { EmbeddingModel, FlagEmbedding } = await import(pathToFileURL(path.join(folder, "lib/esm/index.js")));
  const { version } = JSON.parse(readFileSync(path.join(folder, "package.json"), "utf8"));
  const embedder = await FlagEmbedding.init({
    model: EmbeddingModel.CUSTOM,
    modelAbsoluteDirPath: model,
    modelName: "onnx/model.onnx",
    maxLength: maxTokens,
  });
  return {
    name: `fastembed ${version}`,
    device: "cpu",
    embed: async (texts) => {
      const vectors = [];
      for await (const batch of embedder.embed(texts, 32)) vectors.push(...batch);
      return vectors;
    },
  };
});
