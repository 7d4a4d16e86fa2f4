import type { Command } from "commander";
import type { PullOptions } from "../embedder.js";
import { downloadProgress } from "./download_progress.js";
import { interruptionSignal } from "./interruption.js";
import { clearStatus, printResult } from "./terminal.js";

interface PullFlags extends Pick<PullOptions, "cacheFolder" | "endpoint" | "offline" | "onnx" | "verify"> {
  json?: boolean;
}

const HELP = `
Downloads the files that this package needs of a model into the cache that all clients of the Hugging Face Hub share,
checks their hashes, and prints the folder. Files that are already there are not downloaded again, and interrupted
downloads are resumed. Files in the cache are not checked again unless --verify is given. Known models (see "models") have a
pinned commit; for others, "main" is downloaded unless @revision is given.

Environment: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT (a mirror), HF_TOKEN (private and gated models), HF_HUB_OFFLINE,
HTTPS_PROXY and NO_PROXY.

Examples:
  $ semantic-search-native pull nomic-ai/CodeRankEmbed
  $ semantic-search-native pull BAAI/bge-small-en-v1.5@main --onnx
  $ semantic-search-native pull nomic-ai/CodeRankEmbed --verify
  $ semantic-search-native embed "$(semantic-search-native pull nomic-ai/CodeRankEmbed)" notes.txt`;

export function addPull(program: Command): void {
  program
    .command("pull")
    .description("download a model from the Hugging Face Hub")
    .argument("<model>", 'its name, "org/name", or "org/name@revision" with a branch, tag or commit')
    .option("--onnx", "also download the ONNX graph, which the JavaScript fallback needs")
    .option("--verify", "check the hashes of files in the cache, and download again those that differ")
    .option("--offline", "do not use the network: fail if the model is not in the cache")
    .option("--cache-folder <path>", "a cache folder other than the Hub's")
    .option("--endpoint <url>", "a mirror of the Hub")
    .option("--json", "the result as JSON")
    .addHelpText("after", HELP)
    .action(pullModel);
}

async function pullModel(model: string, { json, ...options }: PullFlags): Promise<void> {
  const signal = interruptionSignal();
  const { pull } = await import("../lib/hub/pull.js");
  try {
    const folder = await pull(model, { ...options, signal, onProgress: downloadProgress() });
    clearStatus();
    await printResult(json, { model, folder }, folder);
  } finally {
    clearStatus();
  }
}
