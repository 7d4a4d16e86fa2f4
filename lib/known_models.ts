import type { PoolingMode } from "./engine.js";

import known = require("./known_models.json");

/** Facts about a model, from its authors. */
interface KnownFacts {
  /** Name on the Hugging Face Hub. */
  id: string;
  /** The commit that is downloaded by default. */
  revision: string;
  /** `model_type` of its `config.json`, or `static` where it has no such file. */
  architecture: string;
  /** Longest text in tokens that the model accepts; absent where there is no limit. */
  maxTokens?: number;
  /** As the Hub names it; absent where the model's card does not say. */
  license?: string;
  /** How many; absent where the authors do not say. */
  parameters?: number;
  /** Whether the model was run here with its own weights, or only its published facts were checked. */
  checked: "weights" | "facts";
}

/** A model for `Embedder`. */
export interface KnownEmbedder extends KnownFacts {
  /** It is for `Embedder`. */
  task: "embed";
  /** Length of a vector. */
  dimension: number;
  /** How its token vectors become one vector. */
  pooling: PoolingMode;
  /** Put before every query; empty for none. */
  queryPrompt: string;
  /** Put before every document; empty for none. */
  documentPrompt: string;
  /** Whether a layer norm is applied before vectors are shortened to their first components (`dimensions`). */
  layerNorm?: boolean;
}

/** A cross-encoder, which scores pairs of a query and a text. */
export interface KnownReranker extends KnownFacts {
  /** It is for `Reranker`. */
  task: "rerank";
}

/** A model whose facts are known without its folder; `task` tells the two kinds apart. */
export type KnownModel = KnownEmbedder | KnownReranker;

const EMBEDDERS = known.embedders.map((facts) =>
  Object.freeze({ task: "embed", checked: "facts", ...facts } as KnownEmbedder),
);
const RERANKERS = known.rerankers.map((facts) =>
  Object.freeze({ task: "rerank", checked: "facts", ...facts } as KnownReranker),
);

/**
 * Models of supported architectures. Licenses, prompts and dimensions were checked against the `ModelMeta` tables of mteb and
 * the models' cards, and commits against projects that pin them; `npm test` checks the shape only. The addon reads the same
 * file.
 */
export const KNOWN_MODELS: readonly KnownModel[] = Object.freeze([...EMBEDDERS, ...RERANKERS]);

/**
 * The known model that `config.json` names, for what its folder does not declare: the first whose part of a name occurs in
 * the last segment of `_name_or_path`.
 */
export function modelNamedInConfig(config: { [key: string]: unknown }): KnownEmbedder | undefined {
  const { _name_or_path: name } = config;
  if (typeof name !== "string") return undefined;
  const last = name.replace(/\/+$/, "").split("/").at(-1)?.toLowerCase();
  const [, id] = known.namesInConfig.find(([part]) => last?.includes(part as string)) ?? [];
  return EMBEDDERS.find((model) => model.id === id);
}

/** The known model of this name; as on the Hub, case does not matter. */
export function knownModel(id: string): KnownModel | undefined {
  return KNOWN_MODELS.find((model) => model.id.toLowerCase() === id.toLowerCase());
}

/** The known model of this name without its organization, such as `"all-MiniLM-L6-v2"`; a revision behind `@` is ignored. */
export function knownModelByShortName(name: string): KnownModel | undefined {
  const [short = ""] = name.toLowerCase().split("@");
  return short.includes("/") ? undefined : KNOWN_MODELS.find(({ id }) => id.toLowerCase().endsWith(`/${short}`));
}
