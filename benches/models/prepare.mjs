/**
 * The models that are measured, each a folder in the cache with everything that a peer reads: the layout of
 * sentence-transformers, an ONNX export as on the Hub in float32 and int8, GGUF, OpenVINO's format, and the graph of matrix
 * products.
 */

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { installStarterModel, ROOT } from "../../scripts/setup.mjs";
import { cacheFolder, pythonPeer } from "../contestants/install.mjs";
import { measured } from "../contestants/registry.mjs";
import { FAMILIES, writeFamilyModel } from "./family_model.mjs";
import { exportEncoder, exportProducts } from "./onnx_export.mjs";
import { writeRandomModel } from "./random_model.mjs";

const HERE = path.dirname(fileURLToPath(import.meta.url));
/** Of BERT; fastembed insists on a file of them. */
const SPECIAL_TOKENS = {
  cls_token: "[CLS]",
  mask_token: "[MASK]",
  pad_token: "[PAD]",
  sep_token: "[SEP]",
  unk_token: "[UNK]",
};
const TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json"];

/**
 * @typedef {object} Model
 * @property {string} name
 * @property {string} title for people
 * @property {string} folder
 * @property {"cls" | "mean"} [pooling] not of a family's model, whose peers read it in the folder
 * @property {(file: string) => string | undefined} derive makes what a peer needs unless it is there; why it could not
 * @property {{ [peer: string]: string }} refused why a peer is not measured
 */

const MODELS = {
  minilm: {
    title: "all-MiniLM-L6-v2, its real weights (6 layers, 384 wide, mean pooling)",
    pooling: "mean",
    make: async (folder) => cpSync(await installStarterModel(), folder, { recursive: true }),
  },
  nomic: {
    title: "NomicBert of CodeRankEmbed's shape, random weights (12 layers, 768 wide, CLS pooling)",
    pooling: "cls",
    make: (folder) => makeRandom(folder, { layers: 12, pooling: "cls" }),
  },
  "nomic-2-layers": {
    title: "NomicBert, random weights (2 layers, 768 wide, mean pooling)",
    // CLS pooling shortens the last layer, which among two would weigh far more than among a real model's twelve.
    pooling: "mean",
    make: (folder) => makeRandom(folder, { layers: 2, pooling: "mean" }),
  },
  "tiny-bert": {
    title: "BERT, random weights (2 layers, 48 wide, mean pooling)",
    pooling: "mean",
    make: (folder) => cpSync(path.join(ROOT, "tests/fixtures/bert_mean"), folder, { recursive: true }),
  },
  "tiny-nomic": {
    title: "NomicBert, random weights (2 layers, 32 wide, CLS pooling)",
    pooling: "cls",
    make: (folder) => cpSync(path.join(ROOT, "tests/fixtures/nomic_cls"), folder, { recursive: true }),
  },
};

for (const [name, { title, refused }] of Object.entries(FAMILIES)) {
  for (const isTiny of [false, true]) {
    const make = (folder, maxTokens) => writeFamilyModel({ folder, name, isTiny, maxTokens });
    MODELS[isTiny ? `tiny-${name}` : name] = { title: isTiny ? `${title}, tiny` : title, refused, make };
  }
}

async function makeRandom(folder, settings) {
  writeRandomModel({ folder, ...settings });
  // NomicBert has BERT's vocabulary.
  const starter = await installStarterModel();
  for (const file of TOKENIZER_FILES) cpSync(path.join(starter, file), path.join(folder, file));
}

/**
 * Makes a model's folder unless it exists.
 *
 * @param {keyof typeof MODELS} name
 * @param {object} settings
 * @param {number} settings.maxTokens written where each peer looks for its limit
 * @returns {Promise<Model>}
 */
export async function prepareModel(name, { maxTokens }) {
  const { title, pooling, refused = {}, make } = MODELS[name];
  const folder = path.join(cacheFolder(), "models", `${name}-${maxTokens}`);
  const stamp = path.join(folder, "made-by");
  const maker = digestOfMakers();
  if (!existsSync(stamp) || readFileSync(stamp, "utf8") !== maker) {
    console.error(`making ${title}`);
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(path.join(folder, "onnx"), { recursive: true });
    await make(folder, maxTokens);
    limitTokens(folder, maxTokens);
    if (pooling) {
      changeJson(path.join(folder, "special_tokens_map.json"), SPECIAL_TOKENS);
      exportEncoder(folder, path.join(folder, "onnx/model.onnx"));
      exportProducts(folder, path.join(folder, "products.onnx"), { cls: pooling === "cls" });
    }
    const { exportOnnx } = createRequire(import.meta.url)("../../dist/embedder.js");
    await exportOnnx(folder);
    writeFileSync(stamp, maker);
  }
  const derived = pooling ? DERIVED : refused["transformers.js"] ? {} : DERIVED_OF_FAMILIES;
  const reasons = new Map();
  const deriveOnce = (file) => {
    if (!reasons.has(file)) reasons.set(file, derive(folder, file, derived[file], pooling));
    return reasons.get(file);
  };
  return { name, title, folder, pooling, derive: deriveOnce, refused };
}

/** Digest of the scripts that make models: when they change, models are made again. */
function digestOfMakers() {
  const hash = createHash("sha256");
  const shared = ["onnx-graph.mjs", "random.mjs", "safetensors.mjs"].map((name) => path.join(ROOT, "scripts", name));
  const own = readdirSync(HERE).sort();
  for (const file of [...own.map((name) => path.join(HERE, name)), ...shared]) hash.update(readFileSync(file));
  return hash.digest("hex");
}

/** The limit where each peer looks for it. */
function limitTokens(folder, maxTokens) {
  changeJson(path.join(folder, "tokenizer_config.json"), { model_max_length: maxTokens });
  changeJson(path.join(folder, "sentence_bert_config.json"), { max_seq_length: maxTokens });
}

function changeJson(file, changes) {
  const content = existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : {};
  writeFileSync(file, JSON.stringify({ ...content, ...changes }, null, 2));
}

/** Files and folders made by a script for a peer: its Python environment, the script, and what it reads. */
const DERIVED = {
  "onnx/model_quantized.onnx": { python: "quantize", script: "quantize.py", source: "onnx/model.onnx" },
  "model.gguf": { python: "gguf", script: "write_gguf.py", source: "." },
  openvino: { python: "openvino", script: "write_openvino.py", source: "." },
};
const DERIVED_OF_FAMILIES = {
  "onnx/model.onnx": { python: "torch", script: "export_encoder.py", source: "." },
};

/** Makes one of them if it is missing; returns why it could not be made. */
function derive(folder, file, derived, pooling) {
  const target = path.join(folder, file);
  if (!derived || existsSync(target)) return undefined;
  const { python, script, source } = derived;
  const { program, env, missing } = pythonPeer(python, python !== "torch" || measured.withLarge);
  if (missing) return missing;
  console.error(`making ${file} of ${path.basename(folder)}`);
  const partial = `${target}.part`;
  rmSync(partial, { recursive: true, force: true });
  const args = [path.join(HERE, script), path.join(folder, source), partial, ...(pooling ? [pooling] : [])];
  const { status, stderr } = spawnSync(program, args, { encoding: "utf8", env: { ...process.env, ...env } });
  if (status !== 0) return `${script} failed: ${stderr.trim().split("\n").at(-1)}`;
  renameSync(partial, target);
  return undefined;
}
