//! The text that a reranker reads whose model was trained for chats: a query and a text, in the words of a chat template.
//!
//! Chat templates are programs in Jinja, which are not run. One is known, that of Qwen3-Reranker:
//!
//! ```text
//! {%- set instruction = messages | … | default("…") -%}
//! {%- set query_text = messages | … -%}
//! {%- set document_text = messages | … -%}
//! … {{ instruction }} … {{ query_text }} … {{ document_text }} …
//! ```
//!
//! What stands for the ellipses of the last line, and the default instruction, are data. `CrossEncoder` of
//! sentence-transformers 6.2 puts its prompt in the place of the instruction, tokenizes all of it as one text, without special
//! tokens around it, and writes the end of the template over the last tokens of what is too long.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::file;
use crate::json_file::{JsonFile, read_bytes};

const INSTRUCTION: &str = r#"{%- set instruction = messages | selectattr("role", "eq", "system") | map(attribute="content") | first | default(""#;
const QUERY: &str = r#"{%- set query_text = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}"#;
const DOCUMENT: &str = r#"{%- set document_text = messages | selectattr("role", "eq", "document") | map(attribute="content") | first -%}"#;

/// What is put around a query and a text.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ChatTemplate {
    /// In front of the query. It contains the instruction.
    pub before: String,
    /// Between both.
    pub between: String,
    /// Behind the text. It is kept when the text is truncated.
    pub after: String,
}

impl ChatTemplate {
    /// The template of a folder, with this instruction instead of its own unless it is empty; `None` if pairs are joined by the
    /// tokenizer. `has_modules` tells whether the folder has a `modules.json`.
    ///
    /// # Errors
    /// The template is another one, or settings ask for something that is not supported.
    pub(crate) fn read(
        folder: &Path,
        has_modules: bool,
        [sentence_bert, tokenizer_config]: [&JsonFile; 2],
        instruction: &str,
    ) -> Result<Option<Self>> {
        let path = folder.join("chat_template.jinja");
        let modalities = sentence_bert.typed("modality_config", "an object", Value::as_object)?;
        let takes_messages = match modalities {
            Some(modalities) => modalities.contains_key("message"),
            // Older versions knew no messages; without modules they are what a template is for.
            None => {
                !has_modules && (path.exists() || tokenizer_config.get("chat_template").is_some())
            }
        };
        if !takes_messages {
            return Ok(None);
        }
        let format = modalities.map_or(&Value::Null, |modalities| &modalities["message"]["format"]);
        if !format.is_null() && format != "flat" {
            let feature = format!("message format {format}");
            return Err(sentence_bert.unsupported(feature, "supported is \"flat\""));
        }
        let prompt_is_generated = json!({ "chat_template": { "add_generation_prompt": true } });
        if let Some(found) = sentence_bert.get("processing_kwargs")
            && *found != prompt_is_generated
        {
            let hint = format!("supported is {prompt_is_generated}, or none");
            return Err(sentence_bert.unsupported(format!("processing_kwargs {found}"), &hint));
        }
        let (path, template) = if let Some(bytes) = read_bytes(&path, file::MOST_SETTINGS)? {
            let template = String::from_utf8(bytes)
                .map_err(|error| Error::invalid_from(&path, "is not UTF-8", error))?;
            (&path, template)
        } else {
            let template = tokenizer_config.text("chat_template")?.unwrap_or_default();
            (&tokenizer_config.path, template.to_owned())
        };
        let template = Self::parse(&template, instruction).ok_or_else(|| {
            Error::unsupported(
                path,
                "a reranker with another chat template than Qwen3-Reranker's",
                "put chat_template.jinja of the model's newest revision, or of Qwen/Qwen3-Reranker-0.6B, into the folder",
            )
        })?;
        if tokenizer_config.text("truncation_side")? == Some("left") {
            let feature = "truncation_side \"left\" with a chat template".to_owned();
            return Err(tokenizer_config.unsupported(feature, "supported is \"right\""));
        }
        Ok(Some(template))
    }

    /// What precedes the text, the query included.
    #[must_use]
    pub fn in_front_of_text(&self, query: &str) -> String {
        format!("{}{query}{}", self.before, self.between)
    }

    /// `None` for another template.
    fn parse(template: &str, instruction: &str) -> Option<Self> {
        let (default, rest) = template.strip_prefix(INSTRUCTION)?.split_once("\") -%}")?;
        let rest = rest.trim_start().strip_prefix(QUERY)?;
        let rest = rest.trim_start().strip_prefix(DOCUMENT)?.trim_start();
        let (before, rest) = rest.split_once("{{ instruction }}")?;
        let (behind, rest) = rest.split_once("{{ query_text }}")?;
        let (between, after) = rest.split_once("{{ document_text }}")?;
        // Jinja leaves out one newline at the end.
        let after = after.strip_suffix('\n').unwrap_or(after);
        let is_plain = |part: &&str| {
            !["{{", "{%", "{#", "\r"]
                .iter()
                .any(|code| part.contains(code))
        };
        let are_plain = [before, behind, between, after].iter().all(is_plain);
        if !are_plain || default.contains(['"', '\\', '\r']) || after.is_empty() {
            return None;
        }
        let instruction = if instruction.is_empty() {
            default
        } else {
            instruction
        };
        Some(Self {
            before: format!("{before}{instruction}{behind}"),
            between: between.to_owned(),
            after: after.to_owned(),
        })
    }
}
