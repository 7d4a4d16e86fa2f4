import * as path from "node:path";
import { Worker } from "node:worker_threads";
import {
  type Activity,
  type Engine,
  type EngineCall,
  type EngineResult,
  type EngineRows,
  inSlices,
  type ModelOptions,
} from "./engine.js";
import { closedError, EmbedderError } from "./errors.js";
import type { FallbackDescription, Reply, Request, WorkerInput } from "./fallback_protocol.js";
import { RunGate } from "./run_gate.js";

/** A request without its call number, which `#ask` adds. */
type Question<T> = T extends { call: number } ? Omit<T, "call"> : never;

interface Call {
  resolve(reply: Reply): void;
  reject(error: EmbedderError): void;
  onProgress?: EngineCall["onProgress"];
}

/** How long a closing worker may take to finish the text it is at, before it is stopped. */
const CLOSE_TIMEOUT_MS = 5000;

/** ONNX Runtime in JavaScript, in a worker thread: the event loop of the caller stays free. */
export class FallbackEngine implements Engine {
  readonly backend = "onnx-js";
  readonly isGpu = false;
  readonly fallbackReason = null;
  readonly dimension: number;
  readonly maxTokens: number;
  readonly fingerprint: string;
  readonly pooling: FallbackDescription["pooling"];
  readonly #worker: Worker;
  readonly #calls: Map<number, Call>;
  readonly #computed = { texts: 0, tokens: 0 };
  #nextCall = 0;
  #closed: Promise<void> | undefined;

  private constructor(worker: Worker, calls: Map<number, Call>, description: FallbackDescription) {
    this.#worker = worker;
    this.#calls = calls;
    this.dimension = description.dimension;
    this.maxTokens = description.maxTokens;
    this.fingerprint = description.fingerprint;
    this.pooling = description.pooling;
  }

  /** @throws EmbedderError */
  static async load(modelDir: string, options: ModelOptions): Promise<FallbackEngine> {
    const gate = new RunGate();
    const workerData: WorkerInput = { modelDir, options, gate: gate.shared };
    // Without the parent's own flags: `--input-type`, for one, is refused for a worker that is a file.
    const worker = new Worker(path.join(__dirname, "fallback_worker.js"), { workerData, execArgv: [] });
    const calls = new Map<number, Call>();
    try {
      const description = await new Promise<FallbackDescription>((resolve, reject) => {
        worker.on("message", (reply: Reply) => {
          if (reply.kind === "ready") return resolve(reply.description);
          const error = reply.kind === "failed" ? new EmbedderError(reply.code, reply.message) : undefined;
          const call = reply.call === undefined ? undefined : calls.get(reply.call);
          if (reply.call === undefined) return error && reject(error);
          if (reply.kind === "progress") return call?.onProgress?.({ done: reply.done, tokens: reply.tokens });
          calls.delete(reply.call);
          if (calls.size === 0) worker.unref();
          if (error) call?.reject(error);
          else call?.resolve(reply);
        });
        const end = (error: EmbedderError) => {
          reject(error);
          for (const call of calls.values()) call.reject(error);
          calls.clear();
        };
        worker.on("error", (cause) =>
          end(new EmbedderError("INFERENCE_FAILED", `the onnx-js worker thread failed: ${cause.message}`, { cause })),
        );
        worker.on("exit", () => {
          gate.dispose();
          end(closedError());
        });
      });
      // An idle model does not keep the process alive; a call in flight does.
      worker.unref();
      return new FallbackEngine(worker, calls, description);
    } catch (error) {
      await worker.terminate();
      throw error;
    }
  }

  async embed(texts: readonly string[], { isQuery, encoding, signal, onProgress }: EngineCall): Promise<EngineResult> {
    const reply = await this.#ask({ kind: "embed", isQuery, encoding }, { texts, signal, onProgress });
    if (reply.kind !== "embedded") throw new EmbedderError("INFERENCE_FAILED", `unexpected reply ${reply.kind}`);
    this.#computed.texts += reply.computed;
    this.#computed.tokens += reply.tokens;
    return reply;
  }

  async stream(texts: readonly string[], call: EngineCall, take: (rows: EngineRows) => void): Promise<void> {
    const { vectors, truncated } = await this.embed(texts, call);
    take({ indices: Uint32Array.from(texts.keys()), vectors, truncated });
  }

  activity(): Activity {
    // Each text is a run of its own.
    return { calls: this.#calls.size, ...this.#computed, batches: this.#computed.texts };
  }

  async memory(): Promise<null> {
    return null;
  }

  /** Token ids of one text, special tokens included; for tests. */
  async tokenize(text: string, isQuery: boolean): Promise<Uint32Array> {
    const reply = await this.#ask({ kind: "tokenize", text, isQuery });
    if (reply.kind !== "tokenized") throw new EmbedderError("INFERENCE_FAILED", `unexpected reply ${reply.kind}`);
    return reply.ids;
  }

  close(): Promise<void> {
    this.#closed ??= (async () => {
      for (const call of this.#calls.values()) call.reject(closedError());
      this.#calls.clear();
      const exited = new Promise((resolve) => this.#worker.once("exit", resolve));
      this.#worker.ref();
      this.#post({ kind: "close" });
      const timer = setTimeout(() => this.#worker.terminate(), CLOSE_TIMEOUT_MS);
      await exited;
      clearTimeout(timer);
    })();
    return this.#closed;
  }

  async #ask(
    question: Question<Request>,
    { texts = [], signal, onProgress }: Partial<EngineCall> & { texts?: readonly string[] } = {},
  ): Promise<Reply> {
    const call = this.#nextCall++;
    if (this.#closed) throw closedError();
    const answer = new Promise<Reply>((resolve, reject) => this.#calls.set(call, { resolve, reject, onProgress }));
    // Between slices the call may already have been rejected by `close`; it is awaited below either way.
    answer.catch(() => {});
    const cancel = () => this.#post({ kind: "cancel", call });
    signal?.addEventListener("abort", cancel, { once: true });
    this.#worker.ref();
    try {
      await inSlices(texts, (slice) => this.#post({ kind: "texts", call, texts: slice }));
      this.#post({ ...question, call } as Request);
      // The worker would not know a call that was cancelled before it began.
      if (signal?.aborted) cancel();
      return await answer;
    } finally {
      signal?.removeEventListener("abort", cancel);
    }
  }

  #post(request: Request): void {
    this.#worker.postMessage(request);
  }
}
