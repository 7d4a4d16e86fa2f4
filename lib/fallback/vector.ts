import type { EncodedVector, Encoding, PoolingMode } from "../engine.js";
import { EmbedderError } from "../errors.js";
import type { Matryoshka } from "../model_dir.js";

/**
 * Token states to one vector [modes × width]. Sums are taken in float64.
 *
 * @param states [tokens × width], special tokens included.
 */
export function pool(states: Float32Array, width: number, modes: readonly PoolingMode[]): Float32Array {
  const tokens = states.length / width;
  const vector = new Float32Array(modes.length * width);
  for (const [index, mode] of modes.entries()) {
    const pooled = vector.subarray(index * width, (index + 1) * width);
    for (let column = 0; column < width; column++) {
      pooled[column] = poolColumn(mode, tokens, (token) => states[token * width + column] as number);
    }
  }
  return vector;
}

function poolColumn(mode: PoolingMode, tokens: number, at: (token: number) => number): number {
  switch (mode) {
    case "cls":
      return at(0);
    case "lasttoken":
      return at(tokens - 1);
    case "max": {
      let max = at(0);
      for (let token = 1; token < tokens; token++) max = Math.max(max, at(token));
      return max;
    }
    case "mean":
      return sum(tokens, at) / tokens;
    case "mean_sqrt_len_tokens":
      return sum(tokens, at) / Math.sqrt(tokens);
    case "weightedmean":
      // Weights 1, 2, …, tokens: later tokens have seen more of the text.
      return sum(tokens, (token) => (token + 1) * at(token)) / ((tokens * (tokens + 1)) / 2);
  }
}

function sum(tokens: number, at: (token: number) => number): number {
  let total = 0;
  for (let token = 0; token < tokens; token++) total += at(token);
  return total;
}

/**
 * Checks a vector, shortens it and scales it to length 1, as the options say. A zero vector stays zero.
 *
 * @throws EmbedderError `INFERENCE_FAILED` if a value is not finite.
 */
export function finish(pooled: Float32Array, matryoshka: Matryoshka | undefined, normalize: boolean): Float32Array {
  if (!pooled.every(Number.isFinite)) {
    const message =
      "inference failed: the model returned values that are not finite (NaN or infinity); its weights may be damaged";
    throw new EmbedderError("INFERENCE_FAILED", message);
  }
  const full = matryoshka?.layerNorm ? layerNorm(pooled) : pooled;
  const vector = full.subarray(0, matryoshka?.dimensions);
  const squares = sum(vector.length, (index) => (vector[index] as number) ** 2);
  if (!normalize || squares === 0) return vector;
  const length = Math.sqrt(squares);
  return vector.map((value) => value / length);
}

/** `torch.nn.functional.layer_norm`: mean 0, biased variance 1, no weights, its default epsilon. */
function layerNorm(vector: Float32Array): Float32Array {
  const EPSILON = 1e-5;
  const mean = sum(vector.length, (index) => vector[index] as number) / vector.length;
  const variance = sum(vector.length, (index) => ((vector[index] as number) - mean) ** 2) / vector.length;
  const deviation = Math.sqrt(variance + EPSILON);
  return vector.map((value) => (value - mean) / deviation);
}

/**
 * Memory for the vectors of a number of texts [n × dimension].
 *
 * @throws EmbedderError `INVALID_ARGUMENT` if there is not enough.
 */
export function emptyVectors(texts: number, dimension: number, encoding: Encoding): EncodedVector[Encoding] {
  try {
    switch (encoding) {
      case "float32":
        return new Float32Array(texts * dimension);
      case "int8":
        return new Int8Array(texts * dimension);
      case "binary":
        return new Uint8Array(texts * bytesOfBits(dimension));
    }
  } catch (cause) {
    const message = `texts: the vectors of ${texts} texts do not fit into memory; embed fewer at a time, or use stream`;
    throw new EmbedderError("INVALID_ARGUMENT", message, { cause });
  }
}

function bytesOfBits(bits: number): number {
  return Math.ceil(bits / 8);
}

/** Encodes vectors [n × dimension] by the rules of `src/vector.rs`. */
export function encode(vectors: Float32Array, dimension: number, encoding: Encoding): EncodedVector[Encoding] {
  switch (encoding) {
    case "float32":
      return vectors;
    case "int8":
      return new Int8Array(vectors.map(toInt8));
    case "binary": {
      const bytesPerRow = bytesOfBits(dimension);
      const bits = new Uint8Array((vectors.length / dimension) * bytesPerRow);
      for (const [index, value] of vectors.entries()) {
        const column = index % dimension;
        const byte = ((index - column) / dimension) * bytesPerRow + (column >> 3);
        if (value > 0) bits[byte] = (bits[byte] as number) | (0x80 >> (column & 7));
      }
      return bits;
    }
  }
}

/** Rounds ties away from zero, the only ones being ±0.5: `Math.round` alone would round −63.5 to −63. */
function toInt8(value: number): number {
  return Math.sign(value) * Math.min(127, Math.round(Math.abs(value) * 127));
}
