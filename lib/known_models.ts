import type { PoolingMode } from "./engine.js";

/** What the authors of a model say about it. */
export interface KnownModel {
  /** Name on the Hugging Face Hub. */
  id: string;
  /** The commit that is downloaded where none is asked for. */
  revision: string;
  /** Length of a vector. */
  dimension: number;
  /** Longest text in tokens that the model takes. */
  maxTokens: number;
  pooling: PoolingMode;
  /** Put before queries and documents; empty for none. */
  queryPrompt: string;
  documentPrompt: string;
  architecture: "nomic_bert" | "bert";
  /** SPDX identifier, in lower case as on the Hub. */
  license: string;
  parameters?: number;
  /** Whether vectors that are cut to their first components (`dimensions`) get a layer norm before. */
  layerNorm?: boolean;
}

const BGE_QUERY = "Represent this sentence for searching relevant passages: ";

const bert = { architecture: "bert", queryPrompt: "", documentPrompt: "" } as const;
const nomic = { architecture: "nomic_bert", dimension: 768, queryPrompt: "", documentPrompt: "" } as const;
const bge = { ...bert, pooling: "cls", queryPrompt: BGE_QUERY, maxTokens: 512, license: "mit" } as const;
const arctic = { ...bge, license: "apache-2.0" } as const;
const e5 = {
  ...bert,
  pooling: "mean",
  queryPrompt: "query: ",
  documentPrompt: "passage: ",
  maxTokens: 512,
  license: "mit",
} as const;
const gte = { ...bert, pooling: "mean", maxTokens: 512, license: "mit" } as const;
const nomicEmbedText = {
  ...nomic,
  pooling: "mean",
  queryPrompt: "search_query: ",
  documentPrompt: "search_document: ",
  maxTokens: 8192,
  license: "apache-2.0",
  parameters: 136_731_648,
} as const;

/**
 * Models that are known to work and whose facts were checked: against the `ModelMeta` tables of mteb (licenses, prompts,
 * dimensions), and commits against projects that pin them. `npm test` checks the shape, not the facts.
 */
export const KNOWN_MODELS: readonly KnownModel[] = deepFreeze([
  {
    ...nomic,
    id: "nomic-ai/CodeRankEmbed",
    revision: "3c4b60807d71f79b43f3c4363786d9493691f8b1",
    pooling: "cls",
    queryPrompt: "Represent this query for searching relevant code: ",
    maxTokens: 8192,
    license: "mit",
    parameters: 136_731_648,
  },
  {
    ...nomicEmbedText,
    id: "nomic-ai/nomic-embed-text-v1.5",
    revision: "e5cf08aadaa33385f5990def41f7a23405aec398",
    layerNorm: true,
  },
  { ...nomicEmbedText, id: "nomic-ai/nomic-embed-text-v1", revision: "0759316f275aa0cb93a5b830973843ca66babcf5" },
  {
    ...bge,
    id: "BAAI/bge-small-en-v1.5",
    revision: "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
    dimension: 384,
    parameters: 33_360_000,
  },
  {
    ...bge,
    id: "BAAI/bge-base-en-v1.5",
    revision: "a5beb1e3e68b9ab74eb54cfd186867f64f240e1a",
    dimension: 768,
    parameters: 109_482_240,
  },
  {
    ...bge,
    id: "BAAI/bge-large-en-v1.5",
    revision: "d4aa6901d3a41ba39fb536a557fa166f842b0e09",
    dimension: 1024,
    parameters: 335_141_888,
  },
  {
    ...bert,
    id: "sentence-transformers/all-MiniLM-L6-v2",
    revision: "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    dimension: 384,
    maxTokens: 256,
    pooling: "mean",
    license: "apache-2.0",
    parameters: 22_713_216,
  },
  {
    ...bert,
    id: "sentence-transformers/all-MiniLM-L12-v2",
    revision: "c004d8e3e901237d8fa7e9fff12774962e391ce5",
    dimension: 384,
    maxTokens: 128,
    pooling: "mean",
    license: "apache-2.0",
    parameters: 33_360_000,
  },
  {
    ...e5,
    id: "intfloat/e5-small-v2",
    revision: "ffb93f3bd4047442299a41ebb6fa998a38507c52",
    dimension: 384,
    parameters: 33_360_000,
  },
  {
    ...e5,
    id: "intfloat/e5-base-v2",
    revision: "f52bf8ec8c7124536f0efb74aca902b2995e5bcd",
    dimension: 768,
    parameters: 109_482_240,
  },
  {
    ...e5,
    id: "intfloat/e5-large-v2",
    revision: "f169b11e22de13617baa190a028a32f3493550b6",
    dimension: 1024,
    parameters: 335_141_888,
  },
  {
    ...arctic,
    id: "Snowflake/snowflake-arctic-embed-xs",
    revision: "d8c86521100d3556476a063fc2342036d45c106f",
    dimension: 384,
    parameters: 22_713_216,
  },
  {
    ...arctic,
    id: "Snowflake/snowflake-arctic-embed-s",
    revision: "e596f507467533e48a2e17c007f0e1dacc837b33",
    dimension: 384,
    parameters: 33_360_000,
  },
  {
    ...arctic,
    id: "Snowflake/snowflake-arctic-embed-m",
    revision: "cc17beacbac32366782584c8752220405a0f3f40",
    dimension: 768,
    parameters: 109_482_240,
  },
  {
    ...arctic,
    id: "Snowflake/snowflake-arctic-embed-m-long",
    revision: "89d0f6ab196eead40b90cb6f9fefec01a908d2d1",
    architecture: "nomic_bert",
    dimension: 768,
    maxTokens: 2048,
    parameters: 136_731_648,
  },
  {
    ...arctic,
    id: "Snowflake/snowflake-arctic-embed-l",
    revision: "d8fb21ca8d905d2832ee8b96c894d3298964346b",
    dimension: 1024,
    parameters: 335_141_888,
  },
  {
    ...gte,
    id: "thenlper/gte-small",
    revision: "17e1f347d17fe144873b1201da91788898c639cd",
    dimension: 384,
    parameters: 33_360_000,
  },
  {
    ...gte,
    id: "thenlper/gte-base",
    revision: "c078288308d8dee004ab72c6191778064285ec0c",
    dimension: 768,
    parameters: 109_482_240,
  },
  {
    ...gte,
    id: "thenlper/gte-large",
    revision: "4bef63f39fcc5e2d6b0aae83089f307af4970164",
    dimension: 1024,
    parameters: 335_141_888,
  },
]);

/** The known model of this name; as on the Hub, capitals do not matter. */
export function knownModel(id: string): KnownModel | undefined {
  return KNOWN_MODELS.find((known) => known.id.toLowerCase() === id.toLowerCase());
}

function deepFreeze(models: KnownModel[]): readonly KnownModel[] {
  for (const model of models) Object.freeze(model);
  return Object.freeze(models);
}
