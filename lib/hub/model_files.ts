import { existsSync } from "node:fs";
import * as path from "node:path";
import { CHAT_TEMPLATE_FILE } from "../chat_template.js";
import { DENSE_FILES } from "../dense.js";
import { EmbedderError } from "../errors.js";
import { isObject, JsonFile } from "../json_file.js";
import { checkLabels, EXPORTED_GRAPHS, PROMPTS_FILE, readModules, TRANSFORMER_FILES, taskOf } from "../model_dir.js";
import { checkConfig } from "../native.js";
import { isPlainPath } from "../regular_file.js";
import type { Listing } from "./listing.js";

/** Which weights are needed. Repositories contain the same ones in up to ten formats. */
export interface WantedWeights {
  safetensors: boolean;
  /** The graph for the JavaScript fallback, with its weights. */
  onnx?: "f32" | "int8" | undefined;
}

/** A repository at a commit. */
export interface Snapshot {
  /** The name in error messages. */
  name: string;
  listing: Listing;
  /** Where its files are or will be. */
  folder: string;
}

const GRAPHS = {
  f32: ["onnx/model.onnx", "model.onnx"],
  int8: ["onnx/model_quantized.onnx", "model_quantized.onnx"],
} as const;

/**
 * The files that loading a model reads (see `model_dir.ts` and `src/model_dir.rs`), and no others. Some small files tell
 * which ones those are: `fetch` downloads them first. A model of an unsupported architecture, and a classifier, are refused
 * before their weights are downloaded.
 *
 * @throws EmbedderError `MODEL_UNSUPPORTED` if there are no weights of the needed kind; as `readModules`.
 */
export async function modelFiles(
  { name, listing, folder }: Snapshot,
  wanted: WantedWeights,
  fetch: (files: string[]) => Promise<void>,
): Promise<string[]> {
  const present = (files: string[]) => files.filter((file) => listing.files.has(file));
  await fetch(present(["modules.json"]));
  const { transformerPath, poolingFile, denseFolders, logitScoreFile, isStatic } = readModules(folder);
  const pooling = poolingFile ? relative(folder, poolingFile) : "1_Pooling/config.json";
  const inTransformer = (file: string) => relative(folder, path.join(folder, transformerPath, file));

  const config = inTransformer("config.json");
  const tokenizer = inTransformer("tokenizer.json");
  // A static model's weights tell what its settings would.
  for (const file of isStatic ? [tokenizer] : [config, tokenizer]) {
    if (!listing.files.has(file)) {
      throw new EmbedderError("MODEL_UNSUPPORTED", `${name} has no ${file}: is it a text embedding model?`);
    }
  }
  const dense = denseFolders.flatMap((module) => DENSE_FILES.map((file) => relative(folder, path.join(module, file))));
  const missing = dense.find((file) => !listing.files.has(file));
  if (missing !== undefined) throw withoutWeights(name, missing);
  await fetch(present([config]));
  const ofRerankers: string[] = [];
  // Safetensors are for the addon. A graph is run without knowing what it computes.
  if (!isStatic) {
    if (wanted.safetensors) checkConfig(path.join(folder, config));
    const settings = JsonFile.read(path.join(folder, config));
    const declared = listing.files.has(pooling) ? pooling : undefined;
    if (taskOf({ config: settings, poolingFile: declared, logitScore: logitScoreFile }) === "rerank") {
      if (logitScoreFile === undefined) checkLabels(settings);
      else ofRerankers.push(relative(folder, logitScoreFile));
      ofRerankers.push(inTransformer(CHAT_TEMPLATE_FILE));
    }
  }

  const files = present([
    "modules.json",
    PROMPTS_FILE,
    pooling,
    ...TRANSFORMER_FILES.map(inTransformer),
    ...ofRerankers,
    ...dense,
  ]);
  const exported = EXPORTED_GRAPHS[wanted.onnx === "int8" ? 1 : 0];
  const hasExported = [exported, inTransformer(exported)].some((file) => existsSync(path.join(folder, file)));
  // A graph that `exportOnnx` wrote into the snapshot replaces the repository's; its weights are in safetensors files.
  const onnx = hasExported ? undefined : wanted.onnx;
  if (onnx) files.push(...graphFiles(name, listing, onnx));
  if (wanted.safetensors || !onnx) files.push(...(await weightFiles(name, listing, folder, inTransformer, fetch)));
  return [...new Set(files)];
}

/** One file, or the shards that an index names. */
async function weightFiles(
  name: string,
  { files }: Listing,
  folder: string,
  inTransformer: (file: string) => string,
  fetch: (files: string[]) => Promise<void>,
): Promise<string[]> {
  const single = inTransformer("model.safetensors");
  if (files.has(single)) return [single];
  const index = inTransformer("model.safetensors.index.json");
  if (!files.has(index)) throw withoutWeights(name, single);
  await fetch([index]);
  const file = path.join(folder, index);
  const { weight_map: weightMap } = JsonFile.read(file).json;
  const shards = [...new Set(isObject(weightMap) ? Object.values(weightMap) : [undefined])];
  for (const shard of shards) {
    if (typeof shard !== "string" || !isPlainPath(shard) || !files.has(inTransformer(shard))) {
      const message = `${file}: weight_map: expected files of the repository, found ${JSON.stringify(shard ?? null)}`;
      throw new EmbedderError("MODEL_INVALID", message);
    }
  }
  return [index, ...shards.map((shard) => inTransformer(shard as string))];
}

function withoutWeights(name: string, file: string): EmbedderError {
  const message = `${name} has no ${file} (pytorch_model.bin is not read); pass a revision that has one, such as a conversion's @refs/pr/1`;
  return new EmbedderError("MODEL_UNSUPPORTED", message);
}

/** An ONNX graph and the files next to it that contain its weights. */
function graphFiles(name: string, { files }: Listing, kind: "f32" | "int8"): string[] {
  const graph = GRAPHS[kind].find((file) => files.has(file));
  if (!graph) {
    const dtype = kind === "int8" ? ', { dtype: "int8" }' : "";
    throw new EmbedderError(
      "MODEL_UNSUPPORTED",
      `${name} has no ONNX file for the backend onnx-js (looked for ${GRAPHS[kind].join(", ")}); ` +
        `exportOnnx(model${dtype}) writes one where the addon runs`,
    );
  }
  return [...files.keys()].filter(
    (file) => file === graph || (/^[._]data/.test(file.slice(graph.length)) && file.startsWith(graph)),
  );
}

/** A relative path with `/`, as repositories name their files. */
function relative(folder: string, file: string): string {
  return path.relative(folder, file).split(path.sep).join("/");
}
