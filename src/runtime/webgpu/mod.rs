//! Any GPU, through the WebGPU provider of the ONNX Runtime library that is there anyway. It is Vulkan on Linux, Direct3D 12 on
//! Windows and Metal on macOS.
//!
//! # How a batch is computed
//!
//! The graph is the one that ONNX Runtime computes on the CPU, written for texts that are padded to one of a few lengths; what
//! depends on their lengths comes with the batch ([`onnx::padding`]). Weights are copied to the GPU once, ids go there and
//! pooled vectors come back. Every operator that computes states runs on the GPU; what is left to the CPU are the shapes.
//!
//! # Trust, then verify
//!
//! Drivers for GPUs are wrong at times, and ONNX Runtime does not notice. So a model is held against the CPU when it is
//! loaded ([`verify`]), and errors that the device only reports ([`note_message`]) make the batch fail that they belong to.
//!
//! # Errors
//!
//! After an error of the device a session may go on failing, so it is given up, and the model has to be loaded again. The
//! process has one device, which all its models share. When it is lost (the driver was reset, the machine slept), it stays
//! lost until its last session is gone, so all of them are given up.

mod adapter;
#[cfg(test)]
mod placement;
mod turns;
mod verify;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ort::ep::{self, ExecutionProvider};
use ort::session::builder::SessionBuilder;
use ort::session::{RunOptions, Session};

pub use self::adapter::Adapter;
use self::verify::{Attention, Verification};
use super::onnx::builder::{EMBEDDING, GraphBuilder};
use super::onnx::padding::{self, PaddedInput};
use super::onnx::weights::SharedWeights;
use super::onnx::{self, Written};
use super::shutdown::{self, Guarded};
use super::stop::{Interrupt, Stop};
use super::{MakeWorker, Runtime, Tokens, Turn, Worker, of_equal_rotation};
use crate::batch::{self, Limits, Padding};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::graph::{Graph, NtkScaling};
use crate::options::{Backend, Options};
use crate::sync::{Mutex, lock};

/// The name of this backend.
pub const NAME: &str = "webgpu";

/// The GPU that a model would be loaded on, if it can be named.
///
/// # Errors
/// The library cannot be loaded or has no WebGPU.
fn adapter(library: Option<&Path>) -> Result<Option<Adapter>> {
    onnx::environment(library)?;
    match ep::WebGPU::is_available() {
        Ok(true) => Ok(adapter::find()),
        _ => Err(Error::unavailable(
            NAME,
            "this library of ONNX Runtime was built without WebGPU",
        )),
    }
}

/// Loads an encoder whose result is one row per text, unless what the GPU computes differs from the CPU. With the backend
/// "auto" it also has to be faster.
///
/// # Errors
/// There is no GPU, it is refused, or it has no memory for the model.
pub fn load(
    graph: &Graph,
    checkpoint: &Arc<Checkpoint>,
    options: &Options,
    threads: usize,
) -> Result<Runtime> {
    // float16 is refused, too: nothing has proved yet that a model's vectors are right in it.
    super::check_float32(options.dtype, NAME)?;
    let adapter = adapter(options.onnx_runtime_library.as_deref())?;
    let is_software = adapter.as_ref().is_some_and(|adapter| adapter.is_software);
    let must_be_faster = options.backend == Backend::Auto;
    if must_be_faster {
        let Some(adapter) = &adapter else {
            return Err(Error::unavailable(NAME, "no GPU was found"));
        };
        if adapter.is_software {
            let reason = format!("{} computes on the CPU", adapter.name);
            return Err(Error::unavailable(NAME, reason));
        }
    }
    let verification = Verification::new(
        graph,
        checkpoint,
        options,
        threads,
        adapter.as_ref(),
        must_be_faster,
    );
    let first = verification.choose(|attention| {
        Ok(WebGpuWorker {
            model: Arc::new(Model::load(
                graph,
                checkpoint,
                options,
                adapter.as_ref(),
                attention,
            )?),
            turn: Turn::Last,
        })
    })?;
    let later = |turn| -> MakeWorker {
        let worker = WebGpuWorker {
            model: Arc::clone(&first.model),
            turn,
        };
        Box::new(move || {
            worker.model.give_back();
            Ok(Box::new(worker))
        })
    };
    Ok(Runtime {
        backend: NAME,
        is_gpu: !is_software,
        dtype: "f32",
        limits: limits(graph, options, adapter.as_ref()),
        // While one waits for the GPU, the other tokenizes and prepares the next batch.
        workers: vec![later(Turn::Last), later(Turn::Last)],
        urgent_worker: later(Turn::Next),
        adapter,
    })
}

/// What a batch may hold.
fn limits(graph: &Graph, options: &Options, adapter: Option<&Adapter>) -> Limits {
    let budget = options
        .memory_budget
        .unwrap_or(Limits::DEFAULT_BUDGET_BYTES);
    // The scores of a batch are one array, and weights and other programs need memory as well.
    let most = adapter.map_or(budget, |adapter| {
        adapter.array_bytes.min(adapter.memory_bytes / 4)
    });
    Limits {
        budget_tokens: Limits::padded_tokens(!adapter.is_some_and(|adapter| adapter.is_software)),
        padding: Padding::TO_FEW_SHAPES,
        budget_bytes: budget.min(most),
        token_bytes: graph.token_bytes(),
        // Where attention is computed step by step, the scores before and after the softmax.
        score_bytes: 2 * score_bytes(graph) + size_of::<f32>(),
    }
}

/// Bytes of the scores of all heads per pair of tokens, whether these see each other or are outside of a window.
fn score_bytes(graph: &Graph) -> usize {
    let heads = graph.attentions().map(|attention| attention.heads).max();
    heads.unwrap_or(0) * size_of::<f32>()
}

/// A model on the GPU, removed there when the last worker is dropped.
struct Model {
    number: u64,
    inputs: Vec<PaddedInput>,
    takes_token_types: bool,
    scalings: Vec<NtkScaling>,
    /// Rows of the table of positions, if the model has one.
    positions: Option<usize>,
    /// Bytes of the largest array per pair of tokens, and the most that an array may have.
    pair_bytes: usize,
    array_bytes: usize,
    /// ONNX Runtime requires the session's initializers to exist as long as the session.
    weights: Guarded<SharedWeights>,
}

impl Model {
    fn load(
        graph: &Graph,
        checkpoint: &Arc<Checkpoint>,
        options: &Options,
        adapter: Option<&Adapter>,
        attention: Attention,
    ) -> Result<Self> {
        static NEXT_MODEL: AtomicU64 = AtomicU64::new(0);
        let number = NEXT_MODEL.fetch_add(1, Ordering::Relaxed);
        let environment = onnx::environment(options.onnx_runtime_library.as_deref())?;
        let builder = GraphBuilder::padded(attention == Attention::Fused);
        let Written {
            graph: encoded,
            weights,
            inputs,
            folder,
            ..
        } = onnx::write_pooled(builder, graph, checkpoint)?;
        let sessions = onnx::Sessions {
            environment,
            folder,
        };
        let arrays = weights
            .iter()
            .map(|weight| weight.tensor.len() * size_of::<f32>());
        adapter
            .map_or(Ok(()), |adapter| adapter.check_room(arrays))
            .map_err(|reason| Error::unavailable(NAME, reason))?;
        let weights = SharedWeights::new(Arc::clone(checkpoint), &weights)?;
        let model = Self {
            number,
            inputs,
            takes_token_types: graph.takes_token_types(),
            scalings: graph.scalings(),
            positions: graph.longest_text(),
            pair_bytes: match attention {
                Attention::Fused => size_of::<f32>(),
                Attention::StepByStep => score_bytes(graph).max(size_of::<f32>()),
            },
            array_bytes: adapter.map_or(usize::MAX, |adapter| adapter.array_bytes),
            weights: shutdown::ONNX.guard(weights),
        };
        turns::take(Turn::Last, |all| -> Result<()> {
            let made = heeding_messages(|| {
                let mut builder = on_gpu(&sessions)?;
                model.weights.initializers.copy_to(&mut builder)?;
                builder.commit_from_memory(&encoded)
            });
            let session = made.map_err(|reason| Error::unavailable(NAME, reason))?;
            all.of_models.insert(number, shutdown::ONNX.guard(session));
            Ok(())
        })?;
        Ok(model)
    }

    /// Returns the memory of weights, which the GPU has copies of, to the system.
    fn give_back(&self) {
        // SAFETY: no more sessions are made of them, and the GPU's own copies are what is computed with.
        unsafe { self.weights.keep_only(&[]) };
    }

    /// Refuses a text that is too long for the GPU, whose error would cost the session. The batches of others are planned so
    /// that they fit.
    fn check_length(&self, texts: &[Tokens]) -> Result<()> {
        let longest = texts.iter().map(|text| text.ids.len()).max().unwrap_or(0);
        let length = batch::padded(longest, self.positions);
        let bytes = texts.len() * length * length * self.pair_bytes;
        if bytes <= self.array_bytes {
            return Ok(());
        }
        Err(Error::ResourceExhausted {
            reason: format!(
                "attention within {longest} tokens would take an array of {} MB, and the GPU has arrays of at most {} MB: lower \
                 maxTokens, or use another backend",
                bytes >> 20,
                self.array_bytes >> 20
            ),
        })
    }

    /// Computes texts whose rotations are equal.
    fn run(
        &self,
        session: &mut Session,
        texts: &[Tokens],
        options: &RunOptions,
    ) -> Result<Vec<f32>, ort::Error> {
        let inputs =
            padding::inputs_of(texts, self.positions, self.takes_token_types, &self.inputs)?;
        let outputs = session.run_with_options(inputs, options)?;
        let (_, vectors) = outputs[EMBEDDING].try_extract_tensor::<f32>()?;
        Ok(vectors.to_vec())
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        turns::take(Turn::Last, |all| {
            let was_there = all.of_models.remove(&self.number).is_some();
            // With the last session goes the device, and all that is on it.
            if was_there && !all.of_models.is_empty() {
                // If it fails, memory stays in use, which is no reason to fail.
                let _ = sweep();
            }
        });
    }
}

/// Frees the weights of models that are gone. ONNX Runtime 1.30 keeps the arrays of a session's initializers, when it has
/// gone, until another session packs one of its own on the GPU (`LazyReleaseCacheManager` in its `buffer_manager.cc`). What
/// packs is a convolution, so a session of one is made.
fn sweep() -> Result<(), Error> {
    let mut builder = GraphBuilder::padded(true);
    let output = builder.convolution_of_ids();
    let (graph, _) = builder.finish_pooled(&output, 1, Path::new(""));
    let sessions = onnx::Sessions {
        environment: onnx::environment(None)?,
        folder: String::new(),
    };
    on_gpu(&sessions)
        .and_then(|mut builder| builder.commit_from_memory(&graph))
        .map(drop)
        .map_err(Error::inference)
}

/// A session under construction that computes on the GPU.
fn on_gpu(sessions: &onnx::Sessions) -> Result<SessionBuilder, ort::Error> {
    let provider = ep::WebGPU::default().build().error_on_failure();
    Ok(sessions.builder(1)?.with_execution_providers([provider])?)
}

struct WebGpuWorker {
    model: Arc<Model>,
    turn: Turn,
}

impl Worker for WebGpuWorker {
    fn forward(&mut self, texts: &[Tokens], stop: &Arc<Stop>) -> Result<Vec<f32>> {
        let model = &self.model;
        let mut vectors = Vec::new();
        for group in of_equal_rotation(texts, &model.scalings) {
            model.check_length(group)?;
            let part = turns::take(self.turn, |all| {
                let Some(session) = all.of_models.get_mut(&model.number) else {
                    let reason = all.failure.clone();
                    return Err(Error::DeviceLost { reason });
                };
                let options = Arc::new(RunOptions::new().map_err(Error::inference)?);
                let run: Arc<dyn Interrupt> = options.clone();
                let computed = shutdown::interruptible(stop, &run, || {
                    heeding_messages(|| model.run(session, group, &options))
                })?;
                computed.map_err(|reason| {
                    // After an error a session may have arrays that are none. One of a lost device never works again, and a
                    // new one gets a new device only once all of them are gone.
                    if is_loss(&reason) {
                        all.of_models.clear();
                    } else {
                        all.of_models.remove(&model.number);
                    }
                    all.failure.clone_from(&reason);
                    Error::DeviceLost { reason }
                })
            })?;
            vectors.extend(part);
        }
        Ok(vectors)
    }
}

/// Whether a message tells that the device is gone: in Dawn's words, or ONNX Runtime's.
fn is_loss(message: &str) -> bool {
    message.contains("is lost") || message.contains("device lost")
}

/// What WebGPU has reported since it was last asked.
static MESSAGES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Takes down what ONNX Runtime logs about WebGPU: the device reports errors of its own (no memory, an invalid shader, its loss)
/// to nobody else, and the results of a batch are wrong after one.
pub(super) fn note_message(place: &str, message: &str) {
    const MOST: usize = 8;
    if place.contains("webgpu") || message.contains("WebGPU") {
        let mut messages = lock(&MESSAGES);
        if messages.len() < MOST {
            messages.push(message.to_owned());
        }
    }
}

/// Does something with WebGPU; whatever it reports meanwhile is an error.
fn heeding_messages<T>(work: impl FnOnce() -> Result<T, ort::Error>) -> Result<T, String> {
    lock(&MESSAGES).clear();
    let outcome = work();
    let mut messages = std::mem::take(&mut *lock(&MESSAGES));
    match outcome {
        Ok(result) if messages.is_empty() => return Ok(result),
        Ok(_) => {}
        Err(error) => messages.insert(0, error.to_string()),
    }
    let messages = messages.iter().map(|message| in_words(message));
    Err(messages.collect::<Vec<_>>().join("; "))
}

/// A message on one line, without the place in ONNX Runtime's sources and the condition that stand before it.
fn in_words(message: &str) -> String {
    let words = message
        .rsplit_once(" was false. ")
        .map_or(message, |(_, words)| words);
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}
