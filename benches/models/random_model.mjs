/** A NomicBert of CodeRankEmbed's shape with random weights: as much work as the real one, without a download. */

import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { Random } from "../../scripts/random.mjs";
import { writeFloat32Tensors } from "../../scripts/safetensors.mjs";

const WIDTH = 768;
const HEADS = 12;
const INNER = 3072;
const VOCABULARY = 30_528;

const CONFIG = {
  activation_function: "swiglu",
  architectures: ["NomicBertModel"],
  causal: false,
  layer_norm_epsilon: 1e-12,
  mlp_fc1_bias: false,
  mlp_fc2_bias: false,
  model_type: "nomic_bert",
  n_embd: WIDTH,
  n_head: HEADS,
  n_inner: INNER,
  n_positions: 8192,
  parallel_block: false,
  prenorm: false,
  qkv_proj_bias: false,
  rotary_emb_base: 1000,
  rotary_emb_fraction: 1.0,
  rotary_emb_interleaved: false,
  rotary_emb_scale_base: null,
  rotary_scaling_factor: null,
  type_vocab_size: 2,
  use_rms_norm: false,
  pad_token_id: 0,
  vocab_size: VOCABULARY,
};
const MODULES = [
  { idx: 0, name: "0", path: "", type: "sentence_transformers.models.Transformer" },
  { idx: 1, name: "1", path: "1_Pooling", type: "sentence_transformers.models.Pooling" },
];

/** Normally distributed numbers. */
export function normalNumbers(count, { mean = 0, deviation, random }) {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = deviation * Math.sqrt(-2 * Math.log(1 - random.next()));
    const angle = 2 * Math.PI * random.next();
    values[i] = mean + radius * Math.cos(angle);
    if (i + 1 < count) values[i + 1] = mean + radius * Math.sin(angle);
  }
  return values;
}

function tensors(layers) {
  const random = new Random("weights");
  // Spread like a trained model's: values keep their magnitude from layer to layer, and attention is not uniform.
  const matrix = (name, rows, columns, gain = 1) => ({
    name,
    shape: [rows, columns],
    make: () => normalNumbers(rows * columns, { deviation: gain / Math.sqrt(columns), random }),
  });
  const norm = (name) => [
    {
      name: `${name}.weight`,
      shape: [WIDTH],
      make: () => normalNumbers(WIDTH, { mean: 1, deviation: 0.1, random }),
    },
    { name: `${name}.bias`, shape: [WIDTH], make: () => normalNumbers(WIDTH, { deviation: 0.1, random }) },
  ];
  const layer = (index) => {
    const prefix = `encoder.layers.${index}`;
    return [
      matrix(`${prefix}.attn.Wqkv.weight`, 3 * WIDTH, WIDTH, 1.5),
      matrix(`${prefix}.attn.out_proj.weight`, WIDTH, WIDTH),
      matrix(`${prefix}.mlp.fc11.weight`, INNER, WIDTH),
      matrix(`${prefix}.mlp.fc12.weight`, INNER, WIDTH),
      matrix(`${prefix}.mlp.fc2.weight`, WIDTH, INNER),
      ...norm(`${prefix}.norm1`),
      ...norm(`${prefix}.norm2`),
    ];
  };
  return [
    matrix("embeddings.word_embeddings.weight", VOCABULARY, WIDTH),
    matrix("embeddings.token_type_embeddings.weight", 2, WIDTH),
    ...norm("emb_ln"),
    ...Array.from({ length: layers }, (_, index) => layer(index)).flat(),
  ];
}

/**
 * Writes the folder without a tokenizer, and the weights unless they exist.
 *
 * @param {object} settings
 * @param {string} settings.folder
 * @param {number} settings.layers
 * @param {"cls" | "mean"} settings.pooling
 */
export function writeRandomModel({ folder, layers, pooling }) {
  mkdirSync(path.join(folder, "1_Pooling"), { recursive: true });
  const files = {
    "config.json": { ...CONFIG, n_layer: layers },
    "1_Pooling/config.json": {
      word_embedding_dimension: WIDTH,
      pooling_mode_cls_token: pooling === "cls",
      pooling_mode_mean_tokens: pooling === "mean",
    },
    "modules.json": MODULES,
  };
  for (const [name, content] of Object.entries(files)) {
    writeFileSync(path.join(folder, name), `${JSON.stringify(content, null, 2)}\n`);
  }
  const weights = path.join(folder, "model.safetensors");
  if (!existsSync(weights)) writeFloat32Tensors(weights, tensors(layers));
}
