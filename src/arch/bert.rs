//! BERT as in `bert-base-uncased` and its descendants for embeddings: bge, E5, gte, all-MiniLM, arctic-embed-s/m.
//!
//! Absolute positions, token types (of a single text always type 0), biases everywhere, LayerNorm after each
//! residual (post-norm), GELU feed-forward. Embedding models do not use the pooler of the original; rerankers do.
//! [`Bert`] also computes the families that differ in settings and names only.
//!
//! - Paper: <https://arxiv.org/abs/1810.04805>
//! - Reference: `transformers`, `models/bert/modeling_bert.py`

use std::sync::Arc;

use serde_json::json;

use super::settings::Settings;
use super::weights::Weights;
use super::{Architecture, Encoder, Facts, Head};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::graph::{
    Activation, Attention, Graph, Mask, Numbering, Projections, RelativeBias, Value,
};

pub const BERT: Architecture = Architecture {
    model_types: &["bert"],
    recognises: |_| true,
    read: |settings| Ok(Arc::new(Bert::read(settings, Numbering::Index, HEAD)?)),
};

/// The pooler of the original, and the classifier of its descendants.
const HEAD: Head = Head::of("pooler.dense", Activation::Tanh, "classifier");

/// Names of a layer's weights, within the layer.
#[derive(Debug)]
pub struct Names {
    /// The layers' own, in front of their number.
    pub layers: &'static str,
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub attention_output: &'static str,
    pub attention_norm: &'static str,
    pub intermediate: &'static str,
    pub output: &'static str,
    pub output_norm: &'static str,
}

const NAMES: Names = Names {
    layers: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    intermediate: "intermediate.dense",
    output: "output.dense",
    output_norm: "output.LayerNorm",
};

/// Where a bias by distance lies that all layers add to their scores; see [`RelativeBias`].
#[derive(Debug)]
pub struct BiasTable {
    pub name: &'static str,
    pub buckets: usize,
    pub most_distance: usize,
}

/// Settings, in the words of `config.json`.
#[derive(Debug)]
pub struct Bert {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub max_position_embeddings: usize,
    pub numbering: Numbering,
    pub num_hidden_layers: usize,
    pub attention: Attention,
    pub bias: Option<BiasTable>,
    pub intermediate_size: usize,
    /// `None` where there are no token types.
    pub type_vocab_size: Option<usize>,
    pub layer_norm_eps: f32,
    pub activation: Activation,
    pub names: Names,
    pub head: Option<Head>,
}

impl Bert {
    /// Of models that differ from BERT in how positions are numbered and in the head of rerankers, at most.
    pub fn read(settings: &Settings, numbering: Numbering, head: Head) -> Result<Self> {
        settings.only("position_embedding_type", &json!("absolute"))?;
        for key in ["is_decoder", "add_cross_attention"] {
            settings.only(key, &json!(false))?;
        }
        let activation = settings.activation("hidden_act")?;
        let hidden_size = settings.count(&["hidden_size"])?;
        let heads = settings.count(&["num_attention_heads"])?;
        Ok(Self {
            vocab_size: settings.count(&["vocab_size"])?,
            hidden_size,
            max_position_embeddings: settings.positions(numbering)?,
            numbering,
            num_hidden_layers: settings.layers(&["num_hidden_layers"])?,
            attention: settings.attention(hidden_size, heads)?,
            bias: None,
            intermediate_size: settings.count(&["intermediate_size"])?,
            type_vocab_size: Some(settings.count(&["type_vocab_size"])?),
            layer_norm_eps: settings.number(&["layer_norm_eps"])? as f32,
            activation,
            names: NAMES,
            head: Some(head),
        })
    }

    /// Self-attention and feed-forward, each with its residual and norm.
    fn layer(
        &self,
        index: usize,
        weights: &Weights,
        attention: &Attention,
        graph: &mut Graph,
        x: Value,
    ) -> Result<Value> {
        let (width, inner, names) = (self.hidden_size, self.intermediate_size, &self.names);
        let linear = |part: &str, outputs, inputs| {
            weights.linear(
                &format!("{}.{index}.{part}", names.layers),
                outputs,
                inputs,
                true,
            )
        };
        let norm = |part: &str| {
            let name = format!("{}.{index}.{part}", names.layers);
            weights.norm(&name, width, self.layer_norm_eps)
        };
        let projections = Projections {
            query: linear(names.query, width, width)?,
            key: linear(names.key, width, width)?,
            value: linear(names.value, width, width)?,
            norms: None,
        };
        let attended = graph.attend(x, projections, attention.clone());
        let attended = graph.linear(attended, linear(names.attention_output, width, width)?);
        let sum = graph.add(attended, x);
        let x = graph.norm(sum, norm(names.attention_norm)?);
        let wide = graph.linear(x, linear(names.intermediate, inner, width)?);
        let wide = graph.activate(wide, self.activation);
        let output = graph.linear(wide, linear(names.output, width, inner)?);
        let sum = graph.add(output, x);
        Ok(graph.norm(sum, norm(names.output_norm)?))
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

    fn head(&self) -> Option<Head> {
        self.head
    }

    fn record(&self, checkpoint: &Checkpoint) -> Result<Graph> {
        let weights = Weights::of(checkpoint, "embeddings.word_embeddings.weight")?;
        let mut graph = Graph::default();
        let (width, epsilon) = (self.hidden_size, self.layer_norm_eps);
        let positions = Some((self.max_position_embeddings, self.numbering));
        let types = self.type_vocab_size;
        let embedded = graph.embed(weights.embeddings(width, self.vocab_size, positions, types)?);
        let norm = weights.norm("embeddings.LayerNorm", width, epsilon)?;
        let mut x = graph.norm(embedded, norm);
        let mut attention = self.attention.clone();
        if let Some(bias) = &self.bias {
            attention.mask = Mask::Relative(RelativeBias {
                table: weights.tensor(bias.name, &[bias.buckets, attention.heads])?,
                most_distance: bias.most_distance,
            });
        }
        for index in 0..self.num_hidden_layers {
            x = self.layer(index, &weights, &attention, &mut graph, x)?;
        }
        Ok(graph)
    }
}
