//! Texts to token ids.
//!
//! The token limit comes from the model folder and the caller, never from the truncation that `tokenizer.json`
//! happens to carry, and special tokens always survive it.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use tokenizers::{
    PostProcessor, PreTokenizerWrapper, Tokenizer as HfTokenizer, TruncationDirection,
    TruncationParams, TruncationStrategy,
};

use crate::checkpoint::sha256_hex;
use crate::error::{Error, Result};
use crate::guard;
use crate::model_dir::ModelDir;

/// Length of what is tokenized first of a long text, per token of the limit. Most texts have fewer bytes
/// per token.
const BYTES_PER_TOKEN: usize = 16;

/// The ids of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedText {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// Whether tokens were cut off to stay within the limit.
    pub truncated: bool,
}

/// A tokenizer with the model's prompts and token limit.
pub struct Tokenizer {
    inner: HfTokenizer,
    /// SHA-256 of the bytes that it was made from.
    digest: String,
    path: PathBuf,
    /// Rows of the embedding table; every id has to be below.
    rows: usize,
    max_tokens: usize,
    truncate_left: bool,
    lower_case: bool,
    query_prompt: String,
    document_prompt: String,
    /// Whether a text may be cut at whitespace before it is tokenized, without changing the tokens of either part: BERT's
    /// tokenizer splits there first. An added token that holds whitespace, or takes it in, would be in the way.
    splits_at_whitespace: bool,
}

impl Tokenizer {
    /// Loads the folder's tokenizer.
    ///
    /// # Errors
    /// The file is malformed, its ids exceed the model's vocabulary, or the limit leaves no room for text.
    pub fn load(model: &ModelDir) -> Result<Self> {
        let path = &model.tokenizer;
        let bytes = model.read_tokenizer()?;
        let mut inner = guard::read(path, || {
            HfTokenizer::from_bytes(&bytes).map_err(|error| Error::ModelInvalid {
                path: path.clone(),
                problem: format!("is not a tokenizer: {error}"),
                source: Some(error),
            })
        })?;
        check_vocabulary(path, &inner, model.config.vocabulary())?;
        let special_tokens = inner
            .get_post_processor()
            .map_or(0, |processor| processor.added_tokens(false));
        if model.max_tokens <= special_tokens {
            return Err(Error::InvalidArgument {
                argument: "maxTokens",
                expected: format!(
                    "more than the {special_tokens} special tokens that this model adds to a text"
                ),
                found: model.max_tokens.to_string(),
            });
        }
        let truncation = TruncationParams {
            max_length: model.max_tokens,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
            direction: if model.truncate_left {
                TruncationDirection::Left
            } else {
                TruncationDirection::Right
            },
        };
        inner.with_padding(None);
        inner
            .with_truncation(Some(truncation))
            .map_err(|error| Error::ModelInvalid {
                path: path.clone(),
                problem: format!(
                    "does not take a limit of {} tokens: {error}",
                    model.max_tokens
                ),
                source: Some(error),
            })?;
        let splits_at_whitespace = matches!(
            inner.get_pre_tokenizer(),
            Some(PreTokenizerWrapper::BertPreTokenizer(_))
        ) && inner.get_added_tokens_decoder().values().all(|token| {
            !(token.lstrip || token.rstrip || token.content.contains(char::is_whitespace))
        });
        let tokenizer = Self {
            inner,
            digest: sha256_hex(&bytes),
            path: path.clone(),
            rows: model.config.vocabulary(),
            max_tokens: model.max_tokens,
            truncate_left: model.truncate_left,
            lower_case: model.lower_case,
            query_prompt: model.query_prompt.clone(),
            document_prompt: model.document_prompt.clone(),
            splits_at_whitespace,
        };
        // What is around every text shows in an empty one: a model that cannot embed it is refused when it is loaded.
        tokenizer.encode("")?;
        Ok(tokenizer)
    }

    /// SHA-256 of the bytes that it was made from, as lower-case hexadecimal.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The ids of `text` behind the prompt of its kind.
    ///
    /// # Errors
    /// The tokenizer refuses the text, or finds no token in it.
    pub fn tokenize(&self, text: &str, is_query: bool) -> Result<TokenizedText> {
        let prompt = if is_query {
            &self.query_prompt
        } else {
            &self.document_prompt
        };
        let mut text = Cow::Borrowed(text);
        if !prompt.is_empty() {
            text = Cow::Owned(format!("{prompt}{text}"));
        }
        if self.lower_case {
            text = Cow::Owned(text.to_lowercase());
        }
        let mut bytes = self.max_tokens * BYTES_PER_TOKEN;
        let tokenized = loop {
            let part = self.kept_part(&text, bytes);
            let tokenized = self.encode(part)?;
            if tokenized.truncated || part.len() == text.len() {
                break tokenized;
            }
            bytes *= 4;
        };
        if tokenized.ids.is_empty() {
            return Err(Error::TokenizationFailed {
                reason: "the tokenizer gives no token for a text, not even a special one"
                    .to_owned(),
            });
        }
        Ok(tokenized)
    }

    /// The side of a text that truncation keeps, at least this long and cut at whitespace. Its tokens are those of the
    /// whole text, so once more than the limit came out of it the rest need not be looked at.
    fn kept_part<'a>(&self, text: &'a str, bytes: usize) -> &'a str {
        if !self.splits_at_whitespace || bytes >= text.len() {
            return text;
        }
        if self.truncate_left {
            let rest = &text.as_bytes()[..text.len() - bytes];
            let space = rest.iter().rposition(u8::is_ascii_whitespace);
            space.map_or(text, |start| &text[start..])
        } else {
            let rest = &text.as_bytes()[bytes..];
            let space = rest.iter().position(u8::is_ascii_whitespace);
            space.map_or(text, |distance| &text[..bytes + distance])
        }
    }

    fn encode(&self, text: &str) -> Result<TokenizedText> {
        let failed = |reason| Error::TokenizationFailed { reason };
        let encoding = guard::catch(|| self.inner.encode_fast(text, true))
            .map_err(|panic| failed(format!("the library gave up on the text: {panic}")))?
            .map_err(|error| failed(error.to_string()))?;
        let ids = encoding.get_ids();
        self.check(ids)?;
        Ok(TokenizedText {
            truncated: !encoding.get_overflowing().is_empty(),
            ids: ids.to_vec(),
        })
    }

    /// Runtimes look ids and positions up in tables, and not all of them look whether there is such a row. A vocabulary
    /// does not hold every id: a post-processor writes its own.
    fn check(&self, ids: &[u32]) -> Result<()> {
        let problem = match ids.iter().max() {
            Some(&id) if id as usize >= self.rows => other_model(
                &self.inner.id_to_token(id).unwrap_or_default(),
                id,
                self.rows,
            ),
            _ if ids.len() > self.max_tokens => format!(
                "gives {} tokens where {} were asked for",
                ids.len(),
                self.max_tokens
            ),
            _ => return Ok(()),
        };
        Err(Error::ModelInvalid {
            path: self.path.clone(),
            problem,
            source: None,
        })
    }
}

/// No token of the vocabulary may have an id without a row in the embedding table, whether or not a text has it.
fn check_vocabulary(path: &Path, tokenizer: &HfTokenizer, rows: usize) -> Result<()> {
    let vocabulary = tokenizer.get_vocab(true);
    match vocabulary.iter().max_by_key(|(_, id)| **id) {
        Some((token, &id)) if id as usize >= rows => Err(Error::ModelInvalid {
            path: path.to_owned(),
            problem: other_model(token, id, rows),
            source: None,
        }),
        _ => Ok(()),
    }
}

fn other_model(token: &str, id: u32, rows: usize) -> String {
    format!(
        "token {token:?} has id {id}, but the model embeds only ids below {rows} (vocab_size); \
         tokenizer and weights are of different models"
    )
}
