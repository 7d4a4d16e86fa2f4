//! Encoders, each written once over the trait [`Ops`] and run by every runtime.
//!
//! An architecture is data (its settings and where its weights lie) plus a forward pass. A runtime implements
//! [`Ops`] either by computing at once or by recording a graph; the forward pass cannot tell.
//!
//! Shapes in this module: a hidden state is `[batch, length, width]`, all texts of a batch with their own
//! positions starting at 0.

mod bert;
mod nomic_bert;

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::{Checkpoint, TensorSlice};
use crate::error::{Error, Result};

/// A fully connected layer, `x · weightᵀ + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`, as checkpoints store it.
    pub weight: TensorSlice,
    /// `[out]`.
    pub bias: Option<TensorSlice>,
}

impl Linear {
    /// Reads `<name>.weight` of shape `[outputs, inputs]` and, if `bias`, `<name>.bias`.
    fn read(
        weights: &Checkpoint,
        name: &str,
        outputs: usize,
        inputs: usize,
        bias: bool,
    ) -> Result<Self> {
        let bias_name = format!("{name}.bias");
        Ok(Self {
            weight: weights.tensor(&format!("{name}.weight"), &[outputs, inputs])?,
            bias: bias
                .then(|| weights.tensor(&bias_name, &[outputs]))
                .transpose()?,
        })
    }

    /// One of `parts` equal groups of outputs: the q, k or v of a fused projection.
    fn part(&self, index: usize, parts: usize) -> Self {
        Self {
            weight: self.weight.part(index, parts),
            bias: self.bias.as_ref().map(|bias| bias.part(index, parts)),
        }
    }
}

/// Layer normalization over the last dimension.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// Scale, `[width]`.
    pub weight: TensorSlice,
    /// Shift, `[width]`.
    pub bias: TensorSlice,
    /// Added to the variance.
    pub epsilon: f32,
}

impl LayerNorm {
    /// Reads `<name>.{weight,bias}`, or the `{gamma,beta}` of checkpoints converted from TensorFlow.
    fn read(weights: &Checkpoint, name: &str, width: usize, epsilon: f32) -> Result<Self> {
        let (scale, shift) = if weights.has(&format!("{name}.gamma")) {
            ("gamma", "beta")
        } else {
            ("weight", "bias")
        };
        Ok(Self {
            weight: weights.tensor(&format!("{name}.{scale}"), &[width])?,
            bias: weights.tensor(&format!("{name}.{shift}"), &[width])?,
            epsilon,
        })
    }
}

/// What is summed into a token's first hidden state.
#[derive(Debug, Clone)]
pub struct Embeddings {
    /// `[vocabulary, width]`, looked up by token id.
    pub words: TensorSlice,
    /// `[positions, width]`, row `i` for the token at position `i`.
    pub positions: Option<TensorSlice>,
    /// `[1, width]`: row 0 of the token-type table, the same for every token of a single text.
    pub token_type: Option<TensorSlice>,
}

/// Element-wise non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · Φ(x)` with the error function.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x · sigmoid(x)`.
    Silu,
}

/// Rotary position embedding of queries and keys, halves rotated (not interleaved).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Base of the geometric progression of wavelengths.
    pub base: f64,
    /// How many leading dimensions of a head are rotated. Even.
    pub dimensions: usize,
    /// Dynamic NTK scaling beyond the trained length.
    pub scaling: Option<NtkScaling>,
}

/// Dynamic NTK scaling: a text of `L > trained_positions` tokens is rotated with the base
/// `base · (factor · L / trained_positions − (factor − 1))^(d / (d − 2))`, `d` the rotated dimensions.
/// Source: `NomicBertDynamicNTKRotaryEmbedding` in `nomic-ai/nomic-bert-2048`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NtkScaling {
    /// `rotary_scaling_factor` of the configuration.
    pub factor: f64,
    /// `max_trained_positions` of the configuration.
    pub trained_positions: usize,
}

impl NtkScaling {
    /// By how much wavelengths are stretched at this length before the exponent: at least 1.
    #[must_use]
    pub fn stretch(&self, length: usize) -> f64 {
        (self.factor * length as f64 / self.trained_positions as f64 - (self.factor - 1.0)).max(1.0)
    }
}

/// Settings of a self-attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Number of heads.
    pub heads: usize,
    /// Width of a head. Scores are divided by its square root.
    pub head_dim: usize,
    /// Rotation of queries and keys.
    pub rotary: Option<Rotary>,
}

/// Which tokens' final hidden states are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    /// All of them.
    All,
    /// Only the first (`[CLS]`): the last layer then computes a single row after its keys and values.
    First,
}

/// The arithmetic that encoders are written in.
pub trait Ops {
    /// A handle to a value: computed, or a node of a graph.
    type Tensor;

    /// Sum of the embeddings of the batch's tokens: `[batch, length, width]`.
    ///
    /// # Errors
    /// The runtime failed, as for every method here.
    fn embed(&mut self, embeddings: &Embeddings) -> Result<Self::Tensor>;

    /// `x · weightᵀ + bias` along the last dimension.
    ///
    /// # Errors
    /// The runtime failed.
    fn linear(&mut self, x: &Self::Tensor, linear: &Linear) -> Result<Self::Tensor>;

    /// Layer normalization of `x`.
    ///
    /// # Errors
    /// The runtime failed.
    fn layer_norm(&mut self, x: &Self::Tensor, norm: &LayerNorm) -> Result<Self::Tensor>;

    /// Layer normalization of `x + residual`.
    ///
    /// # Errors
    /// The runtime failed.
    fn add_norm(
        &mut self,
        x: &Self::Tensor,
        residual: &Self::Tensor,
        norm: &LayerNorm,
    ) -> Result<Self::Tensor>;

    /// The states `x` between two layers, where a runtime that computes lazily may compute them, and give up.
    ///
    /// # Errors
    /// The runtime failed, or nobody wants the result any more.
    fn between_layers(&mut self, x: Self::Tensor) -> Result<Self::Tensor> {
        Ok(x)
    }

    /// The activation of every element.
    ///
    /// # Errors
    /// The runtime failed.
    fn activate(&mut self, x: &Self::Tensor, activation: Activation) -> Result<Self::Tensor>;

    /// `x · activation(gate)`, element by element.
    ///
    /// # Errors
    /// The runtime failed.
    fn gate(
        &mut self,
        x: &Self::Tensor,
        gate: &Self::Tensor,
        activation: Activation,
    ) -> Result<Self::Tensor>;

    /// Multi-head self-attention within each text.
    ///
    /// Keys and values come from every token of `x`, queries and so the result only from `tokens`. The three
    /// projections are given, not applied, so that a runtime may fuse them.
    ///
    /// # Errors
    /// The runtime failed.
    fn attention(
        &mut self,
        x: &Self::Tensor,
        projections: &Projections,
        attention: &Attention,
        tokens: Tokens,
    ) -> Result<Self::Tensor>;

    /// The first token of each text: `[batch, 1, width]`.
    ///
    /// # Errors
    /// The runtime failed.
    fn first_token(&mut self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// One vector per text, the poolings concatenated: `[batch, poolings · width]`.
    ///
    /// # Errors
    /// The runtime failed.
    fn pool(&mut self, x: &Self::Tensor, pooling: &[Pooling]) -> Result<Self::Tensor>;
}

/// Query, key and value projections, each `[width, width]`.
#[derive(Debug, Clone)]
pub struct Projections {
    /// Makes the queries.
    pub query: Linear,
    /// Makes the keys.
    pub key: Linear,
    /// Makes the values.
    pub value: Linear,
}

/// How token states become one vector. All tokens count, special ones included.
/// Source: `sentence_transformers` 6.2, `modules/pooling.py`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The first token.
    Cls,
    /// Element-wise maximum.
    Max,
    /// Arithmetic mean.
    Mean,
    /// Sum divided by the square root of the number of tokens.
    MeanSqrtLength,
    /// Mean weighted by position, 1 for the first token.
    WeightedMean,
    /// The last token.
    LastToken,
}

impl Pooling {
    /// Every pooling, in the order in which several are concatenated.
    pub const ALL: [Self; 6] = [
        Self::Cls,
        Self::Max,
        Self::Mean,
        Self::MeanSqrtLength,
        Self::WeightedMean,
        Self::LastToken,
    ];

    /// The name that sentence-transformers uses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Max => "max",
            Self::Mean => "mean",
            Self::MeanSqrtLength => "mean_sqrt_len_tokens",
            Self::WeightedMean => "weightedmean",
            Self::LastToken => "lasttoken",
        }
    }

    /// The pooling of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pooling| pooling.name() == name)
    }
}

/// The settings of an encoder, as far as they are read before its weights.
#[derive(Debug, Clone)]
pub enum Config {
    /// `model_type: "bert"`.
    Bert(bert::Config),
    /// `model_type: "nomic_bert"`.
    NomicBert(nomic_bert::Config),
}

impl Config {
    /// Reads `config.json`, already parsed. `path` is for messages.
    ///
    /// # Errors
    /// A setting is missing, malformed or asks for something that is not computed here.
    pub fn from_json(path: &Path, json: &Value) -> Result<Self> {
        match json.get("model_type").and_then(Value::as_str) {
            Some("bert") => bert::Config::from_json(path, json).map(Self::Bert),
            Some("nomic_bert") => nomic_bert::Config::from_json(path, json).map(Self::NomicBert),
            other => Err(Error::ModelUnsupported {
                path: path.to_owned(),
                feature: format!(
                    "model_type {}",
                    other.map_or("(missing)".to_owned(), |t| format!("{t:?}"))
                ),
                hint: "supported are \"bert\" and \"nomic_bert\"".to_owned(),
            }),
        }
    }

    /// Width of a hidden state.
    #[must_use]
    pub fn width(&self) -> usize {
        match self {
            Self::Bert(config) => config.hidden_size,
            Self::NomicBert(config) => config.hidden_size,
        }
    }

    /// Most tokens that the model can tell apart by position.
    #[must_use]
    pub fn positions(&self) -> usize {
        match self {
            Self::Bert(config) => config.positions,
            Self::NomicBert(config) => config.positions,
        }
    }

    /// Widths, for estimates of memory.
    #[must_use]
    pub fn size(&self) -> Size {
        let (inner, heads) = match self {
            Self::Bert(config) => (config.intermediate_size, config.num_attention_heads),
            Self::NomicBert(config) => (config.n_inner, config.n_head),
        };
        Size {
            width: self.width(),
            inner,
            heads,
        }
    }

    /// Rows of the word-embedding table; token ids are below this.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        match self {
            Self::Bert(config) => config.vocab_size,
            Self::NomicBert(config) => config.vocab_size,
        }
    }
}

/// What the activations of a token take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Width of a hidden state.
    pub width: usize,
    /// Width between the two layers of the feed-forward.
    pub inner: usize,
    /// Attention heads.
    pub heads: usize,
}

impl Size {
    /// Bytes of activations per token in float32, an upper estimate: states in and out of a layer, q, k and v, and the
    /// wide part of the feed-forward, with their temporaries.
    #[must_use]
    pub const fn token_bytes(&self) -> usize {
        (8 * self.width + 4 * self.inner) * size_of::<f32>()
    }
}

/// An encoder with its weights located and checked.
#[derive(Debug, Clone)]
pub enum Encoder {
    /// Classic BERT.
    Bert(Stack<bert::Layer>),
    /// BERT with rotary positions and a gated feed-forward.
    NomicBert(Stack<nomic_bert::Block>),
}

impl Encoder {
    /// Locates and checks the weights.
    ///
    /// # Errors
    /// A tensor is missing or has another shape than the settings imply.
    pub fn new(config: &Config, weights: &mut Checkpoint) -> Result<Self> {
        weights.anchor_names("embeddings.word_embeddings.weight")?;
        match config {
            Config::Bert(config) => bert::read(config, weights).map(Self::Bert),
            Config::NomicBert(config) => nomic_bert::read(config, weights).map(Self::NomicBert),
        }
    }

    /// How rotation stretches with a text's length, if it does.
    #[must_use]
    pub fn ntk_scaling(&self) -> Option<NtkScaling> {
        match self {
            Self::Bert(_) => None,
            Self::NomicBert(stack) => stack.layers.first()?.rotary()?.scaling,
        }
    }

    /// The final hidden states, `[batch, length, width]`, or `[batch, 1, width]` for [`Tokens::First`].
    ///
    /// # Errors
    /// The runtime failed.
    pub fn forward<O: Ops>(&self, ops: &mut O, tokens: Tokens) -> Result<O::Tensor> {
        match self {
            Self::Bert(stack) => stack.forward(ops, tokens),
            Self::NomicBert(stack) => stack.forward(ops, tokens),
        }
    }

    /// One vector per text, `[batch, poolings · width]`: the forward pass, pruned to what the pooling needs.
    ///
    /// # Errors
    /// The runtime failed.
    pub fn embed<O: Ops>(&self, ops: &mut O, pooling: &[Pooling]) -> Result<O::Tensor> {
        let tokens = if pooling == [Pooling::Cls] {
            Tokens::First
        } else {
            Tokens::All
        };
        let states = self.forward(ops, tokens)?;
        ops.pool(&states, pooling)
    }
}

/// One transformer layer.
pub trait Layer {
    /// The states of `tokens` after this layer, out of the states `x` of all tokens.
    ///
    /// # Errors
    /// The runtime failed.
    fn forward<O: Ops>(&self, ops: &mut O, x: &O::Tensor, tokens: Tokens) -> Result<O::Tensor>;
}

/// Embeddings, a norm, and layers on top of each other: what the encoders here have in common.
#[derive(Debug, Clone)]
pub struct Stack<L> {
    embeddings: Embeddings,
    norm: LayerNorm,
    layers: Vec<L>,
}

impl<L: Layer> Stack<L> {
    /// Runs the layers in turn; only the last may leave out tokens that nobody reads.
    fn forward<O: Ops>(&self, ops: &mut O, tokens: Tokens) -> Result<O::Tensor> {
        let embedded = ops.embed(&self.embeddings)?;
        let mut x = ops.layer_norm(&embedded, &self.norm)?;
        if let Some((last, others)) = self.layers.split_last() {
            for layer in others {
                x = layer.forward(ops, &x, Tokens::All)?;
                x = ops.between_layers(x)?;
            }
            x = last.forward(ops, &x, tokens)?;
        }
        Ok(x)
    }
}

/// The tables of `embeddings.<name>.weight`: words, perhaps positions, and row 0 of the token types.
fn read_embeddings(
    weights: &Checkpoint,
    width: usize,
    vocabulary: usize,
    positions: Option<usize>,
    token_types: usize,
) -> Result<Embeddings> {
    let table = |name: &str, rows: usize| {
        weights.tensor(&format!("embeddings.{name}.weight"), &[rows, width])
    };
    Ok(Embeddings {
        words: table("word_embeddings", vocabulary)?,
        positions: positions
            .map(|rows| table("position_embeddings", rows))
            .transpose()?,
        token_type: Some(table("token_type_embeddings", token_types)?.part(0, token_types)),
    })
}

/// Layer normalization of `update` added to the states of `tokens` in `x`.
fn add_norm_rows<O: Ops>(
    ops: &mut O,
    update: &O::Tensor,
    x: &O::Tensor,
    tokens: Tokens,
    norm: &LayerNorm,
) -> Result<O::Tensor> {
    match tokens {
        Tokens::All => ops.add_norm(update, x, norm),
        Tokens::First => {
            let first = ops.first_token(x)?;
            ops.add_norm(update, &first, norm)
        }
    }
}

/// `config.json` seen as settings by name, with the errors that a user can act on.
struct Settings<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl<'a> Settings<'a> {
    /// The value under the first of `keys` that is present and not null.
    fn get(&self, keys: &[&str]) -> Option<&'a Value> {
        keys.iter()
            .filter_map(|key| self.json.get(key))
            .find(|value| !value.is_null())
    }

    /// A required positive integer.
    fn count(&self, keys: &[&str]) -> Result<usize> {
        match self.get(keys) {
            Some(value) => value
                .as_u64()
                .filter(|&count| count > 0 && u32::try_from(count).is_ok())
                .map(|count| count as usize)
                .ok_or_else(|| self.invalid(keys[0], "a positive integer", value)),
            None => Err(self.missing(keys[0], "a positive integer")),
        }
    }

    /// A required number.
    fn number(&self, keys: &[&str]) -> Result<f64> {
        match self.get(keys) {
            Some(value) => value
                .as_f64()
                .ok_or_else(|| self.invalid(keys[0], "a number", value)),
            None => Err(self.missing(keys[0], "a number")),
        }
    }

    /// A required string.
    fn text(&self, keys: &[&str]) -> Result<&'a str> {
        match self.get(keys) {
            Some(value) => value
                .as_str()
                .ok_or_else(|| self.invalid(keys[0], "a string", value)),
            None => Err(self.missing(keys[0], "a string")),
        }
    }

    /// A required boolean.
    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(&[key]) {
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.invalid(key, "true or false", value)),
            None => Err(self.missing(key, "true or false")),
        }
    }

    /// Refuses the setting unless it is absent, null or `expected`.
    fn only(&self, key: &str, expected: &Value) -> Result<()> {
        match self.get(&[key]) {
            Some(value) if value != expected => {
                Err(self.unsupported(key, value, &format!("only {expected}")))
            }
            _ => Ok(()),
        }
    }

    fn unsupported(&self, key: &str, value: &Value, supported: &str) -> Error {
        Error::ModelUnsupported {
            path: self.path.to_owned(),
            feature: format!("{key} = {value}"),
            hint: format!("supported is {supported}"),
        }
    }

    fn invalid(&self, key: &str, expected: &str, found: &Value) -> Error {
        Error::ModelInvalid {
            path: self.path.to_owned(),
            problem: format!("`{key}`: expected {expected}, found {found}"),
            source: None,
        }
    }

    fn missing(&self, key: &str, expected: &str) -> Error {
        Error::ModelInvalid {
            path: self.path.to_owned(),
            problem: format!("`{key}` is missing; expected {expected}"),
            source: None,
        }
    }

    /// Width of a head, given that heads divide the hidden state evenly.
    fn head_dim(&self, width: usize, heads: usize) -> Result<usize> {
        if width.is_multiple_of(heads) {
            Ok(width / heads)
        } else {
            Err(Error::ModelInvalid {
                path: self.path.to_owned(),
                problem: format!("{heads} heads do not divide a hidden size of {width}"),
                source: None,
            })
        }
    }
}
