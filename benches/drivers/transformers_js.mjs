/**
 * transformers.js over the folder's ONNX export, as its documentation shows it; `setup.dtype` is "fp32" or "q8", and
 * `setup.device` "cpu" or "webgpu". It does not read the folder's pooling.
 */

import { readFileSync } from "node:fs";
import * as path from "node:path";
import { pathToFileURL } from "node:url";
import { in32s, serve } from "./protocol.mjs";

const POOLINGS = { cls: "cls", mean: "mean", lasttoken: "last_token" };

await serve(async ({ npm, model, pooling: known, dtype, device = "cpu" }) => {
  const folder = path.join(npm, "node_modules/@huggingface/transformers");
  const { env, pipeline } = await import(pathToFileURL(path.join(folder, "dist/transformers.node.mjs")));
  const { version } = JSON.parse(readFileSync(path.join(folder, "package.json"), "utf8"));
  env.allowRemoteModels = false;
  env.localModelPath = path.dirname(model);
  const extract = await pipeline("feature-extraction", path.basename(model), { dtype, device });
  const read = () => JSON.parse(readFileSync(path.join(model, "1_Pooling/config.json"), "utf8")).pooling_mode;
  const pooling = POOLINGS[known ?? read()];
  return {
    name: `transformers.js ${version}, ${dtype}`,
    device: device === "webgpu" ? "gpu" : "cpu",
    embed: (texts) =>
      in32s(texts, async (batch) => {
        const tensor = await extract(batch, { pooling, normalize: true });
        const width = tensor.dims[1];
        return batch.map((_, row) => tensor.data.subarray(row * width, (row + 1) * width));
      }),
  };
});
