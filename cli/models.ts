import type { Command } from "commander";
import { printResult, table } from "./terminal.js";

const HELP = `
Known models are pinned to a commit and come with the prompts of their authors. "checked" says whether a model was run
with its own weights when this package was made, or only its published facts were checked. Other models with one of
these architectures also work if their folder declares its pooling.

Examples:
  $ semantic-search-native models
  $ semantic-search-native models --json | jq -r '.[] | select(.task == "embed" and .dimension <= 384).id'`;

export function addModels(program: Command): void {
  program
    .command("models")
    .description("list the known models")
    .option("--json", "all facts about them, as JSON")
    .addHelpText("after", HELP)
    .action(listModels);
}

async function listModels({ json }: { json?: boolean }): Promise<void> {
  const { KNOWN_MODELS } = await import("../lib/known_models.js");
  const rows = KNOWN_MODELS.map((model) => {
    const { id, task, architecture, maxTokens, parameters, license = "", checked } = model;
    const [dimension, pooling] = model.task === "embed" ? [String(model.dimension), model.pooling] : ["", ""];
    const size = parameters === undefined ? "" : `${Math.round(parameters / 1e6)} M`;
    return [id, task, architecture, dimension, String(maxTokens ?? ""), pooling, size, license, checked];
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
  ];
  await printResult(json, KNOWN_MODELS, table([header, ...rows]));
}
