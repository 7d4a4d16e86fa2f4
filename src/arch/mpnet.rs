//! `MPNet`: all-mpnet-base-v2, multi-qa-mpnet.
//!
//! BERT without token types, with a bias on attention scores by the distance between tokens, one table for all layers.
//! Positions are numbered as `RoBERTa`'s, from 2.
//!
//! - Paper: <https://arxiv.org/abs/2004.09297>
//! - Reference: `transformers`, `models/mpnet/modeling_mpnet.py`

use std::sync::Arc;

use super::settings::Settings;
use super::weights::Weights;
use super::{Architecture, Encoder, Facts};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::graph::{Activation, Attention, Graph, Numbering, Projections, RelativeBias, Value};

pub const MPNET: Architecture = Architecture {
    model_types: &["mpnet"],
    recognises: |_| true,
    read: |settings| Ok(Arc::new(MpNet::read(settings)?)),
};

/// The padding token's id, whatever `pad_token_id` says.
const NUMBERING: Numbering = Numbering::NotPadding { padding: 1 };

/// Fixed, too.
const MOST_DISTANCE: usize = 128;

/// Settings, in the words of `config.json`.
#[derive(Debug)]
struct MpNet {
    vocab_size: usize,
    hidden_size: usize,
    max_position_embeddings: usize,
    num_hidden_layers: usize,
    attention: Attention,
    relative_attention_num_buckets: usize,
    intermediate_size: usize,
    layer_norm_eps: f32,
    activation: Activation,
}

impl MpNet {
    fn read(settings: &Settings) -> Result<Self> {
        let hidden_size = settings.count(&["hidden_size"])?;
        let heads = settings.count(&["num_attention_heads"])?;
        let buckets = settings.count(&["relative_attention_num_buckets"])?;
        // In each direction one half is for exact distances, all of them below the largest.
        if !(buckets.is_multiple_of(4) && buckets < 4 * MOST_DISTANCE) {
            return Err(settings.unsupported(
                "relative_attention_num_buckets",
                &buckets.into(),
                &format!("a multiple of 4 below {}", 4 * MOST_DISTANCE),
            ));
        }
        Ok(Self {
            vocab_size: settings.count(&["vocab_size"])?,
            hidden_size,
            max_position_embeddings: settings.positions(NUMBERING)?,
            num_hidden_layers: settings.count(&["num_hidden_layers"])?,
            attention: Attention {
                heads,
                head_dim: settings.head_dim(hidden_size, heads)?,
                rotary: None,
            },
            relative_attention_num_buckets: buckets,
            intermediate_size: settings.count(&["intermediate_size"])?,
            layer_norm_eps: settings.number(&["layer_norm_eps"])? as f32,
            activation: settings.activation("hidden_act")?,
        })
    }

    /// Self-attention and feed-forward, each with its residual and norm.
    fn layer(
        &self,
        name: &str,
        weights: &Weights,
        bias: RelativeBias,
        graph: &mut Graph,
        x: Value,
    ) -> Result<Value> {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let linear = |part: &str, outputs, inputs| {
            weights.linear(&format!("{name}.{part}"), outputs, inputs, true)
        };
        let norm = |part: &str| {
            let name = format!("{name}.{part}.LayerNorm");
            weights.norm(&name, width, self.layer_norm_eps)
        };
        let projections = Projections {
            query: linear("attention.attn.q", width, width)?,
            key: linear("attention.attn.k", width, width)?,
            value: linear("attention.attn.v", width, width)?,
        };
        let attended = graph.attend(x, projections, self.attention, Some(bias));
        let attended = graph.linear(attended, linear("attention.attn.o", width, width)?);
        let sum = graph.add(attended, x);
        let x = graph.norm(sum, norm("attention")?);
        let wide = graph.linear(x, linear("intermediate.dense", inner, width)?);
        let wide = graph.activate(wide, self.activation);
        let output = graph.linear(wide, linear("output.dense", width, inner)?);
        let sum = graph.add(output, x);
        Ok(graph.norm(sum, norm("output")?))
    }
}

impl Encoder for MpNet {
    fn facts(&self) -> Facts {
        Facts {
            vocabulary: self.vocab_size,
            width: self.hidden_size,
            positions: self.max_position_embeddings - NUMBERING.first_row(),
            layer_norm_before_truncation: Some(false),
        }
    }

    fn record(&self, checkpoint: &Checkpoint) -> Result<Graph> {
        let weights = Weights::of(checkpoint, "embeddings.word_embeddings.weight")?;
        let mut graph = Graph::default();
        let (width, epsilon) = (self.hidden_size, self.layer_norm_eps);
        let positions = Some((self.max_position_embeddings, NUMBERING));
        let embedded = graph.embed(weights.embeddings(width, self.vocab_size, positions, None)?);
        let norm = weights.norm("embeddings.LayerNorm", width, epsilon)?;
        let mut x = graph.norm(embedded, norm);
        let table = "encoder.relative_attention_bias.weight";
        let shape = [self.relative_attention_num_buckets, self.attention.heads];
        let bias = RelativeBias {
            table: weights.tensor(table, &shape)?,
            most_distance: MOST_DISTANCE,
        };
        for index in 0..self.num_hidden_layers {
            let name = format!("encoder.layer.{index}");
            x = self.layer(&name, &weights, bias.clone(), &mut graph, x)?;
        }
        Ok(graph)
    }
}
