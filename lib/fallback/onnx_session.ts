import type { InferenceSession, Tensor } from "onnxruntime-node";
import type { Task } from "../engine.js";
import { EmbedderError } from "../errors.js";
import { availableProcessors } from "../processors.js";
import type { TokenizedText } from "./tokenizer/text_tokenizer.js";

interface Input {
  name: string;
  fill: "ids" | "types" | 1;
  type: "int64" | "int32";
}

interface Output {
  name: string;
  /** Whether the graph itself pools: the values are one vector, or a score. */
  isPooled: boolean;
}

/** An ONNX model that computes token states from the ids of one text. Checks inputs and outputs instead of assuming them. */
export class OnnxSession {
  readonly #ort: typeof import("onnxruntime-node");
  readonly #session: InferenceSession;
  readonly #inputs: readonly Input[];
  readonly #output: Output;

  private constructor(
    ort: typeof import("onnxruntime-node"),
    session: InferenceSession,
    inputs: readonly Input[],
    output: Output,
  ) {
    this.#ort = ort;
    this.#session = session;
    this.#inputs = inputs;
    this.#output = output;
  }

  get isPooled(): boolean {
    return this.#output.isPooled;
  }

  /** @throws EmbedderError `BACKEND_UNAVAILABLE`, `MODEL_INVALID` or `MODEL_UNSUPPORTED` (naming the input or output). */
  static async load(file: string, task: Task, threads: number | undefined): Promise<OnnxSession> {
    const ort = loadRuntime();
    let session: InferenceSession;
    try {
      session = await ort.InferenceSession.create(file, {
        intraOpNumThreads: threads ?? availableProcessors(),
        interOpNumThreads: 1,
        // The arena and memory patterns pay off for equal shapes; texts run unpadded, at any length.
        enableCpuMemArena: false,
        enableMemPattern: false,
        logSeverityLevel: 3,
      });
    } catch (cause) {
      const reason = (cause as Error).message;
      throw new EmbedderError("MODEL_INVALID", `${file}: ONNX Runtime cannot load it: ${reason}`, { cause });
    }
    // Types and shapes that older versions do not tell.
    if (session.inputMetadata === undefined) throw unavailable(`onnxruntime-node ${ort.env.versions.node} is too old`);
    return new OnnxSession(ort, session, inspectInputs(file, session), inspectOutputs(file, task, session));
  }

  /**
   * Token states [tokens × width], or the vector or score if the graph gives it.
   *
   * @throws EmbedderError `INFERENCE_FAILED`
   */
  async run({ ids, second }: Pick<TokenizedText, "ids" | "second">): Promise<Float32Array> {
    const feeds: { [name: string]: Tensor } = {};
    for (const { name, fill, type } of this.#inputs) {
      const values = fill === "ids" ? ids : ids.map((_, index) => (fill === "types" ? Number(index >= second) : fill));
      feeds[name] =
        type === "int64"
          ? new this.#ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length])
          : new this.#ort.Tensor("int32", Int32Array.from(values), [1, ids.length]);
    }
    try {
      const outputs = await this.#session.run(feeds, [this.#output.name]);
      return outputs[this.#output.name]?.data as Float32Array;
    } catch (cause) {
      throw new EmbedderError("INFERENCE_FAILED", `inference failed: ${(cause as Error).message}`, { cause });
    }
  }
}

function loadRuntime(): typeof import("onnxruntime-node") {
  try {
    return require("onnxruntime-node");
  } catch (cause) {
    throw unavailable((cause as Error).message.split("\n", 1)[0], cause);
  }
}

function unavailable(reason: string | undefined, cause?: unknown): EmbedderError {
  const message = `the onnx-js backend is not available: ${reason}; it needs the npm package onnxruntime-node, version 1.22 or newer`;
  return new EmbedderError("BACKEND_UNAVAILABLE", message, { cause });
}

function inspectInputs(file: string, session: InferenceSession): readonly Input[] {
  const inputs = session.inputMetadata.map((input) => {
    const fill = ({ input_ids: "ids", attention_mask: 1, token_type_ids: "types" } as const)[input.name];
    if (fill === undefined) {
      const message = `${file}: input ${JSON.stringify(input.name)}; supported are input_ids, attention_mask and token_type_ids`;
      throw new EmbedderError("MODEL_UNSUPPORTED", message);
    }
    const type = input.isTensor ? input.type : "no tensor";
    if (type !== "int64" && type !== "int32") {
      const message = `${file}: input ${input.name} is ${type}; supported is int64 or int32`;
      throw new EmbedderError("MODEL_UNSUPPORTED", message);
    }
    return { name: input.name, fill, type } as const;
  });
  if (!inputs.some(({ fill }) => fill === "ids")) {
    throw new EmbedderError("MODEL_UNSUPPORTED", `${file}: there is no input named input_ids`);
  }
  return inputs;
}

/** Prefers token states to a pooled output, so that the pooling is certain to be that of the model folder. */
function inspectOutputs(file: string, task: Task, session: InferenceSession): Output {
  const outputs = session.outputMetadata.map((output) => ({
    name: output.name,
    type: output.isTensor ? output.type : "no tensor",
    rank: output.isTensor ? output.shape.length : 0,
  }));
  const refused = (expected: string) => {
    const found = outputs.map(({ name, type, rank }) => `${name} (${type}, rank ${rank})`).join(", ");
    const message = `${file}: expected a float32 output ${expected}, found ${found || "none"}`;
    return new EmbedderError("MODEL_UNSUPPORTED", message);
  };
  if (task === "rerank") {
    const logits = outputs.find(({ name }) => name === "logits") ?? outputs[0];
    if (logits?.type === "float32" && logits.rank === 2) return { name: logits.name, isPooled: true };
    throw refused("logits [batch, 1]");
  }
  const ofRank3 = outputs.filter(({ rank }) => rank === 3);
  const states = ofRank3.find(({ name }) => name === "last_hidden_state" || name === "token_embeddings") ?? ofRank3[0];
  const pooled = outputs.find(
    ({ name, rank }) => rank === 2 && (name === "sentence_embedding" || outputs.length === 1),
  );
  const output = states ?? pooled;
  if (output?.type !== "float32") {
    throw refused("last_hidden_state [batch, tokens, width] or sentence_embedding [batch, width]");
  }
  return { name: output.name, isPooled: output === pooled };
}
