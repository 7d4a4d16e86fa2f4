/** A tiny model that `doctor` writes, to try backends where no model is at hand: BERT, two layers, random weights. */

import { mkdirSync, writeFileSync } from "node:fs";
import * as path from "node:path";

const HIDDEN = 32;
const INTERMEDIATE = 64;
const LAYERS = 2;
const POSITIONS = 128;
const SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
/** Printable ASCII: every character is a token, at the start of a word and within it. */
const CHARACTERS = Array.from({ length: 94 }, (_, index) => String.fromCharCode(33 + index));
const VOCABULARY = [...SPECIAL_TOKENS, ...CHARACTERS, ...CHARACTERS.map((character) => `##${character}`)];

/** Writes the model's folder, which must exist. The same weights on every machine. */
export function writeTrialModel(dir: string): void {
  const writeJson = (name: string, content: object) => writeFileSync(path.join(dir, name), JSON.stringify(content));
  mkdirSync(path.join(dir, "1_Pooling"), { recursive: true });
  writeJson("config.json", {
    model_type: "bert",
    hidden_size: HIDDEN,
    num_hidden_layers: LAYERS,
    num_attention_heads: 4,
    intermediate_size: INTERMEDIATE,
    hidden_act: "gelu",
    layer_norm_eps: 1e-12,
    max_position_embeddings: POSITIONS,
    position_embedding_type: "absolute",
    type_vocab_size: 2,
    vocab_size: VOCABULARY.length,
  });
  writeJson("1_Pooling/config.json", { word_embedding_dimension: HIDDEN, pooling_mode: "mean" });
  writeJson("tokenizer_config.json", { tokenizer_class: "BertTokenizer", model_max_length: POSITIONS });
  writeJson("tokenizer.json", tokenizer());
  writeFileSync(path.join(dir, "model.safetensors"), safetensors(tensors()));
}

function tokenizer(): object {
  const special = (id: number) => ({ id: SPECIAL_TOKENS[id], ids: [id], tokens: [SPECIAL_TOKENS[id]] });
  const single = [
    { SpecialToken: { id: "[CLS]", type_id: 0 } },
    { Sequence: { id: "A", type_id: 0 } },
    { SpecialToken: { id: "[SEP]", type_id: 0 } },
  ];
  const flags = { special: true, single_word: false, lstrip: false, rstrip: false, normalized: false };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: SPECIAL_TOKENS.map((content, id) => ({ id, content, ...flags })),
    normalizer: {
      type: "BertNormalizer",
      clean_text: true,
      handle_chinese_chars: true,
      strip_accents: null,
      lowercase: true,
    },
    pre_tokenizer: { type: "BertPreTokenizer" },
    post_processor: {
      type: "TemplateProcessing",
      single,
      pair: [...single, { Sequence: { id: "B", type_id: 1 } }, { SpecialToken: { id: "[SEP]", type_id: 1 } }],
      special_tokens: { "[CLS]": special(2), "[SEP]": special(3) },
    },
    decoder: { type: "WordPiece", prefix: "##", cleanup: true },
    model: {
      type: "WordPiece",
      unk_token: "[UNK]",
      continuing_subword_prefix: "##",
      max_input_chars_per_word: 100,
      vocab: Object.fromEntries(VOCABULARY.map((token, id) => [token, id])),
    },
  };
}

interface Tensor {
  shape: number[];
  values: Float32Array;
}

/** Weights as large as those of trained models are: with tiny ones attention is uniform, and mistakes do not show. */
function tensors(): Record<string, Tensor> {
  const random = randomNormals();
  const filled = (shape: number[], value: () => number): Tensor => ({
    shape,
    values: Float32Array.from({ length: shape.reduce((product, size) => product * size, 1) }, value),
  });
  const embedding = (rows: number) => filled([rows, HIDDEN], random);
  const norm = (name: string) => ({
    [`${name}.weight`]: filled([HIDDEN], () => 1),
    [`${name}.bias`]: filled([HIDDEN], () => 0),
  });
  const linear = (name: string, outputs: number, inputs: number, gain = 1) => ({
    [`${name}.weight`]: filled([outputs, inputs], () => (random() * gain) / Math.sqrt(inputs)),
    [`${name}.bias`]: filled([outputs], () => random() * 0.05),
  });
  const layers = Array.from({ length: LAYERS }, (_, index) => {
    const layer = `encoder.layer.${index}`;
    return {
      ...linear(`${layer}.attention.self.query`, HIDDEN, HIDDEN, 1.5),
      ...linear(`${layer}.attention.self.key`, HIDDEN, HIDDEN, 1.5),
      ...linear(`${layer}.attention.self.value`, HIDDEN, HIDDEN),
      ...linear(`${layer}.attention.output.dense`, HIDDEN, HIDDEN),
      ...norm(`${layer}.attention.output.LayerNorm`),
      ...linear(`${layer}.intermediate.dense`, INTERMEDIATE, HIDDEN),
      ...linear(`${layer}.output.dense`, HIDDEN, INTERMEDIATE),
      ...norm(`${layer}.output.LayerNorm`),
    };
  });
  return Object.assign(
    {
      "embeddings.word_embeddings.weight": embedding(VOCABULARY.length),
      "embeddings.position_embeddings.weight": embedding(POSITIONS),
      "embeddings.token_type_embeddings.weight": embedding(2),
    },
    norm("embeddings.LayerNorm"),
    ...layers,
  ) as Record<string, Tensor>;
}

/** Pseudorandom numbers of about normal distribution: sums of twelve uniform ones (a linear congruential generator). */
function randomNormals(): () => number {
  let state = 1;
  const uniform = () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
  return () => {
    let sum = -6;
    for (let i = 0; i < 12; i++) sum += uniform();
    return sum;
  };
}

/** The file format: length of the header, header, tensors one after the other. */
function safetensors(named: Record<string, Tensor>): Buffer {
  const header: Record<string, object> = {};
  let end = 0;
  for (const [name, { shape, values }] of Object.entries(named)) {
    const start = end;
    end += values.byteLength;
    header[name] = { dtype: "F32", shape, data_offsets: [start, end] };
  }
  const json = Buffer.from(JSON.stringify(header));
  const padded = Buffer.concat([json, Buffer.alloc((8 - (json.length % 8)) % 8, " ")]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  const data = Object.values(named).map(({ values }) => new Uint8Array(values.buffer));
  return Buffer.concat([length, padded, ...data]);
}
