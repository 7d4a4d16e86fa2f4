//! BERT as in `bert-base-uncased` and its descendants for embeddings: bge, E5, gte, all-MiniLM, arctic-embed-s/m.
//!
//! Absolute positions, token types (always type 0: a single text), biases everywhere, LayerNorm after each
//! residual (post-norm), GELU feed-forward. The pooler head of the original is not used by embedding models.
//!
//! - Paper: <https://arxiv.org/abs/1810.04805>
//! - Reference: `transformers`, `models/bert/modeling_bert.py`

use std::sync::Arc;

use serde_json::json;

use super::settings::Settings;
use super::weights::Weights;
use super::{Architecture, Encoder, Facts};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::graph::{Activation, Attention, Graph, Numbering, Projections, Value};

pub const BERT: Architecture = Architecture {
    model_types: &["bert"],
    recognises: |_| true,
    read: |settings| Ok(Arc::new(Bert::read(settings, Numbering::Index)?)),
};

/// Settings, in the words of `config.json`.
#[derive(Debug)]
pub struct Bert {
    vocab_size: usize,
    hidden_size: usize,
    max_position_embeddings: usize,
    numbering: Numbering,
    num_hidden_layers: usize,
    attention: Attention,
    intermediate_size: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    activation: Activation,
}

impl Bert {
    /// Of models that differ from BERT in how positions are numbered, at most.
    pub fn read(settings: &Settings, numbering: Numbering) -> Result<Self> {
        settings.only("position_embedding_type", &json!("absolute"))?;
        settings.only("is_decoder", &json!(false))?;
        let activation = settings.activation("hidden_act")?;
        let hidden_size = settings.count(&["hidden_size"])?;
        let heads = settings.count(&["num_attention_heads"])?;
        Ok(Self {
            vocab_size: settings.count(&["vocab_size"])?,
            hidden_size,
            max_position_embeddings: settings.positions(numbering)?,
            numbering,
            num_hidden_layers: settings.count(&["num_hidden_layers"])?,
            attention: Attention {
                heads,
                head_dim: settings.head_dim(hidden_size, heads)?,
                rotary: None,
            },
            intermediate_size: settings.count(&["intermediate_size"])?,
            type_vocab_size: settings.count(&["type_vocab_size"])?,
            layer_norm_eps: settings.number(&["layer_norm_eps"])? as f32,
            activation,
        })
    }

    /// Self-attention and feed-forward, each with its residual and norm.
    fn layer(&self, name: &str, weights: &Weights, graph: &mut Graph, x: Value) -> Result<Value> {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let linear = |part: &str, outputs, inputs| {
            weights.linear(&format!("{name}.{part}"), outputs, inputs, true)
        };
        let norm = |part: &str| {
            let name = format!("{name}.{part}.LayerNorm");
            weights.norm(&name, width, self.layer_norm_eps)
        };
        let projections = Projections {
            query: linear("attention.self.query", width, width)?,
            key: linear("attention.self.key", width, width)?,
            value: linear("attention.self.value", width, width)?,
        };
        let attended = graph.attend(x, projections, self.attention, None);
        let attended = graph.linear(attended, linear("attention.output.dense", width, width)?);
        let sum = graph.add(attended, x);
        let x = graph.norm(sum, norm("attention.output")?);
        let wide = graph.linear(x, linear("intermediate.dense", inner, width)?);
        let wide = graph.activate(wide, self.activation);
        let output = graph.linear(wide, linear("output.dense", width, inner)?);
        let sum = graph.add(output, x);
        Ok(graph.norm(sum, norm("output")?))
    }
}

impl Encoder for Bert {
    fn facts(&self) -> Facts {
        Facts {
            vocabulary: self.vocab_size,
            width: self.hidden_size,
            positions: self.max_position_embeddings - self.numbering.first_row(),
            layer_norm_before_truncation: Some(false),
        }
    }

    fn record(&self, checkpoint: &Checkpoint) -> Result<Graph> {
        let weights = Weights::of(checkpoint, "embeddings.word_embeddings.weight")?;
        let mut graph = Graph::default();
        let (width, epsilon) = (self.hidden_size, self.layer_norm_eps);
        let embedded = graph.embed(weights.embeddings(
            width,
            self.vocab_size,
            Some((self.max_position_embeddings, self.numbering)),
            Some(self.type_vocab_size),
        )?);
        let norm = weights.norm("embeddings.LayerNorm", width, epsilon)?;
        let mut x = graph.norm(embedded, norm);
        for index in 0..self.num_hidden_layers {
            let name = format!("encoder.layer.{index}");
            x = self.layer(&name, &weights, &mut graph, x)?;
        }
        Ok(graph)
    }
}
