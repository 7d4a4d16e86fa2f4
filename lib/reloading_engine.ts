import {
  type Activity,
  type BackendMemory,
  checkFingerprint,
  type Engine,
  type EngineCall,
  type EngineResult,
  type EngineRows,
  type TextOrTokens,
} from "./engine.js";
import { toEmbedderError } from "./errors.js";

/**
 * An engine that unloads its weights while it is idle, if it is told to, and forgets them when the GPU that has them is lost;
 * the next call loads them again.
 */
export class ReloadingEngine implements Engine {
  readonly backend: Engine["backend"];
  readonly isGpu: boolean;
  readonly adapter: Engine["adapter"];
  readonly description: Engine["description"];
  readonly #reload: () => Promise<Engine>;
  readonly #timeoutMs: number | undefined;
  /** Loaded or loading; `undefined` while unloaded. */
  #engine: Promise<Engine> | undefined;
  /** The same, once it is loaded. */
  #loaded: Engine | undefined;
  #calls = 0;
  #timer: NodeJS.Timeout | undefined;
  #isClosed = false;
  /** Totals of the engines that were unloaded. */
  readonly #past = { texts: 0, tokens: 0, batches: 0 };

  /**
   * @param engine The loaded engine.
   * @param reload Loads it again, on the same backend.
   * @param timeoutMs After so long without a call it is unloaded.
   */
  constructor(engine: Engine, reload: () => Promise<Engine>, timeoutMs: number | undefined) {
    this.backend = engine.backend;
    this.isGpu = engine.isGpu;
    this.adapter = engine.adapter;
    this.description = engine.description;
    this.#engine = Promise.resolve(engine);
    this.#loaded = engine;
    this.#reload = reload;
    this.#timeoutMs = timeoutMs;
    this.#unloadLater();
  }

  embed(texts: readonly TextOrTokens[], call: EngineCall): Promise<EngineResult> {
    return this.#use((engine) => engine.embed(texts, call));
  }

  stream(texts: readonly TextOrTokens[], call: EngineCall, take: (rows: EngineRows) => void): Promise<void> {
    return this.#use((engine) => engine.stream(texts, call, take));
  }

  async #use<T>(work: (engine: Engine) => Promise<T>): Promise<T> {
    this.#calls++;
    clearTimeout(this.#timer);
    let engine: Engine | undefined;
    try {
      this.#engine ??= this.#load();
      engine = await this.#engine;
      return await work(engine);
    } catch (error) {
      if (toEmbedderError(error).code === "DEVICE_LOST") this.#forget(engine);
      throw error;
    } finally {
      this.#calls--;
      if (this.#calls === 0) this.#unloadLater();
    }
  }

  /** Also `null` while unloaded. */
  async memory(): Promise<BackendMemory | null> {
    return this.#loaded ? this.#loaded.memory() : null;
  }

  activity(): Activity {
    const { texts, tokens, batches } = this.#loaded?.activity() ?? { texts: 0, tokens: 0, batches: 0 };
    const past = this.#past;
    return {
      calls: this.#calls,
      texts: past.texts + texts,
      tokens: past.tokens + tokens,
      batches: past.batches + batches,
    };
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    await this.#unload();
  }

  async #load(): Promise<Engine> {
    try {
      const engine = await this.#reload();
      try {
        checkFingerprint(engine.description.fingerprint, this.description.fingerprint);
      } catch (error) {
        await engine.close();
        throw error;
      }
      this.#loaded = engine;
      return engine;
    } catch (error) {
      // So that the next call tries again.
      this.#engine = undefined;
      throw error;
    }
  }

  /** Other calls of a lost engine still end by themselves, with the same error; nothing of it is left on the GPU. */
  #forget(engine: Engine | undefined): void {
    if (!engine || engine !== this.#loaded) return;
    this.#engine = undefined;
    this.#loaded = undefined;
    this.#count(engine);
  }

  #unloadLater(): void {
    if (this.#isClosed || this.#timeoutMs === undefined) return;
    this.#timer = setTimeout(() => void this.#unload(), this.#timeoutMs);
    this.#timer.unref();
  }

  async #unload(): Promise<void> {
    const loading = this.#engine;
    // First: a call that arrives from now on loads again.
    this.#engine = undefined;
    this.#loaded = undefined;
    // If loading fails, the calls that wait for it report that.
    const engine = await loading?.catch(() => undefined);
    if (!engine) return;
    await engine.close();
    this.#count(engine);
  }

  #count(engine: Engine): void {
    const { texts, tokens, batches } = engine.activity();
    this.#past.texts += texts;
    this.#past.tokens += tokens;
    this.#past.batches += batches;
  }
}
