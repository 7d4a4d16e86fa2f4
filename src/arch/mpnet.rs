//! `MPNet`: all-mpnet-base-v2, multi-qa-mpnet.
//!
//! BERT without token types, with a bias on attention scores by the distance between tokens, one table for all layers.
//! Positions are numbered as `RoBERTa`'s, from 2.
//!
//! - Paper: <https://arxiv.org/abs/2004.09297>
//! - Reference: `transformers`, `models/mpnet/modeling_mpnet.py`

use std::sync::Arc;

use super::Architecture;
use super::bert::{Bert, BiasTable, Names};
use super::settings::Settings;
use crate::error::Result;
use crate::graph::Numbering;

pub const MPNET: Architecture = Architecture {
    model_types: &["mpnet"],
    recognises: |_| true,
    read: |settings| Ok(Arc::new(read(settings)?)),
};

/// The padding token's id, whatever `pad_token_id` says.
const NUMBERING: Numbering = Numbering::NotPadding { padding: 1 };

/// Fixed, too.
const MOST_DISTANCE: usize = 128;

const NAMES: Names = Names {
    layers: "encoder.layer",
    query: "attention.attn.q",
    key: "attention.attn.k",
    value: "attention.attn.v",
    attention_output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    intermediate: "intermediate.dense",
    output: "output.dense",
    output_norm: "output.LayerNorm",
};

fn read(settings: &Settings) -> Result<Bert> {
    let key = "relative_attention_num_buckets";
    let buckets = settings.count(&[key])?;
    // In each direction one half is for exact distances, all of them below the largest.
    if !(buckets.is_multiple_of(4) && buckets < 4 * MOST_DISTANCE) {
        let supported = format!("a multiple of 4 below {}", 4 * MOST_DISTANCE);
        return Err(settings.unsupported(key, &buckets.into(), &supported));
    }
    let hidden_size = settings.count(&["hidden_size"])?;
    let heads = settings.count(&["num_attention_heads"])?;
    Ok(Bert {
        vocab_size: settings.count(&["vocab_size"])?,
        hidden_size,
        max_position_embeddings: settings.positions(NUMBERING)?,
        numbering: NUMBERING,
        num_hidden_layers: settings.layers(&["num_hidden_layers"])?,
        attention: settings.attention(hidden_size, heads)?,
        bias: Some(BiasTable {
            name: "encoder.relative_attention_bias.weight",
            buckets,
            most_distance: MOST_DISTANCE,
        }),
        intermediate_size: settings.count(&["intermediate_size"])?,
        type_vocab_size: None,
        layer_norm_eps: settings.number(&["layer_norm_eps"])? as f32,
        activation: settings.activation("hidden_act")?,
        names: NAMES,
        head: None,
    })
}
