/**
 * Reads a model folder in the layout of sentence-transformers, for the JavaScript fallback. `src/model_dir.rs` reads the
 * same files by the same rules for the addon; tests compare them.
 */

import { createHash } from "node:crypto";
import { existsSync, statSync } from "node:fs";
import * as path from "node:path";
import { type ChatTemplate, readChatTemplate } from "./chat_template.js";
import { type Dense, readDenseModules } from "./dense.js";
import { type Description, type EngineOptions, POOLING_MODES, type PoolingMode, type Task } from "./engine.js";
import { EmbedderError } from "./errors.js";
import { isObject, JsonFile, parseJsonObject, readJsonIfPresent } from "./json_file.js";
import { type KnownEmbedder, modelNamedInConfig } from "./known_models.js";
import { checkLogitScore, LOGIT_SCORE_FILE } from "./logit_score.js";
import { MOST_SETTINGS, readRegularFile } from "./regular_file.js";
import { MODEL2VEC, readStaticFacts, type StaticTokens } from "./static_table.js";

/** What has to be known of an encoder beside its graph. */
export interface EncoderFacts {
  /** Width of a hidden state. */
  width: number;
  /** Rows of the embedding table: every token id is below it. */
  vocabulary: number;
  /** Most tokens that the model has positions for. */
  positions: number;
  /** Whether vectors are layer-normalized before they are truncated; `undefined` if the model's files do not tell. */
  layerNormBeforeTruncation: boolean | undefined;
}

/** A model folder before its settings are resolved. */
export interface ModelFolder {
  dir: string;
  /** The folder of configuration, tokenizer and weights: `dir` itself or the first module's `path` in it. */
  transformerDir: string;
  /** The pooling's settings, if the folder has them. */
  poolingFile: string | undefined;
  /** The folders of the Dense modules, in their order. */
  denseFolders: string[];
  /** The settings of the module that makes a score of logits. */
  logitScore: JsonFile | undefined;
  /** Whether there is a `modules.json`. */
  hasModules: boolean;
  config: JsonFile;
  /** Of a static model: which tokens count. */
  staticTokens: StaticTokens | undefined;
  /** SHA-256 of `config.json` as it was read, of nothing where a static model has none, followed by that of `LogitScore`. */
  configHash: string;
}

export interface ModelDir extends ModelFolder {
  /** What it is read for. */
  task: Task;
  encoder: EncoderFacts;
  pooling: PoolingMode[];
  /** The layers that follow the pooling. */
  dense: Dense[];
  /** Of a reranker: what is put around a query and a text; `undefined` if the tokenizer joins them. */
  template: ChatTemplate | undefined;
  /** Empty if it is in the template. */
  queryPrompt: string;
  documentPrompt: string;
  /** Longest text in tokens, special tokens included. */
  maxTokens: number;
  /** How pooled vectors are shortened; `undefined` if they are not. */
  matryoshka: Matryoshka | undefined;
  normalize: boolean;
  /** Lower-case the text before the tokenizer sees it. */
  lowerCase: boolean;
  truncationSide: "left" | "right";
  tokenizerFile: string;
}

/** Keeps the first components of a vector, which Matryoshka training makes the most significant ones. */
export interface Matryoshka {
  dimensions: number;
  /** Whether a layer norm is applied to the full vector first. */
  layerNorm: boolean;
}

/** The settings files next to the weights, and the tokenizer. */
export const TRANSFORMER_FILES = [
  "config.json",
  "sentence_bert_config.json",
  "tokenizer_config.json",
  "tokenizer.json",
] as const;
export const PROMPTS_FILE = "config_sentence_transformers.json";
/** The graphs that the addon exports; their weights are those of the safetensors files, or quantized from them. */
export const EXPORTED_GRAPHS = ["semantic-search-native.onnx", "semantic-search-native.int8.onnx"] as const;

/** A `model_max_length` above this means "none": the Python libraries write 1e30. */
const NO_LIMIT = 1e8;
const DEFAULT_MAX_TOKENS = 512;
/** Whose rerankers read a chat template: the architectures of which the addon knows the logits. */
const LANGUAGE_MODELS: unknown[] = ["qwen2", "qwen3"];

/**
 * Opens the folder as far as `config.json`.
 *
 * @throws EmbedderError `MODEL_NOT_FOUND`, `MODEL_INVALID` or `MODEL_UNSUPPORTED`, naming the file.
 */
export function openModelFolder(dir: string): ModelFolder {
  if (!existsSync(dir)) throw new EmbedderError("MODEL_NOT_FOUND", `model folder ${dir} does not exist`);
  if (!statSync(dir).isDirectory()) {
    throw new EmbedderError("MODEL_NOT_FOUND", `${dir} is not a folder; expected the folder that holds config.json`);
  }
  const { transformerPath, isStatic, logitScoreFile, ...modules } = readModules(dir);
  const transformerDir = path.join(dir, transformerPath);
  const configFile = path.join(transformerDir, "config.json");
  const bytes = readConfig(configFile, isStatic);
  const config = new JsonFile(configFile, bytes ? parseJsonObject(configFile, bytes) : {});
  const score = logitScoreFile === undefined ? undefined : readRegularFile(logitScoreFile, MOST_SETTINGS);
  const logitScore =
    logitScoreFile && score ? new JsonFile(logitScoreFile, parseJsonObject(logitScoreFile, score)) : undefined;
  return {
    ...{ dir, transformerDir, ...modules, config, logitScore },
    staticTokens: config.json.model_type === MODEL2VEC ? "known" : isStatic ? "all" : undefined,
    configHash: createHash("sha256")
      .update(bytes ?? "")
      .update(score ?? "")
      .digest("hex"),
  };
}

/** The bytes of `config.json`, which a static model need not have. */
function readConfig(file: string, isStatic: boolean): Buffer | undefined {
  try {
    return readRegularFile(file, MOST_SETTINGS);
  } catch (error) {
    if (isStatic && error instanceof EmbedderError && error.code === "MODEL_NOT_FOUND") return undefined;
    throw error;
  }
}

/**
 * What `config.json` says of an encoder whose graph is not ours. Such a graph computes whatever its model does, so that no
 * architecture has to be known.
 *
 * @throws EmbedderError `MODEL_INVALID`
 */
export function readEncoderFacts({ config, transformerDir, staticTokens }: ModelFolder): EncoderFacts {
  if (staticTokens) return readStaticFacts(transformerDir, config);
  return {
    width: config.required(config.count("hidden_size", "n_embd", "dim", "d_model"), "hidden_size"),
    vocabulary: config.required(config.count("vocab_size"), "vocab_size"),
    positions: config.count("max_position_embeddings", "n_positions") ?? Number.POSITIVE_INFINITY,
    // Of the models that have this type, nomic-embed-text-v1.5 asks for it.
    layerNormBeforeTruncation: config.json.model_type === "nomic_bert" ? undefined : false,
  };
}

/**
 * Reads a model folder for a graph that is not ours.
 *
 * @throws EmbedderError as `openModelFolder` and `resolveModelDir`.
 */
export function readModelDir(dir: string, options: EngineOptions): ModelDir {
  const folder = openModelFolder(dir);
  return resolveModelDir(folder, readEncoderFacts(folder), options);
}

/**
 * Reads the rest of the folder. If several things are wrong, reports the one that `src/model_dir.rs` reports.
 *
 * @throws EmbedderError `MODEL_NOT_FOUND`, `MODEL_INVALID` or `MODEL_UNSUPPORTED`, naming file and key; `INVALID_ARGUMENT`
 * for more `dimensions` than there are.
 */
export function resolveModelDir(folder: ModelFolder, encoder: EncoderFacts, options: EngineOptions): ModelDir {
  const { dir, transformerDir, poolingFile, denseFolders, config, staticTokens } = folder;
  const { width, positions } = encoder;
  const [, sentenceFile, tokenizerConfigFile, tokenizerFile] = TRANSFORMER_FILES.map((name) =>
    path.join(transformerDir, name),
  ) as [string, string, string, string];

  const task = options.task ?? "embed";
  const isReranker = task === "rerank";
  if (isReranker) checkReranker(folder);
  if (folder.logitScore) checkLogitScore(folder.logitScore, encoder.vocabulary);
  const known = isReranker ? undefined : modelNamedInConfig(config.json);
  const prompts = readPrompts(dir);
  const prompt = (option: string | undefined, named: string | undefined, ofKnown: string | undefined) =>
    option ?? named ?? ofKnown ?? prompts.fallback ?? "";
  // `CrossEncoder` uses its default prompt only.
  const queryPrompt = prompt(options.queryPrompt, isReranker ? undefined : prompts.query, known?.queryPrompt);
  const documentPrompt = isReranker ? "" : prompt(options.documentPrompt, prompts.document, known?.documentPrompt);
  const declared = poolingFile === undefined ? undefined : JsonFile.read(poolingFile);
  if (declared) checkPooling(declared, width, queryPrompt + documentPrompt !== "");
  const usual = known?.pooling ?? (staticTokens && "mean");
  const pooling: PoolingMode[] | undefined = isReranker
    ? ["cls"]
    : options.pooling
      ? [options.pooling]
      : declared
        ? poolingModes(declared)
        : usual && [usual];
  if (!pooling && taskOf(folder) === "rerank") {
    const message = `${dir}: a reranker, which gives no vectors, is not supported; load it with Reranker.load`;
    throw new EmbedderError("MODEL_UNSUPPORTED", message);
  }
  if (!pooling) {
    throw new EmbedderError(
      "MODEL_UNSUPPORTED",
      `${dir}: a model folder that does not say its pooling (no modules.json, no 1_Pooling) is not supported; ` +
        `pass the option pooling: ${POOLING_MODES.map((mode) => JSON.stringify(mode)).join(" | ")}`,
    );
  }
  const dense = isReranker ? [] : readDenseModules(denseFolders, pooling.length * width);
  const full = fullDimension({ task, dense, pooling, encoder });
  const matryoshka = isReranker ? undefined : readMatryoshka(folder, encoder, full, known, options);

  const sentence = JsonFile.readOptional(sentenceFile);
  const tokenizerConfig = JsonFile.readOptional(tokenizerConfigFile);
  const maxSequenceLength = sentence.count("max_seq_length");
  const lowerCase = sentence.flag("do_lower_case") ?? false;
  const maxLength = readModelMaxLength(tokenizerConfig);
  const isSide = (value: unknown) => value === "left" || value === "right";
  const truncationSide = tokenizerConfig.typed(["truncation_side"], '"left" or "right"', isSide) ?? "right";
  const template = isReranker
    ? readChatTemplate(transformerDir, folder.hasModules, { sentence, tokenizerConfig }, queryPrompt)
    : undefined;
  if (isReranker && !template && (folder.logitScore || LANGUAGE_MODELS.includes(config.json.model_type))) {
    const message = `${dir}: a reranker that is a language model without a chat template is not supported; add chat_template.jinja and sentence_bert_config.json, with "message" in modality_config, of Qwen/Qwen3-Reranker-0.6B`;
    throw new EmbedderError("MODEL_UNSUPPORTED", message);
  }
  if (!existsSync(tokenizerFile)) throw new EmbedderError("MODEL_NOT_FOUND", `${tokenizerFile} does not exist`);
  return {
    ...folder,
    ...{ task, encoder, pooling, dense, template, documentPrompt },
    queryPrompt: template ? "" : queryPrompt,
    ...{ matryoshka, lowerCase, truncationSide, tokenizerFile },
    maxTokens: Math.min(
      options.maxTokens ?? DEFAULT_MAX_TOKENS,
      maxSequenceLength ?? maxLength ?? positions,
      positions,
    ),
    normalize: !isReranker && (options.normalize ?? true),
  };
}

/** Length of a vector before it is truncated to `dimensions`. */
export function fullDimension(model: Pick<ModelDir, "task" | "dense" | "pooling" | "encoder">): number {
  const { task, dense, pooling, encoder } = model;
  return task === "rerank" ? 1 : (dense.at(-1)?.outputs ?? encoder.width * pooling.length);
}

/** The task that a folder declares: a reranker has `LogitScore`, or is a model for sequence classification without a pooling. */
export function taskOf({
  config,
  poolingFile,
  logitScore,
}: Pick<ModelFolder, "config" | "poolingFile"> & { logitScore?: unknown }): Task {
  if (logitScore) return "rerank";
  const { architectures } = config.json;
  const [architecture]: unknown[] = Array.isArray(architectures) ? architectures : [];
  const isClassifier = typeof architecture === "string" && architecture.endsWith("ForSequenceClassification");
  return isClassifier && poolingFile === undefined ? "rerank" : "embed";
}

/** @throws EmbedderError `MODEL_UNSUPPORTED` for an embedder, or a model with several labels. */
function checkReranker(folder: ModelFolder): void {
  if (taskOf(folder) !== "rerank") {
    const message = `${folder.dir}: a reranker without a head (expected a model for sequence classification or a LogitScore module, and no pooling) is not supported; load an embedder with Embedder.load; of a language model, download the newest revision, which may have the module`;
    throw new EmbedderError("MODEL_UNSUPPORTED", message);
  }
  if (!folder.logitScore) checkLabels(folder.config);
}

/** @throws EmbedderError `MODEL_UNSUPPORTED` for a model with several labels. */
export function checkLabels(config: JsonFile): void {
  const { id2label, num_labels: count } = config.json;
  // What `transformers` leaves out, it reads as two.
  const labels = isObject(id2label) ? Object.keys(id2label).length : (count ?? 2);
  if (labels === 1) return;
  const hint = "supported is 1, a score (a model with several labels is a classifier)";
  throw config.unsupported(`num_labels = ${JSON.stringify(labels)}`, hint);
}

/** Describes a model, given the hashes of its tokenizer and its weights. */
export function describe(
  model: ModelDir,
  tokenizerHash: string,
  { weightHashes, dtype }: { weightHashes: readonly string[]; dtype: string },
): Description {
  const { task, pooling, dense, queryPrompt, documentPrompt, template, maxTokens, normalize, matryoshka } = model;
  // The same text, and so the same hash, as `ModelDir::fingerprint` in `src/model_dir.rs`.
  const identity = {
    format: 1,
    task: task === "rerank" ? task : undefined,
    weights: weightHashes,
    tokenizer: tokenizerHash,
    config: model.configHash,
    pooling,
    // `JSON.stringify` leaves `undefined` out.
    dense: dense.length > 0 ? dense.map(({ configHash }) => configHash) : undefined,
    ...{ queryPrompt, documentPrompt, template, maxTokens, normalize, dtype },
    dimensions: matryoshka?.dimensions,
    layerNorm: matryoshka?.layerNorm,
  };
  const { lowerCase, truncationSide, encoder } = model;
  return {
    task,
    dimension: matryoshka?.dimensions ?? fullDimension(model),
    ...{ maxTokens, pooling, queryPrompt, documentPrompt, normalize, lowerCase, truncationSide },
    vocabularySize: encoder.vocabulary,
    ...(matryoshka && { layerNorm: matryoshka.layerNorm }),
    fingerprint: createHash("sha256").update(JSON.stringify(identity)).digest("hex"),
  };
}

/**
 * `modules.json`: Transformer, Pooling and any number of Dense modules, or StaticEmbedding; then optionally Normalize; or
 * Transformer and LogitScore. Without this file, `1_Pooling` is used if it exists.
 *
 * @throws EmbedderError `MODEL_INVALID`, or `MODEL_UNSUPPORTED` for other modules.
 */
export function readModules(dir: string): Pick<ModelFolder, "poolingFile" | "denseFolders" | "hasModules"> & {
  transformerPath: string;
  /** The settings of a module that makes a score of logits. */
  logitScoreFile: string | undefined;
  isStatic: boolean;
} {
  const file = path.join(dir, "modules.json");
  const invalid = (problem: string) => new EmbedderError("MODEL_INVALID", `${file}: ${problem}`);
  const modules = readJsonIfPresent(file);
  if (modules === undefined) {
    const poolingFile = path.join(dir, "1_Pooling", "config.json");
    return {
      transformerPath: "",
      poolingFile: existsSync(poolingFile) ? poolingFile : undefined,
      denseFolders: [],
      logitScoreFile: undefined,
      isStatic: false,
      hasModules: false,
    };
  }
  if (!Array.isArray(modules)) throw invalid("expected a JSON array of modules");
  const entries = modules.map((module: unknown, index) => {
    const { type, path: modulePath = "" } = isObject(module) ? module : {};
    if (typeof type === "string" && typeof modulePath === "string") return { type, path: modulePath };
    throw invalid(`entry ${index}: expected strings "type" and "path"`);
  });
  for (const { path: modulePath } of entries) {
    if (path.isAbsolute(modulePath) || modulePath.split(/[\\/]/).includes("..")) {
      throw invalid(`expected a path inside the model folder, found ${JSON.stringify(modulePath)}`);
    }
  }
  const names = entries.map(({ type }) =>
    // Other classes are the model's own code, which is not run.
    type.startsWith("sentence_transformers.") ? type.split(".").at(-1) : undefined,
  );
  const isStatic = names[0] === "StaticEmbedding";
  const isOfLogits = names[1] === "LogitScore" && names.length === 2;
  const first = isStatic ? ["StaticEmbedding"] : ["Transformer", isOfLogits ? "LogitScore" : "Pooling"];
  const denseFolders: string[] = [];
  for (const [index, { type, path: modulePath }] of entries.entries()) {
    const name = names[index];
    if (index < first.length && name === first[index]) continue;
    if (index >= first.length && name === "Normalize" && index === entries.length - 1) continue;
    if (index < first.length || name !== "Dense" || isStatic) {
      throw new EmbedderError(
        "MODEL_UNSUPPORTED",
        `${file}: module ${index} of type ${JSON.stringify(type)} is not supported; supported are the chains Transformer, ` +
          "Pooling, Dense, Normalize; StaticEmbedding, Normalize; and Transformer, LogitScore of sentence_transformers (any " +
          "number of Dense modules; Normalize is optional)",
      );
    }
    denseFolders.push(path.join(dir, modulePath));
  }
  const [transformer, second] = entries;
  if (!transformer) throw invalid("expected a list of modules that starts with a Transformer, found an empty list");
  return {
    transformerPath: transformer.path,
    poolingFile: second && !isStatic && !isOfLogits ? path.join(dir, second.path, "config.json") : undefined,
    denseFolders,
    logitScoreFile: second && isOfLogits ? path.join(dir, second.path, LOGIT_SCORE_FILE) : undefined,
    isStatic,
    hasModules: true,
  };
}

function readModelMaxLength(file: JsonFile): number | undefined {
  const isLimit = (value: unknown): value is number =>
    typeof value === "number" && (value > NO_LIMIT || (value >= 1 && Number.isInteger(value)));
  const limit = file.typed(["model_max_length"], "a whole number of at least 1", isLimit);
  return limit !== undefined && limit <= NO_LIMIT ? limit : undefined;
}

function readMatryoshka(
  { config }: ModelFolder,
  { layerNormBeforeTruncation }: EncoderFacts,
  pooledDimension: number,
  known: KnownEmbedder | undefined,
  { dimensions, layerNorm }: EngineOptions,
): Matryoshka | undefined {
  if (dimensions === undefined) return undefined;
  if (dimensions > pooledDimension) {
    const message = `dimensions: expected 1 to ${pooledDimension}, the length of the model's vectors, found ${dimensions}`;
    throw new EmbedderError("INVALID_ARGUMENT", message);
  }
  const choice = layerNorm ?? (known && (known.layerNorm ?? false)) ?? layerNormBeforeTruncation;
  if (choice !== undefined) return { dimensions, layerNorm: choice };
  throw config.unsupported(
    "dimensions for a model whose files do not tell whether its vectors are layer-normalized first",
    "pass layerNorm: true for nomic-embed-text-v1.5, layerNorm: false for a model whose card asks for no layer norm",
  );
}

/**
 * The prompts of `config_sentence_transformers.json`.
 *
 * @throws EmbedderError `MODEL_INVALID`
 */
export function readPrompts(dir: string): { query?: string; document?: string; fallback?: string } {
  const file = JsonFile.readOptional(path.join(dir, PROMPTS_FILE));
  const named = new Map<string, string>();
  for (const [name, prompt] of Object.entries(file.typed(["prompts"], "an object", isObject) ?? {})) {
    if (prompt === null) continue;
    if (typeof prompt !== "string") throw file.invalid(`prompts.${name}: expected a string`);
    named.set(name, prompt);
  }
  const defaultName = file.text("default_prompt_name");
  if (defaultName !== undefined && !named.has(defaultName)) {
    const names = [...named.keys()].join(", ");
    throw file.invalid(`default_prompt_name ${JSON.stringify(defaultName)} is none of its prompts (${names})`);
  }
  const query = named.get("query");
  const document = named.get("document") ?? named.get("passage") ?? named.get("corpus");
  const fallback = defaultName === undefined ? undefined : named.get(defaultName);
  return {
    ...(query !== undefined && { query }),
    ...(document !== undefined && { document }),
    ...(fallback !== undefined && { fallback }),
  };
}

/** Refuses pooling that contradicts the encoder, or that leaves out the tokens of a prompt. */
function checkPooling(file: JsonFile, hiddenSize: number, hasPrompt: boolean): void {
  for (const key of ["word_embedding_dimension", "embedding_dimension"]) {
    const dimension = file.count(key);
    if (dimension !== undefined && dimension !== hiddenSize) {
      throw file.invalid(`${key}: expected the model's hidden size ${hiddenSize}, found ${dimension}`);
    }
  }
  if (file.flag("include_prompt") === false && hasPrompt) {
    throw file.unsupported(
      "include_prompt false (pooling that leaves the prompt out)",
      'set queryPrompt and documentPrompt to ""',
    );
  }
}

const OLDER_KEYS: Record<PoolingMode, string> = {
  cls: "pooling_mode_cls_token",
  max: "pooling_mode_max_tokens",
  mean: "pooling_mode_mean_tokens",
  mean_sqrt_len_tokens: "pooling_mode_mean_sqrt_len_tokens",
  weightedmean: "pooling_mode_weightedmean_tokens",
  lasttoken: "pooling_mode_lasttoken",
};

/**
 * `pooling_mode` (a name or a list of names), or the older form with one boolean per mode, in the order in which
 * sentence-transformers concatenates them.
 */
function poolingModes(file: JsonFile): PoolingMode[] {
  const unsupported = (mode: string) => file.unsupported(mode, `supported are ${POOLING_MODES.join(", ")}`);
  const older = Object.keys(file.json).filter((key) => key.startsWith("pooling_mode_"));
  const switchedOn = older.filter((key) => file.flag(key));
  const unknown = switchedOn.find((key) => !Object.values(OLDER_KEYS).includes(key));
  if (unknown !== undefined) throw unsupported(`pooling mode ${unknown}`);

  const isNames = (value: unknown): value is string | string[] =>
    [value].flat().every((name) => typeof name === "string");
  const declared = file.typed(["pooling_mode"], "a string or a list of strings", isNames);
  const names: string[] =
    declared === undefined ? POOLING_MODES.filter((mode) => switchedOn.includes(OLDER_KEYS[mode])) : [declared].flat();
  if (names.length === 0) throw file.invalid("no pooling mode is switched on");
  const seen = new Set<string>();
  for (const name of names) {
    if (seen.has(name)) throw file.invalid(`pooling mode ${JSON.stringify(name)} is named more than once`);
    seen.add(name);
  }
  const isMode = (name: string): name is PoolingMode => (POOLING_MODES as readonly string[]).includes(name);
  return names.map((name) => {
    if (isMode(name)) return name;
    throw unsupported(`pooling mode ${JSON.stringify(name)}`);
  });
}
