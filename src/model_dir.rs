//! What a model folder says. Layout of sentence-transformers, all of it read, nothing guessed.
//!
//! ```text
//! config.json                          architecture and its settings
//! modules.json                         the chain: Transformer, Pooling, perhaps Normalize
//! 1_Pooling/config.json                pooling
//! sentence_bert_config.json            token limit, lower-casing
//! config_sentence_transformers.json    prompts
//! tokenizer.json, tokenizer_config.json
//! model.safetensors, or model.safetensors.index.json and its shards
//! ```
//!
//! A folder with only config, tokenizer and weights works for models that its `config.json` names
//! (CodeRankEmbed, nomic-embed-text); for any other the pooling has to be given as an option.
//!
//! Each file is read once, and only if it is a regular one of a plausible size (`file.rs`). It may be a link that leads
//! anywhere, as in the Hub's cache; a name that stands in a file may not leave the folder.
//!
//! Nothing in a folder says whether its vectors are layer-normalized before they are cut. Among the supported models
//! nomic-embed-text-v1.5 alone asks for it, and its own `config.json` does not name it: a `nomic_bert` model that is
//! not known by name is cut only where the caller says which.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::arch::{Config, Pooling};
use crate::checkpoint::sha256_hex;
use crate::error::{Error, Result};
use crate::file;
use crate::options::Options;
use crate::vector::Cut;

const TOKENIZER: &str = "the tokenizer in the format of Hugging Face `tokenizers`";

/// A model folder, read and combined with the caller's options.
#[derive(Debug, Clone)]
pub struct ModelDir {
    /// The folder.
    pub path: PathBuf,
    /// Settings of the architecture.
    pub config: Config,
    /// How token states become a vector.
    pub pooling: Vec<Pooling>,
    /// Text put in front of queries.
    pub query_prompt: String,
    /// Text put in front of documents.
    pub document_prompt: String,
    /// Most tokens of a text, special tokens included.
    pub max_tokens: usize,
    /// The same without the caller's wish: what the model was made for.
    pub model_max_tokens: usize,
    /// Whether texts are lower-cased before tokenization, on top of what the tokenizer does.
    pub lower_case: bool,
    /// Which part of a pooled vector is kept; `None` for all of it.
    pub cut: Option<Cut>,
    /// Whether vectors are scaled to length 1.
    pub normalize: bool,
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// Whether texts that are too long lose their beginning instead of their end.
    pub truncate_left: bool,
    /// The checkpoint's files, sorted by name.
    pub weights: Vec<PathBuf>,
    config_digest: String,
}

impl ModelDir {
    /// Reads the folder.
    ///
    /// # Errors
    /// A file is missing, malformed, contradicts another, or asks for something that is not supported; each names
    /// the file.
    pub fn read(path: &Path, options: &Options) -> Result<Self> {
        if !path.is_dir() {
            return Err(Error::ModelNotFound {
                path: path.to_owned(),
                hint: "expected a model folder in the sentence-transformers layout".to_owned(),
            });
        }
        let modules = Modules::read(path)?;
        let folder = &modules.transformer;
        let config_path = folder.join("config.json");
        let config_bytes = read_settings(&config_path, "the architecture's settings")?;
        let config_json: Value = parse(&config_path, &config_bytes)?;
        let config = Config::from_json(&config_path, &config_json)?;
        let width = config.width();
        let known = KnownModel::of(&config_json);

        let prompts = Prompts::read(path)?;
        let known_prompt =
            |choose: fn(&KnownModel) -> &'static str| known.as_ref().map(|k| choose(k).to_owned());
        let query_prompt = options
            .query_prompt
            .clone()
            .or_else(|| prompts.named(&["query"]))
            .or_else(|| known_prompt(|known| known.query_prompt))
            .or_else(|| prompts.default.clone())
            .unwrap_or_default();
        let document_prompt = options
            .document_prompt
            .clone()
            .or_else(|| prompts.named(&["document", "passage", "corpus"]))
            .or_else(|| known_prompt(|known| known.document_prompt))
            .or_else(|| prompts.default.clone())
            .unwrap_or_default();
        let folder_pooling = match &modules.pooling {
            Some(file) => {
                let config = PoolingConfig::read(file)?;
                config.check(file, width, &query_prompt, &document_prompt)?;
                Some((file, config))
            }
            None => None,
        };
        let pooling = match (options.pooling, folder_pooling, &known) {
            (Some(pooling), _, _) => vec![pooling],
            (None, Some((file, config)), _) => config.modes(file)?,
            (None, None, Some(known)) => vec![known.pooling],
            (None, None, None) => {
                return Err(Error::ModelUnsupported {
                    path: path.to_owned(),
                    feature: "a model folder that does not say its pooling (no modules.json, no 1_Pooling)".to_owned(),
                    hint: "pass the option `pooling: \"cls\" | \"mean\" | …` that the model's card names".to_owned(),
                });
            }
        };

        let pooled = pooling.len() * width;
        let known_norm = known.as_ref().map(|known| known.layer_norm);
        let cut = read_cut(&config_path, &config, pooled, known_norm, options)?;

        let sentence_bert: SentenceBertConfig =
            read_optional(&folder.join("sentence_bert_config.json"))?;
        let tokenizer_config_path = folder.join("tokenizer_config.json");
        let tokenizer_config: TokenizerConfig = read_optional(&tokenizer_config_path)?;
        let truncate_left = tokenizer_config.truncates_left(&tokenizer_config_path)?;
        let model_max_tokens = sentence_bert
            .max_seq_length
            .or_else(|| tokenizer_config.limit())
            .unwrap_or(usize::MAX)
            .min(config.positions());
        let max_tokens = options
            .max_tokens
            .unwrap_or(Options::DEFAULT_MAX_TOKENS)
            .min(model_max_tokens);

        let tokenizer = folder.join("tokenizer.json");
        if !tokenizer.exists() {
            return Err(not_found(&tokenizer, TOKENIZER));
        }
        Ok(Self {
            path: path.to_owned(),
            pooling,
            query_prompt,
            document_prompt,
            max_tokens,
            model_max_tokens,
            lower_case: sentence_bert.do_lower_case.unwrap_or(false),
            cut,
            normalize: !options.keep_length,
            tokenizer,
            truncate_left,
            weights: weight_files(folder)?,
            config_digest: sha256_hex(&config_bytes),
            config,
        })
    }

    /// Length of a vector.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.cut
            .map_or_else(|| self.pooled_dimension(), |cut| cut.dimensions)
    }

    /// Length of a vector before it is cut.
    #[must_use]
    pub fn pooled_dimension(&self) -> usize {
        self.pooling.len() * self.config.width()
    }

    /// The bytes of `tokenizer.json`.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    pub fn read_tokenizer(&self) -> Result<Vec<u8>> {
        read_required(&self.tokenizer, TOKENIZER, file::MOST_TOKENIZER)
    }

    /// A name for everything that decides what vectors this model gives: two indexes may be mixed if, and only if,
    /// their fingerprints are equal. Lower-case hexadecimal SHA-256; the JavaScript fallback computes the same.
    /// `weights` and `tokenizer` are the SHA-256 of the bytes that are computed with.
    #[must_use]
    pub fn fingerprint(&self, weights: &[String], tokenizer: &str, dtype: &str) -> String {
        #[derive(serde::Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Identity<'a> {
            format: u32,
            weights: &'a [String],
            tokenizer: &'a str,
            config: &'a str,
            pooling: Vec<&'static str>,
            query_prompt: &'a str,
            document_prompt: &'a str,
            max_tokens: usize,
            normalize: bool,
            dtype: &'a str,
            // Left out without a cut: an index that was made before cuts existed stays valid.
            #[serde(skip_serializing_if = "Option::is_none")]
            dimensions: Option<usize>,
            #[serde(skip_serializing_if = "Option::is_none")]
            layer_norm: Option<bool>,
        }
        let identity = Identity {
            format: 1,
            weights,
            tokenizer,
            config: &self.config_digest,
            pooling: self.pooling.iter().map(|pooling| pooling.name()).collect(),
            query_prompt: &self.query_prompt,
            document_prompt: &self.document_prompt,
            max_tokens: self.max_tokens,
            normalize: self.normalize,
            dtype,
            dimensions: self.cut.map(|cut| cut.dimensions),
            layer_norm: self.cut.map(|cut| cut.layer_norm),
        };
        let json =
            serde_json::to_vec(&identity).expect("strings, numbers and booleans always serialize");
        sha256_hex(&json)
    }
}

/// `modules.json`: where the parts of the chain lie.
struct Modules {
    /// Folder of config, tokenizer and weights.
    transformer: PathBuf,
    /// The pooling's `config.json`, if the folder has one.
    pooling: Option<PathBuf>,
}

impl Modules {
    fn read(folder: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Module {
            #[serde(default)]
            path: String,
            r#type: String,
        }
        let path = folder.join("modules.json");
        if !path.exists() {
            let pooling = folder.join("1_Pooling").join("config.json");
            return Ok(Self {
                transformer: folder.to_owned(),
                pooling: pooling.exists().then_some(pooling),
            });
        }
        let modules: Vec<Module> = parse(&path, &read_settings(&path, "the chain of modules")?)?;
        let mut transformer = None;
        let mut pooling = None;
        for (index, module) in modules.iter().enumerate() {
            let kind = module.r#type.rsplit('.').next().unwrap_or_default();
            let inside = || plain_path(&path, &module.path).map(|relative| folder.join(relative));
            match (index, kind) {
                (0, "Transformer") => transformer = Some(inside()?),
                (1, "Pooling") => pooling = Some(inside()?.join("config.json")),
                (2, "Normalize") => {}
                _ => {
                    return Err(Error::ModelUnsupported {
                        path,
                        feature: format!("module {index} of type {:?}", module.r#type),
                        hint: "supported is the chain Transformer, Pooling, Normalize (the last is optional)"
                            .to_owned(),
                    });
                }
            }
        }
        match transformer {
            Some(transformer) => Ok(Self {
                transformer,
                pooling,
            }),
            None => Err(Error::ModelInvalid {
                path,
                problem:
                    "expected a list of modules that starts with a Transformer, found an empty list"
                        .to_owned(),
                source: None,
            }),
        }
    }
}

/// `1_Pooling/config.json`, in its older form of one boolean per mode or its newer form of one name or list.
#[derive(Deserialize)]
struct PoolingConfig {
    pooling_mode: Option<OneOrMany>,
    #[serde(alias = "embedding_dimension")]
    word_embedding_dimension: Option<usize>,
    include_prompt: Option<bool>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl PoolingConfig {
    fn read(path: &Path) -> Result<Self> {
        parse(
            path,
            &read_settings(path, "the pooling that modules.json names")?,
        )
    }

    /// Refuses what contradicts the encoder, and pooling that leaves out a prompt's tokens, which is not computed here.
    fn check(
        &self,
        path: &Path,
        width: usize,
        query_prompt: &str,
        document_prompt: &str,
    ) -> Result<()> {
        if let Some(dimension) = self
            .word_embedding_dimension
            .filter(|&dimension| dimension != width)
        {
            return Err(Error::ModelInvalid {
                path: path.to_owned(),
                problem: format!(
                    "`word_embedding_dimension`: expected the model's hidden size {width}, found {dimension}"
                ),
                source: None,
            });
        }
        if self.include_prompt == Some(false)
            && !(query_prompt.is_empty() && document_prompt.is_empty())
        {
            return Err(Error::ModelUnsupported {
                path: path.to_owned(),
                feature: "include_prompt = false together with a prompt".to_owned(),
                hint: "pass empty prompts (`queryPrompt: \"\", documentPrompt: \"\"`) if the model works without"
                    .to_owned(),
            });
        }
        Ok(())
    }

    fn modes(&self, path: &Path) -> Result<Vec<Pooling>> {
        let names = match &self.pooling_mode {
            Some(OneOrMany::One(name)) => vec![name.as_str()],
            Some(OneOrMany::Many(names)) => names.iter().map(String::as_str).collect(),
            None => self.legacy_names(),
        };
        if names.is_empty() {
            return Err(Error::ModelInvalid {
                path: path.to_owned(),
                problem: "no pooling mode is switched on".to_owned(),
                source: None,
            });
        }
        let repeated = |index: &usize| names[..*index].contains(&names[*index]);
        // There are only so many modes: no list of others is longer.
        let checked = 0..names.len().min(Pooling::ALL.len() + 1);
        if let Some(index) = checked.clone().find(repeated) {
            return Err(Error::ModelInvalid {
                path: path.to_owned(),
                problem: format!("pooling mode {:?} is named more than once", names[index]),
                source: None,
            });
        }
        names[checked]
            .iter()
            .map(|&name| {
                Pooling::from_name(name).ok_or_else(|| Error::ModelUnsupported {
                    path: path.to_owned(),
                    feature: format!("pooling mode {name:?}"),
                    hint: format!(
                        "supported are {}",
                        Pooling::ALL.map(Pooling::name).join(", ")
                    ),
                })
            })
            .collect()
    }

    /// Modes that are `true`, in the order in which sentence-transformers concatenates them, unknown ones last.
    fn legacy_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .others
            .iter()
            .filter(|(_, value)| **value == Value::Bool(true))
            .filter_map(|(key, _)| key.strip_prefix("pooling_mode_"))
            .map(|name| match name {
                "cls_token" => "cls",
                "max_tokens" => "max",
                "mean_tokens" => "mean",
                "weightedmean_tokens" => "weightedmean",
                other => other,
            })
            .collect();
        names.sort_by_key(|name| {
            Pooling::ALL
                .iter()
                .position(|pooling| pooling.name() == *name)
                .unwrap_or(usize::MAX)
        });
        names
    }
}

/// `config_sentence_transformers.json`.
struct Prompts {
    by_name: BTreeMap<String, String>,
    default: Option<String>,
}

impl Prompts {
    fn read(folder: &Path) -> Result<Self> {
        #[derive(Deserialize, Default)]
        struct File {
            #[serde(default)]
            prompts: Option<BTreeMap<String, Option<String>>>,
            default_prompt_name: Option<String>,
        }
        let path = folder.join("config_sentence_transformers.json");
        let file: File = read_optional(&path)?;
        let by_name: BTreeMap<String, String> = file
            .prompts
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, prompt)| Some((name, prompt?)))
            .collect();
        let default = match file.default_prompt_name {
            None => None,
            Some(name) => Some(
                by_name
                    .get(&name)
                    .cloned()
                    .ok_or_else(|| Error::ModelInvalid {
                        path,
                        problem: format!(
                            "`default_prompt_name`: expected one of {:?}, found {name:?}",
                            by_name.keys().collect::<Vec<_>>()
                        ),
                        source: None,
                    })?,
            ),
        };
        Ok(Self { by_name, default })
    }

    fn named(&self, names: &[&str]) -> Option<String> {
        names
            .iter()
            .find_map(|&name| self.by_name.get(name))
            .cloned()
    }
}

#[derive(Deserialize, Default)]
struct SentenceBertConfig {
    max_seq_length: Option<usize>,
    do_lower_case: Option<bool>,
}

#[derive(Deserialize, Default)]
struct TokenizerConfig {
    /// A float, since `transformers` writes 10³⁰ for "no limit".
    model_max_length: Option<f64>,
    truncation_side: Option<Value>,
}

impl TokenizerConfig {
    fn limit(&self) -> Option<usize> {
        self.model_max_length
            .filter(|&limit| (1.0..=1e8).contains(&limit))
            .map(|limit| limit as usize)
    }

    fn truncates_left(&self, path: &Path) -> Result<bool> {
        match &self.truncation_side {
            None => Ok(false),
            Some(side) if side == "left" => Ok(true),
            Some(side) if side == "right" => Ok(false),
            Some(other) => Err(Error::ModelInvalid {
                path: path.to_owned(),
                problem: format!(
                    "`truncation_side`: expected \"left\" or \"right\", found {other}"
                ),
                source: None,
            }),
        }
    }
}

/// Models whose bare `config.json` names them and whose pooling and prompts their authors have published.
struct KnownModel {
    pooling: Pooling,
    query_prompt: &'static str,
    document_prompt: &'static str,
    /// See [`Cut::layer_norm`].
    layer_norm: bool,
}

impl KnownModel {
    fn of(config: &Value) -> Option<Self> {
        let name = config.get("_name_or_path")?.as_str()?;
        let name = name
            .trim_end_matches('/')
            .rsplit('/')
            .next()?
            .to_lowercase();
        if name.contains("coderankembed") {
            // https://huggingface.co/nomic-ai/CodeRankEmbed
            Some(Self {
                pooling: Pooling::Cls,
                query_prompt: "Represent this query for searching relevant code: ",
                document_prompt: "",
                layer_norm: false,
            })
        } else if name.contains("nomic-embed-text") {
            // https://huggingface.co/nomic-ai/nomic-embed-text-v1.5
            Some(Self {
                pooling: Pooling::Mean,
                query_prompt: "search_query: ",
                document_prompt: "search_document: ",
                layer_norm: name.contains("nomic-embed-text-v1.5"),
            })
        } else {
            None
        }
    }
}

fn read_cut(
    config_path: &Path,
    config: &Config,
    pooled: usize,
    known_norm: Option<bool>,
    options: &Options,
) -> Result<Option<Cut>> {
    let Some(dimensions) = options.dimensions else {
        return Ok(None);
    };
    if !(1..=pooled).contains(&dimensions) {
        return Err(Error::InvalidArgument {
            argument: "dimensions",
            expected: format!("1 to {pooled}, the length of the model's vectors"),
            found: dimensions.to_string(),
        });
    }
    let layer_norm = match (options.layer_norm.or(known_norm), config) {
        (Some(layer_norm), _) => layer_norm,
        (None, Config::Bert(_)) => false,
        (None, Config::NomicBert(_)) => {
            return Err(Error::ModelUnsupported {
                path: config_path.to_owned(),
                feature: "`dimensions` for a nomic_bert model that does not name itself".to_owned(),
                hint: "pass `layerNorm: true` for nomic-embed-text-v1.5, `layerNorm: false` for a model whose card asks for no layer norm"
                    .to_owned(),
            });
        }
    };
    Ok(Some(Cut {
        dimensions,
        layer_norm,
    }))
}

/// The checkpoint's files: one, or the shards that the index names.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index_path = folder.join("model.safetensors.index.json");
    if !index_path.exists() {
        return Err(Error::ModelNotFound {
            path: single,
            hint: "expected weights as safetensors (pytorch_model.bin is not read)".to_owned(),
        });
    }
    let index: Index = parse(
        &index_path,
        &read_settings(&index_path, "the list of shards")?,
    )?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    names
        .into_iter()
        .map(|name| {
            let path = folder.join(plain_path(&index_path, name)?);
            if path.exists() {
                return Ok(path);
            }
            Err(Error::ModelNotFound {
                path,
                hint: "model.safetensors.index.json names this shard; download it as well"
                    .to_owned(),
            })
        })
        .collect()
}

/// A relative path that stays inside the model folder.
fn plain_path<'a>(file: &Path, relative: &'a str) -> Result<&'a Path> {
    let path = Path::new(relative);
    let is_plain = path.components().all(|component| {
        matches!(
            component,
            std::path::Component::Normal(_) | std::path::Component::CurDir
        )
    });
    if is_plain {
        return Ok(path);
    }
    Err(Error::ModelInvalid {
        path: file.to_owned(),
        problem: format!("expected a path inside the model folder, found {relative:?}"),
        source: None,
    })
}

fn read_settings(path: &Path, what: &str) -> Result<Vec<u8>> {
    read_required(path, what, file::MOST_SETTINGS)
}

fn read_required(path: &Path, what: &str, most: u64) -> Result<Vec<u8>> {
    file::read(path, most).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => not_found(path, what),
        _ => file::unreadable(path, error),
    })
}

fn not_found(path: &Path, what: &str) -> Error {
    Error::ModelNotFound {
        path: path.to_owned(),
        hint: format!("expected {what}"),
    }
}

/// A file that may be absent; every field then has its default.
fn read_optional<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    if path.exists() {
        parse(path, &read_settings(path, "settings")?)
    } else {
        Ok(T::default())
    }
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::ModelInvalid {
        path: path.to_owned(),
        problem: format!("is not the JSON that was expected: {error}"),
        source: Some(error.into()),
    })
}
