import type { Command } from "commander";
import { CommandLineError, EXIT_CODES } from "./failure.js";
import { interruptionSignal } from "./interruption.js";
import { confirmed, megabytes, note, onOneLine, printResult } from "./terminal.js";

interface RmFlags {
  yes?: boolean;
  cacheFolder?: string;
  json?: boolean;
}

const HELP = `
Deletes all that the cache has of a model, or with @revision one branch, tag or commit; files that another revision needs
stay. All clients of the Hugging Face Hub share the cache: a model that another program has downloaded is deleted for it,
too. So the command asks first; without a terminal, it requires --yes.

Examples:
  $ semantic-search-native models --downloaded
  $ semantic-search-native rm nomic-ai/CodeRankEmbed
  $ semantic-search-native rm BAAI/bge-small-en-v1.5@main --yes`;

export function addRm(program: Command): void {
  program
    .command("rm")
    .description("delete a model from the Hub's cache")
    .argument("<model>", 'its name, "org/name", or "org/name@revision" for one branch, tag or commit')
    .option("-y, --yes", "do not ask")
    .option("--cache-folder <path>", "a cache folder other than the Hub's")
    .option("--json", "the result as JSON")
    .addHelpText("after", HELP)
    .action(remove);
}

async function remove(model: string, { yes, cacheFolder = "", json }: RmFlags): Promise<void> {
  const signal = interruptionSignal();
  const [{ carryOut, planDeletion }, { hubSettings }] = await Promise.all([
    import("../lib/hub/cached_models.js"),
    import("../lib/hub/settings.js"),
  ]);
  const folder = hubSettings({ cacheFolder, token: false }).cacheFolder;
  const deletion = await planDeletion(folder, model);
  const { id, commits, freedBytes, sharedBytes } = deletion;
  const revisions = commits.length === 1 ? "1 revision" : `${commits.length} revisions`;
  if (!yes) {
    if (!process.stdin.isTTY || !process.stderr.isTTY) {
      const message = `rm deletes ${revisions} of ${id}, also for other programs: confirm this with --yes`;
      throw new CommandLineError("USAGE", message, { exitCode: EXIT_CODES.usage });
    }
    const question = `delete ${revisions} of ${id} (${megabytes(freedBytes)}) from ${folder}? [y/N] `;
    if (!(await confirmed(question, signal))) throw new CommandLineError("NOT_CONFIRMED", "nothing was deleted");
  }
  await carryOut(deletion);
  if (sharedBytes > 0 && !json) {
    note(`${megabytes(sharedBytes)} stay in the store that Python's huggingface_hub shares between models`);
  }
  const line = onOneLine(`deleted ${revisions} of ${id}, freed ${megabytes(freedBytes)}`);
  await printResult(json, { model: id, commits, freedBytes, sharedBytes }, line);
}
