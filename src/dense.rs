//! `Dense` modules of sentence-transformers: fully connected layers between pooling and normalization, as in `EmbeddingGemma`.
//! `lib/dense.ts` reads the same files.
//!
//! ```text
//! 2_Dense/config.json         sizes and activation
//! 2_Dense/model.safetensors   linear.weight [out_features, in_features], perhaps linear.bias
//! ```
//!
//! Source: `sentence_transformers` 6.2, `base/modules/dense.py`; its defaults apply here. It computes tanh in place of an
//! activation that it does not trust. Here that is an error, as is everything else that is not computed.

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, sha256_hex};
use crate::error::{Error, Result};
use crate::file;
use crate::graph::{Activation, Graph, Linear};
use crate::json_file::{JsonFile, read_bytes};

/// The vector of a text among the outputs of modules. Others are those of tokens.
const SENTENCE: &str = "sentence_embedding";

/// A layer behind the pooling.
#[derive(Debug, Clone)]
pub struct Dense {
    /// Its file of weights.
    pub weights: PathBuf,
    /// `in_features`.
    pub inputs: usize,
    /// `out_features`.
    pub outputs: usize,
    /// Whether it has a bias.
    pub bias: bool,
    /// What follows; `None` for the identity.
    pub activation: Option<Activation>,
    /// SHA-256 of `config.json`, as lower-case hexadecimal.
    pub config_digest: String,
}

impl Dense {
    /// Reads the folders of modules that follow each other, the first of which is given vectors of `width` numbers.
    ///
    /// # Errors
    /// See [`Self::read`].
    pub fn read_all(folders: &[PathBuf], mut width: usize) -> Result<Vec<Self>> {
        let mut modules = Vec::new();
        for folder in folders {
            let module = Self::read(folder, width)?;
            width = module.outputs;
            modules.push(module);
        }
        Ok(modules)
    }

    /// Reads a module's folder. It is given vectors of `width` numbers.
    ///
    /// # Errors
    /// A file is missing, malformed, or asks for something that is not supported; the error names it.
    pub fn read(folder: &Path, width: usize) -> Result<Self> {
        let path = folder.join("config.json");
        let bytes = read_bytes(&path, file::MOST_SETTINGS)?
            .ok_or_else(|| Error::not_found(&path, "expected the Dense module's settings"))?;
        let config = JsonFile::parse(path, &bytes)?;
        let size = |key: &str| {
            let size = config.count(key)?;
            size.ok_or_else(|| config.invalid(format!("`{key}` is missing")))
        };
        let (inputs, outputs) = (size("in_features")?, size("out_features")?);
        if inputs != width {
            return Err(config.invalid(format!(
                "`in_features`: expected {width}, the length of the vectors that the module is given, found {inputs}"
            )));
        }
        let bias = config.flag("bias")?.unwrap_or(true);
        let class = config.text("activation_function")?;
        let class = class.unwrap_or("torch.nn.modules.activation.Tanh");
        let name = class.strip_prefix("torch.nn.");
        let activation = match name.and_then(|name| name.rsplit('.').next()) {
            Some("Identity") => None,
            Some("Tanh") => Some(Activation::Tanh),
            _ => {
                let hint = "supported are torch.nn's Tanh and Identity";
                return Err(config.unsupported(format!("activation_function {class:?}"), hint));
            }
        };
        for key in ["module_input_name", "module_output_name"] {
            if let Some(name) = config.text(key)?.filter(|&name| name != SENTENCE) {
                let hint = format!("supported is {SENTENCE:?}");
                return Err(config.unsupported(format!("{key} {name:?}"), &hint));
            }
        }
        if config.flag("use_residual")? == Some(true) {
            let hint = "supported are Dense modules without a residual";
            return Err(config.unsupported("use_residual true".to_owned(), hint));
        }
        let weights = folder.join("model.safetensors");
        if !weights.exists() {
            let hint = "expected the Dense module's weights (pytorch_model.bin is not read)";
            return Err(Error::not_found(&weights, hint));
        }
        Ok(Self {
            weights,
            inputs,
            outputs,
            bias,
            activation,
            config_digest: sha256_hex(&bytes),
        })
    }

    /// Reads the weights of module `number` into the checkpoint, and records the module behind the graph's result.
    ///
    /// # Errors
    /// The file cannot be read, or a tensor is missing or has another shape than the settings say.
    pub fn record(
        &self,
        number: usize,
        checkpoint: &mut Checkpoint,
        graph: &mut Graph,
    ) -> Result<()> {
        let prefix = format!("dense.{number}.");
        checkpoint.read(&self.weights, &prefix)?;
        let tensor = |name: &str, shape: &[usize]| {
            checkpoint.tensor(&format!("{prefix}linear.{name}"), shape)
        };
        let layer = Linear {
            weight: tensor("weight", &[self.outputs, self.inputs])?,
            bias: self
                .bias
                .then(|| tensor("bias", &[self.outputs]))
                .transpose()?,
        };
        let x = graph.linear(graph.result(), layer);
        if let Some(activation) = self.activation {
            graph.activate(x, activation);
        }
        Ok(())
    }
}
