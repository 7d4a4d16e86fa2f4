/** node-llama-cpp over the folder's weights as a GGUF file. */

import { readFileSync } from "node:fs";
import * as path from "node:path";
import { pathToFileURL } from "node:url";
import { serve, unitRows } from "./protocol.mjs";

await serve(async ({ npm, model: folder, maxTokens, threads }) => {
  const installed = path.join(npm, "node_modules/node-llama-cpp");
  const { getLlama } = await import(pathToFileURL(path.join(installed, "dist/index.js")));
  const { version } = JSON.parse(readFileSync(path.join(installed, "package.json"), "utf8"));
  const llama = await getLlama({ gpu: false, build: "never", maxThreads: threads, logLevel: "error" });
  const model = await llama.loadModel({ modelPath: path.join(folder, "model.gguf") });
  // It keeps some of a context for itself.
  const contextSize = maxTokens + 32;
  const context = await model.createEmbeddingContext({ contextSize, batchSize: contextSize, threads });
  const embed = async (text) => {
    // It refuses what is too long, and adds the two special tokens by itself.
    const tokens = model.tokenize(text).slice(0, maxTokens - 2);
    const { vector } = await context.getEmbeddingFor(tokens);
    return unitRows(Float32Array.from(vector), vector.length)[0];
  };
  return {
    name: `node-llama-cpp ${version}`,
    device: "cpu",
    embed: (texts) => Promise.all(texts.map(embed)),
    embedQuery: embed,
  };
});
