import type { EncodedVector, Encoding, ModelOptions, PoolingMode } from "./engine.js";
import type { EmbedderErrorCode } from "./errors.js";

/** Messages between `fallback.ts` and its worker thread. */
export interface WorkerInput {
  modelDir: string;
  options: ModelOptions;
  /** See `RunGate.shared`. */
  gate: SharedArrayBuffer;
}

export type Request =
  /** Texts of a call; a call's texts come in slices. */
  | { kind: "texts"; call: number; texts: string[] }
  /** All texts of the call are there. */
  | { kind: "embed"; call: number; isQuery: boolean; encoding: Encoding }
  /** Nobody waits for the call any more. */
  | { kind: "cancel"; call: number }
  /** The ids of one text, for tests that compare tokenizers. */
  | { kind: "tokenize"; call: number; text: string; isQuery: boolean }
  | { kind: "close" };

export type Reply =
  | { kind: "ready"; description: FallbackDescription }
  | {
      kind: "embedded";
      call: number;
      vectors: EncodedVector[Encoding];
      truncated: Uint32Array;
      tokens: number;
      /** Texts that were run; a repetition is not. */
      computed: number;
    }
  /** How far a call is, now and then. */
  | { kind: "progress"; call: number; done: number; tokens: number }
  | { kind: "tokenized"; call: number; ids: Uint32Array }
  /** Without `call`: the model could not be loaded. */
  | { kind: "failed"; call?: number; code: EmbedderErrorCode; message: string };

export interface FallbackDescription {
  dimension: number;
  maxTokens: number;
  fingerprint: string;
  pooling: PoolingMode[];
}
