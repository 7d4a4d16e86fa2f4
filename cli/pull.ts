import type { Command } from "commander";
import type { PullOptions } from "../embedder.js";
import { downloadProgress } from "./download_progress.js";
import { interruptionSignal } from "./interruption.js";
import { clearStatus, printResult } from "./terminal.js";

interface PullFlags extends Pick<PullOptions, "cacheFolder" | "endpoint" | "offline" | "onnx" | "verify"> {
  json?: boolean;
}

const HELP = `
Brings what this package needs of a model into the cache that all clients of the Hugging Face Hub share, checks it
against its SHA-256, and prints its folder. What is there already is not downloaded again; what was cut off goes on where
it stopped. Files that are there count as right, unless --verify has them compared with their hashes. Known models (see
"models") have a pinned commit; others come from "main" unless @revision says otherwise.

Environment: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT (a mirror), HF_TOKEN (private and gated models), HF_HUB_OFFLINE, proxies
by HTTPS_PROXY and NO_PROXY.

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
    .option("--onnx", "also the ONNX graph, which the JavaScript fallback needs")
    .option("--verify", "compare what is in the cache with its hash, and download again what differs")
    .option("--offline", "do not use the network: find the model in the cache, or fail")
    .option("--cache-folder <path>", "a cache folder other than the Hub's own")
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
