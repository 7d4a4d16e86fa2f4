//! `ModernBERT`: gte-modernbert-base, modernbert-embed-base, granite-embedding r2.
//!
//! Rotary positions; norms without shift before attention and feed-forward (the first attention has none: the embeddings are
//! normalized already) and one at the end; a gated feed-forward, `Wo(act(first half) · second half)`. Most layers see a
//! window only, and have a rotation of their own.
//!
//! - Paper: <https://arxiv.org/abs/2412.13663>
//! - Reference: `transformers`, `models/modernbert/modeling_modernbert.py`

use std::sync::Arc;

use super::head::{Head, HeadDense, HeadNorm};
use super::settings::{LayerType, Settings};
use super::weights::Weights;
use super::{Architecture, Encoder, Facts};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::graph::{
    Activation, Attention, EmbeddingTables, Graph, Mask, Pooling, Projections, Value,
};

pub const MODERNBERT: Architecture = Architecture {
    model_types: &["modernbert"],
    recognises: |_| true,
    read: |settings| Ok(Arc::new(ModernBert::read(settings)?)),
};

/// Settings, in the words of `config.json`.
#[derive(Debug)]
struct ModernBert {
    vocab_size: usize,
    hidden_size: usize,
    max_position_embeddings: usize,
    /// Of each layer.
    attentions: Vec<Attention>,
    intermediate_size: usize,
    norm_eps: f32,
    norm_bias: bool,
    attention_bias: bool,
    mlp_bias: bool,
    hidden_activation: Activation,
    /// Of rerankers.
    head: Option<Head>,
}

impl ModernBert {
    fn read(settings: &Settings) -> Result<Self> {
        let hidden_size = settings.count(&["hidden_size"])?;
        let heads = settings.count(&["num_attention_heads"])?;
        let layers = settings.layers(&["num_hidden_layers"])?;
        let attention = settings.attention(hidden_size, heads)?;
        let types = settings.layer_types(layers, |index| {
            // The first of so many is global.
            let every = settings.count(&["global_attn_every_n_layers"])?;
            Ok(index.is_multiple_of(every))
        })?;
        // A token sees half of the window on each side.
        let reach = settings.count(&["local_attention"])? / 2;
        let of_layer = |layer: LayerType| {
            let (older, mask) = match layer {
                LayerType::Full => ("global_rope_theta", Mask::None),
                LayerType::Sliding => ("local_rope_theta", Mask::Window(reach)),
            };
            Ok(Attention {
                rotary: Some(settings.rotary_of(layer, older, attention.head_dim)?),
                mask,
                ..attention.clone()
            })
        };
        Ok(Self {
            vocab_size: settings.count(&["vocab_size"])?,
            hidden_size,
            max_position_embeddings: settings.count(&["max_position_embeddings"])?,
            attentions: types.into_iter().map(of_layer).collect::<Result<_>>()?,
            intermediate_size: settings.count(&["intermediate_size"])?,
            norm_eps: settings.number(&["norm_eps"])? as f32,
            norm_bias: settings.flag("norm_bias")?,
            attention_bias: settings.flag("attention_bias")?,
            mlp_bias: settings.flag("mlp_bias")?,
            hidden_activation: settings.activation("hidden_activation")?,
            head: settings
                .is_reranker()
                .then(|| Self::head(settings))
                .transpose()?,
        })
    }

    fn head(settings: &Settings) -> Result<Head> {
        let pooling = match settings.text(&["classifier_pooling"])? {
            "cls" => Pooling::Cls,
            "mean" => Pooling::Mean,
            other => {
                let supported = "\"cls\" or \"mean\"";
                return Err(settings.unsupported("classifier_pooling", &other.into(), supported));
            }
        };
        Ok(Head {
            pooling,
            dense: Some(HeadDense {
                name: "head.dense",
                bias: settings.flag("classifier_bias")?,
                activation: settings.activation("classifier_activation")?,
            }),
            norm: Some(HeadNorm {
                name: "head.norm",
                bias: settings.flag("norm_bias")?,
                epsilon: settings.number(&["norm_eps"])? as f32,
            }),
            output: "classifier",
            output_bias: true,
        })
    }

    fn norm(&self, graph: &mut Graph, weights: &Weights, name: &str, x: Value) -> Result<Value> {
        let norm = weights.layer_norm(name, self.hidden_size, self.norm_eps, self.norm_bias)?;
        Ok(graph.norm(x, norm))
    }

    fn layer(&self, index: usize, weights: &Weights, graph: &mut Graph, x: Value) -> Result<Value> {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let name = |part: &str| format!("layers.{index}.{part}");
        let linear =
            |part: &str, outputs, inputs, bias| weights.linear(&name(part), outputs, inputs, bias);
        let normed = if index == 0 {
            x
        } else {
            self.norm(graph, weights, &name("attn_norm"), x)?
        };
        let fused = linear("attn.Wqkv", 3 * width, width, self.attention_bias)?;
        let attention = self.attentions[index].clone();
        let attended = graph.attend(normed, Projections::of_fused(&fused), attention);
        let output = linear("attn.Wo", width, width, self.attention_bias)?;
        let attended = graph.linear(attended, output);
        let x = graph.add(attended, x);
        let normed = self.norm(graph, weights, &name("mlp_norm"), x)?;
        let fused = linear("mlp.Wi", 2 * inner, width, self.mlp_bias)?;
        let gate = graph.linear(normed, fused.part(0, 2));
        let value = graph.linear(normed, fused.part(1, 2));
        let gated = graph.gate(value, gate, self.hidden_activation);
        let output = graph.linear(gated, linear("mlp.Wo", width, inner, self.mlp_bias)?);
        Ok(graph.add(output, x))
    }
}

impl Encoder for ModernBert {
    fn facts(&self) -> Facts {
        Facts {
            vocabulary: self.vocab_size,
            width: self.hidden_size,
            positions: self.max_position_embeddings,
            layer_norm_before_truncation: Some(false),
        }
    }

    fn head(&self) -> Option<Head> {
        self.head
    }

    fn record(&self, checkpoint: &Checkpoint) -> Result<Graph> {
        const WORDS: &str = "embeddings.tok_embeddings.weight";
        let weights = Weights::of(checkpoint, WORDS)?;
        let mut graph = Graph::default();
        let words = weights.tensor(WORDS, &[self.vocab_size, self.hidden_size])?;
        let embedded = graph.embed(EmbeddingTables::of(words));
        let mut x = self.norm(&mut graph, &weights, "embeddings.norm", embedded)?;
        for index in 0..self.attentions.len() {
            x = self.layer(index, &weights, &mut graph, x)?;
        }
        self.norm(&mut graph, &weights, "final_norm", x)?;
        Ok(graph)
    }
}
