/**
 * Reads the settings of `Dense` modules: fully connected layers between pooling and normalization. `src/dense.rs` reads the
 * same files by the same rules for the addon; tests compare them.
 */

import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import * as path from "node:path";
import { EmbedderError } from "./errors.js";
import { JsonFile, parseJsonObject } from "./json_file.js";
import { MOST_SETTINGS, readRegularFile } from "./regular_file.js";

export interface Dense {
  /** Its safetensors file. */
  weightsFile: string;
  inputs: number;
  outputs: number;
  bias: boolean;
  /** What follows; `undefined` for the identity. */
  activation: "tanh" | undefined;
  /** SHA-256 of `config.json` as it was read. */
  configHash: string;
}

/** The files of a module's folder. */
export const DENSE_FILES = ["config.json", "model.safetensors"] as const;

/** The vector of a text among the outputs of modules. Others are those of tokens. */
const SENTENCE = "sentence_embedding";

/**
 * Reads the folders of modules that follow each other.
 *
 * @param width Length of the vectors that the first of them is given.
 * @throws EmbedderError `MODEL_NOT_FOUND`, `MODEL_INVALID` or `MODEL_UNSUPPORTED`, naming file and key.
 */
export function readDenseModules(folders: readonly string[], width: number): Dense[] {
  const modules: Dense[] = [];
  for (const folder of folders) modules.push(readDense(folder, modules.at(-1)?.outputs ?? width));
  return modules;
}

function readDense(folder: string, width: number): Dense {
  const [file, weightsFile] = DENSE_FILES.map((name) => path.join(folder, name)) as [string, string];
  const bytes = readRegularFile(file, MOST_SETTINGS);
  const config = new JsonFile(file, parseJsonObject(file, bytes));
  const inputs = config.required(config.count("in_features"), "in_features");
  const outputs = config.required(config.count("out_features"), "out_features");
  if (inputs !== width) {
    throw config.invalid(
      `in_features: expected ${width}, the length of the vectors that the module is given, found ${inputs}`,
    );
  }
  const bias = config.flag("bias") ?? true;
  const activationClass = config.text("activation_function") ?? "torch.nn.modules.activation.Tanh";
  const [, name] = /^torch\.nn\.(?:.*\.)?([^.]*)$/s.exec(activationClass) ?? [];
  if (name !== "Tanh" && name !== "Identity") {
    const feature = `activation_function ${JSON.stringify(activationClass)}`;
    throw config.unsupported(feature, "supported are torch.nn's Tanh and Identity");
  }
  for (const key of ["module_input_name", "module_output_name"]) {
    const output = config.text(key);
    if (output !== undefined && output !== SENTENCE) {
      throw config.unsupported(`${key} ${JSON.stringify(output)}`, `supported is ${JSON.stringify(SENTENCE)}`);
    }
  }
  if (config.flag("use_residual")) {
    throw config.unsupported("use_residual true", "supported are Dense modules without a residual");
  }
  if (!existsSync(weightsFile)) throw new EmbedderError("MODEL_NOT_FOUND", `${weightsFile} does not exist`);
  return {
    ...{ weightsFile, inputs, outputs, bias },
    activation: name === "Tanh" ? "tanh" : undefined,
    configHash: createHash("sha256").update(bytes).digest("hex"),
  };
}
