//! A live oracle: candle's independent implementations, on random weights of random sizes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::{Module as _, VarBuilder};
use candle_transformers::models::{
    bert, distilbert, jina_bert, modernbert, nomic_bert, qwen2, qwen3, xlm_roberta,
};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use semantic_search_native::Model;
use semantic_search_native::graph::Pooling;
use semantic_search_native::options::Options;
use serde::de::DeserializeOwned;
use serde_json::json;

/// Sizes of a random model.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    layers: usize,
    heads: usize,
    head_dim: usize,
    inner: usize,
    seed: u64,
}

fn sizes() -> impl Strategy<Value = Sizes> {
    (
        1..4_usize,
        1..4_usize,
        1..5_usize,
        1..80_usize,
        any::<u64>(),
    )
        .prop_map(|(layers, heads, quarters, inner, seed)| Sizes {
            layers,
            heads,
            head_dim: 8 * quarters,
            inner,
            seed,
        })
}

const VOCABULARY: usize = 1472;
const POSITIONS: usize = 128;

/// Of norms, where a model's settings say it: large enough that another one would show.
const EPSILON: f64 = 1e-2;

/// Random weights that make attention peaky, so that errors in rotation or mixing show.
struct Weights {
    random: StdRng,
    tensors: HashMap<String, Tensor>,
}

impl Weights {
    fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            tensors: HashMap::new(),
        }
    }

    fn add(&mut self, name: String, shape: &[usize], center: f32, spread: f32) {
        // The sum of three uniform numbers of variance 1 is close enough to a normal one.
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                let sum: f32 = (0..3)
                    .map(|_| self.random.random_range(-1.0..1.0_f32))
                    .sum();
                center + spread * sum
            })
            .collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        self.tensors.insert(name, tensor);
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize, gain: f32, bias: bool) {
        let spread = gain / (inputs as f32).sqrt();
        self.add(format!("{name}.weight"), &[outputs, inputs], 0.0, spread);
        if bias {
            self.add(format!("{name}.bias"), &[outputs], 0.0, 0.05);
        }
    }

    /// Of a norm without shift.
    fn scale(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.weight"), &[width], 1.0, 0.1);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.scale(name, width);
        self.add(format!("{name}.bias"), &[width], 0.0, 0.05);
    }
}

/// A model folder with these weights and settings, the tokenizer of a fixture and no other file.
fn write_folder(folder: &Path, config: &serde_json::Value, weights: &Weights) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(
        setup::fixture("nomic_cls").join("tokenizer.json"),
        folder.join("tokenizer.json"),
    )
    .unwrap();
    candle_core::safetensors::save(&weights.tensors, folder.join("model.safetensors")).unwrap();
}

fn nomic_bert(sizes: Sizes) -> (serde_json::Value, Weights) {
    let width = sizes.heads * sizes.head_dim;
    let mut weights = Weights::new(sizes.seed);
    weights.add(
        "embeddings.word_embeddings.weight".into(),
        &[VOCABULARY, width],
        0.0,
        1.0,
    );
    weights.add(
        "embeddings.token_type_embeddings.weight".into(),
        &[2, width],
        0.3,
        0.5,
    );
    weights.norm("emb_ln", width);
    for layer in 0..sizes.layers {
        let name = format!("encoder.layers.{layer}");
        weights.linear(&format!("{name}.attn.Wqkv"), 3 * width, width, 1.5, false);
        weights.linear(&format!("{name}.attn.out_proj"), width, width, 1.0, false);
        weights.linear(&format!("{name}.mlp.fc11"), sizes.inner, width, 1.0, false);
        weights.linear(&format!("{name}.mlp.fc12"), sizes.inner, width, 1.0, false);
        weights.linear(&format!("{name}.mlp.fc2"), width, sizes.inner, 1.0, false);
        weights.norm(&format!("{name}.norm1"), width);
        weights.norm(&format!("{name}.norm2"), width);
    }
    let config = json!({
        "model_type": "nomic_bert", "vocab_size": VOCABULARY, "n_embd": width, "n_head": sizes.heads,
        "n_layer": sizes.layers, "n_inner": sizes.inner, "n_positions": POSITIONS, "type_vocab_size": 2,
        "layer_norm_epsilon": 1e-12, "rotary_emb_fraction": 1.0, "rotary_emb_base": 1000.0,
        "rotary_emb_interleaved": false, "qkv_proj_bias": false, "mlp_fc1_bias": false, "mlp_fc2_bias": false,
        "activation_function": "swiglu", "prenorm": false,
    });
    (config, weights)
}

/// Of BERT and XLM-RoBERTa, with tables of so many rows.
fn bert_weights(sizes: Sizes, positions: usize, token_types: usize) -> Weights {
    let width = sizes.heads * sizes.head_dim;
    let mut weights = Weights::new(sizes.seed);
    for (table, rows) in [
        ("word", VOCABULARY),
        ("position", positions),
        ("token_type", token_types),
    ] {
        let name = format!("embeddings.{table}_embeddings.weight");
        weights.add(name, &[rows, width], 0.1, 0.7);
    }
    weights.norm("embeddings.LayerNorm", width);
    for layer in 0..sizes.layers {
        let name = format!("encoder.layer.{layer}");
        for (part, gain) in [("query", 1.5), ("key", 1.5), ("value", 1.0)] {
            weights.linear(
                &format!("{name}.attention.self.{part}"),
                width,
                width,
                gain,
                true,
            );
        }
        weights.linear(
            &format!("{name}.attention.output.dense"),
            width,
            width,
            1.0,
            true,
        );
        weights.linear(
            &format!("{name}.intermediate.dense"),
            sizes.inner,
            width,
            1.0,
            true,
        );
        weights.linear(
            &format!("{name}.output.dense"),
            width,
            sizes.inner,
            1.0,
            true,
        );
        weights.norm(&format!("{name}.attention.output.LayerNorm"), width);
        weights.norm(&format!("{name}.output.LayerNorm"), width);
    }
    weights
}

fn classic_bert(sizes: Sizes) -> (serde_json::Value, Weights) {
    let weights = bert_weights(sizes, POSITIONS, 2);
    let config = json!({
        "model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": sizes.heads * sizes.head_dim,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.inner, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "initializer_range": 0.02,
        "layer_norm_eps": 1e-12, "pad_token_id": 0, "position_embedding_type": "absolute",
    });
    (config, weights)
}

/// As jina-embeddings-v2 for prose has it; the model for code is another implementation, which candle does not have.
fn jina_bert(sizes: Sizes) -> (serde_json::Value, Weights) {
    let width = sizes.heads * sizes.head_dim;
    let mut weights = Weights::new(sizes.seed);
    for (table, rows) in [("word", VOCABULARY), ("token_type", 2)] {
        let name = format!("embeddings.{table}_embeddings.weight");
        weights.add(name, &[rows, width], 0.1, 0.7);
    }
    weights.norm("embeddings.LayerNorm", width);
    for layer in 0..sizes.layers {
        let name = format!("encoder.layer.{layer}");
        for (part, gain) in [("query", 1.5), ("key", 1.5), ("value", 1.0)] {
            let part = format!("{name}.attention.self.{part}");
            weights.linear(&part, width, width, gain, true);
        }
        let dense = format!("{name}.attention.output.dense");
        weights.linear(&dense, width, width, 1.0, true);
        weights.norm(&format!("{name}.attention.output.LayerNorm"), width);
        let gated = format!("{name}.mlp.gated_layers");
        weights.linear(&gated, 2 * sizes.inner, width, 1.0, false);
        weights.linear(&format!("{name}.mlp.wo"), width, sizes.inner, 1.0, true);
        weights.norm(&format!("{name}.mlp.layernorm"), width);
    }
    let config = json!({
        "model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": width,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.inner, "hidden_act": "gelu", "feed_forward_type": "geglu",
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "initializer_range": 0.02,
        "layer_norm_eps": 1e-12, "pad_token_id": 0, "position_embedding_type": "alibi",
    });
    (config, weights)
}

fn xlm_roberta(sizes: Sizes, padding: usize) -> (serde_json::Value, Weights) {
    let positions = padding + 1 + POSITIONS;
    let weights = bert_weights(sizes, positions, 1);
    let config = json!({
        "model_type": "xlm-roberta", "vocab_size": VOCABULARY, "hidden_size": sizes.heads * sizes.head_dim,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.inner, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "max_position_embeddings": positions, "type_vocab_size": 1,
        "layer_norm_eps": EPSILON, "pad_token_id": padding, "position_embedding_type": "absolute",
    });
    (config, weights)
}

/// With `ReLU`: what candle computes for `gelu` here is the approximation by tanh, not the one with erf of `transformers`.
fn distilbert(sizes: Sizes) -> (serde_json::Value, Weights) {
    let width = sizes.heads * sizes.head_dim;
    let mut weights = Weights::new(sizes.seed);
    for (table, rows) in [("word", VOCABULARY), ("position", POSITIONS)] {
        let name = format!("embeddings.{table}_embeddings.weight");
        weights.add(name, &[rows, width], 0.1, 0.7);
    }
    weights.norm("embeddings.LayerNorm", width);
    for layer in 0..sizes.layers {
        let name = format!("transformer.layer.{layer}");
        for (part, gain) in [("q", 1.5), ("k", 1.5), ("v", 1.0), ("out", 1.0)] {
            let part = format!("{name}.attention.{part}_lin");
            weights.linear(&part, width, width, gain, true);
        }
        let inner = sizes.inner;
        weights.linear(&format!("{name}.ffn.lin1"), inner, width, 1.0, true);
        weights.linear(&format!("{name}.ffn.lin2"), width, inner, 1.0, true);
        weights.norm(&format!("{name}.sa_layer_norm"), width);
        weights.norm(&format!("{name}.output_layer_norm"), width);
    }
    let config = json!({
        "model_type": "distilbert", "vocab_size": VOCABULARY, "dim": width, "n_layers": sizes.layers,
        "n_heads": sizes.heads, "hidden_dim": sizes.inner, "activation": "relu",
        "max_position_embeddings": POSITIONS, "initializer_range": 0.02, "pad_token_id": 0,
    });
    (config, weights)
}

/// With settings as before version 5 of `transformers`, which candle reads.
fn modern_bert(sizes: Sizes, window: usize, every: usize) -> (serde_json::Value, Weights) {
    let width = sizes.heads * sizes.head_dim;
    let mut weights = Weights::new(sizes.seed);
    let words = "model.embeddings.tok_embeddings.weight";
    weights.add(words.into(), &[VOCABULARY, width], 0.0, 1.0);
    weights.scale("model.embeddings.norm", width);
    for layer in 0..sizes.layers {
        let name = format!("model.layers.{layer}");
        if layer > 0 {
            weights.scale(&format!("{name}.attn_norm"), width);
        }
        weights.linear(&format!("{name}.attn.Wqkv"), 3 * width, width, 1.5, false);
        weights.linear(&format!("{name}.attn.Wo"), width, width, 1.0, false);
        weights.scale(&format!("{name}.mlp_norm"), width);
        let inner = sizes.inner;
        weights.linear(&format!("{name}.mlp.Wi"), 2 * inner, width, 1.0, false);
        weights.linear(&format!("{name}.mlp.Wo"), width, inner, 1.0, false);
    }
    weights.scale("model.final_norm", width);
    let config = json!({
        "model_type": "modernbert", "vocab_size": VOCABULARY, "hidden_size": width,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.inner, "hidden_activation": "gelu", "max_position_embeddings": POSITIONS,
        // One for candle, the other one for `transformers`.
        "layer_norm_eps": EPSILON, "norm_eps": EPSILON,
        "norm_bias": false, "attention_bias": false, "mlp_bias": false, "pad_token_id": 0,
        "global_attn_every_n_layers": every, "global_rope_theta": 160_000.0,
        "local_attention": window, "local_rope_theta": 10_000.0,
    });
    (config, weights)
}

/// Of a decoder: `sizes.heads` heads of keys and values, each for so many heads of queries.
#[derive(Debug, Clone, Copy)]
struct Decoder {
    sizes: Sizes,
    group: usize,
    width: usize,
    model_type: &'static str,
    /// Of the projections to queries, keys and values.
    qkv_bias: bool,
    output_bias: bool,
}

fn decoder(decoder: Decoder) -> (serde_json::Value, Weights) {
    let Decoder { sizes, width, .. } = decoder;
    let [heads, kv_heads] = [sizes.heads * decoder.group, sizes.heads];
    let mut weights = Weights::new(sizes.seed);
    let words = "model.embed_tokens.weight";
    weights.add(words.into(), &[VOCABULARY, width], 0.0, 1.0);
    for layer in 0..sizes.layers {
        let name = format!("model.layers.{layer}");
        weights.scale(&format!("{name}.input_layernorm"), width);
        weights.scale(&format!("{name}.post_attention_layernorm"), width);
        for (part, heads, gain) in [
            ("q", heads, 1.5),
            ("k", kv_heads, 1.5),
            ("v", kv_heads, 1.0),
        ] {
            let part = format!("{name}.self_attn.{part}_proj");
            weights.linear(&part, heads * sizes.head_dim, width, gain, decoder.qkv_bias);
        }
        if decoder.model_type == "qwen3" {
            for part in ["q", "k"] {
                weights.scale(&format!("{name}.self_attn.{part}_norm"), sizes.head_dim);
            }
        }
        let output = format!("{name}.self_attn.o_proj");
        let mixed = heads * sizes.head_dim;
        weights.linear(&output, width, mixed, 1.0, decoder.output_bias);
        for part in ["gate", "up"] {
            let part = format!("{name}.mlp.{part}_proj");
            weights.linear(&part, sizes.inner, width, 1.0, false);
        }
        let down = format!("{name}.mlp.down_proj");
        weights.linear(&down, width, sizes.inner, 1.0, false);
    }
    weights.scale("model.norm", width);
    let config = json!({
        "model_type": decoder.model_type, "vocab_size": VOCABULARY, "hidden_size": width,
        "num_hidden_layers": sizes.layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": sizes.head_dim,
        "intermediate_size": sizes.inner, "hidden_act": "silu", "max_position_embeddings": POSITIONS,
        "rope_theta": 1e6, "rms_norm_eps": EPSILON, "attention_bias": decoder.output_bias,
        "tie_word_embeddings": true, "max_window_layers": sizes.layers,
        // candle applies the window to Qwen2 whether it is used or not: longer than any text.
        "use_sliding_window": false, "sliding_window": POSITIONS,
    });
    (config, weights)
}

const TEXTS: [&str; 4] = [
    "",
    "def add(a, b): return a + b",
    "The quick brown fox jumps over the lazy dog, again and again and again, until the evening comes.",
    "fn main() { println!(\"hello\"); }",
];

fn cls_or_mean() -> impl Strategy<Value = Pooling> {
    prop::sample::select(vec![Pooling::Cls, Pooling::Mean])
}

fn last_or_mean() -> impl Strategy<Value = Pooling> {
    prop::sample::select(vec![Pooling::LastToken, Pooling::Mean])
}

/// Our vectors of [`TEXTS`] against candle's, which computes one text at a time.
fn compare<Config: DeserializeOwned>(
    (config, weights): &(serde_json::Value, Weights),
    pooling: Pooling,
    oracle: impl Fn(VarBuilder, Config, &Tensor) -> Tensor,
) {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), config, weights);
    for &backend in *setup::BACKENDS {
        let options = Options {
            pooling: Some(pooling),
            threads: Some(2),
            ..setup::options_for(backend)
        };
        let model = Model::load(folder.path(), &options).unwrap();
        let embeddings = model
            .embed(TEXTS.map(str::to_owned).to_vec(), false)
            .unwrap();
        let rows = embeddings.vectors.chunks_exact(model.dir().dimension());
        for (text, row) in TEXTS.iter().zip(rows) {
            let ids = model.tokenize(text, false).unwrap().ids;
            let ids = Tensor::new(ids, &Device::Cpu)
                .unwrap()
                .unsqueeze(0)
                .unwrap();
            let variables =
                VarBuilder::from_tensors(weights.tensors.clone(), DType::F32, &Device::Cpu);
            let theirs = serde_json::from_value(config.clone()).unwrap();
            let states = oracle(variables, theirs, &ids).i(0).unwrap();
            let pooled = match pooling {
                Pooling::Cls => states.i(0).unwrap(),
                Pooling::LastToken => states.i(states.dim(0).unwrap() - 1).unwrap(),
                _ => states.mean(0).unwrap(),
            };
            let mut expected: Vec<f32> = pooled.to_vec1().unwrap();
            semantic_search_native::vector::normalize(&mut expected, row.len());
            setup::assert_equal(&format!("{backend:?} {text}"), row, &expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn nomic_bert_equals_candle(sizes in sizes(), pooling in cls_or_mean()) {
        compare(&nomic_bert(sizes), pooling, |variables, config, ids| {
            let model = nomic_bert::NomicBertModel::load(variables, &config).unwrap();
            model.forward(ids, None, None).unwrap()
        });
    }

    #[test]
    fn jina_bert_equals_candle(sizes in sizes(), pooling in cls_or_mean()) {
        compare(&jina_bert(sizes), pooling, |variables, config, ids| {
            jina_bert::BertModel::new(variables, &config).unwrap().forward(ids).unwrap()
        });
    }

    #[test]
    fn bert_equals_candle(sizes in sizes(), pooling in cls_or_mean()) {
        compare(&classic_bert(sizes), pooling, |variables, config, ids| {
            let model = bert::BertModel::load(variables, &config).unwrap();
            model.forward(ids, &ids.zeros_like().unwrap(), None).unwrap()
        });
    }

    #[test]
    fn xlm_roberta_equals_candle(sizes in sizes(), padding in 0..80_usize, pooling in cls_or_mean()) {
        compare(&xlm_roberta(sizes, padding), pooling, |variables, config, ids| {
            let model = xlm_roberta::XLMRobertaModel::new(&config, variables).unwrap();
            let zeros = ids.zeros_like().unwrap();
            let mask = ids.ones_like().unwrap();
            model.forward(ids, &mask, &zeros, None, None, None).unwrap()
        });
    }

    #[test]
    fn distilbert_equals_candle(sizes in sizes(), pooling in cls_or_mean()) {
        compare(&distilbert(sizes), pooling, |variables, config, ids| {
            let model = distilbert::DistilBertModel::load(variables, &config).unwrap();
            // 1 hides a token.
            model.forward(ids, &ids.zeros_like().unwrap()).unwrap()
        });
    }

    #[test]
    fn modernbert_equals_candle(sizes in sizes(), window in 2..64_usize, every in 1..4_usize, pooling in cls_or_mean()) {
        compare(&modern_bert(sizes, window, every), pooling, |variables, config, ids| {
            let model = modernbert::ModernBert::load(variables, &config).unwrap();
            model.forward(ids, &ids.ones_like().unwrap()).unwrap()
        });
    }

    #[test]
    fn qwen2_equals_candle(sizes in sizes(), group in 1..4_usize, pooling in last_or_mean()) {
        let model = decoder(Decoder {
            sizes,
            group,
            width: sizes.heads * group * sizes.head_dim,
            model_type: "qwen2",
            qkv_bias: true,
            output_bias: false,
        });
        compare(&model, pooling, |variables, config, ids| {
            let mut model = qwen2::Model::new(&config, variables).unwrap();
            model.forward(ids, 0, None).unwrap()
        });
    }

    #[test]
    fn qwen3_equals_candle(sizes in sizes(), group in 1..4_usize, width in 8..100_usize, bias: bool, pooling in last_or_mean()) {
        let model = decoder(Decoder {
            sizes,
            group,
            width,
            model_type: "qwen3",
            qkv_bias: bias,
            output_bias: bias,
        });
        compare(&model, pooling, |variables, config, ids| {
            let mut model = qwen3::Model::new(&config, variables).unwrap();
            model.forward(ids, 0).unwrap()
        });
    }
}
