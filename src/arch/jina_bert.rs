//! `JinaBERT`: jina-embeddings-v2, for prose (small-en, base-en, base-de, …) and for code (base-code).
//!
//! BERT with `ALiBi` in place of a table of positions, and a gated feed-forward. Its `model_type` is BERT's. There are two
//! implementations, which the names of a checkpoint's tensors tell apart:
//!
//! - `jina-bert-implementation`: `wo(act(first half) · second half)` of `gated_layers`.
//! - `jina-bert-v2-qk-post-norm`, of the model for code: queries and keys are normalized as whole rows; the residual is added,
//!   and the sum normalized, once more behind the attention's own norm; and `down_layer(first half · act(second half))` of
//!   `up_gated_layer`: the halves have changed places.
//!
//! - Paper: <https://arxiv.org/abs/2310.19923>
//! - Reference: `modeling_bert.py` of `jinaai/jina-bert-implementation` and of `jinaai/jina-bert-v2-qk-post-norm`

use std::sync::Arc;

use serde_json::json;

use super::settings::Settings;
use super::weights::Weights;
use super::{Architecture, Encoder, Facts};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::graph::{Activation, Attention, Graph, Mask, Projections, Value};

pub const JINA_BERT: Architecture = Architecture {
    model_types: &["bert"],
    recognises: |settings| {
        let positions = settings.get(&["position_embedding_type"]);
        positions.is_some_and(|kind| kind == "alibi")
    },
    read: |settings| Ok(Arc::new(JinaBert::read(settings)?)),
};

/// What the implementations differ in.
#[derive(Debug, Clone, Copy)]
struct Implementation {
    /// Whether there are norms of queries and keys, and one more behind the attention.
    has_more_norms: bool,
    /// Which half of the fused layer is the gate.
    gate_half: usize,
    fused: &'static str,
    output: &'static str,
    output_norm: &'static str,
}

const PLAIN: Implementation = Implementation {
    has_more_norms: false,
    gate_half: 0,
    fused: "mlp.gated_layers",
    output: "mlp.wo",
    output_norm: "mlp.layernorm",
};

const QK_POST_NORM: Implementation = Implementation {
    has_more_norms: true,
    gate_half: 1,
    fused: "mlp.up_gated_layer",
    output: "mlp.down_layer",
    output_norm: "layer_norm_2",
};

/// Settings, in the words of `config.json`.
#[derive(Debug)]
struct JinaBert {
    vocab_size: usize,
    hidden_size: usize,
    max_position_embeddings: usize,
    num_hidden_layers: usize,
    attention: Attention,
    intermediate_size: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    activation: Activation,
}

impl JinaBert {
    fn read(settings: &Settings) -> Result<Self> {
        settings.only("is_decoder", &json!(false))?;
        let activation = match settings.text(&["feed_forward_type"])? {
            "geglu" => Activation::Gelu,
            "reglu" => Activation::Relu,
            other => {
                let supported = "\"geglu\" or \"reglu\"";
                return Err(settings.unsupported("feed_forward_type", &json!(other), supported));
            }
        };
        let hidden_size = settings.count(&["hidden_size"])?;
        let heads = settings.count(&["num_attention_heads"])?;
        Ok(Self {
            vocab_size: settings.count(&["vocab_size"])?,
            hidden_size,
            max_position_embeddings: settings.count(&["max_position_embeddings"])?,
            num_hidden_layers: settings.layers(&["num_hidden_layers"])?,
            attention: Attention {
                mask: Mask::Alibi,
                ..settings.attention(hidden_size, heads)?
            },
            intermediate_size: settings.count(&["intermediate_size"])?,
            type_vocab_size: settings.count(&["type_vocab_size"])?,
            layer_norm_eps: settings.number(&["layer_norm_eps"])? as f32,
            activation,
        })
    }

    /// Self-attention and gated feed-forward, each with its residual and norm.
    fn layer(
        &self,
        name: &str,
        weights: &Weights,
        implementation: Implementation,
        graph: &mut Graph,
        x: Value,
    ) -> Result<Value> {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let linear = |part: &str, outputs, inputs, bias| {
            weights.linear(&format!("{name}.{part}"), outputs, inputs, bias)
        };
        let norm = |part: &str| {
            let name = format!("{name}.{part}");
            weights.norm(&name, width, self.layer_norm_eps)
        };
        let Implementation {
            has_more_norms,
            gate_half,
            fused,
            output,
            output_norm,
        } = implementation;
        let projections = Projections {
            query: linear("attention.self.query", width, width, true)?,
            key: linear("attention.self.key", width, width, true)?,
            value: linear("attention.self.value", width, width, true)?,
            norms: if has_more_norms {
                Some([
                    norm("attention.self.layer_norm_q")?,
                    norm("attention.self.layer_norm_k")?,
                ])
            } else {
                None
            },
        };
        let attended = graph.attend(x, projections, self.attention.clone());
        let dense = linear("attention.output.dense", width, width, true)?;
        let attended = graph.linear(attended, dense);
        let sum = graph.add(attended, x);
        let mut attended = graph.norm(sum, norm("attention.output.LayerNorm")?);
        if has_more_norms {
            let sum = graph.add(attended, x);
            attended = graph.norm(sum, norm("layer_norm_1")?);
        }
        let fused = linear(fused, 2 * inner, width, false)?;
        let gate = graph.linear(attended, fused.part(gate_half, 2));
        let up = graph.linear(attended, fused.part(1 - gate_half, 2));
        let gated = graph.gate(up, gate, self.activation);
        let output = graph.linear(gated, linear(output, width, inner, true)?);
        let sum = graph.add(output, attended);
        Ok(graph.norm(sum, norm(output_norm)?))
    }
}

impl Encoder for JinaBert {
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
        let has_more_norms = weights.has("encoder.layer.0.attention.self.layer_norm_q.weight");
        let implementation = if has_more_norms { QK_POST_NORM } else { PLAIN };
        let mut graph = Graph::default();
        let (width, types) = (self.hidden_size, self.type_vocab_size);
        let embedded =
            graph.embed(weights.embeddings(width, self.vocab_size, None, Some(types))?);
        let norm = weights.norm("embeddings.LayerNorm", width, self.layer_norm_eps)?;
        let mut x = graph.norm(embedded, norm);
        for index in 0..self.num_hidden_layers {
            let name = format!("encoder.layer.{index}");
            x = self.layer(&name, &weights, implementation, &mut graph, x)?;
        }
        Ok(graph)
    }
}
