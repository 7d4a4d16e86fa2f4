//! ONNX Runtime on the CPU.
//!
//! The encoder's graph becomes one of ONNX (`write.rs`) and each worker has a session of its own, since `Session::run`
//! takes `&mut self`. All sessions share one copy of the weights as the kernels want them (ONNX Runtime's container of
//! prepacked weights), and that copy is made from initializers that point into the mapped checkpoint: beyond
//! activations, memory does not grow with the number of workers.
//!
//! Bulk work runs on workers with one thread each and batches without padding; urgent work runs on one more session
//! that uses all threads.

mod builder;
mod nodes;
mod packing;
#[doc(hidden)]
#[allow(missing_docs, reason = "public for fuzz targets only")]
pub mod proto;
mod weights;
mod write;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, Session};
use ort::value::TensorRef;

use self::builder::{EMBEDDING, GraphBuilder, INPUT};
use self::weights::{Initializers, SharedWeights};
use super::gate::{self, Kept};
use super::stop::{Interrupt, Stop};
use super::{MakeWorker, Runtime, Worker};
use crate::batch::{Batch, Limits};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::int8::Int8Weights;
use crate::options::{Dtype, Options};

/// Tokens of a bulk batch. More texts per run spare little once a run has this many rows, and cost memory.
const BUDGET_TOKENS: usize = 512;

/// How long a thread of a session waits for work before it sleeps.
const SPIN_MICROSECONDS: &str = "100";

/// How linear layers are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// In float32.
    Float,
    /// With int8 weights and activations; see [`crate::int8`].
    Int8,
}

impl Precision {
    /// What a dtype that this backend takes asks for.
    #[must_use]
    pub fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Int8 => Self::Int8,
            _ => Self::Float,
        }
    }

    /// Bytes of a number in the matrix of a linear layer.
    const fn matrix_bytes(self) -> usize {
        match self {
            Self::Float => size_of::<f32>(),
            Self::Int8 => size_of::<i8>(),
        }
    }

    /// The name in a fingerprint.
    const fn name(self) -> &'static str {
        match self {
            Self::Float => "f32",
            Self::Int8 => "int8",
        }
    }
}

/// Refuses what this backend does not compute in.
///
/// # Errors
/// The dtype is one of MLX.
pub fn check_dtype(dtype: Dtype) -> Result<()> {
    match dtype {
        Dtype::Auto | Dtype::F32 | Dtype::Int8 => Ok(()),
        Dtype::F16 | Dtype::BF16 => Err(super::refused_dtype(
            dtype,
            "\"auto\", \"f32\" or \"int8\" with the backend onnx",
        )),
    }
}

/// Loads an encoder whose result is one row per text.
///
/// # Errors
/// The library cannot be loaded, or refuses the graph.
pub fn load(
    graph: &Graph,
    checkpoint: Arc<Checkpoint>,
    options: &Options,
    threads: usize,
) -> Result<Runtime> {
    let _inside = gate::ONNX.enter();
    let environment = environment(options.onnx_runtime_library.as_deref())?;
    let precision = Precision::of(options.dtype);
    let mut builder = GraphBuilder::new(precision);
    let output = builder.write(graph);
    builder.hold_single_numbers(&checkpoint)?;
    let (int8, warning) = quantized(&builder, &checkpoint, options)?;
    // Resolved, since model caches are full of links and ONNX Runtime refuses external data outside the folder.
    let file = checkpoint.files()[0]
        .path
        .canonicalize()
        .map_err(|error| Error::inference(&error))?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let file_name = Path::new(file.file_name().unwrap_or_default());
    let layers: Vec<_> = int8.iter().flat_map(Int8Weights::layers).collect();
    let (encoded, weights) = builder.finish_pooled(&output, graph.width(), file_name, &layers);
    let sessions = Sessions {
        environment,
        folder: folder.display().to_string(),
    };
    let quantized: Vec<[usize; 2]> = layers
        .iter()
        .map(|layer| [layer.shape[1], layer.shape[0]])
        .collect();
    let matrices = weights.iter().filter(|weight| weight.is_matrix);
    let shapes = matrices.map(|weight| &*weight.tensor.shape);
    let shapes = shapes.chain(quantized.iter().map(|shape| &shape[..]));
    let are_packed = packing::is_complete(&sessions, file_name, precision, shapes);
    drop(layers);
    let weights = SharedWeights::new(checkpoint, &weights, int8)?;
    let blueprint = Arc::new(Blueprint {
        sessions,
        graph: encoded,
        precision,
        weights: Arc::new(gate::ONNX.keep(weights)),
        are_packed,
    });
    // The first session packs the weights for all, and tells whether the graph is accepted.
    let first = OnnxWorker::new(&blueprint, 1)?;
    let later = |threads| -> MakeWorker {
        let blueprint = Arc::clone(&blueprint);
        Box::new(move || Ok(Box::new(OnnxWorker::new(&blueprint, threads)?)))
    };
    let mut workers: Vec<MakeWorker> = vec![Box::new(|| Ok(Box::new(first)))];
    workers.extend((1..threads).map(|_| later(1)));
    Ok(Runtime {
        backend: "onnx",
        is_gpu: false,
        dtype: precision.name(),
        limits: Limits {
            budget_tokens: BUDGET_TOKENS,
            padding_ratio: 1.0,
            buckets: false,
            budget_bytes: options
                .memory_budget
                .unwrap_or(Limits::DEFAULT_BUDGET_BYTES),
            token_bytes: graph.token_bytes(),
            // Without a mask, ONNX Runtime's attention keeps only a tile of the scores.
            score_bytes: 0,
        },
        workers,
        lone: later(threads),
        warning,
    })
}

/// The encoder, not pooled, as an ONNX file for the model's folder, its initializers pointing at the checkpoint's files
/// there.
///
/// # Errors
/// There is no memory for the quantized weights.
pub fn export(graph: &Graph, checkpoint: &Checkpoint, options: &Options) -> Result<Vec<u8>> {
    let mut builder = GraphBuilder::new(Precision::of(options.dtype));
    let output = builder.write(graph);
    let (int8, _) = quantized(&builder, checkpoint, options)?;
    Ok(builder.finish_exported(&output, graph.width(), checkpoint, int8.as_ref()))
}

/// What the graph wants in int8, and a warning, see [`Int8Weights::load`].
fn quantized(
    builder: &GraphBuilder,
    checkpoint: &Checkpoint,
    options: &Options,
) -> Result<(Option<Int8Weights>, Option<String>)> {
    let layers = builder.quantized();
    if layers.is_empty() {
        return Ok((None, None));
    }
    let folder = options.cache_folder.as_deref();
    let (weights, warning) = Int8Weights::load(checkpoint, layers, folder)?;
    Ok((Some(weights), warning))
}

/// The process's one ONNX Runtime environment; the first library that loads stays.
fn environment(library: Option<&Path>) -> Result<Environment> {
    static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);
    let mut current = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = current.as_ref() {
        return Ok(environment.clone());
    }
    disable_telemetry();
    let path = library.map_or_else(default_library, Path::to_owned);
    let unavailable = |reason: &dyn std::fmt::Display| Error::BackendUnavailable {
        backend: "onnx",
        reason: format!(
            "{reason}; install the npm package onnxruntime-node, or name a libonnxruntime of version 1.24 or newer with \
             the option `onnxRuntimeLibrary` or the environment variable ORT_DYLIB_PATH"
        ),
    };
    let environment = ort::init_from(&path)
        .map_err(|error| unavailable(&error))?
        .with_name(env!("CARGO_PKG_NAME"))
        // All that counts on Windows; elsewhere too late, see `disable_telemetry`.
        .with_telemetry(false)
        // Failures come back as errors; nothing may be written to a host's standard error.
        .with_logger(Arc::new(|_, _, _, _, _| {}))
        .build()
        .map_err(|error| unavailable(&error))?;
    environment.set_log_level(LogLevel::Fatal);
    *current = Some(environment.clone());
    Ok(environment)
}

/// Keeps ONNX Runtime from reporting its use to Microsoft: from version 1.29 its builds for Linux and macOS write an
/// identifier and a database into the user's cache folder and open connections. The first environment of a process
/// decides, and what it goes by is an environment variable. One that is set already stays as it is.
///
/// The addon calls this while it is being loaded, see `node.rs`; for programs in Rust the first model does.
pub fn disable_telemetry() {
    const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(VARIABLE).is_none_or(|value| value.is_empty()) {
        // SAFETY: Windows and macOS lock their environment. With glibc before 2.41 no other thread may be inside `getenv`
        // meanwhile. What reads the environment of a Node.js process is JavaScript, hence the thread that this runs on,
        // and the libraries below this crate when they start, which is later. It is what an assignment to `process.env`
        // does, and no more often than once in a process.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
}

fn default_library() -> PathBuf {
    std::env::var_os("ORT_DYLIB_PATH")
        .map_or_else(|| PathBuf::from(libloading_name()), PathBuf::from)
}

/// What the dynamic linker knows ONNX Runtime as.
fn libloading_name() -> String {
    format!(
        "{}onnxruntime{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    )
}

/// How sessions are made.
struct Sessions {
    environment: Environment,
    /// Where external data of graphs lies.
    folder: String,
}

impl Sessions {
    fn make(
        &self,
        graph: &[u8],
        initializers: &Initializers,
        threads: usize,
    ) -> Result<Session, ort::Error> {
        let mut builder = Session::builder(&self.environment)?
            .with_log_level(LogLevel::Fatal)?
            .with_optimization_level(GraphOptimizationLevel::Level1)?
            .with_intra_threads(threads)?
            // Waiting for the next operator of a run, threads spin, which spares a query the time of waking them up some
            // hundred times. They go on for a moment after it, and no longer: by default they would burn 40 ms of CPU
            // after every query, and stand in the way of the thread that has the next one.
            .with_intra_op_spinning(true)?
            .with_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)?
            // Kept for every shape that ever occurs, and texts have many lengths.
            .with_memory_pattern(false)?
            .with_config_entry(
                "session.model_external_initializers_file_folder_path",
                &self.folder,
            )?
            .with_prepacked_weights(&initializers.prepacked)?;
        initializers.add_to(&mut builder)?;
        builder.commit_from_memory(graph)
    }
}

/// What every session of a model is made from; gone once the last one is made.
struct Blueprint {
    sessions: Sessions,
    graph: Vec<u8>,
    precision: Precision,
    weights: Arc<Kept<SharedWeights>>,
    /// Whether sessions do without the matrices that they were made from.
    are_packed: bool,
}

impl Drop for Blueprint {
    fn drop(&mut self) {
        // SAFETY: sessions are made from a blueprint only, and whether they read matrices was tried.
        unsafe { self.weights.give_back(self.are_packed) };
    }
}

/// One session, declared before the weights that it points into, so that it is dropped first.
struct OnnxWorker {
    session: Kept<Session>,
    precision: Precision,
    _weights: Arc<Kept<SharedWeights>>,
}

impl OnnxWorker {
    fn new(blueprint: &Blueprint, threads: usize) -> Result<Self> {
        let _inside = gate::ONNX.enter();
        let initializers = &blueprint.weights.initializers;
        let session = blueprint
            .sessions
            .make(&blueprint.graph, initializers, threads)
            .map_err(|error| Error::InferenceFailed {
                reason: format!("ONNX Runtime refused the model's graph: {error}"),
            })?;
        Ok(Self {
            session: gate::ONNX.keep(session),
            precision: blueprint.precision,
            _weights: Arc::clone(&blueprint.weights),
        })
    }

    /// Runs texts of equal length.
    fn run(
        &mut self,
        ids: &[u32],
        texts: usize,
        options: &RunOptions,
    ) -> Result<Vec<f32>, ort::Error> {
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let input = TensorRef::from_array_view(([texts, ids.len() / texts], &*ids))?;
        let inputs = ort::inputs![INPUT => input];
        let outputs = self.session.run_with_options(inputs, options)?;
        let (_, vectors) = outputs[EMBEDDING].try_extract_tensor::<f32>()?;
        Ok(vectors.to_vec())
    }
}

impl Worker for OnnxWorker {
    /// Texts of different lengths run one group of equal neighbours after the other; nothing is padded. With int8 every
    /// text runs alone: a rounding that differs in the last bit may there become a step between two integers.
    fn forward(&mut self, batch: &Batch, stop: &Arc<Stop>) -> Result<Vec<f32>> {
        let _inside = gate::ONNX.enter();
        // New ones each time, which costs nothing beside a batch: an interruption that comes late harms no later run.
        let options = RunOptions::new().map_err(|error| Error::inference(&error))?;
        let options = Arc::new(options);
        let run: Arc<dyn Interrupt> = options.clone();
        let texts: Vec<&[u32]> = batch.texts().collect();
        let mut vectors = Vec::new();
        let may_group = self.precision == Precision::Float;
        for group in texts.chunk_by(|a, b| may_group && a.len() == b.len()) {
            let ids = group.concat();
            let part = gate::interruptible(stop, &run, || self.run(&ids, group.len(), &options))?
                .map_err(|error| Error::inference(&error))?;
            vectors.extend(part);
        }
        Ok(vectors)
    }
}

impl Interrupt for RunOptions {
    /// The run ends when the operator that is being computed has ended, and the session stays as good as before.
    fn interrupt(&self) {
        // Setting a flag does not fail.
        let _ = self.terminate();
    }
}
