//! ONNX Runtime on the CPU.
//!
//! The encoder's graph is written as an ONNX graph (`write.rs`), and each worker has a session of its own, since
//! `Session::run` takes `&mut self`. All sessions share one copy of the weights in the layout of the kernels (ONNX Runtime's
//! container of prepacked weights), made from initializers that point into the checkpoint as it was read: apart from
//! activations, memory does not grow with the number of workers.
//!
//! Bulk workers have one thread each; the urgent worker's session uses all threads. Batches are never padded.

mod attention;
pub(super) mod builder;
mod experts;
mod nodes;
mod packing;
mod padded_attention;
pub(super) mod padding;
#[doc(hidden)]
#[allow(missing_docs, reason = "public for fuzz targets only")]
pub mod proto;
pub(super) mod weights;
mod write;

use std::path::{Path, PathBuf};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{RunOptions, Session};
use ort::value::TensorRef;

pub use self::builder::ExportedEncoder;
use self::builder::{EMBEDDING, GraphBuilder, INPUT, TOKEN_TYPES};
use self::padding::PaddedInput;
use self::weights::{GraphWeight, Initializers, SharedWeights};
use super::shutdown::{self, Guarded};
use super::stop::{Interrupt, Stop};
use super::{MakeWorker, Runtime, Tokens, Worker};
use crate::batch::{Limits, Padding};
use crate::checkpoint::Checkpoint;
use crate::error::{Cause, Error, Result};
use crate::graph::Graph;
use crate::int8::Int8Weights;
use crate::options::{Dtype, Options};
use crate::sync::{Arc, Mutex, lock};

/// Tokens of a bulk batch. Once a run has this many rows, more gain little and cost memory.
const BUDGET_TOKENS: usize = 512;

/// How long a thread of a session waits for work before it sleeps.
const SPIN_MICROSECONDS: &str = "100";

/// How the linear layers of a graph are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// In float32.
    Float,
    /// With int8 weights and activations; see [`crate::int8`].
    Int8,
}

impl Precision {
    /// What a dtype asks for.
    ///
    /// # Errors
    /// Graphs are not written in it.
    pub fn of(dtype: Dtype) -> Result<Self> {
        match dtype {
            Dtype::Auto | Dtype::F32 => Ok(Self::Float),
            Dtype::Int8 => Ok(Self::Int8),
            Dtype::F16 | Dtype::BF16 => Err(super::refused_dtype(
                dtype,
                "\"auto\", \"f32\" or \"int8\" for an ONNX graph",
            )),
        }
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
    let _inside = shutdown::ONNX.enter();
    let environment = environment(options.onnx_runtime_library.as_deref())?;
    let builder = GraphBuilder::new(Precision::Float);
    let Written {
        graph: encoded,
        weights,
        folder,
        file_name,
        ..
    } = write_pooled(builder, graph, &checkpoint)?;
    let sessions = Sessions {
        environment,
        folder,
    };
    let floats = weights.iter().filter_map(|weight| {
        let kind = weight.matrix?;
        Some((kind, weight.tensor.shape.clone()))
    });
    let are_packed = packing::is_complete(&sessions, &file_name, floats);
    let weights = SharedWeights::new(checkpoint, &weights)?;
    let factory = Arc::new(SessionFactory {
        sessions,
        graph: encoded,
        takes_token_types: graph.takes_token_types(),
        weights: Arc::new(shutdown::ONNX.guard(weights)),
        are_packed,
    });
    // The first session packs the weights for all, and shows whether ONNX Runtime accepts the graph.
    let first = OnnxWorker::new(&factory, 1)?;
    let later = |threads| -> MakeWorker {
        let factory = Arc::clone(&factory);
        Box::new(move || Ok(Box::new(OnnxWorker::new(&factory, threads)?)))
    };
    let mut workers: Vec<MakeWorker> = vec![Box::new(|| Ok(Box::new(first)))];
    workers.extend((1..threads).map(|_| later(1)));
    Ok(Runtime {
        backend: "onnx",
        is_gpu: false,
        dtype: "f32",
        limits: Limits {
            budget_tokens: BUDGET_TOKENS,
            padding: Padding::ToLongest(1.0),
            budget_bytes: options
                .memory_budget
                .unwrap_or(Limits::DEFAULT_BUDGET_BYTES),
            token_bytes: graph.token_bytes(),
            // Without a mask and with a causal one, ONNX Runtime's attention keeps only a tile of the scores.
            score_bytes: graph.masked_score_bytes(),
        },
        workers,
        urgent_worker: later(threads),
        adapter: None,
    })
}

/// A pooled graph in the format of ONNX.
pub(super) struct Written {
    pub graph: Vec<u8>,
    /// What a session of it has to be given by name.
    pub weights: Vec<GraphWeight>,
    /// What a padded batch has to come with.
    pub inputs: Vec<PaddedInput>,
    /// Where the file lies that its external data names.
    pub folder: String,
    pub file_name: PathBuf,
}

/// Writes a graph whose result is one row per text.
///
/// # Errors
/// The checkpoint's file is gone.
pub(super) fn write_pooled(
    mut builder: GraphBuilder,
    graph: &Graph,
    checkpoint: &Checkpoint,
) -> Result<Written> {
    let output = builder.write(graph);
    builder.hold_single_numbers(checkpoint)?;
    // Resolved, since model caches are full of links and ONNX Runtime refuses external data outside of the folder.
    let file = checkpoint.files()[0].path.canonicalize().map_err(|error| {
        Error::invalid_from(&checkpoint.files()[0].path, "cannot be read", error)
    })?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let file_name = PathBuf::from(file.file_name().unwrap_or_default());
    let inputs = builder.padded_inputs();
    let (graph, weights) = builder.finish_pooled(&output, graph.width(), &file_name);
    Ok(Written {
        graph,
        weights,
        inputs,
        folder: folder.display().to_string(),
        file_name,
    })
}

/// The encoder without pooling, or the pooled graph of a reranker, as an ONNX file for the model's folder, where its initializers point at the checkpoint's
/// files. What is known of the encoder goes into its properties.
///
/// # Errors
/// There is no memory for the quantized weights.
pub fn export(
    graph: &Graph,
    encoder: &ExportedEncoder,
    checkpoint: &Checkpoint,
    precision: Precision,
) -> Result<Vec<u8>> {
    let mut builder = GraphBuilder::new(precision);
    let output = builder.write(graph);
    let int8 = match builder.quantized() {
        [] => None,
        layers => Some(Int8Weights::quantize(checkpoint, layers)?),
    };
    Ok(builder.finish_exported(&output, encoder, checkpoint, int8.as_ref()))
}

/// The process's ONNX Runtime environment, of which there is one; the first library that loads stays.
pub(super) fn environment(library: Option<&Path>) -> Result<Environment> {
    static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);
    let mut current = lock(&ENVIRONMENT);
    if let Some(environment) = current.as_ref() {
        return Ok(environment.clone());
    }
    disable_telemetry();
    let path = library.map_or_else(default_library, Path::to_owned);
    let unavailable = |error: Cause| Error::BackendUnavailable {
        backend: "onnx",
        reason: format!(
            "{error}; install the package again, or name a libonnxruntime of version 1.24 or newer with the option \
             `onnxRuntimeLibrary` or the environment variable ORT_DYLIB_PATH"
        ),
        source: Some(error),
    };
    let environment = ort::init_from(&path)
        .map_err(|error| unavailable(error.into()))?
        .with_name(env!("CARGO_PKG_NAME"))
        // What counts on Windows; elsewhere it comes too late, see `disable_telemetry`.
        .with_telemetry(false)
        // Failures come back as errors; nothing may be written to the host's standard error.
        .with_logger(Arc::new(|_, _, _, place, message| {
            super::webgpu::note_message(place, message);
        }))
        .build()
        .map_err(|error| unavailable(error.into()))?;
    environment.set_log_level(LogLevel::Error);
    *current = Some(environment.clone());
    Ok(environment)
}

/// Keeps ONNX Runtime from reporting its use to Microsoft: since version 1.29 its builds for Linux and macOS write an
/// identifier and a database into the user's cache folder and open connections. An environment variable decides, which the
/// first environment of a process reads. A variable that is set already stays as it is.
///
/// The addon calls this while it is being loaded, see `node.rs`; in Rust programs the first model does.
pub fn disable_telemetry() {
    const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(VARIABLE).is_none_or(|value| value.is_empty()) {
        // SAFETY: Windows and macOS lock their environment. With glibc before 2.41 no other thread may be inside `getenv`
        // meanwhile. In a Node.js process the environment is read by JavaScript, on the thread that this runs on, and by
        // the libraries below this crate when they start, which is later. An assignment to `process.env` does the same;
        // this happens once in a process.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
}

/// `ORT_DYLIB_PATH`, or the name by which the dynamic linker finds ONNX Runtime.
fn default_library() -> PathBuf {
    use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
    let name = || format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}").into();
    std::env::var_os("ORT_DYLIB_PATH").map_or_else(name, PathBuf::from)
}

/// How sessions are made.
pub(super) struct Sessions {
    pub environment: Environment,
    /// Where external data of graphs lies.
    pub folder: String,
}

impl Sessions {
    fn make(
        &self,
        graph: &[u8],
        initializers: &Initializers,
        threads: usize,
    ) -> Result<Session, ort::Error> {
        let mut builder = self
            .builder(threads)?
            .with_prepacked_weights(&initializers.prepacked)?;
        initializers.add_to(&mut builder)?;
        builder.commit_from_memory(graph)
    }

    /// A session under construction.
    pub fn builder(&self, threads: usize) -> Result<SessionBuilder, ort::Error> {
        let builder = Session::builder(&self.environment)?
            .with_log_level(LogLevel::Fatal)?
            .with_optimization_level(GraphOptimizationLevel::Level1)?
            .with_intra_threads(threads)?
            // While they wait for the next operator of a run, threads spin, which saves a query waking them up hundreds of
            // times. They spin on only briefly after the run: by default they would burn 40 ms of CPU after every query
            // and slow down the thread that has the next one.
            .with_intra_op_spinning(true)?
            .with_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)?
            // A pattern is kept for every shape that ever occurs, and texts have many lengths.
            .with_memory_pattern(false)?
            .with_config_entry(
                "session.model_external_initializers_file_folder_path",
                &self.folder,
            )?;
        Ok(builder)
    }
}

/// Makes the sessions of a model; dropped once the last one is made.
struct SessionFactory {
    sessions: Sessions,
    graph: Vec<u8>,
    takes_token_types: bool,
    weights: Arc<Guarded<SharedWeights>>,
    /// Whether sessions no longer read the matrices that they were made from.
    are_packed: bool,
}

impl Drop for SessionFactory {
    fn drop(&mut self) {
        // SAFETY: only this factory makes sessions, and whether they read matrices was tested.
        unsafe {
            self.weights
                .keep_only(&self.weights.read_in_place(self.are_packed));
        };
    }
}

/// One session. Declared before the weights that it points into, so that it is dropped first.
struct OnnxWorker {
    session: Guarded<Session>,
    takes_token_types: bool,
    _weights: Arc<Guarded<SharedWeights>>,
}

impl OnnxWorker {
    fn new(factory: &SessionFactory, threads: usize) -> Result<Self> {
        let _inside = shutdown::ONNX.enter();
        let initializers = &factory.weights.initializers;
        let session = factory
            .sessions
            .make(&factory.graph, initializers, threads)
            .map_err(|error| Error::InferenceFailed {
                reason: format!("ONNX Runtime refused the model's graph: {error}"),
                source: Some(error.into()),
            })?;
        Ok(Self {
            session: shutdown::ONNX.guard(session),
            takes_token_types: factory.takes_token_types,
            _weights: Arc::clone(&factory.weights),
        })
    }

    /// Runs texts of equal length.
    fn run(&mut self, texts: &[Tokens], options: &RunOptions) -> Result<Vec<f32>, ort::Error> {
        let shape = [texts.len(), texts[0].ids.len()];
        let ids = texts.iter().flat_map(|text| text.ids);
        let ids: Vec<i64> = ids.map(|&id| i64::from(id)).collect();
        let input = TensorRef::from_array_view((shape, &*ids))?;
        let mut inputs = ort::inputs![INPUT => input];
        let mut types: Vec<i64> = Vec::new();
        if self.takes_token_types {
            let of_text = |text: &Tokens| {
                let second = text.second;
                (0..text.ids.len()).map(move |token| i64::from(token >= second))
            };
            types.extend(texts.iter().flat_map(of_text));
            let types = TensorRef::from_array_view((shape, &*types))?;
            inputs.extend(ort::inputs![TOKEN_TYPES => types]);
        }
        let outputs = self.session.run_with_options(inputs, options)?;
        let (_, vectors) = outputs[EMBEDDING].try_extract_tensor::<f32>()?;
        Ok(vectors.to_vec())
    }
}

impl Worker for OnnxWorker {
    /// Nothing is padded: neighbours of equal length run together, one group after the other.
    fn forward(&mut self, texts: &[Tokens], stop: &Arc<Stop>) -> Result<Vec<f32>> {
        let _inside = shutdown::ONNX.enter();
        // New for each batch, which costs nothing in comparison: a late interruption must not harm a later run.
        let options = Arc::new(RunOptions::new().map_err(Error::inference)?);
        let run: Arc<dyn Interrupt> = options.clone();
        let mut vectors = Vec::new();
        for group in texts.chunk_by(|a, b| a.ids.len() == b.ids.len()) {
            let part = shutdown::interruptible(stop, &run, || self.run(group, &options))?;
            vectors.extend(part.map_err(Error::inference)?);
        }
        Ok(vectors)
    }
}

impl Interrupt for RunOptions {
    /// The run ends after the operator that is being computed, and the session stays usable.
    fn interrupt(&self) {
        // Setting a flag does not fail.
        let _ = self.terminate();
    }
}
