import { existsSync, readdirSync } from "node:fs";

// Not `import * as path`: bundlers that trace files (Turbopack) cannot evaluate paths that are made with TypeScript's copy.
import path = require("node:path");

import type { ModelOptions as AddonOptions, Call, Model } from "../index.js";
import { packageCacheFolder } from "./cache_folder.js";
import {
  type Activity,
  type Adapter,
  type BackendMemory,
  type BackendName,
  type Description,
  type Engine,
  type EngineCall,
  type EngineResult,
  type EngineRows,
  PROGRESS_INTERVAL_MS,
  type TextOrTokens,
} from "./engine.js";
import { EmbedderError, throwIfAborted, toEmbedderError } from "./errors.js";
import type { EngineLoadOptions } from "./load_options.js";
import { inSlices } from "./slices.js";

/** What platform packages add is where ONNX Runtime's library is. */
type Addon = typeof import("../index.js") & { onnxRuntimeLibrary?: string };

let loaded: Addon | undefined;

/**
 * The addon: that of the package for CUDA, if it is installed and can be loaded. A failure is not remembered: it may have
 * been a temporary lack of memory or file descriptors.
 *
 * @throws EmbedderError `BACKEND_UNAVAILABLE`
 */
export function loadAddon(): Addon {
  try {
    // From dist/lib/ to the package's root. `index.js` is generated and chooses the file for this platform.
    loaded ??= cudaAddon() ?? (require("../../index.js") as Addon);
    return loaded;
  } catch (cause) {
    const reason = innermostReasons(cause);
    throw new EmbedderError("BACKEND_UNAVAILABLE", `the native addon cannot be loaded: ${reason}`, { cause });
  }
}

function cudaAddon(): Addon | undefined {
  if (process.platform !== "linux" || process.arch !== "x64") return undefined;
  try {
    return require("semantic-search-native-linux-x64-cuda");
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const reason = message.split("\n", 1)[0];
    if (code !== "MODULE_NOT_FOUND") warnOnce(`semantic-search-native-linux-x64-cuda cannot be loaded: ${reason}`);
    return undefined;
  }
}

/** `index.js` reports one error, with all attempts as a chain of causes that say what really happened. */
function innermostReasons(error: unknown): string {
  const reasons: string[] = [];
  for (let current = error; current instanceof Error; current = current.cause) {
    const reason = current.message.split("\n", 1)[0] ?? "";
    // `index.js` also tries a WebAssembly build, which this package does not have.
    if (!/wasi|wasm/.test(reason)) reasons.push(reason);
  }
  return [...new Set(reasons.length > 1 ? reasons.slice(1) : reasons)].join("; ") || String(error);
}

/**
 * Options for the addon: with the cache folder, and with the ONNX Runtime library that was installed, unless the caller or
 * `ORT_DYLIB_PATH` names another.
 */
export function addonOptions(options: EngineLoadOptions): AddonOptions {
  const onnxRuntimeLibrary =
    options.onnxRuntimeLibrary ?? (process.env.ORT_DYLIB_PATH ? undefined : installedOnnxRuntime());
  const cacheFolder = packageCacheFolder();
  return {
    ...options,
    ...(onnxRuntimeLibrary !== undefined && { onnxRuntimeLibrary }),
    ...(cacheFolder !== undefined && { cacheFolder }),
  };
}

/**
 * The library of the platform package, which tells where it is; of an addon that was compiled in a clone, the one of
 * `onnxruntime-node`.
 */
function installedOnnxRuntime(): string | undefined {
  const { onnxRuntimeLibrary } = loadAddon();
  if (onnxRuntimeLibrary !== undefined) return outsideOfArchive(onnxRuntimeLibrary);
  let folder: string;
  try {
    const manifest = require.resolve("onnxruntime-node/package.json");
    folder = outsideOfArchive(path.resolve(manifest, "../bin/napi-v6", process.platform, process.arch));
  } catch {
    return undefined;
  }
  const isLibrary = /^(libonnxruntime\.so\.1|libonnxruntime\.1.*\.dylib|onnxruntime\.dll)$/;
  const name = existsSync(folder) ? readdirSync(folder).find((file) => isLibrary.test(file)) : undefined;
  return name === undefined ? undefined : path.join(folder, name);
}

/** Electron shows JavaScript an archive as a folder. The system's linker needs what was unpacked next to it. */
function outsideOfArchive(packed: string): string {
  const unpacked = packed.replace(/(\.asar)(?=[\\/])/, "$1.unpacked");
  return existsSync(unpacked) ? unpacked : packed;
}

/**
 * Refuses a `config.json` whose model the addon does not compute, if there is an addon.
 *
 * @throws EmbedderError `MODEL_UNSUPPORTED` or `MODEL_INVALID`, naming the key.
 */
export function checkConfig(file: string): void {
  let addon: Addon;
  try {
    addon = loadAddon();
  } catch {
    return;
  }
  try {
    addon.checkConfig(file);
  } catch (error) {
    throw toEmbedderError(error);
  }
}

/** The addon's model, as an `Engine`. */
export class NativeEngine implements Engine {
  readonly backend: BackendName;
  readonly isGpu: boolean;
  readonly adapter: Adapter | null;
  readonly description: Description;
  readonly fallbackReason: string | null;
  readonly #model: Model;
  readonly #addon: Addon;

  private constructor(addon: Addon, model: Model) {
    this.#addon = addon;
    this.#model = model;
    this.backend = model.backend as BackendName;
    this.isGpu = model.isGpu;
    this.adapter = model.adapter;
    this.description = model.description as Description;
    this.fallbackReason = model.fallbackReason;
  }

  /** @throws EmbedderError */
  static async load(modelDir: string, options: EngineLoadOptions): Promise<NativeEngine> {
    const addon = loadAddon();
    try {
      const model = await addon.Model.load(modelDir, addonOptions(options));
      return new NativeEngine(addon, model);
    } catch (error) {
      throw toEmbedderError(error);
    }
  }

  async embed(texts: readonly TextOrTokens[], options: EngineCall): Promise<EngineResult> {
    const { query, isQuery, encoding } = options;
    return this.#run(texts, options, (call) =>
      query === undefined ? this.#model.embed(call, isQuery, encoding) : this.#model.score(call, query),
    );
  }

  async stream(texts: readonly TextOrTokens[], options: EngineCall, take: (rows: EngineRows) => void): Promise<void> {
    const { isQuery, encoding } = options;
    await this.#run(texts, options, async (call) => {
      this.#model.stream(call, isQuery, encoding);
      for (let rows = await call.next(); rows; rows = await call.next()) take(rows);
    });
  }

  /** Passes texts to a call, starts it and follows it to its end. */
  async #run<T>(
    texts: readonly TextOrTokens[],
    { signal, onProgress }: EngineCall,
    start: (call: Call) => Promise<T>,
  ): Promise<T> {
    const call = new this.#addon.Call();
    const cancel = () => call.cancel();
    signal.addEventListener("abort", cancel, { once: true });
    let timer: NodeJS.Timeout | undefined;
    try {
      await inSlices(texts, (slice) => call.push(slice), signal);
      throwIfAborted(signal);
      const running = start(call);
      if (onProgress) timer = setInterval(() => onProgress(call.progress), PROGRESS_INTERVAL_MS);
      return await running;
    } finally {
      clearInterval(timer);
      signal.removeEventListener("abort", cancel);
    }
  }

  activity(): Activity {
    return this.#model.activity;
  }

  memory(): Promise<BackendMemory | null> {
    return this.#model.memory();
  }

  close(): Promise<void> {
    return this.#model.close();
  }
}

const warned = new Set<string>();

function warnOnce(warning: string): void {
  if (warned.has(warning)) return;
  warned.add(warning);
  process.emitWarning(warning, "SemanticSearchWarning");
}
