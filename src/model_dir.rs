//! What a model folder says. The layout is that of sentence-transformers; all of it is read and nothing is guessed.
//!
//! ```text
//! config.json                          architecture and its settings
//! modules.json                         the chain: Transformer, Pooling, perhaps Dense modules, perhaps Normalize
//! 1_Pooling/config.json                pooling
//! 2_Dense/                             a layer behind the pooling, see `dense.rs`
//! 1_LogitScore/                        in place of a pooling: which logits are a score, see `logit_score.rs`
//! sentence_bert_config.json            token limit, lower-casing
//! config_sentence_transformers.json    prompts
//! tokenizer.json, tokenizer_config.json
//! chat_template.jinja                  what is put around a query and a text, see `chat_template.rs`
//! model.safetensors, or model.safetensors.index.json and its shards
//! ```
//!
//! A static model (see `arch/static_table.rs`) has `StaticEmbedding` in place of Transformer and Pooling, and need not have a
//! `config.json`.
//! A reranker's folder has no pooling, and a model for sequence classification with one label or a causal language model
//! with `LogitScore`.
//!
//! A folder with only config, tokenizer and weights works for models that its `config.json` names
//! (CodeRankEmbed, nomic-embed-text); for any other the pooling has to be given as an option.
//!
//! `lib/model_dir.ts` reads the same for the JavaScript fallback. What one of them refuses, the other refuses with the same
//! error code; several mistakes are found in the same order (`__test__/readers.spec.mjs` compares both).
//!
//! Each file is read once, and only if it is a regular file of plausible size (`file.rs`). It may be a link to anywhere, as
//! in the Hub's cache; a path that a file contains may not leave the folder.
//!
//! Nothing in a folder says whether its vectors are layer-normalized before they are truncated to `dimensions`. Among the
//! supported models only nomic-embed-text-v1.5 asks for it, and its own `config.json` does not name it. So the vectors of a
//! `nomic_bert` model that is not known by name are truncated only if the caller says which.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use serde::Deserialize;
use serde_json::Value;

use crate::arch::{self, Encoder, Facts};
use crate::chat_template::ChatTemplate;
use crate::checkpoint::{Checkpoint, SINGLE_FILE, WEIGHTS_EXPECTED, sha256_hex};
use crate::dense::Dense;
use crate::error::{Error, Result};
use crate::file;
use crate::graph::{Graph, Pooling};
use crate::json_file::{self, JsonFile, read_bytes};
use crate::logit_score::LogitScore;
use crate::options::{Options, Task};
use crate::vector::Matryoshka;

const TOKENIZER: &str = "expected the tokenizer in the format of Hugging Face `tokenizers`";

/// A model folder, read and combined with the caller's options.
#[derive(Debug, Clone)]
pub struct ModelDir {
    /// The folder.
    pub path: PathBuf,
    /// What it is read for.
    pub task: Task,
    /// The architecture with its settings.
    pub encoder: Arc<dyn Encoder>,
    /// How token states become a vector. Of a reranker it says nothing: its head pools (see [`arch::Head`]).
    pub pooling: Vec<Pooling>,
    /// The layers that follow, in their order.
    pub dense: Vec<Dense>,
    /// Of a reranker that is a causal language model: which logits are its score.
    pub logit_score: Option<LogitScore>,
    /// Of a reranker: what is put around a query and a text. `None` if the tokenizer joins them.
    pub template: Option<ChatTemplate>,
    /// Length of a vector before it is truncated to `dimensions`; 1 of a score.
    pub full_dimension: usize,
    /// Text put in front of queries. Empty if it is in the template.
    pub query_prompt: String,
    /// Text put in front of documents.
    pub document_prompt: String,
    /// Most tokens of a text, special tokens included.
    pub max_tokens: usize,
    /// Whether texts are lower-cased before tokenization, on top of what the tokenizer does.
    pub lower_case: bool,
    /// How pooled vectors are truncated; `None` where they are not.
    pub matryoshka: Option<Matryoshka>,
    /// Whether vectors are scaled to length 1.
    pub normalize: bool,
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// Whether texts that are too long lose their beginning instead of their end.
    pub truncate_left: bool,
    /// The checkpoint's files, sorted by name.
    pub weights: Vec<PathBuf>,
    /// SHA-256 of `config.json`, of nothing where there is none, followed by that of `LogitScore`, as lower-case hexadecimal.
    pub config_digest: String,
}

impl ModelDir {
    /// Reads the folder.
    ///
    /// # Errors
    /// A file is missing, malformed, contradicts another, or asks for something that is not supported; each names
    /// the file.
    pub fn read(path: &Path, options: &Options) -> Result<Self> {
        if !path.is_dir() {
            let hint = "expected a model folder in the sentence-transformers layout";
            return Err(Error::not_found(path, hint));
        }
        let modules = Modules::read(path)?;
        let folder = &modules.transformer;
        let config_path = folder.join("config.json");
        let config_bytes = read_bytes(&config_path, file::MOST_SETTINGS)?;
        let (config_file, encoder) = read_encoder(config_path, config_bytes.as_deref(), &modules)?;
        let facts = encoder.facts();
        let is_reranker = options.task == Task::Rerank;
        let known = KnownModel::of(&config_file.json).filter(|_| !is_reranker);
        let declared_task = modules.task(&config_file.json);
        if is_reranker {
            check_reranker(path, &modules, &config_file, declared_task, &*encoder)?;
        }
        let mut digested = config_bytes.unwrap_or_default();
        let logit_score = (modules.logit_score.as_deref())
            .map(|folder| LogitScore::read(folder, facts.vocabulary, &mut digested))
            .transpose()?;

        let [query_prompt, document_prompt] = Prompts::read(path)?.chosen(options, known);
        let has_prompt = !(query_prompt.is_empty() && document_prompt.is_empty());
        let pooling_file = modules
            .pooling
            .map(|file| JsonFile::read(file, "the pooling that modules.json names"))
            .transpose()?;
        if let Some(file) = &pooling_file {
            check_pooling(file, facts.width, has_prompt)?;
        }
        let pooling = if is_reranker {
            vec![Pooling::Cls]
        } else {
            let option = options.pooling;
            poolings(path, option, pooling_file, known, &*encoder, declared_task)?
        };

        let pooled = pooling.len() * facts.width;
        let dense = Dense::read_all(&modules.dense, pooled)?;
        let full_dimension = if is_reranker {
            1
        } else {
            dense.last().map_or(pooled, |dense| dense.outputs)
        };
        let known_norm = known.map(|known| known.layer_norm);
        let matryoshka = read_matryoshka(
            &config_file.path,
            facts,
            full_dimension,
            known_norm,
            options,
        )?;

        let sentence_bert = JsonFile::read_optional(folder.join("sentence_bert_config.json"))?;
        let tokenizer_config = JsonFile::read_optional(folder.join("tokenizer_config.json"))?;
        let limits = Limits::read(&sentence_bert, &tokenizer_config, facts, options)?;
        let mut template = None;
        if is_reranker {
            let files = [&sentence_bert, &tokenizer_config];
            template = ChatTemplate::read(folder, modules.are_declared, files, &query_prompt)?;
            if template.is_none() && encoder.logits().is_some() {
                return Err(without_template(path));
            }
        }
        let tokenizer = folder.join("tokenizer.json");
        if !tokenizer.exists() {
            return Err(Error::not_found(&tokenizer, TOKENIZER));
        }
        Ok(Self {
            path: path.to_owned(),
            task: options.task,
            pooling,
            dense,
            logit_score,
            full_dimension,
            query_prompt: if template.is_none() {
                query_prompt
            } else {
                String::new()
            },
            template,
            document_prompt,
            max_tokens: limits.max_tokens,
            lower_case: limits.lower_case,
            matryoshka,
            normalize: !is_reranker && options.normalize.unwrap_or(true),
            tokenizer,
            truncate_left: limits.truncate_left,
            weights: weight_files(folder)?,
            config_digest: sha256_hex(&digested),
            encoder,
        })
    }

    /// The task that a folder declares: what it may be read for, unless something else is wrong with it.
    ///
    /// # Errors
    /// Its `modules.json` or `config.json` cannot be used.
    pub fn task_of(path: &Path) -> Result<Task> {
        let modules = Modules::read(path)?;
        if modules.is_static {
            return Ok(Task::Embed);
        }
        let config = modules.transformer.join("config.json");
        let config = JsonFile::read(config, "the architecture's settings")?;
        Ok(modules.task(&config.json))
    }

    /// Length of a vector.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.matryoshka
            .map_or(self.full_dimension, |matryoshka| matryoshka.dimensions)
    }

    /// The states of all tokens, and what is computed of a text: its vector before it is finished, or a pair's score.
    ///
    /// # Errors
    /// A tensor is missing or has another shape than the settings imply.
    pub fn record(&self, checkpoint: &mut Checkpoint) -> Result<[Graph; 2]> {
        let states = self.encoder.record(checkpoint)?;
        if self.task == Task::Rerank {
            let states = states.of_pairs();
            let scores = match &self.logit_score {
                Some(module) => module.record(&*self.encoder, &states, checkpoint)?,
                None => (self.encoder.head())
                    .map(|head| head.record(&states, checkpoint))
                    .transpose()?,
            };
            let scores = scores.ok_or_else(|| not_a_reranker(&self.path))?;
            return Ok([states, scores]);
        }
        let mut vectors = states.pooled(&self.pooling);
        for (number, dense) in self.dense.iter().enumerate() {
            dense.record(number, checkpoint, &mut vectors)?;
        }
        Ok([states, vectors])
    }

    /// The bytes of `tokenizer.json`.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    pub fn read_tokenizer(&self) -> Result<Vec<u8>> {
        read_bytes(&self.tokenizer, file::MOST_TOKENIZER)?
            .ok_or_else(|| Error::not_found(&self.tokenizer, TOKENIZER))
    }

    /// Identifies everything that decides what vectors this model gives: two indexes may be mixed if, and only if,
    /// their fingerprints are equal. Lower-case hexadecimal SHA-256; the JavaScript fallback computes the same.
    /// `weights` and `tokenizer` are the SHA-256 of the bytes that are computed with.
    #[must_use]
    pub fn fingerprint(&self, weights: &[String], tokenizer: &str, dtype: &str) -> String {
        #[derive(serde::Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Identity<'a> {
            format: u32,
            // Left out for embedders: indexes that are older than rerankers stay valid.
            #[serde(skip_serializing_if = "Option::is_none")]
            task: Option<&'static str>,
            weights: &'a [String],
            tokenizer: &'a str,
            config: &'a str,
            pooling: Vec<&'static str>,
            // Left out where there is none, as is all that was added later: older indexes stay valid.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            dense: Vec<&'a str>,
            query_prompt: &'a str,
            document_prompt: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            template: Option<&'a ChatTemplate>,
            max_tokens: usize,
            normalize: bool,
            dtype: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            dimensions: Option<usize>,
            #[serde(skip_serializing_if = "Option::is_none")]
            layer_norm: Option<bool>,
        }
        let identity = Identity {
            format: 1,
            task: (self.task == Task::Rerank).then_some(self.task.name()),
            weights,
            tokenizer,
            config: &self.config_digest,
            pooling: self.pooling.iter().map(|pooling| pooling.name()).collect(),
            dense: (self.dense.iter().map(|dense| &*dense.config_digest)).collect(),
            query_prompt: &self.query_prompt,
            document_prompt: &self.document_prompt,
            template: self.template.as_ref(),
            max_tokens: self.max_tokens,
            normalize: self.normalize,
            dtype,
            dimensions: self.matryoshka.map(|matryoshka| matryoshka.dimensions),
            layer_norm: self.matryoshka.map(|matryoshka| matryoshka.layer_norm),
        };
        let json =
            serde_json::to_vec(&identity).expect("strings, numbers and booleans always serialize");
        sha256_hex(&json)
    }
}

fn not_a_reranker(path: &Path) -> Error {
    Error::unsupported(
        path,
        "a reranker without a head (expected a model for sequence classification or a LogitScore module, and no pooling)",
        "load an embedder with `Embedder.load`; of a language model, download the newest revision, which may have the module",
    )
}

fn without_template(path: &Path) -> Error {
    Error::unsupported(
        path,
        "a reranker that is a language model without a chat template",
        "add chat_template.jinja and sentence_bert_config.json, with \"message\" in `modality_config`, of Qwen/Qwen3-Reranker-0.6B",
    )
}

/// Refuses a folder that declares no reranker, or one whose scores are not computed here.
fn check_reranker(
    path: &Path,
    modules: &Modules,
    config: &JsonFile,
    declared: Task,
    encoder: &dyn Encoder,
) -> Result<()> {
    if declared == Task::Embed {
        return Err(not_a_reranker(path));
    }
    let is_computed = if modules.logit_score.is_some() {
        encoder.logits().is_some()
    } else {
        arch::check_labels(&config.path, &config.json)?;
        encoder.head().is_some()
    };
    if is_computed {
        return Ok(());
    }
    Err(arch::unknown_reranker(&config.path, &config.json))
}

/// `modules.json`: where the parts of the chain lie.
struct Modules {
    /// Folder of config, tokenizer and weights.
    transformer: PathBuf,
    /// The pooling's `config.json`, if the folder has one.
    pooling: Option<PathBuf>,
    /// Folders of the Dense modules.
    dense: Vec<PathBuf>,
    /// Folder of the `LogitScore` module.
    logit_score: Option<PathBuf>,
    /// Whether a `StaticEmbedding` stands for the first two.
    is_static: bool,
    /// Whether there is a `modules.json`.
    are_declared: bool,
}

impl Modules {
    /// What the folder declares: a reranker has `LogitScore`, or is a model for sequence classification without a pooling.
    fn task(&self, config: &Value) -> Task {
        if self.logit_score.is_some() {
            Task::Rerank
        } else if self.pooling.is_some() {
            Task::Embed
        } else {
            arch::task(config)
        }
    }

    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("modules.json");
        let Some(bytes) = read_bytes(&path, file::MOST_SETTINGS)? else {
            let pooling = folder.join("1_Pooling").join("config.json");
            return Ok(Self {
                transformer: folder.to_owned(),
                pooling: pooling.exists().then_some(pooling),
                dense: Vec::new(),
                logit_score: None,
                is_static: false,
                are_declared: false,
            });
        };
        let json = json_file::parse(&path, &bytes)?;
        let invalid = |problem: String| Error::invalid(&path, problem);
        let Some(entries) = json.as_array() else {
            return Err(Error::invalid(&path, "expected a JSON array of modules"));
        };
        let mut modules = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let module = entry.as_object().and_then(|entry| {
                let kind = entry.get("type")?.as_str()?;
                Some((kind, entry.get("path").map_or(Some(""), Value::as_str)?))
            });
            modules.push(module.ok_or_else(|| {
                invalid(format!(
                    "entry {index}: expected strings \"type\" and \"path\""
                ))
            })?);
        }
        for (_, relative) in &modules {
            plain_path(&path, relative)?;
        }
        let last = modules.len().saturating_sub(1);
        let mut dense = Vec::new();
        let mut logit_score = None;
        let mut is_static = false;
        for (index, (kind, relative)) in modules.iter().enumerate() {
            // Other classes are code of the model's own, which is not run.
            let class = kind.strip_prefix("sentence_transformers.");
            let class = class.and_then(|class| class.rsplit('.').next());
            match (index, class) {
                (0, Some("StaticEmbedding")) => is_static = true,
                (1, Some("Normalize")) if is_static && index == last => {}
                (0, Some("Transformer")) => {}
                (1, Some("Pooling")) if !is_static => {}
                (1, Some("LogitScore")) if !is_static && index == last => {
                    logit_score = Some(folder.join(relative));
                }
                (2.., Some("Dense")) if !is_static => dense.push(folder.join(relative)),
                (2.., Some("Normalize")) if index == last => {}
                _ => {
                    return Err(Error::unsupported(
                        &path,
                        format!("module {index} of type {kind:?}"),
                        "supported are the chains Transformer, Pooling, Dense, Normalize; StaticEmbedding, Normalize; and \
                         Transformer, LogitScore of sentence_transformers (any number of Dense modules; Normalize is optional)",
                    ));
                }
            }
        }
        let mut folders = modules.iter().map(|(_, relative)| folder.join(relative));
        let transformer = folders.next().ok_or_else(|| {
            let problem =
                "expected a list of modules that starts with a Transformer, found an empty list";
            Error::invalid(&path, problem)
        })?;
        let pooling = folders
            .next()
            .filter(|_| !is_static && logit_score.is_none());
        Ok(Self {
            transformer,
            pooling: pooling.map(|folder| folder.join("config.json")),
            dense,
            logit_score,
            is_static,
            are_declared: true,
        })
    }
}

/// `config.json`, and the encoder that it describes. For a `StaticEmbedding` it may be missing.
fn read_encoder(
    path: PathBuf,
    bytes: Option<&[u8]>,
    modules: &Modules,
) -> Result<(JsonFile, Arc<dyn Encoder>)> {
    let bytes = match bytes {
        Some(bytes) => bytes,
        None if modules.is_static => b"{}",
        None => {
            let hint = "expected the architecture's settings";
            return Err(Error::not_found(&path, hint));
        }
    };
    let file = JsonFile::parse(path, bytes)?;
    let read = if modules.is_static {
        arch::read_static
    } else {
        arch::read
    };
    let encoder = read(&file.path, &file.json)?;
    Ok((file, encoder))
}

/// How token states become a vector: what the option, the folder or what is known of the model says.
fn poolings(
    path: &Path,
    option: Option<Pooling>,
    file: Option<JsonFile>,
    known: Option<&KnownModel>,
    encoder: &dyn Encoder,
    task: Task,
) -> Result<Vec<Pooling>> {
    match (option, file, known) {
        (Some(pooling), _, _) => Ok(vec![pooling]),
        (None, Some(file), _) => pooling_modes(&file),
        (None, None, Some(known)) => Ok(vec![known.pooling.parse()?]),
        (None, None, None) if encoder.static_tokens().is_some() => Ok(vec![Pooling::Mean]),
        (None, None, None) if task == Task::Rerank => Err(Error::unsupported(
            path,
            "a reranker, which gives no vectors,",
            "load it with `Reranker.load`",
        )),
        (None, None, None) => Err(Error::unsupported(
            path,
            "a model folder that does not say its pooling (no modules.json, no 1_Pooling)",
            "pass the option `pooling: \"cls\" | \"mean\" | …` that the model's card names",
        )),
    }
}

/// Refuses pooling that contradicts the encoder or leaves out a prompt's tokens, which is not computed here.
fn check_pooling(file: &JsonFile, width: usize, has_prompt: bool) -> Result<()> {
    for key in ["word_embedding_dimension", "embedding_dimension"] {
        if let Some(found) = file.count(key)?.filter(|&found| found != width) {
            return Err(file.invalid(format!(
                "`{key}`: expected the model's hidden size {width}, found {found}"
            )));
        }
    }
    if file.flag("include_prompt")? == Some(false) && has_prompt {
        return Err(file.unsupported(
            "include_prompt = false together with a prompt".to_owned(),
            "pass empty prompts (`queryPrompt: \"\", documentPrompt: \"\"`) if the model works without",
        ));
    }
    Ok(())
}

/// `pooling_mode`, a name or a list of names, or the older form of one boolean for each mode, in the order in which
/// sentence-transformers concatenates them.
fn pooling_modes(file: &JsonFile) -> Result<Vec<Pooling>> {
    const OLDER: &str = "pooling_mode_";
    let older_key = |mode: Pooling| match mode {
        Pooling::Cls => "pooling_mode_cls_token".to_owned(),
        Pooling::Max | Pooling::Mean | Pooling::WeightedMean => {
            format!("{OLDER}{}_tokens", mode.name())
        }
        _ => format!("{OLDER}{}", mode.name()),
    };
    let unsupported = |mode: String| {
        let names = Pooling::ALL.map(Pooling::name).join(", ");
        file.unsupported(mode, &format!("supported are {names}"))
    };
    let mut switched_on = Vec::new();
    for key in file
        .json
        .as_object()
        .into_iter()
        .flat_map(|json| json.keys())
    {
        if key.starts_with(OLDER) && file.flag(key)? == Some(true) {
            switched_on.push(key);
        }
    }
    let is_on = |mode: &Pooling| switched_on.contains(&&older_key(*mode));
    let is_unknown = |key: &&&String| !Pooling::ALL.iter().any(|&mode| older_key(mode) == ***key);
    if let Some(key) = switched_on.iter().find(is_unknown) {
        return Err(unsupported(format!("pooling mode {key}")));
    }
    let declared = file.typed(
        "pooling_mode",
        "a string or a list of strings",
        |mode| match mode {
            Value::Array(modes) => modes.iter().map(Value::as_str).collect(),
            mode => Some(vec![mode.as_str()?]),
        },
    )?;
    let names = declared.unwrap_or_else(|| {
        let modes = Pooling::ALL.into_iter().filter(is_on);
        modes.map(Pooling::name).collect()
    });
    if names.is_empty() {
        return Err(file.invalid("no pooling mode is switched on"));
    }
    let mut modes = Vec::new();
    let mut seen = BTreeSet::new();
    if let Some(name) = names.iter().find(|&name| !seen.insert(name)) {
        return Err(file.invalid(format!("pooling mode {name:?} is named more than once")));
    }
    for name in names {
        let mode = Pooling::from_name(name);
        modes.push(mode.ok_or_else(|| unsupported(format!("pooling mode {name:?}")))?);
    }
    Ok(modes)
}

/// `config_sentence_transformers.json`.
struct Prompts {
    by_name: BTreeMap<String, String>,
    default: Option<String>,
}

impl Prompts {
    fn read(folder: &Path) -> Result<Self> {
        let file = JsonFile::read_optional(folder.join("config_sentence_transformers.json"))?;
        let mut by_name = BTreeMap::new();
        let prompts = file.typed("prompts", "an object", Value::as_object)?;
        for (name, prompt) in prompts.into_iter().flatten() {
            match prompt {
                Value::Null => {}
                Value::String(prompt) => {
                    by_name.insert(name.clone(), prompt.clone());
                }
                other => {
                    return Err(file.invalid(format!(
                        "`prompts.{name}`: expected a string, found {other}"
                    )));
                }
            }
        }
        let default = match file.text("default_prompt_name")? {
            None => None,
            Some(name) => Some(by_name.get(name).cloned().ok_or_else(|| {
                file.invalid(format!(
                    "`default_prompt_name`: expected one of {:?}, found {name:?}",
                    by_name.keys().collect::<Vec<_>>()
                ))
            })?),
        };
        Ok(Self { by_name, default })
    }

    /// Those for queries and for documents: what the options, the folder or what is known of the model says. A reranker has one
    /// for queries alone, by default the folder's default prompt, as in `CrossEncoder`.
    fn chosen(&self, options: &Options, known: Option<&KnownModel>) -> [String; 2] {
        let prompt = |option: &Option<String>, names: &[&str], known: Option<&String>| {
            let declared = option.as_ref().or_else(|| self.named(names));
            let prompt = declared.or(known).or(self.default.as_ref());
            prompt.cloned().unwrap_or_default()
        };
        if options.task == Task::Rerank {
            return [prompt(&options.query_prompt, &[], None), String::new()];
        }
        let of_queries = known.map(|known| &known.query_prompt);
        let of_documents = known.map(|known| &known.document_prompt);
        let names = ["document", "passage", "corpus"];
        [
            prompt(&options.query_prompt, &["query"], of_queries),
            prompt(&options.document_prompt, &names, of_documents),
        ]
    }

    fn named(&self, names: &[&str]) -> Option<&String> {
        names.iter().find_map(|&name| self.by_name.get(name))
    }
}

/// What `sentence_bert_config.json` and `tokenizer_config.json` say of texts.
struct Limits {
    max_tokens: usize,
    lower_case: bool,
    truncate_left: bool,
}

impl Limits {
    fn read(
        sentence_bert: &JsonFile,
        tokenizer_config: &JsonFile,
        facts: Facts,
        options: &Options,
    ) -> Result<Self> {
        let max_seq_length = sentence_bert.count("max_seq_length")?;
        let lower_case = sentence_bert.flag("do_lower_case")?.unwrap_or(false);
        let max_length = model_max_length(tokenizer_config)?;
        let expected = "\"left\" or \"right\"";
        let truncate_left =
            tokenizer_config.typed("truncation_side", expected, |side| match side.as_str()? {
                "left" => Some(true),
                "right" => Some(false),
                _ => None,
            })?;
        let max_tokens = options.max_tokens.unwrap_or(Options::DEFAULT_MAX_TOKENS);
        let of_files = max_seq_length.or(max_length).unwrap_or(usize::MAX);
        Ok(Self {
            max_tokens: max_tokens.min(of_files).min(facts.positions),
            lower_case,
            truncate_left: truncate_left.unwrap_or(false),
        })
    }
}

/// The limit of `tokenizer_config.json`; `transformers` writes 10³⁰ for none.
fn model_max_length(file: &JsonFile) -> Result<Option<usize>> {
    const NO_LIMIT: f64 = 1e8;
    let expected = "a whole number of at least 1";
    let limit = file.typed("model_max_length", expected, |value| {
        let limit = value.as_f64()?;
        let is_limit = limit > NO_LIMIT || (limit >= 1.0 && limit.fract() == 0.0);
        is_limit.then_some(limit)
    })?;
    let limit = limit.filter(|&limit| limit <= NO_LIMIT);
    Ok(limit.map(|limit| limit as usize))
}

/// A model whose bare `config.json` names it and whose pooling and prompts its authors have published.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KnownModel {
    id: String,
    pooling: String,
    query_prompt: String,
    document_prompt: String,
    /// See [`Matryoshka::layer_norm`].
    #[serde(default)]
    layer_norm: bool,
}

/// `lib/known_models.json`, which both languages read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KnownModels {
    embedders: Vec<KnownModel>,
    /// Parts of the last segment of `_name_or_path`, in lower case, each with the model's id. The first that fits counts.
    names_in_config: Vec<(String, String)>,
}

static KNOWN_MODELS: LazyLock<KnownModels> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../lib/known_models.json"))
        .expect("the file is a part of this crate, and tests read it")
});

impl KnownModel {
    fn of(config: &Value) -> Option<&'static Self> {
        let name = config.get("_name_or_path")?.as_str()?;
        let name = name
            .trim_end_matches('/')
            .rsplit('/')
            .next()?
            .to_lowercase();
        let mut names = KNOWN_MODELS.names_in_config.iter();
        let (_, id) = names.find(|(part, _)| name.contains(part))?;
        KNOWN_MODELS.embedders.iter().find(|model| model.id == *id)
    }
}

fn read_matryoshka(
    config_path: &Path,
    facts: Facts,
    pooled: usize,
    known_norm: Option<bool>,
    options: &Options,
) -> Result<Option<Matryoshka>> {
    let Some(dimensions) = options.dimensions.filter(|_| options.task == Task::Embed) else {
        return Ok(None);
    };
    if !(1..=pooled).contains(&dimensions) {
        let expected = format!("1 to {pooled}, the length of the model's vectors");
        return Err(Error::argument(
            "dimensions",
            expected,
            dimensions.to_string(),
        ));
    }
    let layer_norm = options.layer_norm.or(known_norm);
    let Some(layer_norm) = layer_norm.or(facts.layer_norm_before_truncation) else {
        return Err(Error::unsupported(
            config_path,
            "`dimensions` for a model whose files do not tell whether its vectors are layer-normalized first",
            "pass `layerNorm: true` for nomic-embed-text-v1.5, `layerNorm: false` for a model whose card asks for no layer norm",
        ));
    };
    Ok(Some(Matryoshka {
        dimensions,
        layer_norm,
    }))
}

/// The checkpoint's files: one, or the shards that the index names.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join(SINGLE_FILE);
    if single.exists() {
        return Ok(vec![single]);
    }
    let index_path = folder.join("model.safetensors.index.json");
    if !index_path.exists() {
        return Err(Error::not_found(&single, WEIGHTS_EXPECTED));
    }
    let index = JsonFile::read(index_path, "the list of shards")?;
    let names = index.typed("weight_map", "file names by tensor", |map| {
        let names = map.as_object()?.values().map(Value::as_str);
        names.collect::<Option<BTreeSet<&str>>>()
    })?;
    let names = names.ok_or_else(|| index.invalid("`weight_map` is missing"))?;
    names
        .into_iter()
        .map(|name| {
            plain_path(&index.path, name)?;
            let path = folder.join(name);
            if path.exists() {
                return Ok(path);
            }
            let hint = "model.safetensors.index.json names this shard; download it as well";
            Err(Error::not_found(&path, hint))
        })
        .collect()
}

/// Refuses a path that leaves the model folder, here or on a system of other separators.
fn plain_path(file: &Path, relative: &str) -> Result<()> {
    let is_plain = Path::new(relative).components().all(|component| {
        matches!(
            component,
            std::path::Component::Normal(_) | std::path::Component::CurDir
        )
    });
    if is_plain && !relative.split(['/', '\\']).any(|part| part == "..") {
        return Ok(());
    }
    let problem = format!("expected a path inside the model folder, found {relative:?}");
    Err(Error::invalid(file, problem))
}
