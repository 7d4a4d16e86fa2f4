//! NomicBert: CodeRankEmbed, nomic-embed-text v1 and v1.5, arctic-embed-m-long.
//!
//! BERT with four changes: rotary positions on queries and keys instead of a position table; one fused projection
//! `Wqkv` whose rows are q, k and v; a gated feed-forward, `fc2(fc11(x) · silu(fc12(x)))`; biases only where the
//! configuration asks for them. LayerNorm follows each residual; there is no final norm.
//!
//! - Paper: <https://arxiv.org/abs/2402.01613>
//! - Reference: `transformers`, `models/nomic_bert/modeling_nomic_bert.py`, and the original
//!   `modeling_hf_nomic_bert.py` of `nomic-ai/nomic-bert-2048`
//!
//! Texts longer than `max_trained_positions` are rotated with a stretched base where `rotary_scaling_factor` is
//! set. The stretch depends on a text's own length, never on the padding of its batch.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    Activation, Attention, Layer, LayerNorm, Linear, NtkScaling, Ops, Projections, Rotary,
    Settings, Stack, Tokens, add_norm_rows, read_embeddings,
};
use crate::checkpoint::Checkpoint;
use crate::error::Result;

/// Settings, in the words of `config.json`. No default is assumed: those of the original configuration class
/// differ from the published models (its rotary base is 10000, CodeRankEmbed's 1000).
#[derive(Debug, Clone)]
pub struct Config {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) positions: usize,
    n_layer: usize,
    pub(super) n_head: usize,
    head_dim: usize,
    pub(super) n_inner: usize,
    type_vocab_size: usize,
    layer_norm_epsilon: f32,
    gate: Activation,
    rotary: Rotary,
    qkv_proj_bias: bool,
    mlp_fc1_bias: bool,
    mlp_fc2_bias: bool,
}

impl Config {
    pub(super) fn from_json(path: &Path, json: &Value) -> Result<Self> {
        let settings = Settings { path, json };
        for key in [
            "prenorm",
            "parallel_block",
            "rotary_emb_interleaved",
            "use_rms_norm",
            "causal",
        ] {
            settings.only(key, &json!(false))?;
        }
        settings.only("rotary_emb_scale_base", &Value::Null)?;
        for key in ["moe_every_n_layers", "num_experts"] {
            settings.only(key, &json!(0))?;
        }
        let gate = match settings.text(&["activation_function"])? {
            "swiglu" => Activation::Silu,
            "geglu" => Activation::Gelu,
            other => {
                return Err(settings.unsupported(
                    "activation_function",
                    &json!(other),
                    "\"swiglu\" or \"geglu\"",
                ));
            }
        };
        let hidden_size = settings.count(&["n_embd", "hidden_size"])?;
        let n_head = settings.count(&["n_head", "num_attention_heads"])?;
        let head_dim = settings.head_dim(hidden_size, n_head)?;
        Ok(Self {
            vocab_size: settings.count(&["vocab_size"])?,
            hidden_size,
            positions: settings.count(&["n_positions", "max_position_embeddings"])?,
            n_layer: settings.count(&["n_layer", "num_hidden_layers"])?,
            n_head,
            head_dim,
            n_inner: settings.count(&["n_inner", "intermediate_size"])?,
            type_vocab_size: settings.count(&["type_vocab_size"])?,
            layer_norm_epsilon: settings.number(&["layer_norm_epsilon", "layer_norm_eps"])? as f32,
            gate,
            rotary: Self::rotary(&settings, head_dim)?,
            qkv_proj_bias: settings.flag("qkv_proj_bias")?,
            mlp_fc1_bias: settings.flag("mlp_fc1_bias")?,
            mlp_fc2_bias: settings.flag("mlp_fc2_bias")?,
        })
    }

    fn rotary(settings: &Settings, head_dim: usize) -> Result<Rotary> {
        let fraction = settings.number(&["rotary_emb_fraction"])?;
        let dimensions = (head_dim as f64 * fraction) as usize;
        if !(fraction > 0.0 && fraction <= 1.0 && dimensions.is_multiple_of(2)) {
            return Err(settings.unsupported(
                "rotary_emb_fraction",
                &json!(fraction),
                "a fraction of the head above 0 and up to 1 that gives an even number of dimensions",
            ));
        }
        let scaling = match settings.get(&["rotary_scaling_factor"]) {
            None => None,
            Some(_) => Some(NtkScaling {
                factor: settings.number(&["rotary_scaling_factor"])?,
                trained_positions: settings.count(&["max_trained_positions"])?,
            }),
        };
        Ok(Rotary {
            base: settings.number(&["rotary_emb_base"])?,
            dimensions,
            scaling,
        })
    }
}

/// Locates the encoder's weights.
pub(super) fn read(config: &Config, weights: &Checkpoint) -> Result<Stack<Block>> {
    let width = config.hidden_size;
    let block = |index| Block::read(config, weights, &format!("encoder.layers.{index}"));
    Ok(Stack {
        embeddings: read_embeddings(
            weights,
            width,
            config.vocab_size,
            None,
            config.type_vocab_size,
        )?,
        norm: LayerNorm::read(weights, "emb_ln", width, config.layer_norm_epsilon)?,
        layers: (0..config.n_layer).map(block).collect::<Result<_>>()?,
    })
}

/// Attention and gated feed-forward, each with its residual and norm.
#[derive(Debug, Clone)]
pub struct Block {
    wqkv: Projections,
    attention: Attention,
    out_proj: Linear,
    norm1: LayerNorm,
    mlp: GatedMlp,
    norm2: LayerNorm,
}

impl Block {
    fn read(config: &Config, weights: &Checkpoint, name: &str) -> Result<Self> {
        let width = config.hidden_size;
        let bias = config.qkv_proj_bias;
        let wqkv = Linear::read(
            weights,
            &format!("{name}.attn.Wqkv"),
            3 * width,
            width,
            bias,
        )?;
        let norm = |part: &str| {
            LayerNorm::read(
                weights,
                &format!("{name}.{part}"),
                width,
                config.layer_norm_epsilon,
            )
        };
        Ok(Self {
            wqkv: Projections {
                query: wqkv.part(0, 3),
                key: wqkv.part(1, 3),
                value: wqkv.part(2, 3),
            },
            attention: Attention {
                heads: config.n_head,
                head_dim: config.head_dim,
                rotary: Some(config.rotary),
            },
            out_proj: Linear::read(
                weights,
                &format!("{name}.attn.out_proj"),
                width,
                width,
                bias,
            )?,
            norm1: norm("norm1")?,
            mlp: GatedMlp::new(config, weights, &format!("{name}.mlp"))?,
            norm2: norm("norm2")?,
        })
    }
}

impl Block {
    pub(super) fn rotary(&self) -> Option<Rotary> {
        self.attention.rotary
    }
}

impl Layer for Block {
    fn forward<O: Ops>(&self, ops: &mut O, x: &O::Tensor, tokens: Tokens) -> Result<O::Tensor> {
        let attended = ops.attention(x, &self.wqkv, &self.attention, tokens)?;
        let attended = ops.linear(&attended, &self.out_proj)?;
        let rows = add_norm_rows(ops, &attended, x, tokens, &self.norm1)?;
        let output = self.mlp.forward(ops, &rows)?;
        ops.add_norm(&output, &rows, &self.norm2)
    }
}

#[derive(Debug, Clone)]
struct GatedMlp {
    fc11: Linear,
    fc12: Linear,
    gate: Activation,
    fc2: Linear,
}

impl GatedMlp {
    fn new(config: &Config, weights: &Checkpoint, name: &str) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.n_inner);
        let linear = |part: &str, outputs, inputs, bias| {
            Linear::read(weights, &format!("{name}.{part}"), outputs, inputs, bias)
        };
        Ok(Self {
            fc11: linear("fc11", inner, width, config.mlp_fc1_bias)?,
            fc12: linear("fc12", inner, width, config.mlp_fc1_bias)?,
            gate: config.gate,
            fc2: linear("fc2", width, inner, config.mlp_fc2_bias)?,
        })
    }

    fn forward<O: Ops>(&self, ops: &mut O, x: &O::Tensor) -> Result<O::Tensor> {
        let value = ops.linear(x, &self.fc11)?;
        let gate = ops.linear(x, &self.fc12)?;
        let gated = ops.gate(&value, &gate, self.gate)?;
        ops.linear(&gated, &self.fc2)
    }
}
