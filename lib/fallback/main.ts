/** The program of the JavaScript fallback's child process; see `process.ts`. */

import { type Description, type Encoding, PROGRESS_INTERVAL_MS, type TextOrTokens } from "../engine.js";
import { EmbedderError, toEmbedderError } from "../errors.js";
import {
  describe,
  fullDimension,
  type ModelDir,
  openModelFolder,
  readEncoderFacts,
  resolveModelDir,
} from "../model_dir.js";
import { DenseLayer } from "./dense_layer.js";
import type { LoadedFiles } from "./loaded_files.js";
import { findOnnxFile, type OnnxFile } from "./onnx_file.js";
import { OnnxSession } from "./onnx_session.js";
import { type CallRequest, CHILD_MARKER, type LoadRequest, type Reply, type Rows } from "./protocol.js";
import { TextTokenizer, type TokenizedText } from "./tokenizer/text_tokenizer.js";
import { encode, finish, pool } from "./vector.js";

class FallbackModel {
  readonly description: Description;
  readonly #model: ModelDir;
  readonly #tokenizer: TextTokenizer;
  readonly #session: OnnxSession;
  readonly #dense: readonly DenseLayer[];
  readonly #files: LoadedFiles;

  private constructor(model: ModelDir, tokenizer: TextTokenizer, session: OnnxSession, onnx: OnnxFile) {
    this.#files = onnx.files;
    this.#model = model;
    this.#tokenizer = tokenizer;
    this.#session = session;
    this.#dense = model.dense.map((module) => new DenseLayer(module));
    const weightHashes = [...onnx.weightHashes, ...this.#dense.map(({ hash }) => hash)];
    this.description = describe(model, tokenizer.hash, { weightHashes, dtype: onnx.dtype });
  }

  static async load({ modelDir, options }: LoadRequest): Promise<FallbackModel> {
    const folder = openModelFolder(modelDir);
    const task = options.task ?? "embed";
    const onnx = findOnnxFile(folder, options.dtype ?? "auto");
    const model = resolveModelDir(folder, onnx.encoder ?? readEncoderFacts(folder), options);
    const tokenizer = new TextTokenizer(model);
    const session = await OnnxSession.load(onnx.path, task, options.threads);
    if (task === "embed" && session.isPooled && (options.pooling !== undefined || model.pooling.length > 1)) {
      const message = `${onnx.path}: its output is already pooled, so pooling ${model.pooling.join(", ")} cannot be applied; use a file with last_hidden_state`;
      throw new EmbedderError("MODEL_UNSUPPORTED", message);
    }
    if (session.isPooled && model.dense.length > 0) {
      const message = `${onnx.path}: its output is already pooled, so whether it contains the Dense modules is unknown; use a file with last_hidden_state`;
      throw new EmbedderError("MODEL_UNSUPPORTED", message);
    }
    const loaded = new FallbackModel(model, tokenizer, session, onnx);
    // Checks the width before anything relies on it. A static model may not know the text.
    const probe = task === "embed" ? tokenizer.encode("a", false) : tokenizer.encodePair("", "a");
    await loaded.#run(probe.ids.length > 0 ? probe : { ...probe, ids: [0], second: 1 });
    onnx.files.checkNames();
    return loaded;
  }

  /** @param index Of the text in its call, for errors. */
  async embed(
    text: TextOrTokens,
    { query, isQuery }: Pick<Job, "query" | "isQuery">,
    index: number,
  ): Promise<{ vector: Float32Array; truncated: boolean; tokens: number }> {
    const { matryoshka, normalize } = this.#model;
    const tokenized =
      typeof text !== "string"
        ? this.#tokenizer.take(text, index)
        : query === undefined
          ? this.#tokenizer.encode(text, isQuery)
          : this.#tokenizer.encodePair(query, text);
    const { ids, truncated } = tokenized;
    // Only a static model's text may have no token.
    const full = ids.length > 0 ? await this.#full(tokenized) : new Float32Array(fullDimension(this.#model));
    return { vector: finish(full, matryoshka, normalize), truncated, tokens: ids.length };
  }

  /** The vector before it is finished. */
  async #full(tokenized: TokenizedText): Promise<Float32Array> {
    const { encoder, pooling } = this.#model;
    const values = await this.#run(tokenized);
    const pooled = this.#session.isPooled ? values : pool(values, encoder.width, pooling);
    return this.#dense.reduce((vector, layer) => layer.apply(vector), pooled);
  }

  /** Token states, or the vector or score if the graph gives it. */
  async #run(tokenized: TokenizedText): Promise<Float32Array> {
    const { task, encoder } = this.#model;
    const width = task === "rerank" ? 1 : encoder.width;
    const { ids } = tokenized;
    this.#files.checkContents();
    const values = await this.#session.run(tokenized);
    this.#files.checkContents();
    const expected = this.#session.isPooled ? width : ids.length * width;
    if (values.length !== expected) {
      const message = `the ONNX file gave ${values.length} numbers for ${ids.length} tokens, but ${task === "rerank" ? "a score is one number" : `the hidden size is ${width}`}`;
      throw new EmbedderError("MODEL_INVALID", message);
    }
    return values;
  }
}

/** One `embed` call on its way through the process, a text at a time. */
interface Job {
  call: number;
  query: string | undefined;
  isQuery: boolean;
  encoding: Encoding;
  texts: TextOrTokens[];
  next: number;
  /** Each distinct text's first index, and whether it was truncated: equal texts are computed once. */
  computed: Map<string, Computed>;
  /** The same for token ids, which equal no text. */
  computedTokens: Map<string, Computed>;
  unsent: UnsentRows;
  /** When rows were last sent, by `performance.now()`. */
  sentAt: number;
}

interface Computed {
  index: number;
  truncated: boolean;
}

type UnsentRows = Omit<Rows, "vectors" | "isLast"> & { vectors: Float32Array[] };

/** Most rows of a message: the other side handles it in one turn of its event loop. */
const MAX_ROWS = 512;

const noRows = (): UnsentRows => ({ computed: [], vectors: [], repeated: [], truncated: [], tokens: 0 });

function reply(message: Reply): void {
  // If the parent is gone, "disconnect" reports that.
  process.send?.(message, undefined, undefined, () => {});
}

function fail(error: unknown, call?: number): void {
  const { code, message } = toEmbedderError(error);
  reply({ kind: "failed", code, message, ...(call !== undefined && { call }) });
}

/** Computes the next text of a job. Sends rows from time to time, and after its last text. */
async function advance(job: Job, model: FallbackModel): Promise<"more" | "done"> {
  const { unsent } = job;
  const index = job.next++;
  const text = job.texts[index];
  if (text !== undefined) {
    const [computed, key] = typeof text === "string" ? [job.computed, text] : [job.computedTokens, text.join()];
    let entry = computed.get(key);
    if (entry) {
      unsent.repeated.push([index, entry.index]);
    } else {
      const { vector, truncated, tokens } = await model.embed(text, job, index);
      entry = { index, truncated };
      computed.set(key, entry);
      unsent.computed.push(index);
      unsent.vectors.push(vector);
      unsent.tokens += tokens;
    }
    if (entry.truncated) unsent.truncated.push(index);
  }
  const isLast = job.next >= job.texts.length;
  const count = unsent.computed.length + unsent.repeated.length;
  if (isLast || count >= MAX_ROWS || performance.now() - job.sentAt >= PROGRESS_INTERVAL_MS) {
    sendRows(job, model.description.dimension, isLast);
  }
  return isLast ? "done" : "more";
}

function sendRows(job: Job, dimension: number, isLast: boolean): void {
  const { vectors, ...rows } = job.unsent;
  const matrix = new Float32Array(vectors.length * dimension);
  for (const [row, vector] of vectors.entries()) matrix.set(vector, row * dimension);
  reply({ kind: "rows", call: job.call, ...rows, vectors: encode(matrix, dimension, job.encoding), isLast });
  job.unsent = noRows();
  job.sentAt = performance.now();
}

/** Answers requests to a loaded model, as long as the parent lives. */
class Server {
  readonly #model: FallbackModel;
  /** Texts of calls that have not been sent completely. */
  readonly #incoming = new Map<number, TextOrTokens[]>();
  /** In the order of their turns. */
  readonly #jobs: Job[] = [];
  #wake = () => {};

  constructor(model: FallbackModel) {
    this.#model = model;
  }

  take(request: CallRequest): void {
    const { call } = request;
    switch (request.kind) {
      case "texts": {
        const texts = this.#incoming.get(call) ?? [];
        for (const text of request.texts) texts.push(text);
        this.#incoming.set(call, texts);
        break;
      }
      case "cancel":
        this.#incoming.delete(call);
        this.#drop(call);
        break;
      case "embed": {
        const { query, isQuery, encoding } = request;
        const texts = this.#incoming.get(call) ?? [];
        this.#incoming.delete(call);
        const seen = { computed: new Map(), computedTokens: new Map() };
        const sentAt = performance.now();
        this.#jobs.push({ call, query, isQuery, encoding, texts, next: 0, ...seen, unsent: noRows(), sentAt });
        this.#wake();
      }
    }
  }

  async run(): Promise<never> {
    for (;;) {
      // Queries and single texts go before bulk work: somebody may be waiting for a search result. Calls of the same
      // priority take turns, one text each.
      const job = this.#jobs.find(({ isQuery, texts }) => isQuery || texts.length === 1) ?? this.#jobs[0];
      if (!job) {
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
        continue;
      }
      let state: "more" | "done" = "done";
      try {
        state = await advance(job, this.#model);
      } catch (error) {
        fail(error, job.call);
      }
      // It is gone if it was cancelled meanwhile.
      if (this.#drop(job.call) && state === "more") this.#jobs.push(job);
      // Lets messages in between two texts, also when every text is a repetition.
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  #drop(call: number): boolean {
    const index = this.#jobs.findIndex((job) => job.call === call);
    if (index >= 0) this.#jobs.splice(index, 1);
    return index >= 0;
  }
}

async function main(): Promise<void> {
  delete process.env[CHILD_MARKER];
  // The parent decides when to end; signals of a terminal or a service manager reach both.
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => {});
  // The parent is gone. Not `exit`, which would wait for ONNX Runtime to shut down.
  process.on("disconnect", () => process.kill(process.pid, "SIGKILL"));
  const first = new Promise<LoadRequest>((resolve) => process.once("message", resolve as (message: unknown) => void));
  reply({ kind: "started" });
  const model = await FallbackModel.load(await first);
  const server = new Server(model);
  process.on("message", (next) => server.take(next as CallRequest));
  reply({ kind: "loaded", description: model.description });
  await server.run();
}

main().catch((error) => fail(error));
