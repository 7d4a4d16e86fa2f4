import type { Command } from "commander";
import type { CachedRevision } from "../lib/hub/cached_models.js";
import { megabytes, printResult, table } from "./terminal.js";

interface ModelsFlags {
  downloaded?: boolean;
  cacheFolder?: string;
  json?: boolean;
}

const HELP = `
Known models are pinned to a commit and come with the prompts of their authors. "checked" says whether a model was run
with its own weights when this package was made, or only its published facts were checked. Other models with one of
these architectures also work if their folder declares its pooling. "downloaded" says what is in the Hub's cache, if only
in part: bytes, and the branch, tag or commit.

Examples:
  $ semantic-search-native models
  $ semantic-search-native models --downloaded
  $ semantic-search-native models --json | jq -r '.[] | select(.task == "embed" and .dimension <= 384).id'`;

export function addModels(program: Command): void {
  program
    .command("models")
    .description("list the known models, and those that are downloaded")
    .option("--downloaded", "list all models in the Hub's cache instead, also those of other programs")
    .option("--cache-folder <path>", "a cache folder other than the Hub's")
    .option("--json", "all facts about them, as JSON")
    .addHelpText("after", HELP)
    .action(listModels);
}

async function listModels({ downloaded, cacheFolder = "", json }: ModelsFlags): Promise<void> {
  const [{ cachedRevisions }, { hubSettings }] = await Promise.all([
    import("../lib/hub/cached_models.js"),
    import("../lib/hub/settings.js"),
  ]);
  const cached = await cachedRevisions(hubSettings({ cacheFolder, token: false }).cacheFolder);
  if (downloaded) {
    const rows = cached.map(({ id, refs, commit, bytes }) => [id, refs.join(" "), commit, megabytes(bytes)]);
    return printResult(json, cached, table([["model", "branches and tags", "commit", "size"], ...rows]));
  }
  const { KNOWN_MODELS } = await import("../lib/known_models.js");
  const models = KNOWN_MODELS.map((known) => {
    const revisions = cached.filter(({ id }) => id === known.id);
    return { ...known, downloaded: revisions.map(({ id: _, ...revision }) => revision) };
  });
  const rows = models.map((model) => {
    const { id, task, architecture, maxTokens, parameters, license = "", checked } = model;
    const [dimension, pooling] = model.task === "embed" ? [String(model.dimension), model.pooling] : ["", ""];
    const size = parameters === undefined ? "" : `${Math.round(parameters / 1e6)} M`;
    const there = model.downloaded.map(shown).join(", ");
    return [id, task, architecture, dimension, String(maxTokens ?? ""), pooling, size, license, checked, there];
  });
  const header = [
    "model",
    "task",
    "architecture",
    "dimension",
    "tokens",
    "pooling",
    "parameters",
    "license",
    "checked",
    "downloaded",
  ];
  await printResult(json, models, table([header, ...rows]));
}

function shown({ refs, commit, bytes }: Pick<CachedRevision, "refs" | "commit" | "bytes">): string {
  return `${megabytes(bytes)} (${refs[0] ?? commit.slice(0, 7)})`;
}
