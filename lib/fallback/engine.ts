import type { ChildProcess } from "node:child_process";
import {
  type Activity,
  checkFingerprint,
  type Description,
  type Engine,
  type EngineCall,
  type EngineOptions,
  type EngineResult,
  type EngineRows,
  type TextOrTokens,
} from "../engine.js";
import { closedError, EmbedderError } from "../errors.js";
import { type FallbackInput, FallbackProcess } from "./process.js";
import { CHILD_MARKER } from "./protocol.js";

/** Ends the processes of engines that were garbage-collected without being closed. */
const abandoned = new FinalizationRegistry<ChildProcess>((child) => child.kill("SIGKILL"));

/** ONNX Runtime in JavaScript, in a child process. If it crashes, the calls in progress fail and the next one restarts it. */
export class FallbackEngine implements Engine {
  readonly backend = "onnx-js";
  readonly isGpu = false;
  readonly adapter = null;
  readonly description: Description;
  readonly #input: FallbackInput;
  #process: Promise<FallbackProcess>;
  readonly #activity = { calls: 0, texts: 0, tokens: 0 };
  #closed: Promise<void> | undefined;

  private constructor(input: FallbackInput, process: FallbackProcess) {
    this.#input = input;
    this.#process = Promise.resolve(process);
    this.description = process.description;
    abandoned.register(this, process.child);
  }

  /** @throws EmbedderError */
  static async load(modelDir: string, options: EngineOptions): Promise<FallbackEngine> {
    if (process.env[CHILD_MARKER]) {
      // A packaged program that always runs itself, whatever file it is given, would otherwise do so without end.
      const message = `the onnx-js backend cannot start its process: ${process.execPath} runs this program instead of the file that it is given`;
      throw new EmbedderError("BACKEND_UNAVAILABLE", message);
    }
    const input = { modelDir, options, cwd: process.cwd() };
    return new FallbackEngine(input, await FallbackProcess.load(input));
  }

  async embed(
    texts: readonly TextOrTokens[],
    call: EngineCall,
    take?: (rows: () => EngineRows) => void,
  ): Promise<EngineResult> {
    this.#activity.calls++;
    try {
      const process = await this.#running();
      return await process.embed(texts, call, (rows, computed) => {
        this.#activity.texts += computed.texts;
        this.#activity.tokens += computed.tokens;
        take?.(rows);
      });
    } finally {
      this.#activity.calls--;
    }
  }

  async stream(texts: readonly TextOrTokens[], call: EngineCall, take: (rows: EngineRows) => void): Promise<void> {
    await this.embed(texts, call, (rows) => take(rows()));
  }

  activity(): Activity {
    // Each text is a run of its own.
    return { ...this.#activity, batches: this.#activity.texts };
  }

  async memory(): Promise<null> {
    return null;
  }

  close(): Promise<void> {
    this.#closed ??= this.#process.then(
      (process) => process.kill(closedError()),
      () => {},
    );
    return this.#closed;
  }

  /** The process, or a new one if it has ended. */
  async #running(): Promise<FallbackProcess> {
    const last = this.#process;
    const process = await last.catch(() => undefined);
    if (this.#closed) throw closedError();
    if (process && !process.hasEnded) return process;
    // Only the first of several waiting calls restarts it.
    if (this.#process === last) this.#process = this.#restart();
    return this.#process;
  }

  async #restart(): Promise<FallbackProcess> {
    const process = await FallbackProcess.load(this.#input);
    try {
      checkFingerprint(process.description.fingerprint, this.description.fingerprint);
    } catch (error) {
      await process.kill(error as EmbedderError);
      throw error;
    }
    abandoned.register(this, process.child);
    return process;
  }
}
