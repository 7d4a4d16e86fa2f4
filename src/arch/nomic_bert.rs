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
//! Texts longer than `max_trained_positions` are rotated with a larger base where `rotary_scaling_factor` is set. How much
//! larger depends on a text's own length, never on the padding of its batch.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::settings::Settings;
use super::weights::Weights;
use super::{Architecture, Encoder, Facts};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::graph::{Activation, Attention, Graph, NtkScaling, Projections, Rotary, Value};

pub const NOMIC_BERT: Architecture = Architecture {
    model_types: &["nomic_bert"],
    recognises: |_| true,
    read: |settings| Ok(Arc::new(NomicBert::read(settings)?)),
};

/// Settings, in the words of `config.json`. No default is assumed: those of the original configuration class
/// differ from the published models (its rotary base is 10000, CodeRankEmbed's 1000).
#[derive(Debug)]
struct NomicBert {
    vocab_size: usize,
    n_embd: usize,
    n_positions: usize,
    n_layer: usize,
    attention: Attention,
    n_inner: usize,
    type_vocab_size: usize,
    layer_norm_epsilon: f32,
    activation: Activation,
    qkv_proj_bias: bool,
    mlp_fc1_bias: bool,
    mlp_fc2_bias: bool,
}

impl NomicBert {
    fn read(settings: &Settings) -> Result<Self> {
        for key in [
            "prenorm",
            "parallel_block",
            "rotary_emb_interleaved",
            "use_rms_norm",
            "causal",
        ] {
            settings.only(key, &json!(false))?;
        }
        settings.only("rotary_emb_scale_base", &Json::Null)?;
        for key in ["moe_every_n_layers", "num_experts"] {
            settings.only(key, &json!(0))?;
        }
        let activation = match settings.text(&["activation_function"])? {
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
        let n_embd = settings.count(&["n_embd", "hidden_size"])?;
        let heads = settings.count(&["n_head", "num_attention_heads"])?;
        let attention = settings.attention(n_embd, heads)?;
        Ok(Self {
            vocab_size: settings.count(&["vocab_size"])?,
            n_embd,
            n_positions: settings.count(&["n_positions", "max_position_embeddings"])?,
            n_layer: settings.count(&["n_layer", "num_hidden_layers"])?,
            attention: Attention {
                rotary: Some(Self::rotary(settings, attention.head_dim)?),
                ..attention
            },
            n_inner: settings.count(&["n_inner", "intermediate_size"])?,
            type_vocab_size: settings.count(&["type_vocab_size"])?,
            layer_norm_epsilon: settings.number(&["layer_norm_epsilon", "layer_norm_eps"])? as f32,
            activation,
            qkv_proj_bias: settings.flag("qkv_proj_bias")?,
            mlp_fc1_bias: settings.flag("mlp_fc1_bias")?,
            mlp_fc2_bias: settings.flag("mlp_fc2_bias")?,
        })
    }

    fn rotary(settings: &Settings, head_dim: usize) -> Result<Rotary> {
        let fraction = settings.number(&["rotary_emb_fraction"])?;
        let dimensions = (head_dim as f64 * fraction) as usize;
        if !(fraction <= 1.0 && dimensions >= 2 && dimensions.is_multiple_of(2)) {
            return Err(settings.unsupported(
                "rotary_emb_fraction",
                &json!(fraction),
                "a fraction of the head above 0 and up to 1 that gives an even number of dimensions",
            ));
        }
        let scaling = match settings.get(&["rotary_scaling_factor"]) {
            None => None,
            // Its exponent divides by the dimensions beyond 2.
            Some(factor) if dimensions == 2 => {
                let supported = "none, where two dimensions of a head are rotated";
                return Err(settings.unsupported("rotary_scaling_factor", factor, supported));
            }
            Some(_) => Some(NtkScaling {
                factor: settings.number(&["rotary_scaling_factor"])?,
                trained_positions: settings.count(&["max_trained_positions"])?,
            }),
        };
        Ok(Rotary {
            base: settings.number(&["rotary_emb_base"])?,
            dimensions,
            position_divisor: 1.0,
            scaling,
        })
    }

    /// Attention and gated feed-forward, each with its residual and norm.
    fn block(&self, name: &str, weights: &Weights, graph: &mut Graph, x: Value) -> Result<Value> {
        let (width, inner, bias) = (self.n_embd, self.n_inner, self.qkv_proj_bias);
        let linear = |part: &str, outputs, inputs, bias| {
            weights.linear(&format!("{name}.{part}"), outputs, inputs, bias)
        };
        let norm = |part: &str| {
            let name = format!("{name}.{part}");
            weights.norm(&name, width, self.layer_norm_epsilon)
        };
        let fused = linear("attn.Wqkv", 3 * width, width, bias)?;
        let attended = graph.attend(x, Projections::of_fused(&fused), self.attention.clone());
        let attended = graph.linear(attended, linear("attn.out_proj", width, width, bias)?);
        let sum = graph.add(attended, x);
        let x = graph.norm(sum, norm("norm1")?);
        let value = graph.linear(x, linear("mlp.fc11", inner, width, self.mlp_fc1_bias)?);
        let gate = graph.linear(x, linear("mlp.fc12", inner, width, self.mlp_fc1_bias)?);
        let gated = graph.gate(value, gate, self.activation);
        let output = graph.linear(gated, linear("mlp.fc2", width, inner, self.mlp_fc2_bias)?);
        let sum = graph.add(output, x);
        Ok(graph.norm(sum, norm("norm2")?))
    }
}

impl Encoder for NomicBert {
    fn facts(&self) -> Facts {
        Facts {
            vocabulary: self.vocab_size,
            width: self.n_embd,
            positions: self.n_positions,
            layer_norm_before_truncation: None,
        }
    }

    fn record(&self, checkpoint: &Checkpoint) -> Result<Graph> {
        let weights = Weights::of(checkpoint, "embeddings.word_embeddings.weight")?;
        let mut graph = Graph::default();
        let (width, types) = (self.n_embd, self.type_vocab_size);
        let embedded =
            graph.embed(weights.embeddings(width, self.vocab_size, None, Some(types))?);
        let norm = weights.norm("emb_ln", width, self.layer_norm_epsilon)?;
        let mut x = graph.norm(embedded, norm);
        for index in 0..self.n_layer {
            let name = format!("encoder.layers.{index}");
            x = self.block(&name, &weights, &mut graph, x)?;
        }
        Ok(graph)
    }
}
