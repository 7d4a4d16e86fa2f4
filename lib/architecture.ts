import type { JsonFile } from "./json_file.js";

/** What the fallback needs to know about an encoder from `config.json`. */
export interface Architecture {
  hiddenSize: number;
  /** Rows of the embedding table: every token id is below it. */
  vocabularySize: number;
  /** Most tokens that the model has positions for. */
  positions: number;
}

const BERT_ACTIVATIONS = ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "swish"];
const NOMIC_ACTIVATIONS = ["swiglu", "geglu"];

/**
 * Reads `config.json` and refuses what `src/arch/` refuses, in the same order: an ONNX file does not tell from what it was
 * made.
 *
 * @throws EmbedderError `MODEL_UNSUPPORTED` or `MODEL_INVALID` for a model that cannot be loaded.
 */
export function readArchitecture(file: JsonFile): Architecture {
  const modelType = file.json.model_type;
  if (modelType === "bert") return readBert(file);
  if (modelType === "nomic_bert") return readNomicBert(file);
  const shown = JSON.stringify(modelType ?? null);
  throw file.unsupported(`model_type ${shown}`, 'supported are "bert" and "nomic_bert"');
}

function readBert(file: JsonFile): Architecture {
  only(file, "position_embedding_type", "absolute");
  only(file, "is_decoder", false);
  oneOf(file, "hidden_act", BERT_ACTIVATIONS);
  const hiddenSize = count(file, "hidden_size");
  headDimension(file, hiddenSize, count(file, "num_attention_heads"));
  for (const key of ["num_hidden_layers", "intermediate_size", "type_vocab_size"]) count(file, key);
  number(file, "layer_norm_eps");
  return {
    hiddenSize,
    vocabularySize: count(file, "vocab_size"),
    positions: count(file, "max_position_embeddings"),
  };
}

function readNomicBert(file: JsonFile): Architecture {
  for (const key of ["prenorm", "parallel_block", "rotary_emb_interleaved", "use_rms_norm", "causal"]) {
    only(file, key, false);
  }
  only(file, "rotary_emb_scale_base", null);
  for (const key of ["moe_every_n_layers", "num_experts"]) only(file, key, 0);
  oneOf(file, "activation_function", NOMIC_ACTIVATIONS);
  const hiddenSize = count(file, "n_embd", "hidden_size");
  const head = headDimension(file, hiddenSize, count(file, "n_head", "num_attention_heads"));
  const vocabularySize = count(file, "vocab_size");
  const positions = count(file, "n_positions", "max_position_embeddings");
  count(file, "n_layer", "num_hidden_layers");
  count(file, "n_inner", "intermediate_size");
  count(file, "type_vocab_size");
  number(file, "layer_norm_epsilon", "layer_norm_eps");
  const fraction = number(file, "rotary_emb_fraction");
  if (!(fraction > 0 && fraction <= 1 && Math.trunc(head * fraction) % 2 === 0)) {
    const expected = "a fraction of the head above 0 and up to 1 that gives an even number of dimensions";
    throw file.unsupported(`rotary_emb_fraction = ${fraction}`, `supported is ${expected}`);
  }
  if (file.number("rotary_scaling_factor") !== undefined) count(file, "max_trained_positions");
  number(file, "rotary_emb_base");
  for (const key of ["qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"]) file.required(file.flag(key), key);
  return { hiddenSize, vocabularySize, positions };
}

function count(file: JsonFile, ...keys: [string, ...string[]]): number {
  return file.required(file.count(...keys), keys[0]);
}

function number(file: JsonFile, ...keys: [string, ...string[]]): number {
  return file.required(file.number(...keys), keys[0]);
}

/** Refuses a setting that is present with another value. */
function only(file: JsonFile, key: string, expected: unknown): void {
  const value = file.get(key);
  if (value === undefined || value === expected) return;
  throw file.unsupported(`${key} = ${JSON.stringify(value)}`, `supported is only ${JSON.stringify(expected)}`);
}

function oneOf(file: JsonFile, key: string, supported: readonly string[]): void {
  const value = file.required(file.text(key), key);
  if (supported.includes(value)) return;
  throw file.unsupported(`${key} = ${JSON.stringify(value)}`, `supported are ${supported.join(", ")}`);
}

function headDimension(file: JsonFile, width: number, heads: number): number {
  if (width % heads === 0) return width / heads;
  throw file.invalid(`${heads} heads do not divide a hidden size of ${width}`);
}
