//! The settings that an architecture reads from `config.json`, with errors that a user can act on.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::graph::{Activation, Attention, Numbering, Rotary};
use crate::options::Task;

/// How far a layer's attention sees, in the words of `layer_types`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerType {
    /// `full_attention`
    Full,
    /// `sliding_attention`
    Sliding,
}

impl LayerType {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full_attention",
            Self::Sliding => "sliding_attention",
        }
    }
}

/// `config.json` seen as settings by name.
#[derive(Clone, Copy)]
pub struct Settings<'a> {
    /// For messages.
    path: &'a Path,
    json: &'a Value,
}

impl<'a> Settings<'a> {
    pub const fn new(path: &'a Path, json: &'a Value) -> Self {
        Self { path, json }
    }

    /// The folder of `config.json`.
    pub fn folder(&self) -> &'a Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Whether `model_type` is one of these.
    pub fn is_model_type(&self, names: &[&str]) -> bool {
        let name = self.json.get("model_type").and_then(Value::as_str);
        name.is_some_and(|name| names.contains(&name))
    }

    /// Whether the model is one for sequence classification.
    pub fn is_reranker(&self) -> bool {
        super::task(self.json) == Task::Rerank
    }

    /// The value under the first of `keys` that is present and not null.
    pub fn get(&self, keys: &[&str]) -> Option<&'a Value> {
        keys.iter()
            .filter_map(|key| self.json.get(key))
            .find(|value| !value.is_null())
    }

    /// The object under a key, as settings of its own.
    pub fn part(&self, key: &str) -> Result<Option<Self>> {
        match self.get(&[key]) {
            Some(json) if json.is_object() => Ok(Some(Self { json, ..*self })),
            Some(other) => Err(self.invalid(key, "an object", other)),
            None => Ok(None),
        }
    }

    /// A required positive integer.
    pub fn count(&self, keys: &[&str]) -> Result<usize> {
        self.integer(keys, 1)
    }

    /// A required number of layers. It is bounded, because settings of each layer are stored before the file of weights
    /// shows how many there are.
    pub fn layers(&self, keys: &[&str]) -> Result<usize> {
        const MOST: usize = 1000;
        let layers = self.count(keys)?;
        if layers <= MOST {
            return Ok(layers);
        }
        Err(self.invalid(keys[0], &format!("at most {MOST} layers"), &layers.into()))
    }

    /// A required integer of at least `least`.
    pub fn integer(&self, keys: &[&str], least: u32) -> Result<usize> {
        let expected = if least == 1 {
            "a positive integer".to_owned()
        } else {
            format!("an integer of at least {least}")
        };
        match self.get(keys) {
            Some(value) => value
                .as_u64()
                .and_then(|number| u32::try_from(number).ok())
                .filter(|&number| number >= least)
                .map(|number| number as usize)
                .ok_or_else(|| self.invalid(keys[0], &expected, value)),
            None => Err(self.missing(keys[0], &expected)),
        }
    }

    /// A required number.
    pub fn number(&self, keys: &[&str]) -> Result<f64> {
        match self.get(keys) {
            Some(value) => value
                .as_f64()
                .ok_or_else(|| self.invalid(keys[0], "a number", value)),
            None => Err(self.missing(keys[0], "a number")),
        }
    }

    /// A required string.
    pub fn text(&self, keys: &[&str]) -> Result<&'a str> {
        match self.get(keys) {
            Some(value) => value
                .as_str()
                .ok_or_else(|| self.invalid(keys[0], "a string", value)),
            None => Err(self.missing(keys[0], "a string")),
        }
    }

    /// The activation of a feed-forward, by the names of `transformers`.
    pub fn activation(&self, key: &str) -> Result<Activation> {
        Ok(match self.text(&[key])? {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            other => {
                let supported = "\"gelu\", \"gelu_new\", \"relu\" or \"silu\"";
                return Err(self.unsupported(key, &other.into(), supported));
            }
        })
    }

    /// `max_position_embeddings`: rows of the table of positions, of which some are left for text.
    pub fn positions(&self, numbering: Numbering) -> Result<usize> {
        let key = "max_position_embeddings";
        let rows = self.count(&[key])?;
        let first = numbering.first_row();
        if rows > first {
            return Ok(rows);
        }
        let supported = format!("more than {first}, the rows in front of the first position");
        Err(self.unsupported(key, &rows.into(), &supported))
    }

    /// A required boolean.
    pub fn flag(&self, key: &str) -> Result<bool> {
        match self.get(&[key]) {
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.invalid(key, "true or false", value)),
            None => Err(self.missing(key, "true or false")),
        }
    }

    /// Refuses the setting unless it is absent, null or `expected`.
    pub fn only(&self, key: &str, expected: &Value) -> Result<()> {
        match self.get(&[key]) {
            Some(value) if value != expected => {
                Err(self.unsupported(key, value, &format!("only {expected}")))
            }
            _ => Ok(()),
        }
    }

    /// The type of each layer: `layer_types`, or by `is_full`, which reads what older configurations have in its place.
    pub fn layer_types(
        &self,
        layers: usize,
        is_full: impl Fn(usize) -> Result<bool>,
    ) -> Result<Vec<LayerType>> {
        let key = "layer_types";
        let Some(types) = self.get(&[key]) else {
            let of_layer = |index| {
                Ok(if is_full(index)? {
                    LayerType::Full
                } else {
                    LayerType::Sliding
                })
            };
            return (0..layers).map(of_layer).collect();
        };
        let named = |name: &Value| {
            let types = [LayerType::Full, LayerType::Sliding];
            types.into_iter().find(|one| name == one.name())
        };
        let read = types
            .as_array()
            .and_then(|types| types.iter().map(named).collect());
        match read {
            Some(read) if Vec::len(&read) == layers => Ok(read),
            _ => {
                let supported = format!(
                    "\"full_attention\" or \"sliding_attention\" for each layer (num_hidden_layers = {layers})"
                );
                Err(self.unsupported(key, types, &supported))
            }
        }
    }

    /// [`Self::rotary`] of layers of this type: of `rope_parameters.<type>`.
    pub fn rotary_of(&self, layers: LayerType, older: &str, head_dim: usize) -> Result<Rotary> {
        let parameters = self.part("rope_parameters")?;
        let parameters = parameters.map(|by_type| by_type.part(layers.name()));
        self.rotary(parameters.transpose()?.flatten(), older, head_dim)
    }

    pub fn unsupported(&self, key: &str, value: &Value, supported: &str) -> Error {
        let hint = format!("supported is {supported}");
        Error::unsupported(self.path, format!("{key} = {value}"), hint)
    }

    fn invalid(&self, key: &str, expected: &str, found: &Value) -> Error {
        let problem = format!("`{key}`: expected {expected}, found {found}");
        Error::invalid(self.path, problem)
    }

    fn missing(&self, key: &str, expected: &str) -> Error {
        Error::invalid(
            self.path,
            format!("`{key}` is missing; expected {expected}"),
        )
    }

    /// [`Attention::new`] with heads that divide the hidden state evenly.
    pub fn attention(&self, width: usize, heads: usize) -> Result<Attention> {
        if !width.is_multiple_of(heads) {
            let problem = format!("{heads} heads do not divide a hidden size of {width}");
            return Err(Error::invalid(self.path, problem));
        }
        Ok(Attention::new(heads, width / heads))
    }

    /// [`Attention::new`] with `num_attention_heads`, of which groups share one of `num_key_value_heads`.
    pub fn grouped_attention(&self, head_dim: usize) -> Result<Attention> {
        let heads = self.count(&["num_attention_heads"])?;
        let kv_heads = self.count(&["num_key_value_heads"])?;
        if !heads.is_multiple_of(kv_heads) {
            let problem =
                format!("{kv_heads} heads of keys and values do not divide {heads} heads");
            return Err(Error::invalid(self.path, problem));
        }
        Ok(Attention {
            kv_heads,
            ..Attention::new(heads, head_dim)
        })
    }

    /// A rotation of whole heads without scaling. Its base is `rope_theta` of `parameters`, which are in `rope_parameters`
    /// somewhere, or `older` where there are none: files of `transformers` before version 5.
    pub fn rotary(&self, parameters: Option<Self>, older: &str, head_dim: usize) -> Result<Rotary> {
        self.only("rope_scaling", &Value::Null)?;
        if let Some(parameters) = &parameters {
            for key in ["rope_type", "type"] {
                parameters.only(key, &"default".into())?;
            }
        }
        if !head_dim.is_multiple_of(2) {
            return Err(self.unsupported("head_dim", &head_dim.into(), "an even number"));
        }
        let key = "rope_theta";
        let parameters = parameters.filter(|parameters| parameters.get(&[key]).is_some());
        let base = match parameters {
            Some(parameters) => parameters.number(&[key])?,
            None => self.number(&[older])?,
        };
        Ok(Rotary::plain(base, head_dim))
    }
}
