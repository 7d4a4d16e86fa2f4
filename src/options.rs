//! What a caller may decide about a model. Everything else comes from the model folder.

use std::path::PathBuf;

#[cfg(doc)]
use crate::batch::Limits;
use crate::error::{Error, Result};
use crate::graph::Pooling;

/// Options of [`crate::Model::load`]. The default follows the model folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Overrides the folder's pooling; needed where the folder does not say.
    pub pooling: Option<Pooling>,
    /// Overrides the text put in front of queries.
    pub query_prompt: Option<String>,
    /// Overrides the text put in front of documents.
    pub document_prompt: Option<String>,
    /// Most tokens of a text, special tokens included; clipped to the model's own limit. Default
    /// [`Options::DEFAULT_MAX_TOKENS`].
    pub max_tokens: Option<usize>,
    /// Whether vectors are scaled to length 1. Default: true.
    pub normalize: Option<bool>,
    /// Keeps this many of the first components of each vector, for models that were trained for it.
    pub dimensions: Option<usize>,
    /// With `dimensions`: whether a layer norm over the full vector comes before the cut. Default: what the model asks
    /// for; needed where the folder does not tell.
    pub layer_norm: Option<bool>,
    /// Number format of the weights while computing.
    pub dtype: Dtype,
    /// Which runtime computes.
    pub backend: Backend,
    /// Threads of the ONNX backend. Default: what the machine, or its cgroup, offers.
    pub threads: Option<usize>,
    /// Most bytes that the activations of one batch may take; texts that are long together are computed in several. A
    /// single text always fits. Default [`Limits::DEFAULT_BUDGET_BYTES`].
    pub memory_budget: Option<usize>,
    /// Where quantized weights are kept between processes, by [`crate::int8::cache`]. Default: nowhere; in Node.js
    /// `lib/cache_folder.js` says where.
    pub cache_folder: Option<PathBuf>,
    /// ONNX Runtime's shared library. Default: the environment variable `ORT_DYLIB_PATH`, then the system's
    /// `libonnxruntime`.
    pub onnx_runtime_library: Option<PathBuf>,
}

impl Options {
    /// Token limit where neither the caller nor the model asks for less.
    pub const DEFAULT_MAX_TOKENS: usize = 512;
}

/// Number format of the weights while computing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dtype {
    /// What suits the backend: float16 on a GPU, float32 on a CPU.
    #[default]
    Auto,
    /// float32.
    F32,
    /// float16, on MLX.
    F16,
    /// bfloat16, on MLX.
    BF16,
    /// int8 in the linear layers, on ONNX Runtime; see [`crate::int8`].
    Int8,
}

impl std::str::FromStr for Dtype {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::BF16),
            "int8" => Ok(Self::Int8),
            _ => Err(Error::InvalidArgument {
                argument: "dtype",
                expected: "\"auto\", \"f32\", \"f16\", \"bf16\" or \"int8\"".to_owned(),
                found: format!("{name:?}"),
            }),
        }
    }
}

/// A runtime, by the name users give it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backend {
    /// MLX where it has a GPU, else ONNX Runtime.
    #[default]
    Auto,
    /// MLX, on a GPU or, where there is none, on the CPU.
    Mlx,
    /// ONNX Runtime on the CPU.
    Onnx,
}

impl std::str::FromStr for Backend {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "mlx" => Ok(Self::Mlx),
            "onnx" => Ok(Self::Onnx),
            _ => Err(Error::InvalidArgument {
                argument: "backend",
                expected: "\"auto\", \"mlx\" or \"onnx\"".to_owned(),
                found: format!("{name:?}"),
            }),
        }
    }
}

impl std::str::FromStr for Pooling {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::from_name(name).ok_or_else(|| Error::InvalidArgument {
            argument: "pooling",
            expected: Self::ALL
                .map(|pooling| format!("{:?}", pooling.name()))
                .join(", "),
            found: format!("{name:?}"),
        })
    }
}
