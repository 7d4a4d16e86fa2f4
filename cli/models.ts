import type { Command } from "commander";
import { printResult, table } from "./terminal.js";

const HELP = `
Known models are pinned to a commit and come with the prompts of their authors. Other models with one of these
architectures also work if their folder declares its pooling.

Examples:
  $ semantic-search-native models
  $ semantic-search-native models --json | jq -r '.[] | select(.dimension <= 384).id'`;

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
  const rows = KNOWN_MODELS.map(({ id, architecture, dimension, maxTokens, pooling, parameters, license }) => {
    const size = parameters === undefined ? "" : `${Math.round(parameters / 1e6)} M`;
    return [id, architecture, String(dimension), String(maxTokens), pooling, size, license];
  });
  const header = ["model", "architecture", "dimension", "tokens", "pooling", "parameters", "license"];
  await printResult(json, KNOWN_MODELS, table([header, ...rows]));
}
