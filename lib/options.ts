import { types } from "node:util";
import { type ModelOptions, POOLING_MODES, type TextOrTokens } from "./engine.js";
import { callersCode, describeValue, EmbedderError, toEmbedderError } from "./errors.js";
import type { PullOptions, PullProgress } from "./hub/pull.js";

/** Options of `Embedder.load`; each may be left out. */
export interface LoadOptions extends ModelOptions {
  /**
   * Which backend computes. `"auto"` (default): the addon (MLX where it has a GPU, else ONNX Runtime), and where it
   * cannot be loaded ONNX Runtime in JavaScript. A backend named here never falls back to another.
   * The environment variable `SEMANTIC_SEARCH_BACKEND` overrides `"auto"` only.
   */
  backend?: "auto" | "mlx" | "onnx" | "onnx-js";
  /** Pooling, where the model folder does not say it or says it wrongly. */
  pooling?: NonNullable<ModelOptions["pooling"]>;
  /** Put before every query instead of the model's own prompt. */
  queryPrompt?: string;
  /** Put before every document instead of the model's own prompt. */
  documentPrompt?: string;
  /** Longest text in tokens, special tokens included; clipped to the model's own limit. Default 512. */
  maxTokens?: number;
  /** Scale vectors to length 1. Default true. */
  normalize?: boolean;
  /**
   * Keep this many of the first components of each vector: for models trained for it (Matryoshka). Default: all.
   */
  dimensions?: number;
  /**
   * With `dimensions`: whether a layer norm over the full vector comes before the cut, as nomic-embed-text-v1.5 asks for.
   * Default: what the model is known to ask for; needed for nomic_bert folders that do not name their model.
   */
  layerNorm?: boolean;
  /**
   * Number format of the weights. `"auto"` (default) is float16 on a GPU and float32 elsewhere; `"f16"` and `"bf16"` are
   * for MLX. `"int8"` computes the linear layers in integers, on the CPU: faster, nearly the same vectors. Quantized
   * weights are kept in the cache folder; `onnx-js` wants a quantized ONNX file (`exportOnnx` with this option writes one).
   */
  dtype?: NonNullable<ModelOptions["dtype"]>;
  /** Threads that compute. Default: the processors this process may use. */
  threads?: number;
  /**
   * Most bytes that the activations of one batch may take. Texts that are long are then computed fewer at a time; a
   * single text always fits. Default 1 GiB.
   */
  memoryBudget?: number;
  /** Query vectors that are kept for when the same query comes again; 0 keeps none. Default 128. */
  queryCacheSize?: number;
  /**
   * Unload the weights when no call came for so many milliseconds. The next call loads them again, from the same folder:
   * it takes longer, nothing else changes. Default: never.
   */
  idleTimeoutMs?: number;
  /** Gives up loading with an `AbortError`. */
  signal?: AbortSignal;
  /** Called now and then while a model is downloaded from the Hub. An error that it throws ends the call. */
  onProgress?: (progress: PullProgress) => void;
  /** Take models of the Hub from the cache only. Default: `HF_HUB_OFFLINE`. */
  offline?: boolean;
  /** Path of the ONNX Runtime library for the addon. Default: `ORT_DYLIB_PATH`, else the one of `onnxruntime-node`. */
  onnxRuntimeLibrary?: string;
}

interface Rule {
  expected: string;
  accepts(value: unknown): boolean;
}

const oneOf = (...names: readonly string[]): Rule => ({
  expected: `one of ${names.map((name) => JSON.stringify(name)).join(", ")}`,
  accepts: (value) => names.includes(value as string),
});
const string: Rule = { expected: "a string", accepts: (value) => typeof value === "string" };
const boolean: Rule = { expected: "true or false", accepts: (value) => typeof value === "boolean" };
const atLeast = (least: number, most = 0x7fffffff): Rule => ({
  expected: `a whole number of at least ${least}`,
  accepts: (value) => Number.isInteger(value) && (value as number) >= least && (value as number) <= most,
});
const count = atLeast(1);
const callback: Rule = { expected: "a function", accepts: (value) => typeof value === "function" };
const signal: Rule = { expected: "an AbortSignal", accepts: isAbortSignal };

/** `instanceof` alone would take whatever has the prototype, a proxy as well; both throw when they are asked. */
function isAbortSignal(value: unknown): boolean {
  try {
    return typeof Reflect.get(AbortSignal.prototype, "aborted", value) === "boolean";
  } catch {
    return false;
  }
}

export const BACKEND_RULE = oneOf("auto", "mlx", "onnx", "onnx-js");

const path: Rule = {
  expected: "a path",
  accepts: (value) => typeof value === "string" && value !== "" && !value.includes("\0"),
};

const LOAD_RULES: Record<keyof LoadOptions, Rule> = {
  backend: BACKEND_RULE,
  pooling: oneOf(...POOLING_MODES),
  queryPrompt: string,
  documentPrompt: string,
  maxTokens: count,
  normalize: boolean,
  dimensions: count,
  layerNorm: boolean,
  dtype: oneOf("auto", "f32", "f16", "bf16", "int8"),
  threads: count,
  memoryBudget: atLeast(1, Number.MAX_SAFE_INTEGER),
  queryCacheSize: atLeast(0),
  idleTimeoutMs: count,
  signal,
  onProgress: callback,
  offline: boolean,
  onnxRuntimeLibrary: path,
};

const PULL_RULES: Record<keyof PullOptions, Rule> = {
  revision: { expected: "a branch, tag or commit", accepts: (value) => typeof value === "string" && value !== "" },
  cacheFolder: path,
  endpoint: { expected: "a URL", accepts: (value) => typeof value === "string" && value !== "" },
  token: { expected: "a string or false", accepts: (value) => typeof value === "string" || value === false },
  offline: boolean,
  onnx: boolean,
  verify: boolean,
  signal,
  onProgress: callback,
};

/** Options of a call. */
const CALL_RULES = {
  kind: {
    expected: '"query" or "document"',
    accepts: (value: unknown) => value === "query" || value === "document",
  },
  encoding: oneOf("float32", "int8", "binary"),
  onTruncated: callback,
  signal,
  onProgress: callback,
} satisfies Record<string, Rule>;

/**
 * The options of a call that takes those in `names`, checked and copied; `undefined` values are left out.
 *
 * @throws EmbedderError `INVALID_ARGUMENT` for an unknown name or a value of the wrong kind.
 */
export function checkCallOptions(
  options: unknown,
  names: readonly (keyof typeof CALL_RULES)[],
): Record<string, unknown> {
  return checkOptions(options, names, CALL_RULES);
}

/**
 * The options, checked and copied; `undefined` values are left out.
 *
 * @throws EmbedderError `INVALID_ARGUMENT` for an unknown name or a value of the wrong kind.
 */
export function checkLoadOptions(options: unknown): LoadOptions {
  const checked: LoadOptions = checkOptions(options, Object.keys(LOAD_RULES), LOAD_RULES);
  if (checked.layerNorm !== undefined && checked.dimensions === undefined) {
    throw invalid("option layerNorm", "dimensions beside it (without a cut there is no layer norm)", checked.layerNorm);
  }
  return checked;
}

/**
 * The options, checked and copied; `undefined` values are left out.
 *
 * @throws EmbedderError `INVALID_ARGUMENT` for an unknown name or a value of the wrong kind.
 */
export function checkPullOptions(options: unknown): PullOptions {
  return checkOptions(options, Object.keys(PULL_RULES), PULL_RULES);
}

function checkOptions(
  options: unknown,
  names: readonly string[],
  rules: Readonly<Record<string, Rule>>,
): Record<string, unknown> {
  const entries = optionEntries("options", options, names);
  for (const [name, value] of entries) {
    const rule = rules[name];
    if (rule && !rule.accepts(value)) throw invalid(`option ${name}`, rule.expected, value);
  }
  return Object.fromEntries(entries.map(([name, value]) => [name, rules[name] === callback ? called(value) : value]));
}

/** A callback whose errors leave this package as they are. */
function called(value: unknown): (argument: unknown) => void {
  const call = value as (argument: unknown) => void;
  return (argument) => callersCode(() => call(argument));
}

/**
 * Reads an argument, which may be a proxy or have getters: what those throw is an error in the argument.
 *
 * @throws EmbedderError `INVALID_ARGUMENT`
 */
export function readArgument<T>(what: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof EmbedderError) throw error;
    throw new EmbedderError("INVALID_ARGUMENT", `${what}: cannot be read: ${toEmbedderError(error).message}`, {
      cause: error,
    });
  }
}

/**
 * The entries of an options object that are set.
 *
 * @throws EmbedderError `INVALID_ARGUMENT` when it is no object or has a name that is not in `names`.
 */
export function optionEntries(what: string, options: unknown, names: readonly string[]): [string, unknown][] {
  return readArgument(what, () => knownEntries(what, options, names));
}

function knownEntries(what: string, options: unknown, names: readonly string[]): [string, unknown][] {
  if (options === undefined) return [];
  if (typeof options !== "object" || options === null || Array.isArray(options)) {
    throw invalid(what, `an object with ${names.join(", ")}`, options);
  }
  for (const name of Object.keys(options)) {
    if (names.includes(name)) continue;
    const hint = nearest(name, names);
    throw new EmbedderError(
      "INVALID_ARGUMENT",
      `unknown option ${JSON.stringify(name)}${hint ? `; did you mean ${JSON.stringify(hint)}?` : ""} (known: ${names.join(", ")})`,
    );
  }
  return Object.entries(options).filter(([, value]) => value !== undefined);
}

export function invalid(what: string, expected: string, found: unknown): EmbedderError {
  return new EmbedderError("INVALID_ARGUMENT", `${what}: expected ${expected}, found ${describeValue(found)}`);
}

/** Texts of a call at most. Their vectors are one buffer, and numbered in 32 bits. */
export const MAX_TEXTS = 10_000_000;

/**
 * Checks the texts of one call and returns them as an array of its own.
 *
 * @throws EmbedderError `INVALID_ARGUMENT` naming the first index that holds neither a string nor token ids.
 */
export function checkTexts(texts: unknown): TextOrTokens[] {
  return readArgument("texts", () => {
    if (!Array.isArray(texts)) throw invalid("texts", "an array of strings or Uint32Arrays of token ids", texts);
    const { length } = texts;
    if (!Number.isInteger(length) || length < 0 || length > MAX_TEXTS) {
      const expected = `at most ${MAX_TEXTS} texts in a call (stream takes any number)`;
      throw invalid("texts", expected, texts);
    }
    // By index: whatever else could copy an array can be overridden, and takes minutes for one of holes alone.
    const snapshot = new Array<TextOrTokens>(length);
    for (let index = 0; index < length; index++) {
      const text: unknown = texts[index];
      snapshot[index] = typeof text === "string" ? text : checkText(`texts[${index}]`, text);
    }
    return snapshot;
  });
}

/**
 * Checks that something is a text or token ids. Which ids the model has, the engine knows.
 *
 * @param what It is called so in errors.
 * @throws EmbedderError `INVALID_ARGUMENT`
 */
export function checkText(what: string, text: unknown): TextOrTokens {
  // Unlike `instanceof`, it does not take what only has the prototype, and it asks no proxy.
  if (typeof text === "string" || types.isUint32Array(text)) return text;
  throw invalid(what, "a string or a Uint32Array of token ids", text);
}

/** The name a misspelt one most likely meant; `undefined` when none is near. */
function nearest(name: string, names: readonly string[]): string | undefined {
  const scored = names.map((candidate) => ({
    candidate,
    distance: editDistance(name.toLowerCase(), candidate.toLowerCase()),
  }));
  scored.sort((a, b) => a.distance - b.distance);
  const best = scored[0];
  return best && best.distance <= Math.max(2, best.candidate.length / 3) ? best.candidate : undefined;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let i = 0; i < a.length; i++) {
    const next = [i + 1];
    for (let j = 0; j < b.length; j++) {
      const substitution = (row[j] ?? 0) + (a[i] === b[j] ? 0 : 1);
      next.push(Math.min(substitution, (row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
