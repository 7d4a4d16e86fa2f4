//! `DistilBERT`: BERT without token types, with names of its own; the epsilon of its norms is fixed. Checkpoints hold the table
//! of positions also where it was made of sinusoids.
//!
//! - Paper: <https://arxiv.org/abs/1910.01108>
//! - Reference: `transformers`, `models/distilbert/modeling_distilbert.py`

use std::sync::Arc;

use super::settings::Settings;
use super::weights::Weights;
use super::{Architecture, Encoder, Facts};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::graph::{Activation, Attention, Graph, Numbering, Projections, Value};

pub const DISTILBERT: Architecture = Architecture {
    model_types: &["distilbert"],
    recognises: |_| true,
    read: |settings| Ok(Arc::new(DistilBert::read(settings)?)),
};

const EPSILON: f32 = 1e-12;

/// Settings, in the words of `config.json`.
#[derive(Debug)]
struct DistilBert {
    vocab_size: usize,
    dim: usize,
    max_position_embeddings: usize,
    n_layers: usize,
    attention: Attention,
    hidden_dim: usize,
    activation: Activation,
}

impl DistilBert {
    fn read(settings: &Settings) -> Result<Self> {
        let dim = settings.count(&["dim"])?;
        let heads = settings.count(&["n_heads"])?;
        Ok(Self {
            vocab_size: settings.count(&["vocab_size"])?,
            dim,
            max_position_embeddings: settings.count(&["max_position_embeddings"])?,
            n_layers: settings.count(&["n_layers"])?,
            attention: Attention {
                heads,
                head_dim: settings.head_dim(dim, heads)?,
                rotary: None,
            },
            hidden_dim: settings.count(&["hidden_dim"])?,
            activation: settings.activation("activation")?,
        })
    }

    /// Self-attention and feed-forward, each with its residual and norm.
    fn layer(&self, name: &str, weights: &Weights, graph: &mut Graph, x: Value) -> Result<Value> {
        let (width, inner) = (self.dim, self.hidden_dim);
        let linear = |part: &str, outputs, inputs| {
            weights.linear(&format!("{name}.{part}"), outputs, inputs, true)
        };
        let norm = |part: &str| weights.norm(&format!("{name}.{part}"), width, EPSILON);
        let projections = Projections {
            query: linear("attention.q_lin", width, width)?,
            key: linear("attention.k_lin", width, width)?,
            value: linear("attention.v_lin", width, width)?,
        };
        let attended = graph.attend(x, projections, self.attention, None);
        let attended = graph.linear(attended, linear("attention.out_lin", width, width)?);
        let sum = graph.add(attended, x);
        let x = graph.norm(sum, norm("sa_layer_norm")?);
        let wide = graph.linear(x, linear("ffn.lin1", inner, width)?);
        let wide = graph.activate(wide, self.activation);
        let output = graph.linear(wide, linear("ffn.lin2", width, inner)?);
        let sum = graph.add(output, x);
        Ok(graph.norm(sum, norm("output_layer_norm")?))
    }
}

impl Encoder for DistilBert {
    fn facts(&self) -> Facts {
        Facts {
            vocabulary: self.vocab_size,
            width: self.dim,
            positions: self.max_position_embeddings,
            layer_norm_before_truncation: Some(false),
        }
    }

    fn record(&self, checkpoint: &Checkpoint) -> Result<Graph> {
        let weights = Weights::of(checkpoint, "embeddings.word_embeddings.weight")?;
        let mut graph = Graph::default();
        let positions = Some((self.max_position_embeddings, Numbering::Index));
        let embedded =
            graph.embed(weights.embeddings(self.dim, self.vocab_size, positions, None)?);
        let mut x = graph.norm(
            embedded,
            weights.norm("embeddings.LayerNorm", self.dim, EPSILON)?,
        );
        for index in 0..self.n_layers {
            let name = format!("transformer.layer.{index}");
            x = self.layer(&name, &weights, &mut graph, x)?;
        }
        Ok(graph)
    }
}
