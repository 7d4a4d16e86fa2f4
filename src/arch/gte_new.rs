//! GTE's "new" encoder: gte-base-en-v1.5, gte-large-en-v1.5, gte-multilingual-base, snowflake-arctic-embed-m-v2.0.
//!
//! BERT with rotary positions instead of a position table; one fused projection `qkv_proj`; and a gated feed-forward,
//! `down_proj(up · act(gate))`, where `up` is the first half of `up_gate_proj`, which has no bias. LayerNorm follows each
//! residual. There may be no token types.
//!
//! - Paper: <https://arxiv.org/abs/2407.19669>
//! - Reference: `modeling.py` of `Alibaba-NLP/new-impl`, and text-embeddings-inference,
//!   `backends/candle/src/models/gte.rs`

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::settings::Settings;
use super::weights::Weights;
use super::{Architecture, Encoder, Facts};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::graph::{Activation, Attention, Graph, Projections, Rotary, Value};

pub const GTE_NEW: Architecture = Architecture {
    model_types: &["new", "gte"],
    recognises: |_| true,
    read: |settings| Ok(Arc::new(GteNew::read(settings)?)),
};

/// Settings, in the words of `config.json`.
#[derive(Debug)]
struct GteNew {
    vocab_size: usize,
    hidden_size: usize,
    max_position_embeddings: usize,
    num_hidden_layers: usize,
    attention: Attention,
    intermediate_size: usize,
    /// `None` where there are no token types.
    type_vocab_size: Option<usize>,
    layer_norm_eps: f32,
    activation: Activation,
}

impl GteNew {
    fn read(settings: &Settings) -> Result<Self> {
        settings.only("position_embedding_type", &json!("rope"))?;
        settings.only("layer_norm_type", &json!("layer_norm"))?;
        settings.only("pack_qkv", &json!(true))?;
        settings.only("logn_attention_scale", &json!(false))?;
        let hidden_size = settings.count(&["hidden_size"])?;
        let heads = settings.count(&["num_attention_heads"])?;
        let attention = settings.attention(hidden_size, heads)?;
        let types = match settings.get(&["type_vocab_size"]) {
            // The reference's default.
            None => 1,
            Some(_) => settings.integer(&["type_vocab_size"], 0)?,
        };
        Ok(Self {
            vocab_size: settings.count(&["vocab_size"])?,
            hidden_size,
            max_position_embeddings: settings.count(&["max_position_embeddings"])?,
            num_hidden_layers: settings.layers(&["num_hidden_layers"])?,
            attention: Attention {
                rotary: Some(Self::rotary(settings, attention.head_dim)?),
                ..attention
            },
            intermediate_size: settings.count(&["intermediate_size"])?,
            type_vocab_size: (types > 0).then_some(types),
            layer_norm_eps: settings.number(&["layer_norm_eps"])? as f32,
            activation: settings.activation("hidden_act")?,
        })
    }

    /// With NTK scaling by a `factor`, whatever the length, the `i`-th pair of `d` dimensions turns by
    /// `(factor · rope_theta)^(−2i/d) / factor^(2/d)` per token.
    fn rotary(settings: &Settings, head_dim: usize) -> Result<Rotary> {
        if !head_dim.is_multiple_of(2) {
            let supported = "as many as give heads of even width";
            let heads = settings.count(&["num_attention_heads"])?;
            return Err(settings.unsupported("num_attention_heads", &json!(heads), supported));
        }
        let factor = match settings.get(&["rope_scaling"]) {
            None => 1.0,
            Some(scaling) => {
                let field = |key| scaling.get(key).filter(|value| !value.is_null());
                let factor = field("factor").and_then(Json::as_f64);
                let is_ntk = field("type").is_some_and(|kind| kind == "ntk");
                factor
                    .filter(|factor| is_ntk && *factor >= 1.0 && field("mixed_b").is_none())
                    .ok_or_else(|| {
                        let supported =
                            "type \"ntk\" with a factor of at least 1 and without mixed_b";
                        settings.unsupported("rope_scaling", scaling, supported)
                    })?
            }
        };
        Ok(Rotary {
            base: factor * settings.number(&["rope_theta"])?,
            dimensions: head_dim,
            position_divisor: factor.powf(2.0 / head_dim as f64),
            scaling: None,
        })
    }

    /// Attention and gated feed-forward, each with its residual and norm.
    fn layer(&self, name: &str, weights: &Weights, graph: &mut Graph, x: Value) -> Result<Value> {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let linear = |part: &str, outputs, inputs, bias| {
            weights.linear(&format!("{name}.{part}"), outputs, inputs, bias)
        };
        let norm = |part: &str| {
            let name = format!("{name}.{part}");
            weights.norm(&name, width, self.layer_norm_eps)
        };
        let fused = linear("attention.qkv_proj", 3 * width, width, true)?;
        let attended = graph.attend(x, Projections::of_fused(&fused), self.attention.clone());
        let attended = graph.linear(attended, linear("attention.o_proj", width, width, true)?);
        let sum = graph.add(attended, x);
        let x = graph.norm(sum, norm("attn_ln")?);
        let fused = linear("mlp.up_gate_proj", 2 * inner, width, false)?;
        let up = graph.linear(x, fused.part(0, 2));
        let gate = graph.linear(x, fused.part(1, 2));
        let gated = graph.gate(up, gate, self.activation);
        let output = graph.linear(gated, linear("mlp.down_proj", width, inner, true)?);
        let sum = graph.add(output, x);
        Ok(graph.norm(sum, norm("mlp_ln")?))
    }
}

impl Encoder for GteNew {
    fn facts(&self) -> Facts {
        Facts {
            vocabulary: self.vocab_size,
            width: self.hidden_size,
            positions: self.max_position_embeddings,
            layer_norm_before_truncation: Some(false),
        }
    }

    fn record(&self, checkpoint: &Checkpoint) -> Result<Graph> {
        let weights = Weights::of(checkpoint, "embeddings.word_embeddings.weight")?;
        let mut graph = Graph::default();
        let (width, types) = (self.hidden_size, self.type_vocab_size);
        let embedded = graph.embed(weights.embeddings(width, self.vocab_size, None, types)?);
        let norm = weights.norm("embeddings.LayerNorm", width, self.layer_norm_eps)?;
        let mut x = graph.norm(embedded, norm);
        for index in 0..self.num_hidden_layers {
            x = self.layer(&format!("encoder.layer.{index}"), &weights, &mut graph, x)?;
        }
        Ok(graph)
    }
}
