/** The options of `Embedder.load` as flags, for every command that loads a model. */

import { type Command, InvalidArgumentError, Option } from "commander";
import type { LoadOptions } from "../lib/load_options.js";

/** What commander makes of the flags below. */
export type LoadFlags = Pick<
  LoadOptions,
  | "backend"
  | "dtype"
  | "maxTokens"
  | "threads"
  | "pooling"
  | "queryPrompt"
  | "documentPrompt"
  | "dimensions"
  | "layerNorm"
  | "normalize"
  | "memoryBudget"
  | "onnxRuntimeLibrary"
  | "offline"
>;

export function addLoadOptions(command: Command): Command {
  return command
    .optionsGroup("Model:")
    .addOption(
      new Option("--backend <name>", "what computes (default: the fastest that works)").choices([
        ...["auto", "mlx", "onnx", "onnx-js"],
      ]),
    )
    .addOption(
      new Option("--dtype <format>", "number format of the weights").choices(["auto", "f32", "f16", "bf16", "int8"]),
    )
    .option("--max-tokens <count>", "longest text in tokens (default: 512, or less where the model asks for it)", count)
    .option("--threads <count>", "threads that compute (default: all that the process may use)", count)
    .option("--dimensions <count>", "keep the first components only, for models trained for it", count)
    .option("--layer-norm", "with --dimensions: layer norm over the full vector before the cut")
    .option("--no-layer-norm", "with --dimensions: no layer norm before the cut")
    .option("--no-normalize", "do not scale vectors to length 1")
    .option("--pooling <mode>", "pooling, where the model folder does not say it")
    .option("--query-prompt <text>", "text put in front of queries, instead of the model's own")
    .option("--document-prompt <text>", "text put in front of documents, instead of the model's own")
    .option("--memory-budget <bytes>", 'most memory for the activations of a batch, such as "512MB"', bytes)
    .option("--onnx-runtime-library <path>", "a libonnxruntime other than that of onnxruntime-node")
    .option("--offline", "take models of the Hub from the cache only");
}

/** The flags that `Embedder.load` takes, out of all that a command was given. */
export function loadOptions(flags: LoadFlags): LoadOptions {
  const { backend, dtype, maxTokens, threads, pooling, queryPrompt, documentPrompt } = flags;
  const { dimensions, layerNorm, normalize, memoryBudget, onnxRuntimeLibrary, offline } = flags;
  const given = {
    ...{ backend, dtype, maxTokens, threads, pooling, queryPrompt, documentPrompt },
    ...{ dimensions, layerNorm, normalize, memoryBudget, onnxRuntimeLibrary, offline },
  };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)) as LoadOptions;
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

/** Parses a time in seconds to milliseconds. */
export function seconds(value: string): number {
  const parsed = Number(value);
  if (value.trim() !== "" && parsed >= 0 && parsed <= 86_400) return Math.round(parsed * 1000);
  throw new InvalidArgumentError("Expected seconds, between 0 and 86400.");
}
