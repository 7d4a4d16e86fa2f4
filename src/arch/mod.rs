//! Encoders. Each architecture is one file and one line in [`ARCHITECTURES`]: how its settings are read, what its weights
//! are called, and the forward pass, which it records into a [`Graph`] for whichever runtime computes it.

mod bert;
mod distilbert;
mod gemma3;
mod gte_new;
mod head;
mod jina_bert;
mod modernbert;
mod mpnet;
mod nomic_bert;
mod qwen;
mod roberta;
mod settings;
mod static_table;
mod weights;

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

pub use self::head::Head;
use self::settings::Settings;
pub use self::static_table::read as read_static;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::options::Task;

/// All that can be loaded. Of those that recognise a `config.json`, the first one reads it.
const ARCHITECTURES: &[Architecture] = &[
    jina_bert::JINA_BERT,
    bert::BERT,
    distilbert::DISTILBERT,
    gemma3::GEMMA3,
    gte_new::GTE_NEW,
    modernbert::MODERNBERT,
    mpnet::MPNET,
    nomic_bert::NOMIC_BERT,
    qwen::QWEN,
    roberta::ROBERTA,
    static_table::STATIC_TABLE,
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

impl Architecture {
    fn can_read(&self, settings: &Settings) -> bool {
        settings.is_model_type(self.model_types) && (self.recognises)(settings)
    }
}

/// An encoder's settings, read and checked, and what can be made of them.
pub trait Encoder: Debug + Send + Sync {
    /// What is known of it without its weights.
    fn facts(&self) -> Facts;

    /// Of a static model, the mean of whose tokens is the vector of a text: which tokens count.
    fn static_tokens(&self) -> Option<StaticTokens> {
        None
    }

    /// Records the final hidden states of all tokens, with the places of the weights in the checkpoint.
    ///
    /// # Errors
    /// A tensor is missing or has another shape than the settings imply.
    fn record(&self, checkpoint: &Checkpoint) -> Result<Graph>;

    /// What makes a score of the hidden states; `None` where rerankers of the architecture are not computed here.
    fn head(&self) -> Option<Head> {
        None
    }

    /// The table `[vocabulary, width]` whose products with a hidden state are the logits of the next token; `None` where they
    /// are not computed here. The checkpoint's name of it may have a prefix.
    fn logits(&self) -> Option<&'static str> {
        None
    }
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

/// Which tokens of a text a static model takes the mean of. Special tokens are not added; a text that has none of these
/// tokens has a vector of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StaticTokens {
    /// All that the text has.
    All,
    /// All but the unknown token.
    Known,
}

/// The task that `config.json` declares by the class of its model.
#[must_use]
pub fn task(json: &Value) -> Task {
    let class = json["architectures"][0].as_str();
    if class.is_some_and(|class| class.ends_with("ForSequenceClassification")) {
        Task::Rerank
    } else {
        Task::Embed
    }
}

/// Checks that a model for sequence classification gives one score.
///
/// # Errors
/// It has several labels.
pub fn check_labels(path: &Path, json: &Value) -> Result<()> {
    let labels = match &json["id2label"] {
        Value::Object(labels) => labels.len() as u64,
        // What `transformers` leaves out, it reads as two.
        _ => json["num_labels"].as_u64().unwrap_or(2),
    };
    if labels != 1 {
        let hint = "supported is 1, a score (a model with several labels is a classifier)";
        return Err(Error::unsupported(
            path,
            format!("num_labels = {labels}"),
            hint,
        ));
    }
    Ok(())
}

/// Refuses a reranker of an architecture whose scores are not computed here.
#[must_use]
pub fn unknown_reranker(path: &Path, json: &Value) -> Error {
    let feature = format!("a reranker with model_type {}", json["model_type"]);
    let hint = "rerankers are computed for bert, distilbert, modernbert, qwen2, qwen3, roberta and xlm-roberta";
    Error::unsupported(path, feature, hint)
}

/// Reads `config.json`, already parsed. `path` is for messages.
///
/// # Errors
/// A setting is missing, malformed or asks for something that is not computed here.
pub fn read(path: &Path, json: &Value) -> Result<Arc<dyn Encoder>> {
    let settings = Settings::new(path, json);
    let known = ARCHITECTURES.iter().find(|one| one.can_read(&settings));
    if let Some(architecture) = known {
        return (architecture.read)(&settings);
    }
    let found = match json.get("model_type") {
        Some(Value::String(name)) => format!("{name:?}"),
        Some(other) => other.to_string(),
        None => "(missing)".to_owned(),
    };
    let names = ARCHITECTURES.iter().flat_map(|one| one.model_types);
    let mut names: Vec<_> = names.map(|name| format!("{name:?}")).collect();
    names.sort_unstable();
    names.dedup();
    let hint = format!("supported are {}", names.join(", "));
    Err(Error::unsupported(
        path,
        format!("model_type {found}"),
        hint,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tests of equality and of batches go through the model folders that have golden vectors.
    #[test]
    fn every_architecture_has_a_fixture() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let goldens = std::fs::read_dir(fixtures.join("golden")).unwrap();
        let configs: Vec<Value> = goldens
            .filter_map(|golden| {
                let folder = fixtures.join(golden.unwrap().path().file_stem()?);
                let config = std::fs::read(folder.join("config.json")).ok()?;
                Some(serde_json::from_slice(&config).unwrap())
            })
            .collect();
        for architecture in ARCHITECTURES {
            let mut settings = configs.iter().map(|json| Settings::new(&fixtures, json));
            let has_fixture = settings.any(|settings| architecture.can_read(&settings));
            assert!(has_fixture, "{:?}", architecture.model_types);
        }
    }
}
