//! `DistilBERT`: BERT without token types, with names of its own; the epsilon of its norms is fixed. Checkpoints hold the table
//! of positions also where it was made of sinusoids.
//!
//! - Paper: <https://arxiv.org/abs/1910.01108>
//! - Reference: `transformers`, `models/distilbert/modeling_distilbert.py`

use std::sync::Arc;

use super::bert::{Bert, Names};
use super::settings::Settings;
use super::{Architecture, Head};
use crate::error::Result;
use crate::graph::{Activation, Numbering};

pub const DISTILBERT: Architecture = Architecture {
    model_types: &["distilbert"],
    recognises: |_| true,
    read: |settings| Ok(Arc::new(read(settings)?)),
};

const NAMES: Names = Names {
    layers: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    intermediate: "ffn.lin1",
    output: "ffn.lin2",
    output_norm: "output_layer_norm",
};

const HEAD: Head = Head::of("pre_classifier", Activation::Relu, "classifier");

fn read(settings: &Settings) -> Result<Bert> {
    let dim = settings.count(&["dim"])?;
    let heads = settings.count(&["n_heads"])?;
    Ok(Bert {
        vocab_size: settings.count(&["vocab_size"])?,
        hidden_size: dim,
        max_position_embeddings: settings.positions(Numbering::Index)?,
        numbering: Numbering::Index,
        num_hidden_layers: settings.layers(&["n_layers"])?,
        attention: settings.attention(dim, heads)?,
        bias: None,
        intermediate_size: settings.count(&["hidden_dim"])?,
        type_vocab_size: None,
        layer_norm_eps: 1e-12,
        activation: settings.activation("activation")?,
        names: NAMES,
        head: Some(HEAD),
    })
}
