/** The worker thread of the JavaScript fallback: `onnxruntime-node` blocks the thread it runs on, so it has its own. */

import { createHash } from "node:crypto";
import { parentPort, workerData } from "node:worker_threads";
import { type Encoding, PROGRESS_INTERVAL_MS } from "./engine.js";
import { EmbedderError, toEmbedderError } from "./errors.js";
import type { FallbackDescription, Reply, Request, WorkerInput } from "./fallback_protocol.js";
import { type ModelDir, readModelDir } from "./model_dir.js";
import { findOnnxFile, type OnnxFile, sha256OfFile } from "./onnx_file.js";
import { OnnxSession } from "./onnx_session.js";
import { runInside } from "./run_gate.js";
import { TextTokenizer } from "./tokenizer.js";
import { encode, finish, pool } from "./vector.js";

class FallbackModel {
  readonly description: FallbackDescription;
  readonly #model: ModelDir;
  readonly #tokenizer: TextTokenizer;
  readonly #session: OnnxSession;
  readonly #gate: SharedArrayBuffer;

  private constructor(
    model: ModelDir,
    tokenizer: TextTokenizer,
    session: OnnxSession,
    onnx: OnnxFile,
    gate: SharedArrayBuffer,
  ) {
    this.#gate = gate;
    this.#model = model;
    this.#tokenizer = tokenizer;
    this.#session = session;
    this.description = {
      dimension: model.cut?.dimensions ?? model.hiddenSize * model.pooling.length,
      maxTokens: model.maxTokens,
      fingerprint: fingerprint(model, onnx),
      pooling: model.pooling,
    };
  }

  static async load({ modelDir, options, gate }: WorkerInput): Promise<FallbackModel> {
    const model = readModelDir(modelDir, options);
    const onnx = findOnnxFile(model, options.dtype ?? "auto");
    const tokenizer = new TextTokenizer(model);
    const session = await runInside(gate, () => OnnxSession.load(onnx.path, options.threads));
    if (session.isPooled && (options.pooling !== undefined || model.pooling.length > 1)) {
      throw new EmbedderError(
        "MODEL_UNSUPPORTED",
        `${onnx.path}: its output is already pooled, so pooling ${model.pooling.join(", ")} cannot be applied; use a file with last_hidden_state`,
      );
    }
    return new FallbackModel(model, tokenizer, session, onnx, gate);
  }

  tokenize(text: string, isQuery: boolean) {
    return this.#tokenizer.encode(text, isQuery);
  }

  /** Embeds one text into `vector`; tells whether it was cut, and its tokens. */
  async embed(text: string, isQuery: boolean, vector: Float32Array): Promise<{ truncated: boolean; tokens: number }> {
    const { ids, truncated } = this.#tokenizer.encode(text, isQuery);
    const { hiddenSize, pooling, cut, normalize } = this.#model;
    const values = await runInside(this.#gate, () => this.#session.run(ids));
    const expected = this.#session.isPooled ? hiddenSize : ids.length * hiddenSize;
    if (values.length !== expected) {
      throw new EmbedderError(
        "MODEL_INVALID",
        `the ONNX file gave ${values.length} numbers for ${ids.length} tokens, but config.json has hidden size ${hiddenSize}`,
      );
    }
    const pooled = this.#session.isPooled ? values : pool(values, hiddenSize, pooling);
    vector.set(finish(pooled, cut, normalize));
    return { truncated, tokens: ids.length };
  }

  async release(): Promise<void> {
    await runInside(this.#gate, () => this.#session.release());
  }
}

/** The same text, and so the same hash, as `ModelDir::fingerprint` in `src/model_dir.rs`. */
function fingerprint(model: ModelDir, onnx: OnnxFile): string {
  const identity = {
    format: 1,
    weights: onnx.weightHashes,
    tokenizer: sha256OfFile(model.tokenizerFile),
    config: sha256OfFile(model.configFile),
    pooling: model.pooling,
    queryPrompt: model.queryPrompt,
    documentPrompt: model.documentPrompt,
    maxTokens: model.maxTokens,
    normalize: model.normalize,
    dtype: onnx.dtype,
    // Without a cut `undefined`, which `JSON.stringify` leaves out.
    dimensions: model.cut?.dimensions,
    layerNorm: model.cut?.layerNorm,
  };
  return createHash("sha256").update(JSON.stringify(identity)).digest("hex");
}

/** One `embed` call on its way through the worker, a text at a time. */
interface Job {
  call: number;
  isQuery: boolean;
  encoding: Encoding;
  texts: string[];
  next: number;
  vectors: Float32Array;
  /** Indices, in ascending order as they are added. */
  truncated: Set<number>;
  /** Index of each text's first occurrence: equal texts are computed once. */
  firstIndex: Map<string, number>;
  tokens: number;
  /** When progress was last reported, as `performance.now()` tells. */
  reportedAt: number;
}

const port = parentPort;
if (!port) throw new Error("fallback_worker.js runs in a worker thread only");
const reply = (message: Reply, transfer: ArrayBuffer[] = []) => port.postMessage(message, transfer);

function fail(error: unknown, call?: number): void {
  const { code, message } = toEmbedderError(error);
  reply({ kind: "failed", code, message, ...(call !== undefined && { call }) });
}

/** Computes the next text of a job and answers the call after its last one. */
async function advance(job: Job, model: FallbackModel): Promise<"more" | "done"> {
  const { dimension } = model.description;
  const index = job.next++;
  const text = job.texts[index];
  if (text !== undefined) {
    const vector = job.vectors.subarray(index * dimension, (index + 1) * dimension);
    const first = job.firstIndex.get(text);
    if (first === undefined) {
      job.firstIndex.set(text, index);
      const { truncated, tokens } = await model.embed(text, job.isQuery, vector);
      if (truncated) job.truncated.add(index);
      job.tokens += tokens;
    } else {
      vector.set(job.vectors.subarray(first * dimension, (first + 1) * dimension));
      if (job.truncated.has(first)) job.truncated.add(index);
    }
  }
  const { call, tokens } = job;
  if (job.next < job.texts.length) {
    if (performance.now() - job.reportedAt >= PROGRESS_INTERVAL_MS) {
      job.reportedAt = performance.now();
      reply({ kind: "progress", call, done: job.next, tokens });
    }
    return "more";
  }
  const vectors = encode(job.vectors, dimension, job.encoding);
  const truncated = Uint32Array.from(job.truncated);
  const computed = job.firstIndex.size;
  reply({ kind: "embedded", call, vectors, truncated, tokens, computed }, [vectors.buffer as ArrayBuffer]);
  return "done";
}

async function serve(model: FallbackModel): Promise<void> {
  const incoming = new Map<number, string[]>();
  /** Those whose turn comes first are first. */
  const jobs: Job[] = [];
  let closing = false;
  let wake = () => {};

  port?.on("message", (request: Request) => {
    if (request.kind === "close") {
      closing = true;
    } else if (request.kind === "texts") {
      incoming.set(request.call, (incoming.get(request.call) ?? []).concat(request.texts));
    } else if (request.kind === "cancel") {
      const index = jobs.findIndex(({ call }) => call === request.call);
      if (index >= 0) {
        jobs.splice(index, 1);
        fail(new EmbedderError("ABORT_ERR", "the call was aborted"), request.call);
      }
    } else if (request.kind === "tokenize") {
      try {
        const { ids } = model.tokenize(request.text, request.isQuery);
        reply({ kind: "tokenized", call: request.call, ids: Uint32Array.from(ids) });
      } catch (error) {
        fail(error, request.call);
      }
    } else {
      const { call, isQuery, encoding } = request;
      const texts = incoming.get(call) ?? [];
      incoming.delete(call);
      const vectors = new Float32Array(texts.length * model.description.dimension);
      const [truncated, firstIndex] = [new Set<number>(), new Map<string, number>()];
      const reportedAt = performance.now();
      jobs.push({ call, isQuery, encoding, texts, next: 0, vectors, truncated, firstIndex, tokens: 0, reportedAt });
    }
    wake();
  });
  reply({ kind: "ready", description: model.description });

  while (!closing) {
    // Queries and single texts are somebody waiting for a search result: they go before bulk work. Calls of a kind take
    // turns, a text each.
    const job = jobs.find(({ isQuery, texts }) => isQuery || texts.length === 1) ?? jobs[0];
    if (!job) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
      continue;
    }
    let state: "more" | "done" = "done";
    try {
      state = await advance(job, model);
    } catch (error) {
      fail(error, job.call);
    }
    const index = jobs.indexOf(job);
    // Gone when it was cancelled meanwhile.
    if (index >= 0) jobs.splice(index, 1);
    if (index >= 0 && state === "more") jobs.push(job);
    // Lets messages in between two texts; `run` alone does not when every text is a repetition.
    await new Promise((resolve) => setImmediate(resolve));
  }
  await model.release();
  port?.close();
}

FallbackModel.load(workerData as WorkerInput)
  .then(serve)
  .catch(fail);
