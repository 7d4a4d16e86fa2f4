import { existsSync } from "node:fs";
import * as path from "node:path";
import { EmbedderError } from "./errors.js";
import type { WantedWeights } from "./hub/model_files.js";
import { type HubModel, parseHubName, pullWeights } from "./hub/pull.js";
import { knownModel, knownModelByShortName } from "./known_models.js";
import type { EngineLoadOptions, LoadOptions } from "./load_options.js";
import { readModules, readPrompts } from "./model_dir.js";
import { invalid } from "./option_rules.js";

/** A model as the caller names it: a folder, or a model on the Hub. */
export type ModelSource = { folder: string } | { hub: HubModel };

/**
 * `org/name` and `org/name@revision` are models on the Hub, unless there is such a folder; everything else is a folder.
 *
 * @throws EmbedderError `INVALID_ARGUMENT`, or `MODEL_NOT_FOUND` for a known model's name without its organization.
 */
export function modelSource(model: unknown): ModelSource {
  const name = model ?? process.env.SEMANTIC_SEARCH_MODEL;
  if (typeof name !== "string" || name === "") {
    throw invalid(
      "model",
      "the path of a model folder or a name on the Hub (or SEMANTIC_SEARCH_MODEL set to it)",
      name,
    );
  }
  if (existsSync(name)) return { folder: path.resolve(name) };
  const hub = parseHubName(name);
  const known = hub ? undefined : knownModelByShortName(name);
  if (known) {
    throw new EmbedderError(
      "MODEL_NOT_FOUND",
      `there is no folder ${name}; on the Hub, the model is named ${known.id}`,
    );
  }
  return hub ? { hub } : { folder: path.resolve(name) };
}

/**
 * The model's folder, downloaded if necessary, and the options to load it with: a known model of the Hub whose folder does
 * not declare its pooling or prompts gets those of its authors.
 *
 * @throws EmbedderError as `pull`.
 */
export async function locate(
  source: ModelSource,
  wanted: WantedWeights,
  options: EngineLoadOptions,
): Promise<{ dir: string; options: EngineLoadOptions }> {
  const { onProgress, offline, signal, ...rest } = options;
  if ("folder" in source) return { dir: source.folder, options: rest };
  const dir = await pullWeights(source.hub, wanted, {
    ...(signal && { signal }),
    ...(onProgress && { onProgress }),
    ...(offline !== undefined && { offline }),
  });
  return { dir, options: { ...knownOptions(source.hub.id, dir, rest), ...rest } };
}

/** Options for what a known model's folder does not declare. */
function knownOptions(id: string, dir: string, { dimensions }: LoadOptions): LoadOptions {
  const known = knownModel(id);
  if (known?.task !== "embed") return {};
  const { query, document } = readPrompts(dir);
  return {
    ...(readModules(dir).poolingFile === undefined && { pooling: known.pooling }),
    ...(query === undefined && { queryPrompt: known.queryPrompt }),
    ...(document === undefined && { documentPrompt: known.documentPrompt }),
    ...(dimensions !== undefined && { layerNorm: known.layerNorm ?? false }),
  };
}
