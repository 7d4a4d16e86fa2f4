//! MLX: Metal on Apple silicon, CUDA on NVIDIA, and on the CPU for tests. The same code for all three.
//!
//! # How a batch is computed
//!
//! One thread ([`thread`]) owns every array of every model. A worker of the engine pads a batch, sends it there and waits,
//! while a second worker tokenizes the next one. [`parameters`] laid the weights out at load: q, k and v joined, matrices
//! transposed without a copy, the token type added to a table. [`forward`] builds the graph of a batch lazily, with MLX's
//! fused norms, rotation and attention; it is evaluated once, and one copy brings the pooled vectors back as float32.
//! [`crate::vector`] finishes them, in double precision and the same way for every runtime.
//!
//! The texts of a batch are padded to one of a few fixed lengths ([`crate::batch::bucket`]), so that shapes, and with them
//! kernels and buffers, repeat. Padding is masked (there is a mask only if something is padded), and no vector depends on it
//! beyond rounding. In a model with dynamic rotary scaling, texts beyond the trained length are batched only with texts of
//! their own length, since the rotation depends on it.
//!
//! # What to know about MLX before changing this
//!
//! Found with MLX 0.32.2 and mlx-rs 0.33.0, by running it or in its sources.
//!
//! - **The first call must be one that mlx-rs guards** (`memory::active_memory`). It installs the error handler; before that
//!   an error in MLX ends the process.
//! - **A failed allocation of a new array is silent**: the handle is null and the next operation complains about
//!   something else. Hence the checks after `from_raw_data`. On a CPU an allocation inside an operation that fails is a
//!   crash, and the memory limit is not enforced; hence [`reserve`], before a batch and before weights.
//! - **Lookups do not check their indices.** Token ids are held against the vocabulary where they leave the tokenizer, and
//!   padding stops at the end of the position table.
//! - **Sizes are `i32`**; [`size`] is the only way to make one.
//! - **Streams belong to threads**, and every thread that touches MLX costs one that never ends. Nothing here uses
//!   `with_device` or `with_stream`, which make a new one per call.
//! - **float32 is contagious**: a float32 scalar or norm weight makes the result float32. Norms are rounded back on purpose;
//!   constants are made in the format of their neighbour.
//! - `nn::gelu` and `nn::silu` compile anew on every call; [`forward::Kernels`] compiles once. On a CPU compiling is
//!   switched off: it starts the system's C++ compiler and gains nothing.
//! - Of the ways to ask for a GPU only `mlx_device_is_available` is right for a CUDA build without a driver.
//! - The fused functions are one primitive each on a GPU and many on a CPU; `primitives.rs` counts them apart, and holds
//!   a layer to its number.
//!
//! # Builds
//!
//! On Apple silicon the crate's target table brings mlx-rs with Metal, always. On Linux the feature `mlx` builds the same,
//! unmodified crates against the official MLX wheel; `xtask` prepares that, and says how. Nothing in this folder
//! depends on the operating system.

mod attention;
mod experts;
mod forward;
mod parameters;
#[cfg(test)]
mod primitives;
mod thread;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mlx_rs::error::Exception;
use mlx_rs::{Dtype as MlxDtype, memory};

use self::forward::{PaddedBatch, Pass};
use self::parameters::Parameters;
use self::thread::State;
use super::shutdown;
use super::stop::Stop;
use super::{MakeWorker, Memory, Runtime, Tokens, Turn, Worker, of_equal_rotation};
use crate::batch::{Limits, Padding};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::graph::{Graph, NtkScaling};
use crate::options::{Dtype, Options};

/// A model on the MLX thread.
pub struct MlxModel {
    graph: Graph,
    parameters: Parameters,
    limits: Limits,
}

/// What a batch may hold.
#[must_use]
pub fn limits(is_gpu: bool, graph: &Graph, budget_bytes: Option<usize>) -> Limits {
    Limits {
        budget_tokens: Limits::padded_tokens(is_gpu),
        padding: Padding::TO_FEW_SHAPES,
        budget_bytes: budget_bytes.unwrap_or(Limits::DEFAULT_BUDGET_BYTES),
        token_bytes: graph.token_bytes(),
        // The fused attention of a GPU may not cover every width of a head, so scores count there too.
        score_bytes: graph.score_bytes(),
    }
}

/// Whether MLX has a GPU to compute on.
///
/// # Errors
/// MLX cannot be started.
pub fn has_gpu() -> Result<bool> {
    thread::run(|state| Ok(state.is_gpu))
}

/// Loads an encoder.
///
/// # Errors
/// MLX cannot be started, or has no memory for the weights.
pub fn load(graph: &Graph, checkpoint: &Arc<Checkpoint>, options: &Options) -> Result<Runtime> {
    static NEXT_MODEL: AtomicU64 = AtomicU64::new(0);
    let number = NEXT_MODEL.fetch_add(1, Ordering::Relaxed);
    let is_gpu = has_gpu()?;
    let (dtype, name) = match options.dtype {
        Dtype::Auto if is_gpu && graph.refuses_f16() => (MlxDtype::Bfloat16, "bf16"),
        Dtype::Auto if is_gpu => (MlxDtype::Float16, "f16"),
        Dtype::Auto | Dtype::F32 => (MlxDtype::Float32, "f32"),
        Dtype::F16 => (MlxDtype::Float16, "f16"),
        Dtype::BF16 => (MlxDtype::Bfloat16, "bf16"),
        Dtype::Int8 => return Err(super::refused_by_mlx(options.dtype)),
    };
    let limits = limits(is_gpu, graph, options.memory_budget);
    let (scalings, positions) = (graph.scalings(), graph.longest_text());
    let (graph, checkpoint) = (graph.clone(), Arc::clone(checkpoint));
    thread::run(move |state| {
        let value_bytes = if dtype == MlxDtype::Float32 { 4 } else { 2 };
        let parameters = reserve(checkpoint.values() * value_bytes, "the weights")
            .and_then(|()| Parameters::load(&graph, &checkpoint, dtype, is_gpu))
            // What is too large for MLX may not be too large for another backend.
            .map_err(|error| Error::unavailable("mlx", error))?;
        let model = MlxModel {
            graph,
            parameters,
            limits,
        };
        state.models.insert(number, model);
        Ok(())
    })?;
    let handle = Arc::new(Handle {
        number,
        scalings,
        positions,
    });
    let worker = |turn| -> MakeWorker {
        let handle = Arc::clone(&handle);
        Box::new(move || Ok(Box::new(MlxWorker { handle, turn })))
    };
    Ok(Runtime {
        backend: "mlx",
        is_gpu,
        dtype: name,
        limits,
        // While one waits for the MLX thread, the other tokenizes and prepares the next batch.
        workers: vec![worker(Turn::Last), worker(Turn::Last)],
        urgent_worker: worker(Turn::Next),
        adapter: None,
    })
}

/// MLX's memory in bytes.
///
/// # Errors
/// MLX cannot be started.
pub fn memory() -> Result<Memory> {
    thread::run(|_| {
        let read = || -> Result<Memory, Exception> {
            Ok(Memory {
                active_bytes: memory::active_memory()?,
                cache_bytes: memory::cache_memory()?,
                peak_bytes: memory::peak_memory()?,
            })
        };
        read().map_err(mlx_error)
    })
}

/// Bounds the memory that MLX may use from now on, in bytes; returns the previous limit.
///
/// # Errors
/// MLX cannot be started.
pub fn set_memory_limit(bytes: usize) -> Result<usize> {
    thread::run(move |_| memory::set_memory_limit(bytes).map_err(mlx_error))
}

/// A model on the MLX thread, removed there when the last worker is dropped.
struct Handle {
    number: u64,
    scalings: Vec<NtkScaling>,
    /// Rows of the table of positions, if the model has one.
    positions: Option<usize>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let number = self.number;
        // If the thread has ended, nothing is left to be done.
        let _ = thread::run(move |state| {
            state.models.remove(&number);
            memory::clear_cache().map_err(mlx_error)
        });
    }
}

struct MlxWorker {
    handle: Arc<Handle>,
    turn: Turn,
}

impl Worker for MlxWorker {
    fn forward(&mut self, texts: &[Tokens], stop: &Arc<Stop>) -> Result<Vec<f32>> {
        let Handle {
            number, positions, ..
        } = *self.handle;
        let scalings = &self.handle.scalings;
        let batches = of_equal_rotation(texts, scalings).map(|texts| {
            // Texts beyond the trained length have one length: padding would need another rotation.
            let length = texts[0].ids.len();
            let is_scaled = scalings
                .iter()
                .any(|scaling| scaling.base_growth(length) > 1.0);
            PaddedBatch::new(texts, positions, is_scaled)
        });
        let batches = batches.collect::<Result<Vec<_>>>()?;
        let stop = Arc::clone(stop);
        thread::run_at(self.turn, move |state| {
            let State {
                models, kernels, ..
            } = state;
            let model = models.get(&number).ok_or(Error::Closed)?;
            let mut vectors = Vec::new();
            for batch in &batches {
                vectors.extend(model.forward(kernels, batch, &stop)?);
            }
            Ok(vectors)
        })
    }
}

impl MlxModel {
    fn forward(
        &self,
        kernels: &mut forward::Kernels,
        batch: &PaddedBatch,
        stop: &Stop,
    ) -> Result<Vec<f32>> {
        // The batch may have waited for its turn.
        if shutdown::is_unwanted(stop) {
            return Err(Error::Aborted);
        }
        let bytes = self
            .limits
            .bytes(batch.texts as usize, batch.length as usize);
        reserve(bytes, "a batch")?;
        let mut pass = Pass::new(&self.parameters, kernels, batch, stop)?;
        let vectors = pass.run(&self.graph)?;
        vectors.to_vec_exact::<f32>().map_err(Error::inference)
    }
}

/// A size as MLX takes it.
///
/// # Errors
/// It is larger than MLX can count.
fn size(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| {
        Error::inference(format!(
            "MLX computes with at most {} rows or columns, and {size} would be needed: use the backend \"onnx\"",
            i32::MAX
        ))
    })
}

/// Refuses to allocate beyond MLX's memory limit, which MLX itself does not enforce on a CPU.
fn reserve(bytes: usize, what: &str) -> Result<()> {
    let figures = memory::memory_limit().and_then(|limit| Ok((limit, memory::active_memory()?)));
    let (limit, active) = figures.map_err(mlx_error)?;
    if active + bytes <= limit {
        return Ok(());
    }
    Err(Error::ResourceExhausted {
        reason: format!(
            "{what} would take up to {} MB in addition to {} MB in use, and MLX may use {} MB: lower maxTokens, or close \
             models that are not needed",
            bytes >> 20,
            active >> 20,
            limit >> 20
        ),
    })
}

/// MLX's message without the place in MLX's sources at its end.
fn mlx_error(error: Exception) -> Error {
    let text = error.what();
    let message = text
        .rsplit_once(" at ")
        .map_or(text, |(message, _)| message);
    Error::InferenceFailed {
        reason: format!("MLX: {message}"),
        source: Some(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_mlx_cannot_count_is_refused() {
        assert_eq!(size(i32::MAX as usize).unwrap(), i32::MAX);
        for too_large in [1 << 31, 1 << 32, usize::MAX] {
            let error = size(too_large).unwrap_err().to_string();
            assert!(error.contains(&too_large.to_string()), "{error}");
        }
    }
}
