import type { Description, EncodedVector, Encoding, EngineOptions, TextOrTokens } from "../engine.js";
import type { EmbedderErrorCode } from "../errors.js";

/** Messages between `process.ts` and the child process that it starts, `main.ts`; a `LoadRequest` is the first. */
export interface LoadRequest {
  modelDir: string;
  options: EngineOptions;
}

export type CallRequest =
  /** Texts of a call, which are sent in slices. */
  | { kind: "texts"; call: number; texts: TextOrTokens[] }
  /** All texts of the call have been sent. */
  | { kind: "embed"; call: number; query: string | undefined; isQuery: boolean; encoding: Encoding }
  /** Nobody waits for the call any more. */
  | { kind: "cancel"; call: number };

export type Reply =
  /** The program runs. */
  | { kind: "started" }
  | { kind: "loaded"; description: Description }
  | ({ kind: "rows"; call: number } & Rows)
  /** Without `call`: the model could not be loaded. */
  | { kind: "failed"; call?: number; code: EmbedderErrorCode; message: string };

/** Vectors of a call, as they are computed. */
export interface Rows {
  /** Indices of the texts whose vectors these are, each once. */
  computed: number[];
  /** A row for each. */
  vectors: EncodedVector[Encoding];
  /** Texts that equal an earlier one of the call, each with the index of that one. */
  repeated: [index: number, earlier: number][];
  /** Which of all these texts were truncated. */
  truncated: number[];
  /** Tokens of the computed ones. */
  tokens: number;
  isLast: boolean;
}

/** Set in the environment of the child until it has started, so that a program that was started instead notices. */
export const CHILD_MARKER = "SEMANTIC_SEARCH_FALLBACK_PROCESS";
