//! BERT as in `bert-base-uncased` and its descendants for embeddings: bge, E5, gte, all-MiniLM, arctic-embed-s/m.
//!
//! Absolute positions, token types (always type 0: a single text), biases everywhere, LayerNorm after each
//! residual (post-norm), GELU feed-forward. The pooler head of the original is not used by embedding models.
//!
//! - Paper: <https://arxiv.org/abs/1810.04805>
//! - Reference: `transformers`, `models/bert/modeling_bert.py`

use std::path::Path;

use serde_json::{Value, json};

use super::{
    Activation, Attention, LayerNorm, Linear, Ops, Projections, Settings, Stack, Tokens,
    add_norm_rows, read_embeddings,
};
use crate::checkpoint::Checkpoint;
use crate::error::Result;

/// Settings, in the words of `config.json`.
#[derive(Debug, Clone)]
pub struct Config {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) positions: usize,
    num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    head_dim: usize,
    pub(super) intermediate_size: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    activation: Activation,
}

impl Config {
    pub(super) fn from_json(path: &Path, json: &Value) -> Result<Self> {
        let settings = Settings { path, json };
        settings.only("position_embedding_type", &json!("absolute"))?;
        settings.only("is_decoder", &json!(false))?;
        let activation = match settings.text(&["hidden_act"])? {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            other => {
                return Err(settings.unsupported(
                    "hidden_act",
                    &json!(other),
                    "\"gelu\", \"gelu_new\", \"relu\" or \"silu\"",
                ));
            }
        };
        let hidden_size = settings.count(&["hidden_size"])?;
        let num_attention_heads = settings.count(&["num_attention_heads"])?;
        Ok(Self {
            vocab_size: settings.count(&["vocab_size"])?,
            hidden_size,
            positions: settings.count(&["max_position_embeddings"])?,
            num_hidden_layers: settings.count(&["num_hidden_layers"])?,
            num_attention_heads,
            head_dim: settings.head_dim(hidden_size, num_attention_heads)?,
            intermediate_size: settings.count(&["intermediate_size"])?,
            type_vocab_size: settings.count(&["type_vocab_size"])?,
            layer_norm_eps: settings.number(&["layer_norm_eps"])? as f32,
            activation,
        })
    }
}

/// Locates the encoder's weights.
pub(super) fn read(config: &Config, weights: &Checkpoint) -> Result<Stack<Layer>> {
    let width = config.hidden_size;
    let layer = |index| Layer::read(config, weights, &format!("encoder.layer.{index}"));
    Ok(Stack {
        embeddings: read_embeddings(
            weights,
            width,
            config.vocab_size,
            Some(config.positions),
            config.type_vocab_size,
        )?,
        norm: LayerNorm::read(
            weights,
            "embeddings.LayerNorm",
            width,
            config.layer_norm_eps,
        )?,
        layers: (0..config.num_hidden_layers)
            .map(layer)
            .collect::<Result<_>>()?,
    })
}

/// Self-attention and feed-forward, each with its residual and norm.
#[derive(Debug, Clone)]
pub struct Layer {
    projections: Projections,
    attention: Attention,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    activation: Activation,
    output: Linear,
    output_norm: LayerNorm,
}

impl Layer {
    fn read(config: &Config, weights: &Checkpoint, name: &str) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |part: &str, outputs, inputs| {
            Linear::read(weights, &format!("{name}.{part}"), outputs, inputs, true)
        };
        let norm = |part: &str| {
            LayerNorm::read(
                weights,
                &format!("{name}.{part}.LayerNorm"),
                width,
                config.layer_norm_eps,
            )
        };
        Ok(Self {
            projections: Projections {
                query: linear("attention.self.query", width, width)?,
                key: linear("attention.self.key", width, width)?,
                value: linear("attention.self.value", width, width)?,
            },
            attention: Attention {
                heads: config.num_attention_heads,
                head_dim: config.head_dim,
                rotary: None,
            },
            attention_output: linear("attention.output.dense", width, width)?,
            attention_norm: norm("attention.output")?,
            intermediate: linear("intermediate.dense", inner, width)?,
            activation: config.activation,
            output: linear("output.dense", width, inner)?,
            output_norm: norm("output")?,
        })
    }
}

impl super::Layer for Layer {
    fn forward<O: Ops>(&self, ops: &mut O, x: &O::Tensor, tokens: Tokens) -> Result<O::Tensor> {
        let attended = ops.attention(x, &self.projections, &self.attention, tokens)?;
        let attended = ops.linear(&attended, &self.attention_output)?;
        let rows = add_norm_rows(ops, &attended, x, tokens, &self.attention_norm)?;
        let inner = ops.linear(&rows, &self.intermediate)?;
        let inner = ops.activate(&inner, self.activation)?;
        let output = ops.linear(&inner, &self.output)?;
        ops.add_norm(&output, &rows, &self.output_norm)
    }
}
