//! `LogitScore` modules of sentence-transformers: the score of a reranker that is a causal language model. It is the logit of
//! the token for "relevant" as the next one, minus that of the token for "irrelevant" if there is one.
//!
//! ```text
//! 1_LogitScore/config.json   true_token_id, false_token_id
//! ```
//!
//! Source: `sentence_transformers` 6.2, `cross_encoder/modules/logit_score.py`.

use std::path::Path;

use crate::arch::Encoder;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::file;
use crate::graph::{Graph, Linear, Pooling};
use crate::json_file::{JsonFile, read_bytes};

/// The logits among the outputs of modules.
const LOGITS: &str = "causal_logits";

/// Which logits make a score.
#[derive(Debug, Clone)]
pub struct LogitScore {
    /// Id of the token for "relevant".
    pub true_token: usize,
    /// Id of the token for "irrelevant", whose logit is subtracted.
    pub false_token: Option<usize>,
}

impl LogitScore {
    /// Reads a module's folder, for a vocabulary of so many tokens. The bytes of its settings are added to `digested`.
    ///
    /// # Errors
    /// The file is missing, malformed, or asks for something that is not supported; the error names it.
    pub fn read(folder: &Path, vocabulary: usize, digested: &mut Vec<u8>) -> Result<Self> {
        let path = folder.join("config.json");
        let bytes = read_bytes(&path, file::MOST_SETTINGS)?
            .ok_or_else(|| Error::not_found(&path, "expected the LogitScore module's settings"))?;
        let config = JsonFile::parse(path, &bytes)?;
        let token = |key: &str| {
            let expected = format!("a token id below {vocabulary}, the size of the vocabulary");
            config.typed(key, &expected, |id| {
                let id = usize::try_from(id.as_u64()?).ok()?;
                (id < vocabulary).then_some(id)
            })
        };
        let true_token = token("true_token_id")?;
        let true_token = true_token.ok_or_else(|| config.invalid("`true_token_id` is missing"))?;
        let false_token = token("false_token_id")?;
        if let Some(name) = config
            .text("module_input_name")?
            .filter(|&name| name != LOGITS)
        {
            let hint = format!("supported is {LOGITS:?}");
            return Err(config.unsupported(format!("module_input_name {name:?}"), &hint));
        }
        digested.extend(bytes);
        Ok(Self {
            true_token,
            false_token,
        })
    }

    /// From the states of all tokens to one number for each pair, its score. Of the table that makes logits, only the rows
    /// of the two tokens are used. `None` for an encoder whose logits are not computed here.
    ///
    /// # Errors
    /// The table is missing or has another shape than the settings imply.
    pub fn record(
        &self,
        encoder: &dyn Encoder,
        states: &Graph,
        checkpoint: &Checkpoint,
    ) -> Result<Option<Graph>> {
        let Some(table) = encoder.logits() else {
            return Ok(None);
        };
        let mut graph = states.pooled(&[Pooling::LastToken]);
        let (pooled, width) = (graph.result(), graph.width());
        let vocabulary = encoder.facts().vocabulary;
        let name = format!("{}{table}", checkpoint.prefix_of(table)?);
        let table = checkpoint.tensor(&name, &[vocabulary, width])?;
        let mut logit = |token| {
            let layer = Linear {
                weight: table.part(token, vocabulary),
                bias: None,
            };
            graph.linear(pooled, layer)
        };
        let relevant = logit(self.true_token);
        if let Some(irrelevant) = self.false_token.map(logit) {
            graph.subtract(relevant, irrelevant);
        }
        Ok(Some(graph))
    }
}
