import type { PoolingMode } from "./engine.js";
import { EmbedderError } from "./errors.js";

/**
 * Token states to one vector, written into `vector` [modes × width]. Sums are taken in float64.
 *
 * @param states [tokens × width], special tokens included.
 */
export function pool(states: Float32Array, width: number, modes: readonly PoolingMode[], vector: Float32Array): void {
  const tokens = states.length / width;
  for (const [index, mode] of modes.entries()) {
    const pooled = vector.subarray(index * width, (index + 1) * width);
    for (let column = 0; column < width; column++) {
      pooled[column] = poolColumn(mode, tokens, (token) => states[token * width + column] as number);
    }
  }
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
 * Checks a vector and, if asked, scales it to length 1 in place. A zero vector stays zero.
 *
 * @throws EmbedderError `INFERENCE_FAILED` when a value is not finite.
 */
export function finish(vector: Float32Array, normalize: boolean): void {
  let squares = 0;
  for (const value of vector) squares += value * value;
  if (!Number.isFinite(squares)) {
    throw new EmbedderError(
      "INFERENCE_FAILED",
      "inference failed: the model returned values that are not finite (NaN or infinity); its weights may be damaged",
    );
  }
  if (!normalize || squares === 0) return;
  const length = Math.sqrt(squares);
  for (let index = 0; index < vector.length; index++) vector[index] = (vector[index] as number) / length;
}
