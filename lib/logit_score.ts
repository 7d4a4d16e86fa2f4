/**
 * Checks the settings of a `LogitScore` module, which names the logits that are a reranker's score. `src/logit_score.rs` reads
 * the same file by the same rules for the addon, which writes the module into the graphs that it exports.
 */

import type { JsonFile } from "./json_file.js";

/** The file of the module's folder. */
export const LOGIT_SCORE_FILE = "config.json";

/** The logits among the outputs of modules. */
const LOGITS = "causal_logits";

/** @throws EmbedderError `MODEL_INVALID` or `MODEL_UNSUPPORTED`, naming the key. */
export function checkLogitScore(config: JsonFile, vocabulary: number): void {
  const isToken = (id: unknown): id is number =>
    Number.isInteger(id) && (id as number) >= 0 && (id as number) < vocabulary;
  const token = (key: string) =>
    config.typed([key], `a token id below ${vocabulary}, the size of the vocabulary`, isToken);
  config.required(token("true_token_id"), "true_token_id");
  token("false_token_id");
  const name = config.text("module_input_name");
  if (name === undefined || name === LOGITS) return;
  throw config.unsupported(`module_input_name ${JSON.stringify(name)}`, `supported is ${JSON.stringify(LOGITS)}`);
}
