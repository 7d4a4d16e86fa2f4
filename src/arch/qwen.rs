//! Qwen3 and Qwen2: Qwen3-Embedding, Qwen3-Reranker, jina-code-embeddings.
//!
//! A decoder, of whose head rerankers use two rows: every token sees itself and those before it, so that the last one stands for the text. `RMSNorm`
//! in front of each half of a layer and behind the last one, rotary positions, several heads of queries to one of keys and
//! values, and a gated feed-forward, `down_proj(silu(gate_proj(x)) · up_proj(x))`. Qwen3 normalizes queries and keys head by
//! head; Qwen2 has biases on queries, keys and values instead. [`Decoder`] also computes Gemma.
//!
//! - Papers: <https://arxiv.org/abs/2505.09388>, <https://arxiv.org/abs/2407.10671>
//! - Reference: `transformers`, `models/qwen3/modeling_qwen3.py` and `models/qwen2/modeling_qwen2.py`

use std::sync::Arc;

use serde_json::json;

use super::settings::Settings;
use super::weights::Weights;
use super::{Architecture, Encoder, Facts, Head};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::graph::{
    Activation, Attention, EmbeddingTables, Graph, Mask, NormKind, Projections, Value,
};

pub const QWEN: Architecture = Architecture {
    model_types: &["qwen3", "qwen2"],
    recognises: |_| true,
    read: |settings| Ok(Arc::new(read(settings)?)),
};

/// Names of a layer's norms, within the layer.
#[derive(Debug)]
pub struct NormNames {
    pub attention_input: &'static str,
    /// `None` where the result of the attention is added as it is.
    pub attention_output: Option<&'static str>,
    pub mlp_input: &'static str,
    pub mlp_output: Option<&'static str>,
}

/// Settings, in the words of `config.json`.
#[derive(Debug)]
pub struct Decoder {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f32,
    pub activation: Activation,
    /// One for each layer.
    pub attentions: Vec<Attention>,
    /// Of the projections to queries, keys and values.
    pub qkv_bias: bool,
    /// Of the projection of what an attention has mixed.
    pub output_bias: bool,
    /// Whether queries and keys are normalized, head by head.
    pub has_query_norms: bool,
    pub norms: NormKind,
    pub norm_names: NormNames,
    /// What embeddings are multiplied by.
    pub word_scale: Option<f32>,
    /// See [`Encoder::logits`]. Without them, there are no rerankers of this kind.
    pub logits: Option<&'static str>,
}

const WORDS: &str = "embed_tokens.weight";

fn read(settings: &Settings) -> Result<Decoder> {
    settings.only("is_causal", &json!(true))?;
    settings.only("use_sliding_window", &json!(false))?;
    let is_full = |types: &serde_json::Value| {
        let types = types.as_array();
        types.is_some_and(|types| types.iter().all(|one| one == "full_attention"))
    };
    if let Some(types) = settings.get(&["layer_types"])
        && !is_full(types)
    {
        let supported = "only \"full_attention\" in every layer";
        return Err(settings.unsupported("layer_types", types, supported));
    }
    let is_qwen2 = settings.is_model_type(&["qwen2"]);
    let hidden_size = settings.count(&["hidden_size"])?;
    let attention = if is_qwen2 && settings.get(&["head_dim"]).is_none() {
        let heads = settings.count(&["num_attention_heads"])?;
        settings.grouped_attention(settings.attention(hidden_size, heads)?.head_dim)?
    } else {
        settings.grouped_attention(settings.count(&["head_dim"])?)?
    };
    // What ONNX Runtime's causal attention takes.
    if !attention.head_dim.is_multiple_of(8) {
        let head_dim = attention.head_dim.into();
        return Err(settings.unsupported("head_dim", &head_dim, "a multiple of 8"));
    }
    let rotary = settings.rotary(
        settings.part("rope_parameters")?,
        "rope_theta",
        attention.head_dim,
    )?;
    let attention = Attention {
        rotary: Some(rotary),
        mask: Mask::Causal,
        ..attention
    };
    let attention_bias = !is_qwen2 && settings.flag("attention_bias")?;
    Ok(Decoder {
        vocab_size: settings.count(&["vocab_size"])?,
        hidden_size,
        intermediate_size: settings.count(&["intermediate_size"])?,
        max_position_embeddings: settings.count(&["max_position_embeddings"])?,
        rms_norm_eps: settings.number(&["rms_norm_eps"])? as f32,
        activation: settings.activation("hidden_act")?,
        attentions: vec![attention; settings.layers(&["num_hidden_layers"])?],
        qkv_bias: is_qwen2 || attention_bias,
        output_bias: attention_bias,
        has_query_norms: !is_qwen2,
        norms: NormKind::RootMeanSquare { one_more: false },
        norm_names: NormNames {
            attention_input: "input_layernorm",
            attention_output: None,
            mlp_input: "post_attention_layernorm",
            mlp_output: None,
        },
        word_scale: None,
        logits: Some(match settings.get(&["tie_word_embeddings"]) {
            Some(serde_json::Value::Bool(true)) => WORDS,
            _ => "lm_head.weight",
        }),
    })
}

impl Decoder {
    /// Attention and gated feed-forward between norms, each added to what it was made from.
    fn layer(
        &self,
        name: &str,
        attention: &Attention,
        weights: &Weights,
        graph: &mut Graph,
        x: Value,
    ) -> Result<Value> {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let linear = |part: &str, outputs, inputs, bias| {
            weights.linear(&format!("{name}.{part}"), outputs, inputs, bias)
        };
        let norm = |part: &str, width| {
            let name = format!("{name}.{part}.weight");
            weights.scale(self.norms, &name, width, self.rms_norm_eps)
        };
        let names = &self.norm_names;
        let head_dim = attention.head_dim;
        let [heads, kv] = [attention.heads, attention.kv_heads].map(|heads| heads * head_dim);
        let norms = if self.has_query_norms {
            let of_queries = norm("self_attn.q_norm", head_dim)?;
            Some([of_queries, norm("self_attn.k_norm", head_dim)?])
        } else {
            None
        };
        let projections = Projections {
            query: linear("self_attn.q_proj", heads, width, self.qkv_bias)?,
            key: linear("self_attn.k_proj", kv, width, self.qkv_bias)?,
            value: linear("self_attn.v_proj", kv, width, self.qkv_bias)?,
            norms,
        };

        let normed = graph.norm(x, norm(names.attention_input, width)?);
        let attended = graph.attend(normed, projections, attention.clone());
        let output = linear("self_attn.o_proj", width, heads, self.output_bias)?;
        let mut output = graph.linear(attended, output);
        if let Some(name) = names.attention_output {
            output = graph.norm(output, norm(name, width)?);
        }
        let x = graph.add(output, x);

        let normed = graph.norm(x, norm(names.mlp_input, width)?);
        let value = graph.linear(normed, linear("mlp.up_proj", inner, width, false)?);
        let gate = graph.linear(normed, linear("mlp.gate_proj", inner, width, false)?);
        let gated = graph.gate(value, gate, self.activation);
        let mut output = graph.linear(gated, linear("mlp.down_proj", width, inner, false)?);
        if let Some(name) = names.mlp_output {
            output = graph.norm(output, norm(name, width)?);
        }
        Ok(graph.add(output, x))
    }
}

impl Encoder for Decoder {
    fn facts(&self) -> Facts {
        Facts {
            vocabulary: self.vocab_size,
            width: self.hidden_size,
            positions: self.max_position_embeddings,
            layer_norm_before_truncation: Some(false),
        }
    }

    fn head(&self) -> Option<Head> {
        self.logits.map(|_| Head::OF_DECODERS)
    }

    fn logits(&self) -> Option<&'static str> {
        self.logits
    }

    fn record(&self, checkpoint: &Checkpoint) -> Result<Graph> {
        let weights = Weights::of(checkpoint, WORDS)?;
        let mut graph = Graph::default();
        // The sums that a layer adds to grow from layer to layer.
        graph.refuse_f16();
        let mut x = graph.embed(EmbeddingTables {
            word_scale: self.word_scale,
            ..EmbeddingTables::of(weights.tensor(WORDS, &[self.vocab_size, self.hidden_size])?)
        });
        for (index, attention) in self.attentions.iter().enumerate() {
            x = self.layer(
                &format!("layers.{index}"),
                attention,
                &weights,
                &mut graph,
                x,
            )?;
        }
        let width = self.hidden_size;
        let norm = weights.scale(self.norms, "norm.weight", width, self.rms_norm_eps)?;
        graph.norm(x, norm);
        Ok(graph)
    }
}
