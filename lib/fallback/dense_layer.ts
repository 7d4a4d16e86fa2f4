import { createHash } from "node:crypto";
import type { Dense } from "../dense.js";
import { readRegularFile } from "../regular_file.js";
import { MOST_SAFETENSORS, Safetensors } from "../safetensors.js";

/** A `Dense` module with its weights. */
export class DenseLayer {
  /** SHA-256 of its file of weights. */
  readonly hash: string;
  readonly #dense: Dense;
  /** [outputs × inputs] */
  readonly #weight: Float32Array;
  readonly #bias: Float32Array | undefined;

  /** @throws EmbedderError `MODEL_NOT_FOUND`, or `MODEL_INVALID` naming file and tensor. */
  constructor(dense: Dense) {
    const { weightsFile, inputs, outputs, bias } = dense;
    const bytes = readRegularFile(weightsFile, MOST_SAFETENSORS);
    const tensors = new Safetensors(weightsFile, bytes);
    this.hash = createHash("sha256").update(bytes).digest("hex");
    this.#dense = dense;
    this.#weight = tensors.floats("linear.weight", [outputs, inputs]);
    this.#bias = bias ? tensors.floats("linear.bias", [outputs]) : undefined;
  }

  /** The layer's result for one vector. Sums are taken in float64. */
  apply(vector: Float32Array): Float32Array {
    const { inputs, outputs, activation } = this.#dense;
    const result = new Float32Array(outputs);
    for (let output = 0; output < outputs; output++) {
      let sum = this.#bias?.[output] ?? 0;
      for (let input = 0; input < inputs; input++) {
        sum += (this.#weight[output * inputs + input] as number) * (vector[input] as number);
      }
      result[output] = activation === "tanh" ? Math.tanh(sum) : sum;
    }
    return result;
  }
}
