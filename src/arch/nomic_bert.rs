//! NomicBert: CodeRankEmbed, nomic-embed-text v1, v1.5 and v2-moe, arctic-embed-m-long.
//!
//! BERT with four changes: rotary positions on queries and keys instead of a position table; one fused projection
//! `Wqkv` whose rows are q, k and v; a gated feed-forward, `fc2(fc11(x) · silu(fc12(x)))`; biases only where the
//! configuration asks for them. LayerNorm follows each residual; there is no final norm.
//!
//! v2-moe has a feed-forward without gate, `fc2(gelu(fc1(x)))`, and in every second layer one of eight experts in its place, of
//! which each token is given to two.
//!
//! - Papers: <https://arxiv.org/abs/2402.01613>, <https://arxiv.org/abs/2502.07972>
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
use crate::graph::{Activation, Attention, Experts, Graph, NtkScaling, Projections, Rotary, Value};

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
    feed_forward: FeedForward,
    experts: Option<ExpertSettings>,
    qkv_proj_bias: bool,
    mlp_fc1_bias: bool,
    mlp_fc2_bias: bool,
}

/// The feed-forward of layers without experts.
#[derive(Debug, Clone, Copy)]
enum FeedForward {
    /// `fc2(fc11(x) · activation(fc12(x)))`
    Gated(Activation),
    /// `fc2(activation(fc1(x)))`
    Plain(Activation),
}

/// Which layers have experts, and how many.
#[derive(Debug, Clone, Copy)]
struct ExpertSettings {
    activation: Activation,
    moe_every_n_layers: usize,
    num_experts: usize,
    moe_top_k: usize,
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
        let feed_forward = match settings.text(&["activation_function"])? {
            "swiglu" => FeedForward::Gated(Activation::Silu),
            "geglu" => FeedForward::Gated(Activation::Gelu),
            "gelu" => FeedForward::Plain(Activation::Gelu),
            other => {
                return Err(settings.unsupported(
                    "activation_function",
                    &json!(other),
                    "\"swiglu\", \"geglu\" or \"gelu\"",
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
            n_layer: settings.layers(&["n_layer", "num_hidden_layers"])?,
            attention: Attention {
                rotary: Some(Self::rotary(settings, attention.head_dim)?),
                ..attention
            },
            n_inner: settings.count(&["n_inner", "intermediate_size"])?,
            type_vocab_size: settings.count(&["type_vocab_size"])?,
            layer_norm_epsilon: settings.number(&["layer_norm_epsilon", "layer_norm_eps"])? as f32,
            feed_forward,
            experts: Self::experts(settings, feed_forward)?,
            qkv_proj_bias: settings.flag("qkv_proj_bias")?,
            mlp_fc1_bias: settings.flag("mlp_fc1_bias")?,
            mlp_fc2_bias: settings.flag("mlp_fc2_bias")?,
        })
    }

    /// Of no layer, unless `moe_every_n_layers` says otherwise.
    fn experts(settings: &Settings, other: FeedForward) -> Result<Option<ExpertSettings>> {
        let every = "moe_every_n_layers";
        if settings.get(&[every]).is_none_or(|every| *every == 0) {
            settings.only("num_experts", &json!(0))?;
            return Ok(None);
        }
        let moe_every_n_layers = settings.count(&[every])?;
        let FeedForward::Plain(activation) = other else {
            let supported = "0, where the feed-forward is gated";
            return Err(settings.unsupported(every, &json!(moe_every_n_layers), supported));
        };
        settings.only("moe_normalize_expert_weights", &json!(false))?;
        settings.only("expert_choice_router", &json!(false))?;
        settings.only("num_shared_experts", &json!(0))?;
        settings.only("ffn_div", &json!(1))?;
        let num_experts = settings.count(&["num_experts"])?;
        let moe_top_k = settings.count(&["moe_top_k"])?;
        if moe_top_k > num_experts {
            let supported = format!("at most the number of experts, {num_experts}");
            return Err(settings.unsupported("moe_top_k", &json!(moe_top_k), &supported));
        }
        Ok(Some(ExpertSettings {
            activation,
            moe_every_n_layers,
            num_experts,
            moe_top_k,
        }))
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

    /// Attention and feed-forward, each with its residual and norm.
    fn block(&self, index: usize, weights: &Weights, graph: &mut Graph, x: Value) -> Result<Value> {
        let name = format!("encoder.layers.{index}");
        let (width, bias) = (self.n_embd, self.qkv_proj_bias);
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
        let has_experts = |experts: &ExpertSettings| index % experts.moe_every_n_layers == 1;
        let output = match self.experts.filter(has_experts) {
            Some(experts) => self.give_to_experts(&name, experts, weights, graph, x)?,
            None => self.feed_forward(&name, weights, graph, x)?,
        };
        let sum = graph.add(output, x);
        Ok(graph.norm(sum, norm("norm2")?))
    }

    fn feed_forward(
        &self,
        name: &str,
        weights: &Weights,
        graph: &mut Graph,
        x: Value,
    ) -> Result<Value> {
        let (width, inner) = (self.n_embd, self.n_inner);
        let linear = |part: &str, outputs, inputs, bias| {
            weights.linear(&format!("{name}.mlp.{part}"), outputs, inputs, bias)
        };
        let first = |part| linear(part, inner, width, self.mlp_fc1_bias);
        let wide = match self.feed_forward {
            FeedForward::Gated(activation) => {
                let value = graph.linear(x, first("fc11")?);
                let gate = graph.linear(x, first("fc12")?);
                graph.gate(value, gate, activation)
            }
            FeedForward::Plain(activation) => {
                let wide = graph.linear(x, first("fc1")?);
                graph.activate(wide, activation)
            }
        };
        Ok(graph.linear(wide, linear("fc2", width, inner, self.mlp_fc2_bias)?))
    }

    fn give_to_experts(
        &self,
        name: &str,
        experts: ExpertSettings,
        weights: &Weights,
        graph: &mut Graph,
        x: Value,
    ) -> Result<Value> {
        let tensor = |part: &str, shape: &[usize]| {
            let name = format!("{name}.mlp.{part}");
            weights.tensor(&name, shape)
        };
        let (width, count) = (self.n_embd, experts.num_experts);
        let every = [count * self.n_inner, width];
        let layer = Experts {
            router: tensor("router.layer.weight", &[count, width])?,
            up: tensor("experts.mlp.w1", &every)?,
            down: tensor("experts.mlp.w2", &every)?,
            bias: tensor("experts.bias", &[width])?,
            chosen: experts.moe_top_k,
            activation: experts.activation,
        };
        Ok(graph.experts(x, layer))
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
            x = self.block(index, &weights, &mut graph, x)?;
        }
        Ok(graph)
    }
}
