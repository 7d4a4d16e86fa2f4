/**
 * One model of each family with random weights: the small folder of `tests/fixtures`, which `families.py` writes with
 * sentence-transformers, made wider and deeper. Tokenizer, modules, tensor names and the spread of each tensor's values are
 * the fixture's.
 */

import { cpSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { Random } from "../../scripts/random.mjs";
import { float32Tensors, writeFloat32Tensors } from "../../scripts/safetensors.mjs";
import { ROOT } from "../../scripts/setup.mjs";
import { sum } from "../report/statistics.mjs";
import { normalNumbers } from "./random_model.mjs";

const REMOTE_CODE = "remote code, which is not run";
const OF_REMOTE_CODE = {
  "sentence-transformers": REMOTE_CODE,
  "transformers.js": "no ONNX file: exporting one would run remote code",
};

/**
 * @typedef {object} Family
 * @property {string} title for people
 * @property {number} [heads] how many times as many attention heads as the fixture has make the model 384 wide
 * @property {number[]} [layers] for each layer the one of the fixture that it is like
 * @property {{ [key: string]: unknown }} [config] settings that do not follow from the fixture's
 * @property {{ [peer: string]: string }} [refused] why a peer is not measured
 */

/** @type {{ [name: string]: Family }} by their folders below `tests/fixtures` */
export const FAMILIES = {
  distilbert: { title: "DistilBERT" },
  xlm_roberta: { title: "XLM-RoBERTa" },
  mpnet: { title: "MPNet" },
  modernbert: {
    title: "ModernBERT",
    layers: [0, 1, 2, 3, 1, 2],
    // transformers wants a float for the factor, which JavaScript would write without its point; nothing here reads it.
    config: { local_attention: 128, initializer_cutoff_factor: undefined },
  },
  qwen3: { title: "Qwen3" },
  gemma3: { title: "Gemma 3", layers: [0, 0, 0, 0, 0, 1], config: { sliding_window: 512 } },
  jina_bert: { title: "JinaBERT", heads: 2, refused: OF_REMOTE_CODE },
  gte_new: { title: "GTE of Alibaba (`new`)", refused: OF_REMOTE_CODE },
  nomic_moe: { title: "NomicBert with experts", refused: OF_REMOTE_CODE },
  static_embedding: {
    title: "static table",
    heads: 4,
    layers: [],
    refused: { "ours-int8": "no linear layers: as float32", "transformers.js": "it has no static tables" },
  },
};
for (const family of Object.values(FAMILIES)) {
  family.heads ??= 3;
  family.layers ??= [0, 1, 0, 1, 0, 1];
  family.refused ??= {};
}
/** Times the fixtures' 16. */
const HEAD_WIDTH = 4;

const WIDTHS = ["dim", "hidden_dim", "hidden_size", "intermediate_size", "n_embd", "n_inner", "embedding_dimension"];
const HEADS = ["n_head", "n_heads", "num_attention_heads", "num_key_value_heads"];
const HEAD_WIDTHS = ["head_dim", "query_pre_attn_scalar"];
const LAYERS = ["n_layer", "n_layers", "num_hidden_layers"];
const POSITIONS = ["max_position_embeddings", "n_positions"];

/** Tensors whose rows are tokens of the vocabulary, types of tokens, or experts: as many as in the fixture. */
const FIXED_ROWS =
  /(\bembedding|word_embeddings|token_type_embeddings|tok_embeddings|embed_tokens|router\.layer)\.weight$/;
const LAYER = /(?<=\blayers?\.)\d+(?=\.)/;

/**
 * Writes the folder.
 *
 * @param {object} settings
 * @param {string} settings.folder
 * @param {keyof typeof FAMILIES} settings.name
 * @param {boolean} settings.isTiny with at most two layers and twice as wide as the fixture
 * @param {number} settings.maxTokens longest text, in tokens
 */
export function writeFamilyModel({ folder, name, isTiny, maxTokens }) {
  const family = FAMILIES[name];
  const times = isTiny ? { heads: 1, headWidth: 2 } : { heads: family.heads, headWidth: HEAD_WIDTH };
  const growth = { ...times, width: times.heads * times.headWidth };
  const layers = isTiny ? family.layers.slice(0, 2) : family.layers;
  // Families that count positions from the padding token's id need two more than tokens.
  const positions = maxTokens + 2;
  const source = path.join(ROOT, "tests/fixtures", name);
  cpSync(source, folder, { recursive: true });
  changeJson(folder, "config.json", (config) => ({ ...enlarge(config, growth, layers, positions), ...family.config }));
  changeJson(folder, "1_Pooling/config.json", (config) => enlarge(config, growth, layers, positions));
  // Not every peer puts a prompt before texts that it is not told of.
  changeJson(folder, "config_sentence_transformers.json", (config) => ({ ...config, prompts: {} }));
  // The only limit that sentence-transformers applies to a static table.
  const truncation = { direction: "Right", max_length: maxTokens, strategy: "LongestFirst", stride: 0 };
  if (layers.length === 0) changeJson(folder, "tokenizer.json", (tokenizer) => ({ ...tokenizer, truncation }));
  const fixture = float32Tensors(path.join(source, "model.safetensors"));
  writeFloat32Tensors(path.join(folder, "model.safetensors"), tensors(name, fixture, growth, layers, positions));
}

/** A static table has no configuration of a transformer or of pooling. */
function changeJson(folder, file, change) {
  const target = path.join(folder, file);
  if (!existsSync(target)) return;
  writeFileSync(target, `${JSON.stringify(change(JSON.parse(readFileSync(target, "utf8"))), null, 2)}\n`);
}

function enlarge(config, growth, layers, positions) {
  const changed = { ...config };
  const change = (keys, value) => {
    for (const key of keys) if (key in config) changed[key] = value(config[key]);
  };
  change(WIDTHS, (width) => width * growth.width);
  change(HEADS, (heads) => heads * growth.heads);
  change(HEAD_WIDTHS, (width) => width * growth.headWidth);
  change(LAYERS, () => layers.length);
  change(POSITIONS, () => positions);
  change(["layer_types"], (types) => layers.map((like) => types[like]));
  return changed;
}

/** The fixture's tensors outside of layers, and for every layer those of the one that it is like. */
function tensors(family, fixture, growth, layers, positions) {
  const random = new Random("families", family);
  const names = [...fixture.keys()];
  const outside = names.filter((name) => !LAYER.test(name)).map((name) => [name, name]);
  const inside = layers.flatMap((like, layer) =>
    names.filter((name) => LAYER.exec(name)?.[0] === String(like)).map((name) => [name.replace(LAYER, layer), name]),
  );
  return [...outside, ...inside].map(([name, like]) => {
    const tensor = fixture.get(like);
    const shape = enlargedShape(like, tensor.shape, growth, positions);
    return { name, shape, make: () => randomLike(tensor, shape, random) };
  });
}

function enlargedShape(name, shape, growth, positions) {
  const [rows, columns] = shape;
  if (/\.[qk]_norm\.weight$/.test(name)) return [rows * growth.headWidth];
  if (name.endsWith("relative_attention_bias.weight")) return [rows, columns * growth.heads];
  if (name.endsWith("position_embeddings.weight")) return [positions, columns * growth.width];
  if (FIXED_ROWS.test(name)) return [rows, columns * growth.width];
  return shape.map((size) => size * growth.width);
}

/** Numbers of the fixture's mean and spread; a matrix's spread shrinks with its columns, so that products keep theirs. */
function randomLike(tensor, shape, random) {
  const values = tensor.values();
  const mean = sum(values) / values.length;
  const deviation = Math.sqrt(sum(values.map((value) => (value - mean) ** 2)) / values.length);
  const shrink = shape.length === 2 ? Math.sqrt(tensor.shape[1] / shape[1]) : 1;
  const count = shape.reduce((product, size) => product * size, 1);
  return normalNumbers(count, { mean, deviation: deviation * shrink, random });
}
