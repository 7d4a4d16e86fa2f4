//! What computes an encoder: one [`Runtime`] per loaded model, made of workers that own their state.

pub mod gate;
#[cfg(mlx)]
pub mod mlx;
pub mod onnx;
pub mod stop;

use std::sync::Arc;

use self::stop::Stop;
use crate::batch::{Batch, Limits};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::options::{Backend, Dtype, Options};

/// Computes batches, one at a time, on the thread that owns it.
pub trait Worker: Send {
    /// The pooled vectors of the batch, `[texts, dimension]` row-major, not yet normalized.
    ///
    /// # Errors
    /// The runtime failed; [`Error::Aborted`] once `stop` is requested.
    fn forward(&mut self, batch: &Batch, stop: &Arc<Stop>) -> Result<Vec<f32>>;
}

/// Makes a worker. Called on the thread that will use it, since that can take as long as loading.
pub type MakeWorker = Box<dyn FnOnce() -> Result<Box<dyn Worker>> + Send>;

/// A model on a runtime, ready to compute.
pub struct Runtime {
    /// The backend's name, as users know it.
    pub backend: &'static str,
    /// Whether a GPU computes.
    pub is_gpu: bool,
    /// Number format of the weights while computing, as it enters the fingerprint.
    pub dtype: &'static str,
    /// What suits a worker's batch.
    pub limits: Limits,
    /// Workers for bulk work, each to be given a thread. The first one is there already and cannot fail; work begins
    /// while the others are made.
    pub workers: Vec<MakeWorker>,
    /// A worker for urgent work, to be given a thread too: it uses the whole machine for one batch.
    pub lone: MakeWorker,
    /// What the user should know although everything works.
    pub warning: Option<String>,
}

/// Memory of a runtime that manages its own, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// In arrays that are in use: weights and running batches of all models.
    pub active_bytes: usize,
    /// Freed, and kept for reuse.
    pub cache_bytes: usize,
    /// Most that was ever active.
    pub peak_bytes: usize,
}

/// Loads an encoder, pooled, on the backend that the options name, or on the first that works. With it comes why a faster one
/// was not taken, if one was tried.
///
/// # Errors
/// The named backend does not work, or none does.
pub fn load(
    graph: &Graph,
    checkpoint: &Arc<Checkpoint>,
    options: &Options,
    threads: usize,
) -> Result<(Runtime, Option<String>)> {
    let load_onnx = || {
        onnx::check_dtype(options.dtype)?;
        onnx::load(graph, Arc::clone(checkpoint), options, threads)
    };
    let load_mlx = |needs_gpu| load_mlx(graph, checkpoint, options, needs_gpu);
    match options.backend {
        Backend::Mlx if options.dtype == Dtype::Int8 => Err(refused_by_mlx(options.dtype)),
        // MLX computes no int8; asking for it is asking for the CPU.
        Backend::Auto if options.dtype == Dtype::Int8 => Ok((load_onnx()?, None)),
        Backend::Mlx => Ok((load_mlx(false)?, None)),
        Backend::Auto if cfg!(mlx) => match load_mlx(true) {
            Ok(runtime) => Ok((runtime, None)),
            Err(mlx) => match load_onnx() {
                Ok(runtime) => Ok((runtime, Some(mlx.to_string()))),
                Err(Error::BackendUnavailable { backend, reason }) => {
                    Err(Error::BackendUnavailable {
                        backend,
                        reason: format!("{reason} (and before: {mlx})"),
                    })
                }
                Err(error) => Err(error),
            },
        },
        Backend::Auto | Backend::Onnx => Ok((load_onnx()?, None)),
    }
}

/// The error for a number format that a backend does not compute in.
fn refused_dtype(dtype: Dtype, expected: &str) -> Error {
    Error::InvalidArgument {
        argument: "dtype",
        expected: expected.to_owned(),
        found: format!("{dtype:?}").to_lowercase(),
    }
}

fn refused_by_mlx(dtype: Dtype) -> Error {
    let expected = "\"auto\", \"f32\", \"f16\" or \"bf16\" with the backend mlx";
    refused_dtype(dtype, expected)
}

#[cfg(mlx)]
fn load_mlx(
    graph: &Graph,
    checkpoint: &Arc<Checkpoint>,
    options: &Options,
    needs_gpu: bool,
) -> Result<Runtime> {
    if needs_gpu && !mlx::has_gpu()? {
        return Err(Error::BackendUnavailable {
            backend: "mlx",
            reason: "there is no GPU that it can use".to_owned(),
        });
    }
    mlx::load(graph, checkpoint, options)
}

#[cfg(not(mlx))]
fn load_mlx(_: &Graph, _: &Arc<Checkpoint>, _: &Options, _needs_gpu: bool) -> Result<Runtime> {
    Err(Error::BackendUnavailable {
        backend: "mlx",
        reason: "this build of the addon has no MLX; build it with `npm run build:native -- --mlx=cpu` or `--mlx=cuda`"
            .to_owned(),
    })
}

/// Memory of the process's MLX; `None` where this build has none.
///
/// # Errors
/// MLX cannot be started.
pub fn mlx_memory() -> Result<Option<Memory>> {
    #[cfg(mlx)]
    return mlx::memory().map(Some);
    #[cfg(not(mlx))]
    Ok(None)
}
