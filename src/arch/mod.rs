//! Encoders. Each architecture is one file and one line in [`ARCHITECTURES`]: how its settings are read, what its weights
//! are called, and the forward pass, which it records into a [`Graph`] for whichever runtime computes it.

mod bert;
mod distilbert;
mod gemma3;
mod mpnet;
mod nomic_bert;
mod qwen;
mod roberta;
mod settings;
mod weights;

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use self::settings::Settings;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::graph::Graph;

/// All that can be loaded.
const ARCHITECTURES: &[Architecture] = &[
    bert::BERT,
    distilbert::DISTILBERT,
    gemma3::GEMMA3,
    mpnet::MPNET,
    nomic_bert::NOMIC_BERT,
    qwen::QWEN,
    roberta::ROBERTA,
];

/// A family of models that differ in numbers only.
struct Architecture {
    /// The values of `model_type` in `config.json` that it may have.
    model_types: &'static [&'static str],
    /// Whether a `config.json` with such a `model_type` is its own.
    recognises: fn(&Settings) -> bool,
    /// Reads the settings.
    read: fn(&Settings) -> Result<Arc<dyn Encoder>>,
}

/// An encoder's settings, read and checked, and what can be made of them.
pub trait Encoder: Debug + Send + Sync {
    /// What is known of it without its weights.
    fn facts(&self) -> Facts;

    /// Records the final hidden states of all tokens, with the places of the weights in the checkpoint.
    ///
    /// # Errors
    /// A tensor is missing or has another shape than the settings imply.
    fn record(&self, checkpoint: &Checkpoint) -> Result<Graph>;
}

/// What is known of an encoder without its weights. Exported graphs carry it as JSON (see [`crate::model::export_onnx`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Rows of the word-embedding table; token ids are below this.
    pub vocabulary: usize,
    /// Width of a hidden state.
    pub width: usize,
    /// Most tokens that the model can tell apart by position.
    pub positions: usize,
    /// Whether vectors are layer-normalized before they are truncated to their first components; `None` where models of the
    /// architecture differ in that and their settings do not tell.
    pub layer_norm_before_truncation: Option<bool>,
}

/// Reads `config.json`, already parsed. `path` is for messages.
///
/// # Errors
/// A setting is missing, malformed or asks for something that is not computed here.
pub fn read(path: &Path, json: &Value) -> Result<Arc<dyn Encoder>> {
    let settings = Settings::new(path, json);
    let known = ARCHITECTURES.iter().find(|architecture| {
        settings.is_model_type(architecture.model_types) && (architecture.recognises)(&settings)
    });
    if let Some(architecture) = known {
        return (architecture.read)(&settings);
    }
    let found = match json.get("model_type") {
        Some(Value::String(name)) => format!("{name:?}"),
        Some(other) => other.to_string(),
        None => "(missing)".to_owned(),
    };
    let names = ARCHITECTURES.iter().flat_map(|one| one.model_types);
    let names: Vec<_> = names.map(|name| format!("{name:?}")).collect();
    let hint = format!("supported are {}", names.join(", "));
    Err(Error::unsupported(
        path,
        format!("model_type {found}"),
        hint,
    ))
}
