//! What callers may decide about a model. Everything else comes from the model folder.

use std::path::PathBuf;
use std::str::FromStr;

#[cfg(doc)]
use crate::batch::Limits;
use crate::error::{Error, Result};
use crate::graph::Pooling;

/// Options of [`crate::Model::load`]. The default follows the model folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// What the model is loaded for. Another folder is refused.
    pub task: Task,
    /// Overrides the folder's pooling; required if the folder does not say.
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
    /// With `dimensions`: whether the full vector is layer-normalized first. Default: what the model asks for; required if
    /// the folder does not say.
    pub layer_norm: Option<bool>,
    /// Number format of the weights while computing.
    pub dtype: Dtype,
    /// Which runtime computes.
    pub backend: Backend,
    /// Threads of the ONNX backend. Default: as many as the machine, or its cgroup, offers.
    pub threads: Option<usize>,
    /// Most bytes that the activations of one batch may take; smaller batches take less. A single text is always computed.
    /// Default [`Limits::DEFAULT_BUDGET_BYTES`].
    pub memory_budget: Option<usize>,
    /// ONNX Runtime's shared library. Default: the environment variable `ORT_DYLIB_PATH`, then the system's
    /// `libonnxruntime`.
    pub onnx_runtime_library: Option<PathBuf>,
    /// Where it is kept between processes what a GPU's results were like. Default: nowhere, so that they are compared with
    /// the CPU's whenever a model is loaded on a GPU by WebGPU.
    pub cache_folder: Option<PathBuf>,
}

impl Options {
    /// Token limit if neither the caller nor the model asks for less.
    pub const DEFAULT_MAX_TOKENS: usize = 512;
}

/// What a model computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Task {
    /// A vector for each text.
    #[default]
    Embed,
    /// A score for each pair of a query and a text: the raw number that the model gives (a logit). Options about vectors
    /// and prompts do not apply.
    Rerank,
}

impl Task {
    /// The name that users know.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Rerank => "rerank",
        }
    }
}

impl FromStr for Task {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [Self::Embed, Self::Rerank].map(|task| (task.name(), task));
        named("task", name, &all)
    }
}

/// Number format of the weights while computing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dtype {
    /// What suits the backend: float16 on a GPU, or bfloat16 for models whose numbers exceed it; float32 on a CPU.
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

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [
            ("auto", Self::Auto),
            ("f32", Self::F32),
            ("f16", Self::F16),
            ("bf16", Self::BF16),
            ("int8", Self::Int8),
        ];
        named("dtype", name, &all)
    }
}

/// A runtime, by its name for users.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backend {
    /// MLX if it has a GPU, otherwise WebGPU if there is a GPU that computes the model right and faster than the CPU,
    /// otherwise the CPU.
    #[default]
    Auto,
    /// MLX, on a GPU or, if there is none, on the CPU.
    Mlx,
    /// ONNX Runtime on the CPU.
    Onnx,
    /// Our own kernels on the CPU.
    Cpu,
    /// ONNX Runtime on a GPU.
    WebGpu,
}

impl FromStr for Backend {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [
            ("auto", Self::Auto),
            ("mlx", Self::Mlx),
            ("onnx", Self::Onnx),
            ("cpu", Self::Cpu),
            ("webgpu", Self::WebGpu),
        ];
        named("backend", name, &all)
    }
}

impl FromStr for Pooling {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        named(
            "pooling",
            name,
            &Self::ALL.map(|pooling| (pooling.name(), pooling)),
        )
    }
}

/// The value with this name.
///
/// # Errors
/// There is none; the error lists the names.
pub(crate) fn named<T: Copy>(argument: &'static str, name: &str, all: &[(&str, T)]) -> Result<T> {
    let found = all.iter().find(|(known, _)| *known == name);
    found.map(|&(_, value)| value).ok_or_else(|| {
        let names: Vec<String> = all.iter().map(|(known, _)| format!("{known:?}")).collect();
        let (last, others) = names.split_last().expect("every table has several values");
        let expected = format!("{} or {last}", others.join(", "));
        Error::argument(argument, expected, format!("{name:?}"))
    })
}
