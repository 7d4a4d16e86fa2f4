//! Texts to token ids.
//!
//! The token limit comes from the model folder and the caller, never from the truncation settings in `tokenizer.json`, and
//! special tokens always survive it. Token ids from the caller are used as they are. Of a pair only the second text is
//! truncated; a chat template is kept.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use tokenizers::{
    Encoding, PostProcessor, PostProcessorWrapper, Tokenizer as HfTokenizer, TruncationDirection,
    TruncationParams, TruncationStrategy,
};

use crate::arch::StaticTokens;
use crate::chat_template::ChatTemplate;
use crate::checkpoint::sha256_hex;
use crate::error::{Error, Result};
use crate::guard;
use crate::model_dir::ModelDir;
use crate::options::Task;
use crate::pieces::{PieceRules, Pieces};
use crate::runtime::Tokens;

/// Longest text, in bytes, that is tokenized at once. Most texts at the token limit are shorter, and it takes no time.
const BYTES_PER_PIECE: usize = 4096;

/// A text of a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// The text itself; the prompt for queries or documents is put in front of it.
    Text(String),
    /// Its token ids, of the model's own vocabulary, special tokens included.
    Tokens(Vec<u32>),
    /// A query and a text, for rerankers. The texts of a call share their query.
    Pair {
        /// The first text of the pair, which is never truncated.
        query: Arc<str>,
        /// The second.
        text: String,
    },
}

impl From<(&Arc<str>, String)> for Input {
    fn from((query, text): (&Arc<str>, String)) -> Self {
        Self::Pair {
            query: Arc::clone(query),
            text,
        }
    }
}

impl From<String> for Input {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<u32>> for Input {
    fn from(ids: Vec<u32>) -> Self {
        Self::Tokens(ids)
    }
}

/// The ids of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedText {
    /// Token ids, special tokens included. Only a static model's text may have none.
    pub ids: Vec<u32>,
    /// See [`Tokens::second`].
    pub second: usize,
    /// Whether tokens were cut off to stay within the limit.
    pub truncated: bool,
}

impl TokenizedText {
    fn single(ids: Vec<u32>, truncated: bool) -> Self {
        Self {
            second: ids.len(),
            ids,
            truncated,
        }
    }

    /// As runtimes take it.
    #[must_use]
    pub fn as_tokens(&self) -> Tokens<'_> {
        Tokens {
            ids: &self.ids,
            second: self.second,
        }
    }
}

/// A tokenizer with the model's prompts and token limit.
pub struct Tokenizer {
    inner: HfTokenizer,
    model: ModelDir,
    /// SHA-256 of `tokenizer.json`.
    digest: String,
    /// Rows of the embedding table; every id has to be below.
    rows: usize,
    /// The token that is left out.
    left_out: Option<u32>,
    /// Most tokens of a text, or of both texts of a pair, without special ones, or without those behind the text in a template.
    max_text_tokens: usize,
    /// Most tokens of a query.
    max_query_tokens: usize,
    /// The end of the template.
    after: Vec<u32>,
    /// How long texts are split; `None` if they are tokenized whole.
    piece_rules: Option<PieceRules>,
    bytes_per_piece: usize,
}

impl Tokenizer {
    /// Loads the folder's tokenizer.
    ///
    /// # Errors
    /// The file is malformed, its ids exceed the model's vocabulary, or the limit leaves no room for text.
    pub fn load(model: &ModelDir) -> Result<Self> {
        let path = &model.tokenizer;
        let bytes = model.read_tokenizer()?;
        let inner = guard::read(path, || {
            HfTokenizer::from_bytes(&bytes)
                .map_err(|error| Error::invalid_from(path, "is not a tokenizer", error))
        })?;
        check_vocabulary(path, &inner, model.encoder.facts().vocabulary)?;
        check_added_tokens(path, &inner, &bytes)?;
        let mut tokenizer = Self::new(inner, sha256_hex(&bytes), model)?;
        if model.encoder.static_tokens() == Some(StaticTokens::Known) {
            tokenizer.left_out = unknown_token(path, &tokenizer.inner, &bytes)?;
        }
        Ok(tokenizer)
    }

    fn new(mut inner: HfTokenizer, digest: String, model: &ModelDir) -> Result<Self> {
        let path = &model.tokenizer;
        if model.encoder.static_tokens().is_some() {
            inner.with_post_processor(None::<PostProcessorWrapper>);
        }
        let processor = inner.get_post_processor();
        // A chat template contains them.
        let processor = processor.filter(|_| model.template.is_none());
        let special_tokens = processor.map_or(0, |processor| {
            processor.added_tokens(model.task == Task::Rerank)
        });
        let (texts, expected) = match model.task {
            Task::Embed => (
                1,
                format!(
                    "more than the {special_tokens} special tokens that this model adds to a text"
                ),
            ),
            Task::Rerank => (
                2,
                format!("at least {special_tokens} special tokens and a token of each text"),
            ),
        };
        if model.template.is_none() && model.max_tokens < special_tokens + texts {
            return Err(Error::argument(
                "maxTokens",
                expected,
                model.max_tokens.to_string(),
            ));
        }
        let truncation = TruncationParams {
            // One more than the limit, which shows that there are too many.
            max_length: model.max_tokens + 1,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
            direction: if model.truncate_left {
                TruncationDirection::Left
            } else {
                TruncationDirection::Right
            },
        };
        inner.with_padding(None);
        inner.with_truncation(Some(truncation)).map_err(|error| {
            let problem = format!("does not accept a limit of {} tokens", model.max_tokens);
            Error::invalid_from(path, &problem, error)
        })?;
        let mut tokenizer = Self {
            piece_rules: guard::read(path, || Ok(PieceRules::of(&inner, model.lower_case)))?,
            inner,
            model: model.clone(),
            digest,
            rows: model.encoder.facts().vocabulary,
            left_out: None,
            max_text_tokens: model.max_tokens - special_tokens,
            max_query_tokens: model.max_tokens - special_tokens - 1,
            after: Vec::new(),
            bytes_per_piece: BYTES_PER_PIECE,
        };
        if let Some(template) = &model.template {
            tokenizer.keep_room(template)?;
            return Ok(tokenizer);
        }
        // Special tokens are checked with an empty text, so that a model that cannot embed them is refused when it is loaded.
        match model.task {
            Task::Embed => tokenizer.with_special_tokens(Vec::new()).map(|_| ())?,
            // The token types of an empty text would not be seen.
            Task::Rerank => tokenizer.join(vec![0], vec![0], false).map(|_| ())?,
        }
        Ok(tokenizer)
    }

    /// Keeps room for the parts of a chat template.
    fn keep_room(&mut self, template: &ChatTemplate) -> Result<()> {
        // Otherwise the tokens behind a text would depend on how it ends.
        let begins = |token: &tokenizers::AddedToken| {
            template.after.starts_with(&token.content) && !token.lstrip && !token.single_word
        };
        if !(self.inner.get_added_tokens_decoder().values()).any(begins) {
            let (feature, hint) = (
                "a chat template that has no token of added_tokens behind the text",
                "expected one such as \"<|im_end|>\"",
            );
            return Err(Error::unsupported(&self.model.tokenizer, feature, hint));
        }
        self.after = self.content("", &template.after, &|| false)?;
        // With a query of one token, to which the space in front of it belongs.
        let before = template.in_front_of_text("a");
        let before = self.content("", before.trim_end(), &|| false)?.len();
        if self.model.max_tokens <= before + self.after.len() {
            let expected = "room for the model's chat template and a token of each text";
            let found = self.model.max_tokens.to_string();
            return Err(Error::argument("maxTokens", expected, found));
        }
        self.max_text_tokens = self.model.max_tokens - self.after.len();
        self.max_query_tokens = self.max_text_tokens - before;
        Ok(())
    }

    /// SHA-256 of `tokenizer.json`, as lower-case hexadecimal.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The ids of `text`, after the prompt for queries or documents.
    ///
    /// # Errors
    /// The tokenizer refuses the text, or finds no token in it.
    pub fn tokenize(&self, text: &str, is_query: bool) -> Result<TokenizedText> {
        self.tokenize_unless(text, is_query, &|| false)
    }

    /// [`Tokenizer::tokenize`], which asks from time to time whether to stop.
    ///
    /// # Errors
    /// The tokenizer refuses the text, or finds no token in it; [`Error::Aborted`] if `should_stop` returns true.
    pub fn tokenize_unless(
        &self,
        text: &str,
        is_query: bool,
        should_stop: &dyn Fn() -> bool,
    ) -> Result<TokenizedText> {
        let prompt = if is_query {
            &self.model.query_prompt
        } else {
            &self.model.document_prompt
        };
        self.check_task(Task::Embed)?;
        let ids = self.content(prompt, text, should_stop)?;
        let (ids, truncated) = self.kept(ids, self.max_text_tokens);
        let ids = self.with_special_tokens(ids)?;
        if ids.is_empty() && self.model.encoder.static_tokens().is_none() {
            return Err(no_token());
        }
        Ok(TokenizedText::single(ids, truncated))
    }

    /// The ids of a pair: `query`, then `text`, in the model's chat template or with the special tokens that the tokenizer has
    /// for pairs. The text is truncated, the query is not.
    ///
    /// # Errors
    /// The tokenizer refuses a text; [`Error::InvalidArgument`] if the query leaves no room for a token of the text;
    /// [`Error::Aborted`] if `should_stop` returns true.
    pub fn tokenize_pair(
        &self,
        query: &str,
        text: &str,
        should_stop: &dyn Fn() -> bool,
    ) -> Result<TokenizedText> {
        self.check_task(Task::Rerank)?;
        let Some(template) = &self.model.template else {
            let query = self.content(&self.model.query_prompt, query, should_stop)?;
            let room = self.room_behind(&query)?;
            let text = self.content("", text, should_stop)?;
            let (text, truncated) = self.kept(text, room);
            return self.join(query, text, truncated);
        };
        let before = template.in_front_of_text(query);
        // A space at its end may become a part of the text's first token.
        self.room_behind(&self.content("", before.trim_end(), should_stop)?)?;
        let ids = self.content(&before, text, should_stop)?;
        let (mut ids, truncated) = self.kept(ids, self.max_text_tokens);
        ids.extend(&self.after);
        self.check(&ids)?;
        Ok(TokenizedText::single(ids, truncated))
    }

    /// How many tokens of a text fit behind these, which end with a query.
    fn room_behind(&self, query: &[u32]) -> Result<usize> {
        let room = self.max_text_tokens.saturating_sub(query.len());
        if room > 0 {
            return Ok(room);
        }
        let (most, limit) = (self.max_query_tokens, self.model.max_tokens);
        let expected = format!(
            "at most {most} tokens, so that a token of a text and the special tokens fit into maxTokens, {limit}"
        );
        Err(Error::argument("query", expected, "a longer one"))
    }

    /// Refuses a single text for a reranker, and a pair of texts for an embedder.
    fn check_task(&self, of_input: Task) -> Result<()> {
        let (expected, found) = match self.model.task {
            task if task == of_input => return Ok(()),
            Task::Embed => ("single texts (the model is an embedder)", "a pair of texts"),
            Task::Rerank => (
                "pairs of a query and a text (the model is a reranker)",
                "a single text",
            ),
        };
        Err(Error::argument("texts", expected, found))
    }

    /// The ids of a text without special tokens. Beyond the limit plus one, ids may be missing on the truncated side.
    fn content(
        &self,
        prompt: &str,
        text: &str,
        should_stop: &dyn Fn() -> bool,
    ) -> Result<Vec<u32>> {
        match &self.piece_rules {
            Some(rules) if prompt.len() + text.len() > self.bytes_per_piece => {
                // The lower-case form of a capital sigma depends on its neighbours, which a piece may lack.
                if self.model.lower_case && (prompt.contains('Σ') || text.contains('Σ')) {
                    let text = format!("{prompt}{text}").to_lowercase();
                    self.ids_of_pieces(rules, "", &text, should_stop)
                } else {
                    self.ids_of_pieces(rules, prompt, text, should_stop)
                }
            }
            _ => self.ids_of_whole(prompt, text),
        }
    }

    /// At most `most` of the ids, without those that are left out, and whether there were more.
    fn kept(&self, mut ids: Vec<u32>, most: usize) -> (Vec<u32>, bool) {
        let truncated = ids.len() > most;
        if truncated && self.model.truncate_left {
            ids.drain(..ids.len() - most);
        }
        ids.truncate(most);
        ids.retain(|&id| Some(id) != self.left_out);
        (ids, truncated)
    }

    /// Token ids from the caller: no prompt and no special tokens are added. They are truncated like those of a text.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are none, or one is not in the model's vocabulary; it names text number `index`.
    pub fn take(&self, ids: &[u32], index: usize) -> Result<TokenizedText> {
        self.check_task(Task::Embed)?;
        if ids.is_empty() {
            let expected = "at least one token id for a text";
            return Err(Error::argument(
                "texts",
                expected,
                format!("none for texts[{index}]"),
            ));
        }
        if let Some(place) = self.beyond_vocabulary(ids) {
            let expected = format!(
                "token ids of this model, from 0 to {} (they differ from model to model)",
                self.rows - 1
            );
            let found = format!("{} at texts[{index}][{place}]", ids[place]);
            return Err(Error::argument("texts", expected, found));
        }
        let excess = ids.len().saturating_sub(self.model.max_tokens);
        let kept = if self.model.truncate_left {
            &ids[excess..]
        } else {
            &ids[..ids.len() - excess]
        };
        Ok(TokenizedText::single(kept.to_vec(), excess > 0))
    }

    fn ids_of_whole(&self, prompt: &str, text: &str) -> Result<Vec<u32>> {
        let mut text = Cow::Borrowed(text);
        if !prompt.is_empty() {
            text = Cow::Owned(format!("{prompt}{text}"));
        }
        if self.model.lower_case {
            text = Cow::Owned(text.to_lowercase());
        }
        self.encode(&text)
    }

    /// The ids of enough pieces to exceed the token limit.
    fn ids_of_pieces(
        &self,
        rules: &PieceRules,
        prompt: &str,
        text: &str,
        should_stop: &dyn Fn() -> bool,
    ) -> Result<Vec<u32>> {
        let characters = prompt.chars().chain(text.chars());
        let characters: Box<dyn Iterator<Item = char>> = if self.model.truncate_left {
            Box::new(characters.rev())
        } else {
            Box::new(characters)
        };
        let mut pieces = Pieces::new(
            rules,
            &self.inner,
            characters,
            self.model.truncate_left,
            self.bytes_per_piece,
        );
        let mut ids = Vec::new();
        while ids.len() <= self.max_text_tokens
            && let Some(piece) = pieces.next(should_stop)?
        {
            let of_piece = self.encode(&piece)?;
            if self.model.truncate_left {
                ids.splice(..0, of_piece);
            } else {
                ids.extend(of_piece);
            }
        }
        Ok(ids)
    }

    /// The ids of a text without special tokens. Beyond the limit plus one, ids may be missing on the truncated side.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = run_library(|| self.inner.encode_fast(text, false))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn with_special_tokens(&self, mut ids: Vec<u32>) -> Result<Vec<u32>> {
        if let Some(processor) = self.inner.get_post_processor() {
            let encoding = run_library(|| processor.process(encoding_of(ids), None, true))?;
            ids = encoding.get_ids().to_vec();
        }
        self.check(&ids)?;
        Ok(ids)
    }

    /// Both texts of a pair, with special tokens.
    fn join(&self, query: Vec<u32>, text: Vec<u32>, truncated: bool) -> Result<TokenizedText> {
        let (ids, second) = match self.inner.get_post_processor() {
            Some(processor) => {
                let (query, text) = (encoding_of(query), Some(encoding_of(text)));
                let encoding = run_library(|| processor.process(query, text, true))?;
                let types = encoding.get_type_ids();
                let second = types.iter().take_while(|&&of_token| of_token == 0).count();
                if types[second..].iter().any(|&of_token| of_token != 1) {
                    let problem = format!(
                        "expected token types 0 and then 1 for a pair of texts, found {types:?}"
                    );
                    return Err(Error::invalid(&self.model.tokenizer, problem));
                }
                (encoding.get_ids().to_vec(), second)
            }
            None => ([&*query, &*text].concat(), query.len()),
        };
        self.check(&ids)?;
        if ids.is_empty() {
            return Err(no_token());
        }
        Ok(TokenizedText {
            ids,
            second,
            truncated,
        })
    }

    /// Checks ids before runtimes look them up in tables, some of them without a bounds check. The vocabulary does not
    /// contain every id: a post-processor writes ids of its own.
    fn check(&self, ids: &[u32]) -> Result<()> {
        let problem = match self.beyond_vocabulary(ids) {
            Some(place) => other_model(
                &self.inner.id_to_token(ids[place]).unwrap_or_default(),
                ids[place],
                self.rows,
            ),
            None if ids.len() > self.model.max_tokens => format!(
                "gives {} tokens where at most {} were asked for",
                ids.len(),
                self.model.max_tokens
            ),
            None => return Ok(()),
        };
        Err(Error::invalid(&self.model.tokenizer, problem))
    }

    /// The place of the first id that has no row in the embedding table.
    fn beyond_vocabulary(&self, ids: &[u32]) -> Option<usize> {
        ids.iter().position(|&id| id as usize >= self.rows)
    }
}

fn encoding_of(ids: Vec<u32>) -> Encoding {
    let tokens = ids.into_iter();
    tokens
        .map(|id| (id, String::new(), (0, 0), None, 0))
        .collect()
}

fn no_token() -> Error {
    Error::TokenizationFailed {
        reason: "the tokenizer gives no token for a text, not even a special one".to_owned(),
        source: None,
    }
}

/// Runs a part of the library on a text.
fn run_library<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let failed = |reason, source| Error::TokenizationFailed { reason, source };
    guard::catch(work)
        .map_err(|panic| failed(format!("the library panicked on the text: {panic}"), None))?
        .map_err(|error| failed(error.to_string(), Some(error)))
}

/// Checks that every token of the vocabulary has a row in the embedding table, whether or not a text contains it.
fn check_vocabulary(path: &Path, tokenizer: &HfTokenizer, rows: usize) -> Result<()> {
    let vocabulary = tokenizer.get_vocab(true);
    match vocabulary.iter().max_by_key(|(_, id)| **id) {
        Some((token, &id)) if id as usize >= rows => {
            Err(Error::invalid(path, other_model(token, id, rows)))
        }
        _ => Ok(()),
    }
}

/// Checks the ids in `added_tokens`. The library ignores them: an added token has the id that the vocabulary gives it, or
/// the next one after the vocabulary.
fn check_added_tokens(path: &Path, tokenizer: &HfTokenizer, file: &[u8]) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<AddedToken>,
    }
    #[derive(serde::Deserialize)]
    struct AddedToken {
        id: u32,
        content: String,
    }
    let file: File = serde_json::from_slice(file)
        .map_err(|error| Error::invalid_from(path, "is not a tokenizer", error))?;
    for AddedToken { id, content } in file.added_tokens {
        match tokenizer.token_to_id(&content) {
            Some(expected) if expected != id => {
                let problem = format!(
                    "added token {content:?}: expected its id to be {expected}, found {id}"
                );
                return Err(Error::invalid(path, problem));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The id of the token that stands for text that no other token stands for, if there is one.
fn unknown_token(path: &Path, tokenizer: &HfTokenizer, file: &[u8]) -> Result<Option<u32>> {
    #[derive(serde::Deserialize)]
    struct File {
        model: Model,
    }
    #[derive(serde::Deserialize)]
    struct Model {
        unk_token: Option<String>,
        /// Of a Unigram model.
        unk_id: Option<u32>,
    }
    let file: File = serde_json::from_slice(file)
        .map_err(|error| Error::invalid_from(path, "is not a tokenizer", error))?;
    let token = file.model.unk_token;
    let id = token.and_then(|token| tokenizer.token_to_id(&token));
    Ok(id.or(file.model.unk_id))
}

fn other_model(token: &str, id: u32, rows: usize) -> String {
    format!(
        "token {token:?} has id {id}, but the model embeds only ids below {rows} (vocab_size); \
         tokenizer and weights are of different models"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::cell::Cell;
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::options::Options;

    /// What must not be split, and where texts are split, between bars.
    const FRAGMENTS: [&str; 8] = [
        " |  |\t|\n|\r\n|\u{b}|\u{c}|\u{85}|\u{a0}|\u{2028}|\u{3000}|\0|\u{200b}|\u{200d}|\u{feff}",
        "\u{fffd}|\u{e000}|\u{ad}|!|.|'|_|-|[|]|[SEP]|[MASK]|[sep]|[SE|SEP]|P]|[\u{200b}SEP]|<mask>",
        "<m\u{e1}sk>|c++|C++|+|new|newword|NEWWORD|\u{6f22}|\u{20000}|\u{f900}|\u{3001}|\u{964}|\u{301}",
        "\u{300}|\u{316}|\u{345}|\u{34f}|\u{302e}|\u{1d165}|\u{1d16d}|\u{5b0}|e\u{301}|\u{e9}|\u{1ec7}",
        "\u{2260}|\u{ac01}|\u{1100}|\u{1161}|\u{11a8}|\u{1f469}\u{200d}\u{1f467}|\u{1f600}|\u{3a3}",
        "\u{391}\u{3a3}|\u{3c3}|\u{130}|\u{131}|\u{df}|\u{fb01}|\u{2167}|a|Ab|the|the  time|_Ab|time",
        "return|zzz|zzzz|zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
        "'S|'ll|it's|12|      |\n\n\n|\u{2581}|\u{2581}\u{2581}|e\u{2581}t|the the  return|e t|<table>|<0x0A>",
    ];

    fn fixture() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert_mean")
    }

    /// An added token that is not special.
    fn added(content: &str, properties: &Value) -> Value {
        let mut token = json!({
            "id": 1450, "content": content, "special": false, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        });
        for (name, value) in properties.as_object().unwrap() {
            token[name] = value.clone();
        }
        token
    }

    /// The fixture's tokenizer, in as many ways as there are rules.
    static TOKENIZERS: LazyLock<Vec<HfTokenizer>> = LazyLock::new(|| {
        let file = std::fs::read(fixture().join("tokenizer.json")).unwrap();
        let plain: Value = serde_json::from_slice(&file).unwrap();
        let with = |pointer: &str, value: Value| {
            let mut changed = plain.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            changed
        };
        let with_token = |content: &str, properties: Value| {
            let mut changed = plain.clone();
            let tokens = changed["added_tokens"].as_array_mut().unwrap();
            tokens.push(added(content, &properties));
            changed
        };
        let other = |file: &str| -> Value {
            let file = fixture().join("..").join(file);
            serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
        };
        let unigram = other("xlm_roberta/tokenizer.json");
        let qwen = other("tokenizers/split_byte_level.json");
        let modern_bert = other("tokenizers/neox_byte_level.json");
        let gemma = other("tokenizers/byte_fallback.json");
        let mut metaspace = unigram.clone();
        metaspace["pre_tokenizer"] = metaspace["pre_tokenizer"]["pretokenizers"][1].clone();
        metaspace["normalizer"] = json!({"type": "Sequence", "normalizers": [
            metaspace["normalizer"],
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]});
        let mut words_of_another_kind = qwen.clone();
        words_of_another_kind["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] =
            r"(?<=[a-z] )t".into();
        let mut token_across_words = modern_bert.clone();
        let tokens = token_across_words["added_tokens"].as_array_mut().unwrap();
        tokens.push(added("e t", &json!({"id": 728})));
        let mut joined_words = gemma.clone();
        joined_words["model"]["vocab"]["e\u{2581}"] = 795.into();
        let merges = joined_words["model"]["merges"].as_array_mut().unwrap();
        merges.push(json!(["e", "\u{2581}"]));
        let files = [
            plain.clone(),
            with("/model/max_input_chars_per_word", json!(4)),
            with("/normalizer/lowercase", json!(false)),
            with("/normalizer/strip_accents", json!(false)),
            with("/normalizer/clean_text", json!(false)),
            with("/normalizer/handle_chinese_chars", json!(false)),
            with("/normalizer", Value::Null),
            with("/post_processor", Value::Null),
            with_token("<mask>", json!({"lstrip": true, "rstrip": true})),
            with_token("c++", json!({})),
            with_token("C++", json!({"normalized": true})),
            with_token("newword", json!({})),
            with_token("NewWord", json!({"normalized": true})),
            unigram,
            metaspace,
            other("roberta/tokenizer.json"),
            qwen,
            modern_bert,
            gemma,
            with_token("Ab", json!({"single_word": true})),
            with_token("the time", json!({})),
            with_token("\u{6f22}", json!({"normalized": true})),
            with("/pre_tokenizer", json!({"type": "WhitespaceSplit"})),
            words_of_another_kind,
            token_across_words,
            joined_words,
        ];
        let load =
            |file: &Value| HfTokenizer::from_bytes(serde_json::to_vec(file).unwrap()).unwrap();
        files.iter().map(load).collect()
    });

    /// The tokenizers whose texts are split.
    const SPLIT: std::ops::Range<usize> = 0..19;

    fn model() -> ModelDir {
        ModelDir::read(&fixture(), &Options::default()).unwrap()
    }

    /// Tokenization without splitting, by the tokenizer alone.
    fn whole(inner: &HfTokenizer, model: &ModelDir, text: &str) -> TokenizedText {
        let mut inner = inner.clone();
        inner.with_padding(None);
        inner.with_truncation(None).unwrap();
        let mut text = format!("{}{text}", model.document_prompt);
        if model.lower_case {
            text = text.to_lowercase();
        }
        let special = inner.encode("", true).unwrap().get_ids().to_vec();
        let mut ids = inner.encode(text, false).unwrap().get_ids().to_vec();
        let room = model.max_tokens - special.len();
        let truncated = ids.len() > room;
        if truncated && model.truncate_left {
            ids.drain(..ids.len() - room);
        }
        ids.truncate(room);
        match special[..] {
            [cls, sep] => {
                ids.insert(0, cls);
                ids.push(sep);
            }
            [end] => ids.push(end),
            _ => {}
        }
        TokenizedText::single(ids, truncated)
    }

    fn text() -> impl Strategy<Value = String> {
        let fragments = FRAGMENTS.iter().flat_map(|line| line.split('|'));
        let fragment = prop::sample::select(fragments.collect::<Vec<_>>());
        let anything = any::<char>().prop_map(String::from);
        let fragment = prop_oneof![9 => fragment.prop_map(str::to_owned), 1 => anything];
        let repeated = (fragment, prop_oneof![9 => Just(1), 1 => 2..50_usize]);
        let repeated = repeated.prop_map(|(fragment, count)| fragment.repeat(count));
        prop::collection::vec(repeated, 0..60).prop_map(|fragments| fragments.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn a_text_in_pieces_has_the_tokens_of_the_whole(
            text in text(),
            prompt in prop_oneof![Just(String::new()), text()],
            which in 0..TOKENIZERS.len(),
            bytes_per_piece in prop_oneof![Just(0), 1..40_usize, Just(300)],
            max_tokens in prop_oneof![3..12_usize, 12..200_usize],
            truncate_left: bool,
            lower_case in prop::bool::weighted(0.3),
        ) {
            let inner = &TOKENIZERS[which];
            let mut model = model();
            model.max_tokens = max_tokens;
            model.truncate_left = truncate_left;
            model.lower_case = lower_case;
            model.document_prompt = prompt;
            let mut tokenizer = Tokenizer::new(inner.clone(), String::new(), &model).unwrap();
            tokenizer.bytes_per_piece = bytes_per_piece;
            tokenizer.rows = usize::MAX;
            prop_assert_eq!(tokenizer.piece_rules.is_some(), SPLIT.contains(&which));
            let expected = whole(inner, &model, &text);
            match tokenizer.tokenize(&text, false) {
                Ok(tokenized) => prop_assert_eq!(tokenized, expected),
                Err(_) => prop_assert!(expected.ids.is_empty()),
            }
        }
    }

    /// Each character next to those that normalization could move across a split.
    #[test]
    fn a_split_beside_any_character_changes_no_token() {
        let neighbours = ["b", "\u{301}", "\u{302e}", "\u{1d165}", "\u{200b}", "!"];
        let is_one_of_many = |c: char| ('\u{3400}'..='\u{9fff}').contains(&c) || c > '\u{20000}';
        let tokenizer = Tokenizer::new(TOKENIZERS[0].clone(), String::new(), &model()).unwrap();
        let rules = tokenizer.piece_rules.as_ref().unwrap();
        let characters = '\0'..=char::MAX;
        let characters =
            characters.filter(|&c| !is_one_of_many(c) || (c as u32).is_multiple_of(499));
        for c in characters.filter(|&c| rules.may_be_split_at(&tokenizer.inner, c)) {
            for (index, left) in neighbours.iter().enumerate() {
                let right = neighbours[(index + 1) % neighbours.len()];
                let (left, right) = (format!("a{left}"), format!("{right}a"));
                let encode = |text: &str| tokenizer.encode(text).unwrap();
                let together = encode(&format!("{left}{c}{right}"));
                let before = [encode(&left), encode(&format!("{c}{right}"))].concat();
                let after = [encode(&format!("{left}{c}")), encode(&right)].concat();
                assert_eq!(
                    (&before, &after),
                    (&together, &together),
                    "{left:?} {c:?} {right:?}"
                );
            }
        }
    }

    #[test]
    fn tokenization_stops_when_told() {
        let tokenizer = Tokenizer::new(TOKENIZERS[0].clone(), String::new(), &model()).unwrap();
        let questions = Cell::new(0);
        let should_stop = || {
            questions.set(questions.get() + 1);
            questions.get() > 3
        };
        let text = "\u{200b}".repeat(10_000_000);
        let result = tokenizer.tokenize_unless(&text, false, &should_stop);
        assert!(matches!(result, Err(Error::Aborted)));
        assert_eq!(questions.get(), 4);
    }
}
