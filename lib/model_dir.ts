/**
 * What a model folder of the sentence-transformers layout says, for the JavaScript fallback. The addon reads the same
 * files by the same rules in `src/model_dir.rs`; a test holds both to equal fingerprints.
 */

import { createHash } from "node:crypto";
import { existsSync, statSync } from "node:fs";
import * as path from "node:path";
import { type Description, type ModelOptions, POOLING_MODES, type PoolingMode } from "./engine.js";
import { describeValue, EmbedderError } from "./errors.js";
import { isObject, type JsonObject, parseJsonObject, readJsonIfPresent, readJsonObjectIfPresent } from "./json_file.js";
import { type KnownModel, knownModel } from "./known_models.js";
import { MOST_SETTINGS, readRegularFile } from "./regular_file.js";
import type { Cut } from "./vector.js";

export interface ModelDir {
  dir: string;
  /** The folder of config, tokenizer and weights: `dir` itself or the Transformer module's `path` in it. */
  transformerDir: string;
  /** SHA-256 of the bytes of `config.json` that were read. */
  configHash: string;
  hiddenSize: number;
  /** Rows of the embedding table: every token id is below it. */
  vocabularySize: number;
  pooling: PoolingMode[];
  queryPrompt: string;
  documentPrompt: string;
  /** Longest text in tokens, special tokens included. */
  maxTokens: number;
  /** Which part of a pooled vector is kept; `undefined` for all of it. */
  cut: Cut | undefined;
  normalize: boolean;
  /** Lower-case the text before the tokenizer sees it. */
  lowerCase: boolean;
  truncationSide: "left" | "right";
  tokenizerFile: string;
  tokenizerConfig: JsonObject;
}

/** Parts of the last segment of `_name_or_path`, for what a folder does not say itself. The first that fits counts. */
const KNOWN_BY_NAME = [
  { part: "coderankembed", model: knownModel("nomic-ai/CodeRankEmbed") },
  { part: "nomic-embed-text-v1.5", model: knownModel("nomic-ai/nomic-embed-text-v1.5") },
  { part: "nomic-embed-text", model: knownModel("nomic-ai/nomic-embed-text-v1") },
];

/** `model_max_length` beyond this is the Python libraries' way to say "none" (1e30). */
const NO_LIMIT = 1e8;
const DEFAULT_MAX_TOKENS = 512;

/**
 * Reads the folder.
 *
 * @throws EmbedderError `MODEL_NOT_FOUND`, `MODEL_INVALID` or `MODEL_UNSUPPORTED`, naming file and key.
 */
export function readModelDir(dir: string, options: ModelOptions): ModelDir {
  if (!existsSync(dir)) throw new EmbedderError("MODEL_NOT_FOUND", `model folder ${dir} does not exist`);
  if (!statSync(dir).isDirectory()) {
    throw new EmbedderError("MODEL_NOT_FOUND", `${dir} is not a folder; expected the folder that holds config.json`);
  }
  const { transformerPath, poolingFile } = readModules(dir);
  const transformerDir = path.join(dir, transformerPath);

  const configFile = path.join(transformerDir, "config.json");
  const configBytes = readRegularFile(configFile, MOST_SETTINGS);
  const config = parseJsonObject(configFile, configBytes);
  const { hiddenSize, vocabularySize, positions } = readArchitecture(configFile, config);

  const tokenizerFile = path.join(transformerDir, "tokenizer.json");
  if (!existsSync(tokenizerFile)) throw new EmbedderError("MODEL_NOT_FOUND", `${tokenizerFile} does not exist`);
  const tokenizerConfigFile = path.join(transformerDir, "tokenizer_config.json");
  const tokenizerConfig = readJsonObjectIfPresent(tokenizerConfigFile) ?? {};
  const sentenceFile = path.join(transformerDir, "sentence_bert_config.json");
  const sentenceConfig = readJsonObjectIfPresent(sentenceFile) ?? {};

  const known = knownByName(config);
  const prompts = readPrompts(dir);
  const queryPrompt = options.queryPrompt ?? prompts.query ?? known?.queryPrompt ?? prompts.fallback ?? "";
  const documentPrompt = options.documentPrompt ?? prompts.document ?? known?.documentPrompt ?? prompts.fallback ?? "";
  const pooling = readPooling(poolingFile, options.pooling, known?.pooling, hiddenSize, queryPrompt + documentPrompt);

  const cut = readCut(configFile, config, pooling.length * hiddenSize, known, options);

  const declaredLimit =
    optionalCount(sentenceFile, sentenceConfig, "max_seq_length") ?? readModelMaxLength(tokenizerConfig) ?? positions;
  const truncationSide = tokenizerConfig.truncation_side ?? "right";
  if (truncationSide !== "left" && truncationSide !== "right") {
    throw new EmbedderError(
      "MODEL_INVALID",
      `${tokenizerConfigFile}: truncation_side: expected "left" or "right", found ${describeValue(truncationSide)}`,
    );
  }
  return {
    dir,
    transformerDir,
    configHash: createHash("sha256").update(configBytes).digest("hex"),
    hiddenSize,
    vocabularySize,
    pooling,
    queryPrompt,
    documentPrompt,
    maxTokens: Math.min(options.maxTokens ?? DEFAULT_MAX_TOKENS, declaredLimit, positions),
    cut,
    normalize: options.normalize ?? true,
    lowerCase: sentenceConfig.do_lower_case === true,
    truncationSide,
    tokenizerFile,
    tokenizerConfig,
  };
}

/** What a model is, given the hashes of its tokenizer and of its weights. */
export function describe(
  model: ModelDir,
  tokenizerHash: string,
  { weightHashes, dtype }: { weightHashes: readonly string[]; dtype: string },
): Description {
  const { pooling, queryPrompt, documentPrompt, maxTokens, normalize, cut } = model;
  // The same text, and so the same hash, as `ModelDir::fingerprint` in `src/model_dir.rs`.
  const identity = {
    format: 1,
    weights: weightHashes,
    tokenizer: tokenizerHash,
    config: model.configHash,
    ...{ pooling, queryPrompt, documentPrompt, maxTokens, normalize, dtype },
    // Without a cut `undefined`, which `JSON.stringify` leaves out.
    dimensions: cut?.dimensions,
    layerNorm: cut?.layerNorm,
  };
  const { lowerCase, truncationSide, vocabularySize } = model;
  return {
    dimension: cut?.dimensions ?? model.hiddenSize * pooling.length,
    ...{ maxTokens, pooling, queryPrompt, documentPrompt, normalize, lowerCase, truncationSide, vocabularySize },
    ...(cut && { layerNorm: cut.layerNorm }),
    fingerprint: createHash("sha256").update(JSON.stringify(identity)).digest("hex"),
  };
}

/** `modules.json`: Transformer, Pooling and optionally Normalize. Without it, `1_Pooling` counts if it is there. */
export function readModules(dir: string): { transformerPath: string; poolingFile: string | undefined } {
  const file = path.join(dir, "modules.json");
  const modules = readJsonIfPresent(file);
  if (modules === undefined) {
    const poolingFile = path.join(dir, "1_Pooling", "config.json");
    return { transformerPath: "", poolingFile: existsSync(poolingFile) ? poolingFile : undefined };
  }
  if (!Array.isArray(modules)) throw new EmbedderError("MODEL_INVALID", `${file}: expected a JSON array of modules`);
  const kinds = modules.map((module: unknown, index) => {
    if (!isObject(module) || typeof module.type !== "string" || typeof (module.path ?? "") !== "string") {
      throw new EmbedderError("MODEL_INVALID", `${file}: entry ${index}: expected strings "type" and "path"`);
    }
    const kind = ["Transformer", "Pooling", "Normalize"].find(
      (name) => (module.type as string).split(".").at(-1) === name,
    );
    if (!kind) {
      throw new EmbedderError(
        "MODEL_UNSUPPORTED",
        `${file}: module type ${JSON.stringify(module.type)}; supported are Transformer, Pooling and Normalize`,
      );
    }
    const modulePath = String(module.path ?? "");
    if (path.isAbsolute(modulePath) || modulePath.split(/[\\/]/).includes("..")) {
      throw new EmbedderError(
        "MODEL_INVALID",
        `${file}: expected a path inside the model folder, found ${JSON.stringify(modulePath)}`,
      );
    }
    return { kind, path: modulePath };
  });
  const [transformer, pooling] = kinds;
  const first = kinds.slice(0, 4).map(({ kind }) => kind);
  const sequence = (kinds.length > 4 ? [...first, "…"] : first).join(", ");
  if (!["Transformer", "Transformer, Pooling", "Transformer, Pooling, Normalize"].includes(sequence)) {
    throw new EmbedderError(
      "MODEL_UNSUPPORTED",
      `${file}: modules ${sequence || "none"}; supported is Transformer, Pooling and optionally Normalize, in this order`,
    );
  }
  return {
    transformerPath: transformer?.path ?? "",
    poolingFile: pooling && path.join(dir, pooling.path, "config.json"),
  };
}

/** @throws EmbedderError `MODEL_UNSUPPORTED` or `MODEL_INVALID` for a `config.json` of a model that cannot be loaded. */
export function checkArchitecture(configFile: string): void {
  readArchitecture(configFile, required(configFile));
}

function readArchitecture(file: string, config: JsonObject) {
  const modelType = config.model_type;
  if (modelType === "bert") {
    return {
      hiddenSize: count(file, config, "hidden_size"),
      vocabularySize: count(file, config, "vocab_size"),
      positions: count(file, config, "max_position_embeddings"),
    };
  }
  if (modelType === "nomic_bert") {
    return {
      hiddenSize: optionalCount(file, config, "n_embd") ?? count(file, config, "hidden_size"),
      vocabularySize: count(file, config, "vocab_size"),
      positions: optionalCount(file, config, "n_positions") ?? count(file, config, "max_position_embeddings"),
    };
  }
  throw new EmbedderError(
    "MODEL_UNSUPPORTED",
    `${file}: model_type ${JSON.stringify(modelType ?? null)}; supported are "bert" and "nomic_bert"`,
  );
}

function readModelMaxLength(tokenizerConfig: JsonObject): number | undefined {
  const value = tokenizerConfig.model_max_length;
  return typeof value === "number" && value >= 1 && value <= NO_LIMIT ? Math.floor(value) : undefined;
}

function knownByName(config: JsonObject): KnownModel | undefined {
  const name = String(config._name_or_path ?? "")
    .replace(/\/+$/, "")
    .split("/")
    .at(-1)
    ?.toLowerCase();
  return KNOWN_BY_NAME.find(({ part }) => name?.includes(part))?.model;
}

function readCut(
  configFile: string,
  config: JsonObject,
  pooledDimension: number,
  known: KnownModel | undefined,
  { dimensions, layerNorm }: ModelOptions,
): Cut | undefined {
  if (dimensions === undefined) return undefined;
  if (dimensions > pooledDimension) {
    throw new EmbedderError(
      "INVALID_ARGUMENT",
      `dimensions: expected 1 to ${pooledDimension}, the length of the model's vectors, found ${dimensions}`,
    );
  }
  const choice =
    layerNorm ?? (known && (known.layerNorm ?? false)) ?? (config.model_type === "bert" ? false : undefined);
  if (choice !== undefined) return { dimensions, layerNorm: choice };
  throw new EmbedderError(
    "MODEL_UNSUPPORTED",
    `${configFile}: dimensions for a nomic_bert model that does not name itself; pass layerNorm: true for ` +
      "nomic-embed-text-v1.5, layerNorm: false for a model whose card asks for no layer norm",
  );
}

export function readPrompts(dir: string): { query?: string; document?: string; fallback?: string } {
  const file = path.join(dir, "config_sentence_transformers.json");
  const config = readJsonObjectIfPresent(file) ?? {};
  const prompts = config.prompts ?? {};
  if (!isObject(prompts)) throw new EmbedderError("MODEL_INVALID", `${file}: prompts: expected an object`);
  const named: { [name: string]: string } = {};
  for (const [name, prompt] of Object.entries(prompts)) {
    if (prompt === null) continue;
    if (typeof prompt !== "string") {
      throw new EmbedderError("MODEL_INVALID", `${file}: prompts.${name}: expected a string`);
    }
    named[name] = prompt;
  }
  const defaultName = config.default_prompt_name ?? undefined;
  if (defaultName !== undefined && (typeof defaultName !== "string" || named[defaultName] === undefined)) {
    throw new EmbedderError(
      "MODEL_INVALID",
      `${file}: default_prompt_name ${JSON.stringify(defaultName)} is none of its prompts (${Object.keys(named).join(", ")})`,
    );
  }
  const document = named.document ?? named.passage ?? named.corpus;
  const fallback = defaultName === undefined ? undefined : named[defaultName];
  return {
    ...(named.query !== undefined && { query: named.query }),
    ...(document !== undefined && { document }),
    ...(fallback !== undefined && { fallback }),
  };
}

function readPooling(
  file: string | undefined,
  option: PoolingMode | undefined,
  known: PoolingMode | undefined,
  hiddenSize: number,
  prompts: string,
): PoolingMode[] {
  const config = file === undefined ? undefined : required(file);
  if (file !== undefined && config !== undefined) {
    for (const key of ["word_embedding_dimension", "embedding_dimension"]) {
      const dimension = optionalCount(file, config, key);
      if (dimension !== undefined && dimension !== hiddenSize) {
        throw new EmbedderError(
          "MODEL_INVALID",
          `${file}: ${key} is ${dimension}, but config.json has hidden size ${hiddenSize}`,
        );
      }
    }
    if (config.include_prompt === false && prompts !== "") {
      throw new EmbedderError(
        "MODEL_UNSUPPORTED",
        `${file}: include_prompt false (pooling that leaves the prompt out); set queryPrompt and documentPrompt to ""`,
      );
    }
  }
  if (option !== undefined) return [option];
  if (file !== undefined && config !== undefined) return poolingModes(file, config);
  if (known !== undefined) return [known];
  throw new EmbedderError(
    "MODEL_UNSUPPORTED",
    "the model folder does not say how to pool (no modules.json, no 1_Pooling/config.json) and the model is not a known one; " +
      `pass the option pooling: ${POOLING_MODES.map((mode) => JSON.stringify(mode)).join(" | ")}`,
  );
}

const OLDER_KEYS: Record<PoolingMode, string> = {
  cls: "pooling_mode_cls_token",
  max: "pooling_mode_max_tokens",
  mean: "pooling_mode_mean_tokens",
  mean_sqrt_len_tokens: "pooling_mode_mean_sqrt_len_tokens",
  weightedmean: "pooling_mode_weightedmean_tokens",
  lasttoken: "pooling_mode_lasttoken",
};

/** `pooling_mode`, a name or a list of names, or the older form of one boolean for each mode. */
function poolingModes(file: string, config: JsonObject): PoolingMode[] {
  const unsupported = (mode: string) =>
    new EmbedderError("MODEL_UNSUPPORTED", `${file}: ${mode}; supported are ${POOLING_MODES.join(", ")}`);
  for (const key of Object.keys(config)) {
    const isUnknown = key.startsWith("pooling_mode_") && !Object.values(OLDER_KEYS).includes(key);
    if (isUnknown && config[key] === true) throw unsupported(key);
  }
  const declared = config.pooling_mode;
  const names =
    declared === undefined || declared === null
      ? POOLING_MODES.filter((mode) => config[OLDER_KEYS[mode]] === true)
      : [declared].flat();
  const unknown = names.find((name) => !POOLING_MODES.includes(name as PoolingMode));
  if (unknown !== undefined) throw unsupported(`pooling_mode ${JSON.stringify(unknown)}`);
  if (names.length === 0) throw new EmbedderError("MODEL_INVALID", `${file}: no pooling mode is set`);
  const repeated = names.find((name, index) => names.indexOf(name) < index);
  if (repeated !== undefined) {
    throw new EmbedderError(
      "MODEL_INVALID",
      `${file}: pooling mode ${JSON.stringify(repeated)} is named more than once`,
    );
  }
  return names as PoolingMode[];
}

function required(file: string): JsonObject {
  const value = readJsonObjectIfPresent(file);
  if (value === undefined) throw new EmbedderError("MODEL_NOT_FOUND", `${file} does not exist`);
  return value;
}

function optionalCount(file: string, object: JsonObject, key: string): number | undefined {
  return object[key] === undefined || object[key] === null ? undefined : count(file, object, key);
}

function count(file: string, object: JsonObject, key: string): number {
  const value = object[key];
  if (Number.isInteger(value) && (value as number) >= 1 && (value as number) < 2 ** 32) return value as number;
  throw new EmbedderError(
    "MODEL_INVALID",
    `${file}: ${key}: expected a whole number of at least 1 and below 2^32, found ${describeValue(value ?? null)}`,
  );
}
