import * as path from "node:path";
import { isObject, JsonFile } from "./json_file.js";
import { PROMPTS_FILE, readModules } from "./model_dir.js";

export const ACTIVATIONS = ["none", "sigmoid"] as const;
/**
 * What is applied to the number that a reranker gives for a text.
 *
 * @useDeclaredType
 */
export type Activation = (typeof ACTIVATIONS)[number];

const KNOWN: Readonly<Record<string, Activation>> = { Identity: "none", Sigmoid: "sigmoid" };

/**
 * The activation that a reranker's folder declares, as `CrossEncoder` of sentence-transformers 6.2 finds it; by default a
 * sigmoid.
 *
 * @throws EmbedderError `MODEL_UNSUPPORTED` for another one, `MODEL_INVALID`
 */
export function declaredActivation(dir: string): Activation {
  const settings = JsonFile.readOptional(path.join(dir, PROMPTS_FILE));
  const config = JsonFile.read(path.join(dir, readModules(dir).transformerPath, "config.json"));
  const nested = config.typed(["sentence_transformers"], "an object", isObject);
  const older = "sbert_ce_default_activation_function";
  const found = [
    { file: settings, key: "activation_fn", name: settings.text("activation_fn") },
    { file: config, key: "sentence_transformers.activation_fn", name: nested?.activation_fn ?? undefined },
    { file: config, key: older, name: config.text(older) },
  ].find(({ name }) => name !== undefined);
  if (!found) return "sigmoid";
  const { file, key, name } = found;
  if (typeof name !== "string") throw file.invalid(`${key}: expected a string`);
  const activation = name.startsWith("torch.nn.") ? KNOWN[name.split(".").at(-1) ?? ""] : undefined;
  if (activation) return activation;
  const hint = `supported are torch.nn.Identity and torch.nn.Sigmoid; pass the option activation: ${ACTIVATIONS.map((each) => JSON.stringify(each)).join(" | ")}`;
  throw file.unsupported(`${key} ${JSON.stringify(name)}`, hint);
}

/** Scores of a reranker's numbers (logits); in double precision, the same for every backend. */
export function activated(logits: Float32Array, activation: Activation): Float32Array {
  return activation === "none" ? logits : logits.map((logit) => 1 / (1 + Math.exp(-logit)));
}
