import { unlessAborted } from "./abort.js";
import type { Engine, Task } from "./engine.js";
import { AbortError, EmbedderError, ThrownByCaller, toEmbedderError } from "./errors.js";
import { FallbackEngine } from "./fallback/engine.js";
import { chosenBackend, type EngineLoadOptions, type LoadOptions } from "./load_options.js";
import { openModelFolder, taskOf } from "./model_dir.js";
import { locate, type ModelSource } from "./model_source.js";
import { loadAddon, NativeEngine } from "./native.js";
import { ReloadingEngine } from "./reloading_engine.js";

/** A loaded model, why a faster backend was not taken, and how to load it again on the same backend. */
interface Loaded {
  engine: Engine;
  /** The model's folder. */
  dir: string;
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
  { backend, idleTimeoutMs, ...options }: EngineLoadOptions,
): Promise<Omit<Loaded, "reload">> {
  const loading = loadOn(source, chosenBackend(backend), options);
  const { engine, dir, fallbackReason, reload } = await unlessAborted(loading, options.signal).catch((error) => {
    // A load that was given up still runs to its end, and must not leave its weights behind.
    if (error instanceof AbortError) loading.then((loaded) => loaded.engine.close()).catch(() => {});
    throw error;
  });
  const reloads = idleTimeoutMs !== undefined || engine.backend === "webgpu";
  return {
    engine: reloads ? new ReloadingEngine(engine, reload, idleTimeoutMs) : engine,
    dir,
    fallbackReason,
  };
}

/**
 * The task that a model's folder declares. A model of the Hub is downloaded for the backend that would be loaded first.
 *
 * @throws EmbedderError, ThrownByCaller
 */
export async function declaredTask(source: ModelSource, options: LoadOptions): Promise<Task> {
  const wanted = isAddonUsed(options) ? { safetensors: true } : { safetensors: false, onnx: onnxOf(options) };
  const { dir } = await locate(source, wanted, options);
  return taskOf(openModelFolder(dir));
}

function isAddonUsed({ backend }: LoadOptions): boolean {
  if (chosenBackend(backend) === "onnx-js") return false;
  try {
    loadAddon();
    return true;
  } catch {
    return false;
  }
}

function onnxOf({ dtype }: LoadOptions): "int8" | "f32" {
  return dtype === "int8" ? "int8" : "f32";
}

async function loadOn(
  source: ModelSource,
  backend: NonNullable<LoadOptions["backend"]>,
  options: EngineLoadOptions,
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
  backend: Exclude<NonNullable<LoadOptions["backend"]>, "onnx-js">,
  options: EngineLoadOptions,
): Promise<Loaded> {
  // First: nothing is downloaded for an addon that cannot be loaded.
  loadAddon();
  const { dir, options: located } = await locate(source, { safetensors: true }, options);
  const engine = await NativeEngine.load(dir, { ...located, backend });
  const reload = () => NativeEngine.load(dir, { ...located, backend: engine.backend });
  return { engine, dir, fallbackReason: engine.fallbackReason, reload };
}

async function loadFallback(source: ModelSource, options: EngineLoadOptions, reason: string | null): Promise<Loaded> {
  const wanted = { safetensors: false, onnx: onnxOf(options) };
  const { dir, options: located } = await locate(source, wanted, options);
  // This path is for the addon: onnxruntime-node has its own library.
  const { onnxRuntimeLibrary: _, ...modelOptions } = located;
  const reload = () => FallbackEngine.load(dir, modelOptions);
  return { engine: await reload(), dir, fallbackReason: reason, reload };
}
