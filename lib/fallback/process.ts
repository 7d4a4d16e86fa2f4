import { type ChildProcess, fork } from "node:child_process";
import type { Description, EngineCall, EngineResult, EngineRows, TextOrTokens } from "../engine.js";
import { AbortError, EmbedderError } from "../errors.js";
import { inSlices } from "../slices.js";
import { type CallRequest, CHILD_MARKER, type LoadRequest, type Reply, type Rows } from "./protocol.js";
import { emptyVectors } from "./vector.js";

export interface FallbackInput extends LoadRequest {
  /** The folder that a relative `modelDir` is relative to. */
  cwd: string;
}

/** A call that is being computed. */
interface Call {
  onRows(rows: Rows): void;
  reject(error: EmbedderError): void;
}

/** How long the program may take to report that it runs. */
const START_TIMEOUT_MS = 60_000;
/** How much of its standard error is kept, for the error message when it ends. */
const STDERR_CHARACTERS = 4000;

/** These end with this thread. */
const children = new Set<ChildProcess>();
const killChildren = () => {
  for (const child of children) child.kill("SIGKILL");
};

/**
 * A child process that runs `onnxruntime-node` on one model: the library blocks its thread, cannot be interrupted during a
 * run except by ending the process, and may crash the process.
 */
export class FallbackProcess {
  readonly child: ChildProcess;
  readonly #calls = new Map<number, Call>();
  #nextCall = 0;
  #description: Description | undefined;
  /** Why it no longer answers. */
  #ended: EmbedderError | undefined;

  private constructor(child: ChildProcess) {
    this.child = child;
  }

  /**
   * Starts a process that loads the model.
   *
   * @throws EmbedderError `BACKEND_UNAVAILABLE` if no process can be started, or what is wrong with the model.
   */
  static async load({ cwd, ...request }: FallbackInput): Promise<FallbackProcess> {
    const started = new FallbackProcess(startProgram(cwd));
    try {
      await started.#load(request);
    } catch (error) {
      await started.kill(error as EmbedderError);
      throw error;
    }
    return started;
  }

  get description(): Description {
    if (!this.#description) throw new Error("the model is not loaded yet");
    return this.#description;
  }

  get hasEnded(): boolean {
    return this.#ended !== undefined;
  }

  /** @param take Receives vectors as they are computed, and how many texts and tokens were run for them. */
  async embed(
    texts: readonly TextOrTokens[],
    { query, isQuery, encoding, signal, onProgress }: EngineCall,
    take: (rows: () => EngineRows, computed: { texts: number; tokens: number }) => void,
  ): Promise<EngineResult> {
    const { dimension } = this.description;
    const vectors = emptyVectors(texts.length, dimension, encoding);
    const width = vectors.length / texts.length;
    const truncated: number[] = [];
    let [done, tokens] = [0, 0];
    const rowOf = (index: number) => vectors.subarray(index * width, (index + 1) * width);
    await this.#run(
      signal,
      async (call) => {
        await inSlices(texts, (slice) => this.#send({ kind: "texts", call, texts: slice }), signal);
        this.#send({ kind: "embed", call, query, isQuery, encoding });
      },
      (rows) => {
        for (const [row, index] of rows.computed.entries()) {
          vectors.set(rows.vectors.subarray(row * width, (row + 1) * width), index * width);
        }
        for (const [index, earlier] of rows.repeated) vectors.set(rowOf(earlier), index * width);
        for (const index of rows.truncated) truncated.push(index);
        done += rows.computed.length + rows.repeated.length;
        tokens += rows.tokens;
        const ready = () => {
          const indices = Uint32Array.from([...rows.computed, ...rows.repeated.map(([index]) => index)]);
          const matrix = emptyVectors(indices.length, dimension, encoding);
          for (const [row, index] of indices.entries()) matrix.set(rowOf(index), row * width);
          return { indices, vectors: matrix, truncated: Uint32Array.from(rows.truncated) };
        };
        take(ready, { texts: rows.computed.length, tokens: rows.tokens });
        if (!rows.isLast) onProgress?.({ done, tokens });
      },
    );
    return { vectors, truncated: Uint32Array.from(truncated).sort(), tokens };
  }

  /** Ends it at once: it has nothing to save. Resolves when it is gone. */
  async kill(reason: EmbedderError): Promise<void> {
    this.#end(reason);
    if (this.child.exitCode !== null || this.child.signalCode !== null || this.child.pid === undefined) return;
    this.#hold();
    const exited = new Promise((resolve) => this.child.once("exit", resolve));
    this.child.kill("SIGKILL");
    await exited;
  }

  #load(request: LoadRequest): Promise<void> {
    const child = this.child;
    return new Promise((resolve, reject) => {
      let hasStarted = false;
      let stderr = "";
      const timer = setTimeout(
        () => reject(unavailable(`${process.execPath} did not run it within ${START_TIMEOUT_MS / 1000} s`)),
        START_TIMEOUT_MS,
      );
      const end = (error: EmbedderError) => {
        clearTimeout(timer);
        reject(error);
        this.#end(error);
      };
      child.stderr?.setEncoding("utf8").on("data", (text: string) => {
        stderr = (stderr + text).slice(-STDERR_CHARACTERS);
      });
      child.on("message", (reply: Reply) => {
        if (reply.kind === "started") {
          hasStarted = true;
          clearTimeout(timer);
        } else if (reply.kind === "loaded") {
          this.#description = reply.description;
          // An idle model does not keep the process alive; a call in flight does.
          this.#release();
          resolve();
        } else if (reply.kind === "rows") {
          this.#calls.get(reply.call)?.onRows(reply);
        } else {
          const error = new EmbedderError(reply.code, reply.message);
          if (reply.call === undefined) reject(error);
          else this.#calls.get(reply.call)?.reject(error);
        }
      });
      child.on("error", (cause) => end(unavailable(cause.message, cause)));
      // Not "exit": standard error may still have data then.
      child.on("close", (status, signal) => {
        children.delete(child);
        if (children.size === 0) process.off("exit", killChildren);
        const when = this.#description || !hasStarted ? "" : " while it loaded the model";
        const how = `${signal ?? `exit code ${status}`}${when}${errorIn(stderr)}`;
        const failure = `inference failed: onnxruntime-node runs in a process of its own, and it ended with ${how}`;
        end(hasStarted ? new EmbedderError("INFERENCE_FAILED", failure) : unavailable(`it ended with ${how}`));
      });
      this.#send(request);
    });
  }

  /** One call, until its last rows have arrived or it fails. */
  async #run(
    signal: AbortSignal,
    request: (call: number) => Promise<void>,
    onRows: (rows: Rows) => void,
  ): Promise<void> {
    if (this.#ended) throw this.#ended;
    const call = this.#nextCall++;
    let cancel = () => {};
    const computed = new Promise<void>((resolve, reject) => {
      this.#calls.set(call, {
        onRows: (rows) => {
          onRows(rows);
          if (rows.isLast) resolve();
        },
        reject,
      });
      cancel = () => {
        this.#send({ kind: "cancel", call });
        reject(new AbortError(signal));
      };
    });
    // It may fail while the request is still being sent; it is awaited below either way.
    computed.catch(() => {});
    this.#hold();
    signal.addEventListener("abort", cancel, { once: true });
    try {
      await request(call);
      await computed;
    } finally {
      signal.removeEventListener("abort", cancel);
      this.#calls.delete(call);
      // `kill` waits for its end.
      if (this.#calls.size === 0 && !this.#ended) this.#release();
    }
  }

  #end(error: EmbedderError): void {
    this.#ended ??= error;
    for (const call of this.#calls.values()) call.reject(error);
  }

  #send(request: LoadRequest | CallRequest): void {
    // If it is gone, "close" reports that.
    if (this.child.connected) this.child.send(request, () => {});
  }

  /** What keeps this process alive. In Bun, the channel is no handle of its own. */
  get #handles(): readonly (Partial<Handle> | null | undefined)[] {
    return [this.child, this.child.channel, this.child.stderr as Handle | null];
  }

  /** Keeps this process alive until the child has answered. */
  #hold(): void {
    for (const handle of this.#handles) handle?.ref?.();
  }

  #release(): void {
    for (const handle of this.#handles) handle?.unref?.();
  }
}

/** A pipe is this besides a stream. */
interface Handle {
  ref(): void;
  unref(): void;
}

function unavailable(reason: string, cause?: unknown): EmbedderError {
  return new EmbedderError("BACKEND_UNAVAILABLE", `the onnx-js backend cannot start its process: ${reason}`, { cause });
}

function startProgram(cwd: string): ChildProcess {
  let child: ChildProcess;
  try {
    child = fork(require.resolve("./main.js"), {
      cwd,
      env: childEnvironment(process.env),
      // Without the parent's own flags: `--input-type`, for one, is refused for a file.
      execArgv: [],
      serialization: "advanced",
      stdio: ["ignore", "ignore", "pipe", "ipc"],
    });
  } catch (cause) {
    const { message, permission } = cause as Error & { permission?: string };
    const fix = permission === "ChildProcess" ? "; allow it with --allow-child-process" : "";
    throw unavailable(`${message}${fix}`, cause);
  }
  if (children.size === 0) process.on("exit", killChildren);
  children.add(child);
  return child;
}

/** @param env of this process */
export function childEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return {
    ...env,
    // This process uses the debugger's port.
    NODE_OPTIONS: env.NODE_OPTIONS?.replace(/--(inspect|debug)(-port[= ]\S+|\S*)/g, ""),
    // Otherwise ONNX Runtime reports its use to Microsoft.
    ORT_DISABLE_TELEMETRY: env.ORT_DISABLE_TELEMETRY || "1",
    ...(process.versions.electron && { ELECTRON_RUN_AS_NODE: "1" }),
    [CHILD_MARKER]: "1",
  };
}

/** The error among what Node.js or a library wrote last. */
function errorIn(stderr: string): string {
  const lines = stderr.split("\n").map((line) => line.trim());
  const words = lines.find((line) => /^(\w*Error\b|FATAL ERROR)/.test(line)) ?? lines.findLast((line) => line !== "");
  return words === undefined ? "" : `: ${words.slice(0, 300)}`;
}
