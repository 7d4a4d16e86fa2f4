//! Static models: a table with a vector for each token, whose mean is the vector of a text. No token sees another.
//!
//! - `StaticEmbedding` of sentence-transformers, as in static-retrieval-mrl-en-v1: a folder without `config.json`, all tokens
//!   of a text. Reference: `sentence_transformers` 6.2, `sentence_transformer/modules/static_embedding.py`.
//! - `Model2Vec`, as in the potion models: unknown tokens do not count; the table may be shared, so that `mapping` names the
//!   row of each token, and `weights` may scale them. Reference: `model2vec` 0.10, `model.py`, which in addition truncates
//!   texts to `max_length` times the median length of a token in characters; here `max_length` tokens are exact.
//!
//! Neither adds special tokens. Vocabulary and width are those of the tensors.

use std::path::Path;
use std::sync::Arc;

use super::settings::Settings;
use super::{Architecture, Encoder, Facts, StaticTokens};
use crate::checkpoint::{self, Checkpoint};
use crate::error::{Error, Result};
use crate::graph::{EmbeddingTables, Graph};

/// The `model_type` of `Model2Vec`'s `config.json`.
const MODEL2VEC: &[&str] = &["model2vec"];

/// The names of the table, by which a checkpoint of sentence-transformers is told from one of `Model2Vec`.
const TABLES: [&str; 2] = ["embedding.weight", "embeddings"];

/// No position limits a text; this fits into 32 bits, as readers of an exported graph expect.
const NO_LIMIT: usize = u32::MAX as usize;

pub const STATIC_TABLE: Architecture = Architecture {
    model_types: MODEL2VEC,
    recognises: |_| true,
    read: |settings| Ok(Arc::new(StaticTable::read(settings)?)),
};

/// What the checkpoint's header and `config.json` say.
#[derive(Debug)]
pub struct StaticTable {
    /// Its name.
    table: &'static str,
    rows: usize,
    width: usize,
    /// Length of `mapping`, if there is one.
    mapping: Option<usize>,
    has_weights: bool,
    max_length: usize,
    tokens: StaticTokens,
}

impl StaticTable {
    /// Reads the header of the `model.safetensors` beside `config.json`, which itself may be missing.
    ///
    /// # Errors
    /// There is no such file, or it has no table.
    pub fn read(settings: &Settings) -> Result<Self> {
        let path = settings.folder().join(checkpoint::SINGLE_FILE);
        let shapes = checkpoint::shapes(&path)?;
        let shape = |name: &str| shapes.get(name).map(Vec::as_slice);
        let found = TABLES.iter().find_map(|&name| Some((name, shape(name)?)));
        let Some((table, &[rows, width])) = found else {
            let (name, shape) = found.unwrap_or((TABLES[1], &[]));
            let found = match shape {
                [] => "no such tensor".to_owned(),
                _ => format!("shape {shape:?}"),
            };
            let expected = "a table of two dimensions, a row for each token";
            return Err(Error::tensor(&path, name, expected, found));
        };
        // Only tables of `Model2Vec` are shared and scaled.
        let column = |name: &str| shape(name).filter(|_| table == TABLES[1]);
        let is_model2vec = settings.is_model_type(MODEL2VEC);
        let limit = settings.get(&["max_length"]).filter(|_| is_model2vec);
        Ok(Self {
            table,
            rows,
            width,
            mapping: column("mapping").map(|shape| shape.iter().product()),
            has_weights: column("weights").is_some(),
            max_length: match limit {
                Some(_) => settings.count(&["max_length"])?,
                None => NO_LIMIT,
            },
            tokens: if is_model2vec {
                StaticTokens::Known
            } else {
                StaticTokens::All
            },
        })
    }
}

/// Reads a model whose `modules.json` names a `StaticEmbedding`, whatever its `config.json` says.
///
/// # Errors
/// See [`StaticTable::read`].
pub fn read(path: &Path, json: &serde_json::Value) -> Result<Arc<dyn Encoder>> {
    Ok(Arc::new(StaticTable::read(&Settings::new(path, json))?))
}

impl Encoder for StaticTable {
    fn facts(&self) -> Facts {
        Facts {
            vocabulary: self.mapping.unwrap_or(self.rows),
            width: self.width,
            positions: self.max_length,
            layer_norm_before_truncation: Some(false),
        }
    }

    fn static_tokens(&self) -> Option<StaticTokens> {
        Some(self.tokens)
    }

    fn record(&self, checkpoint: &Checkpoint) -> Result<Graph> {
        let words = checkpoint.tensor(self.table, &[self.rows, self.width])?;
        let vocabulary = self.facts().vocabulary;
        let rows = self.mapping.map(|length| -> Result<Arc<[u32]>> {
            let numbers = checkpoint.column("mapping", length)?;
            let rows = numbers.iter().map(|&row| {
                let is_row = row >= 0.0 && row.fract() == 0.0 && row < self.rows as f64;
                is_row.then_some(row as u32).ok_or_else(|| {
                    let path = &checkpoint.files()[words.file].path;
                    let expected = format!("rows of the table, from 0 to {}", self.rows - 1);
                    Error::tensor(path, "mapping", expected, row)
                })
            });
            rows.collect()
        });
        let factors = self.has_weights.then(|| -> Result<Arc<[f32]>> {
            let numbers = checkpoint.column("weights", vocabulary)?;
            Ok(numbers.iter().map(|&number| number as f32).collect())
        });
        let mut graph = Graph::default();
        graph.embed(EmbeddingTables {
            rows: rows.transpose()?,
            factors: factors.transpose()?,
            ..EmbeddingTables::of(words)
        });
        Ok(graph)
    }
}
