import { ACTIVATIONS, type Activation } from "./activation.js";
import { checkTexts, type EmbedOptions } from "./call_options.js";
import { LOAD_RULES, type LoadOptions } from "./load_options.js";
import { atLeast, callback, checkOptions, invalid, oneOf, type Rule, signal } from "./option_rules.js";

const LOAD_NAMES = [
  "backend",
  "maxTokens",
  "queryPrompt",
  "dtype",
  "threads",
  "memoryBudget",
  "idleTimeoutMs",
  "signal",
  "onProgress",
  "offline",
  "onnxRuntimeLibrary",
] as const;

/**
 * Options of {@link Reranker.load}; all are optional. `maxTokens` limits a query and a text together. `queryPrompt` is put in front
 * of queries or, of a model with a chat template, in the place of its instruction.
 */
export interface RerankerOptions extends Pick<LoadOptions, (typeof LOAD_NAMES)[number]> {
  /** Default activation of scores, if the model folder does not declare it or declares it wrongly. */
  activation?: Activation;
}

/** Options of {@link Reranker.score}. */
export interface ScoreOptions extends Pick<EmbedOptions, "signal" | "onProgress" | "onTruncated"> {
  /**
   * `"none"`: scores are the numbers that the model gives, of any size. `"sigmoid"`: between 0 and 1. Default: what the
   * model folder declares.
   */
  activation?: Activation;
}

/** Options of {@link Reranker.rank}. */
export interface RankOptions extends ScoreOptions {
  /** How many texts are returned, the best ones. Default: all. */
  topK?: number;
}

const activation = oneOf(...ACTIVATIONS);
const LOAD: Record<keyof RerankerOptions, Rule> = {
  activation,
  ...(Object.fromEntries(LOAD_NAMES.map((name) => [name, LOAD_RULES[name]])) as Record<
    (typeof LOAD_NAMES)[number],
    Rule
  >),
};
const SCORE = { activation, signal, onProgress: callback, onTruncated: callback };

/** Names of the options of `Reranker.load`. */
export const RERANKER_OPTIONS: readonly string[] = Object.keys(LOAD);

/** @throws EmbedderError `INVALID_ARGUMENT` */
export function checkRerankerOptions(options: unknown): RerankerOptions {
  return checkOptions<RerankerOptions>(options, LOAD);
}

/** @throws EmbedderError `INVALID_ARGUMENT` */
export function checkScoreOptions(options: unknown): ScoreOptions {
  return checkOptions<ScoreOptions>(options, SCORE);
}

/** @throws EmbedderError `INVALID_ARGUMENT` */
export function checkRankOptions(options: unknown): RankOptions {
  return checkOptions<RankOptions>(options, { ...SCORE, topK: atLeast(1) });
}

/**
 * A checked copy of a call's query and texts.
 *
 * @throws EmbedderError `INVALID_ARGUMENT`
 */
export function checkPairs(query: unknown, texts: unknown): { query: string; texts: string[] } {
  if (typeof query !== "string") throw invalid("query", "a string", query);
  const checked = checkTexts(texts);
  const index = checked.findIndex((text) => typeof text !== "string");
  if (index < 0) return { query, texts: checked as string[] };
  throw invalid(`texts[${index}]`, "a string (token ids cannot be paired with a query)", checked[index]);
}
