import { unlessAborted } from "./abort.js";
import type { Engine } from "./engine.js";
import { AbortError, EmbedderError, ThrownByCaller, toEmbedderError } from "./errors.js";
import { FallbackEngine } from "./fallback/engine.js";
import { IdleEngine } from "./idle_engine.js";
import { chosenBackend, type LoadOptions } from "./load_options.js";
import { locate, type ModelSource } from "./model_source.js";
import { loadAddon, NativeEngine } from "./native.js";

/** A loaded model, why a faster backend was not taken, and how to load it again on the same backend. */
interface Loaded {
  engine: Engine;
  fallbackReason: string | null;
  reload: () => Promise<Engine>;
}

/**
 * Loads a model on the first backend that works, or on the one that is named.
 *
 * @throws EmbedderError, ThrownByCaller
 */
export async function loadEngine(
  source: ModelSource,
  { backend, idleTimeoutMs, ...options }: LoadOptions,
): Promise<Omit<Loaded, "reload">> {
  const loading = loadOn(source, chosenBackend(backend), options);
  const { engine, fallbackReason, reload } = await unlessAborted(loading, options.signal).catch((error) => {
    // A load that was given up still runs to its end, and must not leave its weights behind.
    if (error instanceof AbortError) loading.then((loaded) => loaded.engine.close()).catch(() => {});
    throw error;
  });
  return {
    engine: idleTimeoutMs === undefined ? engine : new IdleEngine(engine, reload, idleTimeoutMs),
    fallbackReason,
  };
}

async function loadOn(
  source: ModelSource,
  backend: NonNullable<LoadOptions["backend"]>,
  options: LoadOptions,
): Promise<Loaded> {
  if (backend === "onnx-js") return loadFallback(source, options, null);
  let unavailable: EmbedderError;
  try {
    return await loadNative(source, backend, options);
  } catch (error) {
    // Only a backend that cannot run here is a reason to try the next; a wrong model is wrong for all of them.
    if (backend !== "auto" || !(error instanceof EmbedderError) || error.code !== "BACKEND_UNAVAILABLE") throw error;
    unavailable = error;
  }
  try {
    return await loadFallback(source, options, unavailable.message);
  } catch (error) {
    if (error instanceof AbortError || error instanceof ThrownByCaller) throw error;
    const { code, message } = toEmbedderError(error);
    throw new EmbedderError(code, `${message} (tried before: ${unavailable.message})`, { cause: error });
  }
}

async function loadNative(
  source: ModelSource,
  backend: "auto" | "mlx" | "onnx",
  options: LoadOptions,
): Promise<Loaded> {
  // First: nothing is downloaded for an addon that cannot be loaded.
  loadAddon();
  const { dir, options: located } = await locate(source, { safetensors: true }, options);
  const engine = await NativeEngine.load(dir, { ...located, backend });
  const reload = () => NativeEngine.load(dir, { ...located, backend: engine.backend });
  return { engine, fallbackReason: engine.fallbackReason, reload };
}

async function loadFallback(source: ModelSource, options: LoadOptions, reason: string | null): Promise<Loaded> {
  const onnx = options.dtype === "int8" ? "int8" : "f32";
  const { dir, options: located } = await locate(source, { safetensors: false, onnx }, options);
  // This path is for the addon: onnxruntime-node has its own library.
  const { onnxRuntimeLibrary: _, ...modelOptions } = located;
  const reload = () => FallbackEngine.load(dir, modelOptions);
  return { engine: await reload(), fallbackReason: reason, reload };
}
