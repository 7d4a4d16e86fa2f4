//! Gemma 3 as an encoder: embeddinggemma.
//!
//! Qwen3's layers with five changes: every token sees those behind it, too; embeddings are multiplied by the square root of
//! their width; norms scale by one more than their weights, and also stand behind each half of a layer; scores have a scale of
//! their own; most layers see only a window of tokens, and have a rotary base of their own.
//!
//! - Papers: <https://arxiv.org/abs/2503.19786>, <https://arxiv.org/abs/2509.20354>
//! - Reference: `transformers`, `models/gemma3/modeling_gemma3.py` and, for the width of windows, `configuration_gemma3.py`

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::Architecture;
use super::qwen::{Decoder, NormNames};
use super::settings::{LayerType, Settings};
use crate::error::Result;
use crate::graph::{Attention, Mask, NormKind};

pub const GEMMA3: Architecture = Architecture {
    model_types: &["gemma3_text"],
    recognises: |_| true,
    read: |settings| Ok(Arc::new(read(settings)?)),
};

fn read(settings: &Settings) -> Result<Decoder> {
    let key = "use_bidirectional_attention";
    let is_bidirectional = settings.get(&[key]).unwrap_or(&Json::Null);
    if *is_bidirectional != json!(true) {
        return Err(settings.unsupported(key, is_bidirectional, "only true"));
    }
    settings.only("is_causal", &json!(true))?;
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        settings.only(key, &Json::Null)?;
    }
    let hidden_size = settings.count(&["hidden_size"])?;
    let head_dim = settings.count(&["head_dim"])?;
    let score_divisor = settings.count(&["query_pre_attn_scalar"])? as f32;
    let attention = Attention {
        scale: score_divisor.sqrt().recip(),
        ..settings.grouped_attention(head_dim)?
    };
    let layers = settings.layers(&["num_hidden_layers"])?;
    let layers = settings.layer_types(layers, |index| {
        // The last of so many is full.
        let pattern = settings.count(&["sliding_window_pattern"])?;
        Ok((index + 1).is_multiple_of(pattern))
    })?;
    let attentions = layers.into_iter().map(|layer| {
        let (older, mask) = match layer {
            LayerType::Full => ("rope_theta", Mask::None),
            // The setting counts both directions.
            LayerType::Sliding => {
                let window = settings.integer(&["sliding_window"], 2)?;
                ("rope_local_base_freq", Mask::Window(window / 2))
            }
        };
        Ok(Attention {
            rotary: Some(settings.rotary_of(layer, older, head_dim)?),
            mask,
            ..attention.clone()
        })
    });
    let has_bias = settings.flag("attention_bias")?;
    Ok(Decoder {
        vocab_size: settings.count(&["vocab_size"])?,
        hidden_size,
        intermediate_size: settings.count(&["intermediate_size"])?,
        max_position_embeddings: settings.count(&["max_position_embeddings"])?,
        rms_norm_eps: settings.number(&["rms_norm_eps"])? as f32,
        activation: settings.activation("hidden_activation")?,
        attentions: attentions.collect::<Result<_>>()?,
        qkv_bias: has_bias,
        output_bias: has_bias,
        has_query_norms: true,
        norms: NormKind::RootMeanSquare { one_more: true },
        norm_names: NormNames {
            attention_input: "input_layernorm",
            attention_output: Some("post_attention_layernorm"),
            mlp_input: "pre_feedforward_layernorm",
            mlp_output: Some("post_feedforward_layernorm"),
        },
        word_scale: Some((hidden_size as f32).sqrt()),
        logits: None,
    })
}
