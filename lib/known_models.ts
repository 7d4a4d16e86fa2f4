import type { PoolingMode } from "./engine.js";

import known = require("./known_models.json");

/** Facts about a model, from its authors. */
export interface KnownModel {
  /** Name on the Hugging Face Hub. */
  id: string;
  /** The commit that is downloaded by default. */
  revision: string;
  /** Length of a vector. */
  dimension: number;
  /** Longest text in tokens that the model accepts. */
  maxTokens: number;
  pooling: PoolingMode;
  /** Put before every query or document; empty for none. */
  queryPrompt: string;
  documentPrompt: string;
  architecture: "nomic_bert" | "bert";
  /** SPDX identifier, in lower case as on the Hub. */
  license: string;
  parameters?: number;
  /** Whether a layer norm is applied before vectors are shortened to their first components (`dimensions`). */
  layerNorm?: boolean;
}

/**
 * Models that are known to work. Licenses, prompts and dimensions were checked against the `ModelMeta` tables of mteb, and
 * commits against projects that pin them; `npm test` checks the shape only. The addon reads the same file.
 */
export const KNOWN_MODELS: readonly KnownModel[] = Object.freeze(
  (known.models as KnownModel[]).map((model) => Object.freeze(model)),
);

/**
 * The known model that `config.json` names, for what its folder does not declare: the first whose part of a name occurs in
 * the last segment of `_name_or_path`.
 */
export function modelNamedInConfig(config: { [key: string]: unknown }): KnownModel | undefined {
  const { _name_or_path: name } = config;
  if (typeof name !== "string") return undefined;
  const last = name.replace(/\/+$/, "").split("/").at(-1)?.toLowerCase();
  const [, id] = known.namesInConfig.find(([part]) => last?.includes(part as string)) ?? [];
  return id === undefined ? undefined : knownModel(id);
}

/** The known model of this name; as on the Hub, case does not matter. */
export function knownModel(id: string): KnownModel | undefined {
  return KNOWN_MODELS.find((model) => model.id.toLowerCase() === id.toLowerCase());
}
