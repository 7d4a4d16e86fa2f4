import { checkTexts } from "./call_options.js";
import type { TextOrTokens } from "./engine.js";
import { codedSync, EmbedderError } from "./errors.js";
import { checkLoadOptions, chosenBackend, type LoadOptions } from "./load_options.js";
import { modelSource } from "./model_source.js";
import { addonOptions, loadAddon } from "./native.js";
import { invalid } from "./option_rules.js";
import { copyOfTokens, rowsOf } from "./slices.js";

/**
 * Loads the process-wide model of `embed` and `isGpu`. Synchronous: it blocks until the model is loaded. A second call
 * with the same arguments does nothing.
 *
 * @param modelDir A folder: a synchronous function cannot download. `pull` gives the folder of a model on the Hub.
 * @throws EmbedderError as `Embedder.load`, and `ALREADY_INITIALIZED` for another model or other options.
 */
export function init(
  modelDir?: string,
  options?: Omit<LoadOptions, "backend" | "signal" | "idleTimeoutMs" | "queryCacheSize" | "onProgress" | "offline"> & {
    backend?: Exclude<LoadOptions["backend"], "onnx-js">;
  },
): void {
  codedSync(() => {
    const checked = checkLoadOptions(options);
    const source = modelSource(modelDir);
    if ("hub" in source) {
      const message = `there is no folder ${source.hub.id}, and init cannot wait for a download: pull gives the folder of a model on the Hub`;
      throw new EmbedderError("MODEL_NOT_FOUND", message);
    }
    const backend = chosenBackend(checked.backend);
    if (backend === "onnx-js") {
      throw invalid(
        "option backend",
        '"auto", "mlx", "webgpu", "onnx" or "cpu" (the fallback cannot be synchronous)',
        backend,
      );
    }
    loadAddon().init(source.folder, addonOptions({ ...checked, backend }));
  });
}

/**
 * Embeds texts, or their token ids, with the process-wide model. Synchronous: it blocks the thread. Use `Embedder` for
 * anything but scripts.
 *
 * @param isQuery Whether the texts are queries, which selects the model's prompt.
 * @throws EmbedderError `INVALID_ARGUMENT`, `NOT_INITIALIZED`, `TOKENIZATION_FAILED`, `INFERENCE_FAILED`,
 * `RESOURCE_EXHAUSTED` or `BACKEND_UNAVAILABLE`.
 */
export function embed(texts: readonly TextOrTokens[], isQuery = false): Float32Array[] {
  return codedSync(() => {
    const snapshot = checkTexts(texts);
    if (typeof isQuery !== "boolean") throw invalid("isQuery", "true or false", isQuery);
    const own = snapshot.map((text) => (typeof text === "string" ? text : copyOfTokens("texts", text)));
    return rowsOf(loadAddon().embed(own, isQuery), snapshot.length);
  });
}

/**
 * Whether the process-wide model computes on a GPU.
 *
 * @throws EmbedderError `NOT_INITIALIZED` or `BACKEND_UNAVAILABLE`.
 */
export function isGpu(): boolean {
  return codedSync(() => loadAddon().isGpu());
}
