//! The crate's only error type. Each variant is something a caller can act on: it says what was wrong, what was expected and
//! what to do.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The cause of an error, kept for `source()`.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Everything that can go wrong between a model folder and a vector.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument or option has an unusable value.
    #[error("{argument}: expected {expected}, found {found}")]
    InvalidArgument {
        /// Name of the argument or option, as the caller wrote it.
        argument: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What was passed.
        found: String,
    },
    /// The model folder or one of its files does not exist.
    #[error("{}: not found; {hint}", path.display())]
    ModelNotFound {
        /// The missing folder or file.
        path: PathBuf,
        /// What belongs there.
        hint: String,
    },
    /// A file of the model folder is damaged or contradicts another one.
    #[error("{}: {problem}", path.display())]
    ModelInvalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what was expected.
        problem: String,
        /// The parser's or the system's own error, if there was one.
        source: Option<Cause>,
    },
    /// A tensor of the checkpoint is not what the configuration asks for.
    #[error("{}: tensor `{tensor}`: expected {expected}, found {found}", path.display())]
    TensorInvalid {
        /// The checkpoint file, or the folder when no file holds the tensor.
        path: PathBuf,
        /// The tensor's name in the checkpoint.
        tensor: String,
        /// Shape, dtype or values expected.
        expected: String,
        /// What the checkpoint holds.
        found: String,
    },
    /// The model asks for something that this library does not compute.
    #[error("{}: {feature} is not supported; {hint}", path.display())]
    ModelUnsupported {
        /// The file that asks for it.
        path: PathBuf,
        /// The setting, by name and value.
        feature: String,
        /// What is supported, or which option helps.
        hint: String,
    },
    /// The tokenizer failed on a text.
    #[error("tokenization failed: {reason}")]
    TokenizationFailed {
        /// What the tokenizer said.
        reason: String,
        /// The library's own error, if there was one.
        source: Option<Cause>,
    },
    /// A runtime cannot be started on this machine.
    #[error("the {backend} backend is not available: {reason}")]
    BackendUnavailable {
        /// Name of the backend as in the option `backend`.
        backend: &'static str,
        /// Why, and what to do about it.
        reason: String,
        /// The library's own error, if there was one.
        source: Option<Cause>,
    },
    /// A runtime failed while computing, or produced NaN or infinity.
    #[error("inference failed: {reason}")]
    InferenceFailed {
        /// What the runtime said.
        reason: String,
        /// The library's own error, if there was one.
        source: Option<Cause>,
    },
    /// A model on the GPU is gone: the driver was reset, the machine slept, or there was no memory for a batch.
    #[error("the GPU failed: {reason}; the model has to be loaded again")]
    DeviceLost {
        /// What the runtime said.
        reason: String,
    },
    /// The operating system refused memory or a thread.
    #[error("{reason}")]
    ResourceExhausted {
        /// What was refused, and what to do about it.
        reason: String,
    },
    /// The process-wide model was used before `init`.
    #[error("no model is loaded: call init(modelDir) before embed() and isGpu()")]
    NotInitialized,
    /// `init` was called again with another model or other options.
    #[error(
        "init was already called with {loaded:?}, and a process has one such model: \
         use Embedder.load() for {requested:?}"
    )]
    AlreadyInitialized {
        /// Folder of the loaded model.
        loaded: PathBuf,
        /// Folder of the refused one.
        requested: PathBuf,
    },
    /// The caller cancelled the call.
    #[error("the call was aborted")]
    Aborted,
    /// The model was closed.
    #[error("the model is closed: load it again")]
    Closed,
}

impl Error {
    /// The stable code that JavaScript sees as `error.code`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InvalidArgument { .. } => "INVALID_ARGUMENT",
            Self::ModelNotFound { .. } => "MODEL_NOT_FOUND",
            Self::ModelInvalid { .. } | Self::TensorInvalid { .. } => "MODEL_INVALID",
            Self::ModelUnsupported { .. } => "MODEL_UNSUPPORTED",
            Self::TokenizationFailed { .. } => "TOKENIZATION_FAILED",
            Self::BackendUnavailable { .. } => "BACKEND_UNAVAILABLE",
            Self::InferenceFailed { .. } => "INFERENCE_FAILED",
            Self::DeviceLost { .. } => "DEVICE_LOST",
            Self::ResourceExhausted { .. } => "RESOURCE_EXHAUSTED",
            Self::NotInitialized => "NOT_INITIALIZED",
            Self::AlreadyInitialized { .. } => "ALREADY_INITIALIZED",
            Self::Aborted => "ABORT_ERR",
            Self::Closed => "CLOSED",
        }
    }

    pub(crate) fn argument(
        argument: &'static str,
        expected: impl Display,
        found: impl Display,
    ) -> Self {
        Self::InvalidArgument {
            argument,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    pub(crate) fn not_found(path: &Path, hint: impl Display) -> Self {
        Self::ModelNotFound {
            path: path.to_owned(),
            hint: hint.to_string(),
        }
    }

    pub(crate) fn invalid(path: &Path, problem: impl Display) -> Self {
        Self::ModelInvalid {
            path: path.to_owned(),
            problem: problem.to_string(),
            source: None,
        }
    }

    pub(crate) fn invalid_from(path: &Path, problem: &str, cause: impl Into<Cause>) -> Self {
        let cause = cause.into();
        Self::ModelInvalid {
            path: path.to_owned(),
            problem: format!("{problem}: {cause}"),
            source: Some(cause),
        }
    }

    pub(crate) fn tensor(
        path: &Path,
        tensor: &str,
        expected: impl Display,
        found: impl Display,
    ) -> Self {
        Self::TensorInvalid {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    pub(crate) fn unsupported(path: &Path, feature: impl Display, hint: impl Display) -> Self {
        Self::ModelUnsupported {
            path: path.to_owned(),
            feature: feature.to_string(),
            hint: hint.to_string(),
        }
    }

    pub(crate) fn unavailable(backend: &'static str, cause: impl Into<Cause>) -> Self {
        let cause = cause.into();
        Self::BackendUnavailable {
            backend,
            reason: cause.to_string(),
            source: Some(cause),
        }
    }

    pub(crate) fn inference(cause: impl Into<Cause>) -> Self {
        let cause = cause.into();
        Self::InferenceFailed {
            reason: cause.to_string(),
            source: Some(cause),
        }
    }

    /// The operating system refused memory.
    pub(crate) fn no_memory(bytes: usize, what: &str) -> Self {
        Self::ResourceExhausted {
            reason: format!(
                "there is no memory for {what} ({} MB): embed fewer texts per call, close models that are not needed, or \
                 raise the memory limit of the process or its container",
                bytes.div_ceil(1 << 20)
            ),
        }
    }

    /// The operating system refused a thread.
    pub(crate) fn no_thread(error: &std::io::Error) -> Self {
        Self::ResourceExhausted {
            reason: format!(
                "no thread could be started: {error}; raise the limit on threads or memory of the process or its \
                 container, or close models that are not needed"
            ),
        }
    }
}

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;
