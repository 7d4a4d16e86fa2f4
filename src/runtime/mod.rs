//! Runtimes compute encoders. A loaded model has one [`Runtime`], which consists of workers that own their state.

pub mod cpu;
#[cfg(mlx)]
pub mod mlx;
pub mod onnx;
pub mod shutdown;
pub mod stop;
pub mod webgpu;

use std::sync::Arc;

use self::stop::Stop;
pub use self::webgpu::Adapter;
use crate::batch::Limits;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::graph::{Graph, NtkScaling};
use crate::options::{Backend, Dtype, Options};

/// Computes batches, one at a time, on the thread that owns it.
pub trait Worker: Send {
    /// The results of a batch, `[texts, width]` row-major: pooled vectors, not normalized, or scores. Padding is up to the
    /// runtime.
    ///
    /// # Errors
    /// The runtime failed; [`Error::Aborted`] once `stop` is requested.
    fn forward(&mut self, texts: &[Tokens], stop: &Arc<Stop>) -> Result<Vec<f32>>;
}

/// The tokens of a text, or of a pair of texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tokens<'a> {
    /// Their ids.
    pub ids: &'a [u32],
    /// The index of the first one of type 1, which the tokens of a pair's second text have; all before are of type 0. Without
    /// any it is the number of tokens.
    pub second: usize,
}

impl<'a> From<&'a [u32]> for Tokens<'a> {
    fn from(ids: &'a [u32]) -> Self {
        Self {
            ids,
            second: ids.len(),
        }
    }
}

/// Divides texts, in their order, into those that can be padded together: by the same rotations, which depend on the length of
/// a text beyond the trained one.
fn of_equal_rotation<'a, 'b>(
    texts: &'a [Tokens<'b>],
    scalings: &'a [NtkScaling],
) -> impl Iterator<Item = &'a [Tokens<'b>]> {
    texts.chunk_by(|a, b| {
        let mut scalings = scalings.iter();
        scalings.all(|scaling| {
            scaling.base_growth(a.ids.len()).to_bits() == scaling.base_growth(b.ids.len()).to_bits()
        })
    })
}

/// When a batch is computed by a device that computes one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Before all that wait.
    Next,
    /// After all that wait.
    Last,
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
    /// What a worker's batch may hold.
    pub limits: Limits,
    /// Workers for bulk work, one thread each. The first one exists already and cannot fail; it starts to work while the
    /// others are made.
    pub workers: Vec<MakeWorker>,
    /// A worker for urgent work, with a thread of its own: it uses the whole machine for one batch.
    pub urgent_worker: MakeWorker,
    /// The GPU that computes, if it can be named.
    pub adapter: Option<Adapter>,
}

/// The memory of a runtime that manages its own, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// In arrays that are in use: weights and running batches of all models.
    pub active_bytes: usize,
    /// Freed, but kept for reuse.
    pub cache_bytes: usize,
    /// The most that was ever active.
    pub peak_bytes: usize,
}

/// Loads a pooled encoder on the backend that the options name, or on the first one that works. Also returns why faster
/// backends are not used, if any were tried.
///
/// # Errors
/// The named backend does not work, or none does; the number format does not fit the encoder.
pub fn load(
    graph: &Graph,
    checkpoint: &Arc<Checkpoint>,
    options: &Options,
    threads: usize,
) -> Result<(Runtime, Option<String>)> {
    if options.dtype == Dtype::F16 && graph.refuses_f16() {
        let expected = "\"auto\", \"f32\" or \"bf16\", since numbers of this architecture exceed those of float16";
        return Err(refused_dtype(options.dtype, expected));
    }
    let load_onnx = || {
        check_float32(options.dtype, "onnx")?;
        onnx::load(graph, Arc::clone(checkpoint), options, threads)
    };
    let load_cpu = || cpu::load(graph, checkpoint, options, threads);
    let load_mlx = |needs_gpu| load_mlx(graph, checkpoint, options, needs_gpu);
    let load_webgpu = || webgpu::load(graph, checkpoint, options, threads);
    let runtime = match options.backend {
        Backend::Mlx if options.dtype == Dtype::Int8 => Err(refused_by_mlx(options.dtype)),
        Backend::Mlx => load_mlx(false),
        Backend::Onnx => load_onnx(),
        Backend::Cpu => load_cpu(),
        Backend::WebGpu => load_webgpu(),
        Backend::Auto => {
            let mut refusals = Vec::new();
            // MLX does not compute in int8; asking for it is asking for the CPU.
            let by_mlx = (cfg!(mlx) && options.dtype != Dtype::Int8).then(|| load_mlx(true));
            if let Some(runtime) = or_refused(by_mlx, &mut refusals) {
                return Ok((runtime, None));
            }
            // Without the library, ONNX Runtime on the CPU says so below.
            let is_possible = check_float32(options.dtype, webgpu::NAME).is_ok()
                && onnx::environment(options.onnx_runtime_library.as_deref()).is_ok();
            let by_webgpu = is_possible.then(load_webgpu);
            if let Some(runtime) = or_refused(by_webgpu, &mut refusals) {
                return Ok((runtime, reasons(&refusals)));
            }
            // Without a GPU: ONNX Runtime, which computes in float32 alone.
            let by_cpu = match options.dtype {
                Dtype::BF16 | Dtype::Int8 => load_cpu(),
                Dtype::Auto | Dtype::F32 | Dtype::F16 => load_onnx(),
            };
            return match (by_cpu, reasons(&refusals)) {
                (
                    Err(Error::BackendUnavailable {
                        backend,
                        reason,
                        source,
                    }),
                    Some(refusals),
                ) => Err(Error::BackendUnavailable {
                    backend,
                    reason: format!("{reason} (tried before: {refusals})"),
                    source,
                }),
                (runtime, refusals) => runtime.map(|runtime| (runtime, refusals)),
            };
        }
    };
    Ok((runtime?, None))
}

/// A runtime that was loaded; otherwise why it was not.
fn or_refused(loaded: Option<Result<Runtime>>, refusals: &mut Vec<String>) -> Option<Runtime> {
    match loaded? {
        Ok(runtime) => Some(runtime),
        Err(error) => {
            refusals.push(error.to_string());
            None
        }
    }
}

fn reasons(refusals: &[String]) -> Option<String> {
    (!refusals.is_empty()).then(|| refusals.join("; "))
}

/// The error for a number format that a backend does not compute in.
fn refused_dtype(dtype: Dtype, expected: &str) -> Error {
    Error::argument("dtype", expected, format!("{dtype:?}").to_lowercase())
}

/// Refuses number formats of other backends for one that computes in float32 alone.
fn check_float32(dtype: Dtype, backend: &str) -> Result<()> {
    match dtype {
        Dtype::Auto | Dtype::F32 => Ok(()),
        Dtype::F16 | Dtype::BF16 | Dtype::Int8 => {
            let expected = format!("\"auto\" or \"f32\" with the backend {backend}");
            Err(refused_dtype(dtype, &expected))
        }
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
        return Err(Error::unavailable("mlx", "there is no GPU that it can use"));
    }
    mlx::load(graph, checkpoint, options)
}

#[cfg(not(mlx))]
fn load_mlx(_: &Graph, _: &Arc<Checkpoint>, _: &Options, _needs_gpu: bool) -> Result<Runtime> {
    Err(Error::unavailable(
        "mlx",
        "this build of the addon has no MLX; build it with `npm run build:native -- --mlx=cpu` or `--mlx=cuda`",
    ))
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
