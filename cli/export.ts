import { statSync } from "node:fs";
import { type Command, Option } from "commander";
import type { LoadOptions } from "../lib/load_options.js";
import { downloadProgress } from "./download_progress.js";
import { interruptionSignal } from "./interruption.js";
import { clearStatus, printResult } from "./terminal.js";

interface ExportFlags {
  dtype: "f32" | "int8";
  json?: boolean;
}

const HELP = `
Writes the model's graph into its folder and prints the path. The JavaScript fallback of this package reads it, and so can
any ONNX Runtime: the input is input_ids [batch, length], int64, without padding; the output is last_hidden_state
[batch, length, hidden], float32, which still has to be pooled and normalized.

  f32   semantic-search-native.onnx, some twenty kilobytes: the weights stay in model.safetensors next to it
  int8  semantic-search-native.int8.onnx, which contains the quantized weights

Examples:
  $ semantic-search-native export ./models/CodeRankEmbed
  $ semantic-search-native export ./models/CodeRankEmbed --dtype int8`;

export function addExport(program: Command): void {
  program
    .command("export")
    .description("write the model as an ONNX file, for the JavaScript fallback and other tools")
    .argument("<model>", "a model folder, or a name on the Hugging Face Hub")
    .addOption(new Option("--dtype <format>", "number format of the weights").choices(["f32", "int8"]).default("f32"))
    .option("--json", "the result as JSON")
    .addHelpText("after", HELP)
    .action(exportModel);
}

async function exportModel(model: string, { dtype, json }: ExportFlags): Promise<void> {
  const signal = interruptionSignal();
  const { exportOnnx } = await import("../embedder.js");
  const options: LoadOptions = { dtype, signal, onProgress: downloadProgress() };
  const file = await exportOnnx(model, options).finally(clearStatus);
  const { size } = statSync(file);
  await printResult(json, { file, dtype, bytes: size }, file);
}
