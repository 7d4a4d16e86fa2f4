import { coded } from "./errors.js";
import { keepBesideWeights } from "./fallback/onnx_file.js";
import { checkLoadOptions, type LoadOptions } from "./load_options.js";
import { locate, modelSource } from "./model_source.js";
import { addonOptions, loadAddon } from "./native.js";

/**
 * Writes `semantic-search-native.onnx` into a model folder, for the JavaScript fallback: only the graph, the weights stay
 * in the folder's safetensors files. With `dtype: "int8"` it writes `semantic-search-native.int8.onnx`, which contains the
 * quantized weights.
 *
 * @param model As for `Embedder.load`; for a model on the Hub, the file is written into its snapshot in the cache.
 * @returns The path of the file.
 * @throws EmbedderError as `Embedder.load`.
 */
export async function exportOnnx(model?: string, options?: LoadOptions): Promise<string> {
  return coded(async () => {
    const checked = checkLoadOptions(options);
    const source = modelSource(model);
    const addon = loadAddon();
    const { dir, options: located } = await locate(source, { safetensors: true }, checked);
    const graph = await addon.exportOnnx(dir, addonOptions(located));
    keepBesideWeights(graph);
    return graph;
  });
}
