//! Our own kernels on the CPU: in float32, bfloat16 and int8.
//!
//! # How a batch is computed
//!
//! The texts of a batch lie one after the other, without padding, so that a linear layer is one product for all of them
//! ([`forward`]); attention is computed text by text and head by head ([`attention`]). A graph is turned into steps once
//! ([`steps`]). Values between steps are float32; a product converts its rows to the format of the weights, adds up in
//! float32 or int32, and finishes each tile while it is in the nearest cache ([`matrix`], [`wide`]). The loops for each
//! instruction set are in [`kernels`], and [`level`] says which of them the processor can run.
//!
//! Bulk workers have one thread each and texts of their own; the urgent worker shares each step among all threads ([`team`]).
//! All of them read one copy of the packed weights. Embedding tables are read where the checkpoint has them.
//!
//! # Promise
//!
//! Each number of a row is computed in an order that depends on nothing but the text of that row: vectors are the same,
//! bit for bit, whatever the batch, the number of threads and the worker.

mod attention;
mod forward;
mod kernels;
mod lanes;
pub mod level;
mod matrix;
mod steps;
mod team;
mod wide;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};

use self::forward::{Buffers, Pass};
use self::kernels::{Format, Kernel};
use self::level::Level;
use self::steps::{Formats, Operation, Step};
use self::team::Team;
use super::stop::{Interrupt, Stop};
use super::{MakeWorker, Runtime, Tokens, Worker, shutdown};
use crate::batch::{Limits, Padding};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::graph::Graph;
use crate::options::{Dtype, Options};
use crate::pages::addresses;

/// Tokens of a bulk batch: with more, activations leave the cache, and with fewer, weights are read more often.
const BUDGET_TOKENS: usize = 256;

/// A loaded model, shared by its workers.
struct Model {
    steps: Vec<Step>,
    level: Level,
    /// Holds the embedding tables.
    checkpoint: Arc<Checkpoint>,
    given_back: Once,
}

/// The name of a number format in a fingerprint, and the format.
///
/// # Errors
/// The dtype is one of MLX.
fn format(dtype: Dtype) -> Result<(&'static str, Format)> {
    match dtype {
        Dtype::Auto | Dtype::F32 => Ok(("f32", Format::F32)),
        Dtype::BF16 => Ok(("bf16", Format::BF16)),
        Dtype::Int8 => Ok(("int8", Format::Int8)),
        Dtype::F16 => Err(super::refused_dtype(
            dtype,
            "\"auto\", \"f32\", \"bf16\" or \"int8\" with the backend cpu",
        )),
    }
}

/// The instructions that multiply on this processor.
pub struct Kernels {
    /// The name of their [`Level`].
    pub level: &'static str,
    /// In float32.
    pub f32: &'static str,
    /// In bfloat16, if the processor has any for it.
    pub bf16: Option<&'static str>,
    /// In int8.
    pub int8: &'static str,
}

/// What computes on this processor.
///
/// # Errors
/// The environment names an unknown level.
pub fn kernel_names() -> Result<Kernels> {
    let level = Level::best(Level::Amx)?;
    let name = |format| Kernel::best(format, level).map(|kernel| kernel.name);
    Ok(Kernels {
        level: level.name(),
        f32: name(Format::F32).unwrap_or_default(),
        bf16: name(Format::BF16),
        int8: name(Format::Int8).unwrap_or_default(),
    })
}

/// Loads an encoder whose result is one row per text.
///
/// # Errors
/// The number format is not one of this backend; there is no memory for the weights, or no thread.
pub fn load(
    graph: &Graph,
    checkpoint: &Arc<Checkpoint>,
    options: &Options,
    threads: usize,
) -> Result<Runtime> {
    let (name, format) = format(options.dtype)?;
    let level = Level::best(match format {
        Format::F32 => Level::Avx512Vnni,
        Format::BF16 | Format::Int8 => Level::Amx,
    })?;
    let formats = Formats::of(format, level).ok_or_else(|| {
        let expected = "\"auto\", \"f32\" or \"int8\", since this processor has no instructions for bfloat16 (AVX-512 BF16 or AMX)";
        super::refused_dtype(options.dtype, expected)
    })?;
    let team = Team::of(threads, "embedder-team")?;
    let steps = steps::of(graph, checkpoint, formats, &team)?;
    let model = Arc::new(Model {
        steps,
        level,
        checkpoint: Arc::clone(checkpoint),
        given_back: Once::new(),
    });
    let worker = |team: Team| -> MakeWorker {
        let model = Arc::clone(&model);
        Box::new(move || {
            model.given_back.call_once(|| model.give_back());
            Ok(Box::new(CpuWorker {
                model,
                team,
                buffers: Buffers::default(),
            }))
        })
    };
    Ok(Runtime {
        backend: "cpu",
        is_gpu: false,
        dtype: name,
        limits: Limits {
            budget_tokens: BUDGET_TOKENS,
            padding: Padding::Flat,
            budget_bytes: options
                .memory_budget
                .unwrap_or(Limits::DEFAULT_BUDGET_BYTES),
            token_bytes: graph.token_bytes(),
            // Only those of some queries at a time are kept.
            score_bytes: 0,
        },
        workers: (0..threads).map(|_| worker(Team::ALONE)).collect(),
        urgent_worker: worker(team),
        adapter: None,
    })
}

impl Model {
    /// Returns the memory of weights that are packed to the system.
    fn give_back(&self) {
        let tables = self.steps.iter().filter_map(|step| match &step.operation {
            Operation::Embed(tables) => Some(tables),
            _ => None,
        });
        let tables = tables.flat_map(|tables| {
            let positions = tables.positions.as_ref().map(|positions| &positions.table);
            let types = tables.token_types.as_ref().map(|types| &types.table);
            [Some(&tables.words), positions, types]
        });
        let kept = tables
            .flatten()
            .map(|table| addresses(self.checkpoint.bytes(table)));
        // SAFETY: of the checkpoint, this model reads the tables of embeddings alone.
        unsafe { Checkpoint::keep_only(&self.checkpoint, &kept.collect::<Vec<_>>()) };
    }
}

struct CpuWorker {
    model: Arc<Model>,
    team: Team,
    buffers: Buffers,
}

/// Whether a run is to end early.
#[derive(Default)]
struct Flag(AtomicBool);

impl Interrupt for Flag {
    fn interrupt(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Worker for CpuWorker {
    fn forward(&mut self, texts: &[Tokens], stop: &Arc<Stop>) -> Result<Vec<f32>> {
        let _inside = shutdown::CPU.enter();
        let flag = Arc::new(Flag::default());
        let run: Arc<dyn Interrupt> = flag.clone();
        let is_unwanted = || flag.0.load(Ordering::Relaxed);
        let Self {
            model,
            team,
            buffers,
        } = self;
        let computed = shutdown::interruptible(stop, &run, || {
            let mut pass = Pass::new(model, texts, buffers, team, &is_unwanted)?;
            team.run(|| pass.run())
        })?;
        // What a batch of usual size does not need is returned.
        if texts.iter().map(|text| text.ids.len()).sum::<usize>() > BUDGET_TOKENS {
            self.buffers = Buffers::default();
        }
        self.buffers.rotations.forget_scaled();
        computed
    }
}
