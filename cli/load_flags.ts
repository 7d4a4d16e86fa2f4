/** The options of `Embedder.load` and `Reranker.load` as flags, for every command that loads a model. */

import { type Command, InvalidArgumentError, Option } from "commander";
import { BACKENDS, DTYPES, type Task } from "../lib/engine.js";
import { LOAD_OPTIONS, type LoadOptions } from "../lib/load_options.js";
import { checkRerankerOptions, type RerankerOptions } from "../lib/rerank_options.js";

export type LoadFlags = Omit<LoadOptions, "signal" | "onProgress" | "queryCacheSize" | "idleTimeoutMs">;

/** @param task What the command loads a model for. */
export function addLoadOptions(command: Command, task: Task = "embed"): Command {
  command
    .optionsGroup("Model:")
    .addOption(
      new Option("--backend <name>", "what computes the vectors (default: the fastest that works)").choices(BACKENDS),
    )
    .addOption(new Option("--dtype <format>", "number format of the weights").choices(DTYPES))
    .option(
      "--max-tokens <count>",
      "longest text in tokens (default: 512, or the model's limit if that is lower)",
      count,
    )
    .option("--threads <count>", "threads to compute with (default: all that the process may use)", count)
    .option("--query-prompt <text>", "text to put before queries instead of the model's own");
  if (task === "embed") addVectorOptions(command);
  return command
    .option("--memory-budget <bytes>", 'most memory for the activations of a batch, such as "512MB"', bytes)
    .option("--onnx-runtime-library <path>", "a libonnxruntime other than the one that was installed")
    .option("--offline", "load models of the Hub from the cache only");
}

function addVectorOptions(command: Command): void {
  command
    .option("--dimensions <count>", "keep only the first components, for models trained for it", count)
    .option("--layer-norm", "with --dimensions: apply a layer norm to the full vector first")
    .option("--no-layer-norm", "with --dimensions: apply no layer norm")
    .option("--no-normalize", "do not scale vectors to length 1")
    .option("--pooling <mode>", "pooling, if the model folder does not declare it")
    .option("--document-prompt <text>", "text to put before documents instead of the model's own");
}

/** Those of a command's flags that are options of `Embedder.load`. */
export function loadOptions(flags: LoadFlags): LoadOptions {
  return Object.fromEntries(Object.entries(flags).filter(([name]) => LOAD_OPTIONS.includes(name)));
}

/**
 * Those of a command's flags that are options of `Reranker.load`.
 *
 * @throws EmbedderError `INVALID_ARGUMENT` for flags about vectors and prompts.
 */
export function rerankerOptions(flags: LoadFlags): RerankerOptions {
  const { normalize, ...options } = loadOptions(flags);
  // Commander sets it to true where there is --no-normalize.
  return checkRerankerOptions(normalize === false ? { ...options, normalize } : options);
}

/** Parses a whole number of at least 1. */
export function count(value: string): number {
  const parsed = Number(value);
  if (/^\d+$/.test(value) && parsed >= 1 && Number.isSafeInteger(parsed)) return parsed;
  throw new InvalidArgumentError("Expected a whole number of at least 1.");
}

const UNITS: Record<string, number> = { "": 1, k: 1 << 10, m: 1 << 20, g: 1 << 30 };

/** Parses a size: `"1048576"`, `"512MB"`, `"1 GiB"`. Units are powers of 1024. */
export function bytes(value: string): number {
  const [, digits, unit] = /^(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b)?$/i.exec(value.trim()) ?? [];
  const size = Math.floor(Number(digits) * (UNITS[unit?.toLowerCase() ?? ""] ?? Number.NaN));
  if (Number.isSafeInteger(size) && size >= 1) return size;
  throw new InvalidArgumentError('Expected a size such as "1048576" or "512MB".');
}

/** An option that takes seconds and gives milliseconds. */
export function secondsOption(flags: string, description: string, defaultSeconds?: number): Option {
  const option = new Option(flags, description).argParser(seconds);
  return defaultSeconds === undefined ? option : option.default(defaultSeconds * 1000, `${defaultSeconds}`);
}

function seconds(value: string): number {
  const parsed = Number(value);
  if (value.trim() !== "" && parsed >= 0 && parsed <= 86_400) return Math.round(parsed * 1000);
  throw new InvalidArgumentError("Expected seconds, between 0 and 86400.");
}
