//! Holds a model on a GPU against the CPU before it is used.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Adapter, NAME};
use crate::checkpoint::{Checkpoint, sha256_hex};
use crate::error::{Error, Result};
use crate::file;
use crate::graph::{Graph, Op};
use crate::options::{Dtype, Options};
use crate::runtime::stop::Stop;
use crate::runtime::{Tokens, Worker, cpu};

/// Most cosine distance of a vector of the GPU to that of the CPU.
const MOST_DISTANCE: f64 = 1e-4;
/// Most difference of a score of the GPU to that of the CPU, per unit of the score and 1.
const MOST_SCORE_DIFFERENCE: f64 = 1e-3;

/// Lengths of the texts that are compared, as far as the model takes them: with and without padding, within and beyond
/// usual windows.
const LENGTHS: [usize; 6] = [1, 2, 17, 64, 97, 144];

/// The texts by which speed is compared: on the GPU and on the CPU, which both have enough to do with them.
const BULK_LENGTH: usize = 128;
const BULK_TEXTS_GPU: usize = 32;
const BULK_TEXTS_CPU: usize = 4;

/// After so many attempts that the process did not survive, "auto" does not try again.
const MOST_ATTEMPTS: u32 = 3;

/// What is compared.
pub struct Verification<'a> {
    graph: &'a Graph,
    checkpoint: &'a Arc<Checkpoint>,
    options: &'a Options,
    threads: usize,
    /// The GPU, as messages name it.
    name: String,
    must_be_faster: bool,
    /// Where the verdict is kept; nowhere if the GPU cannot be named, or there is no folder for it.
    file: Option<PathBuf>,
}

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Attention {
    /// By one operator, which is faster and keeps no scores, but wrong on some GPUs.
    Fused,
    /// By an operator for each step.
    StepByStep,
}

/// What is known of a model on a GPU, as it is kept between processes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Verdict {
    /// The GPU, for people who look into the file.
    adapter: String,
    /// Attempts that have begun and not ended.
    attempts: u32,
    /// By which its results are right.
    attention: Option<Attention>,
    /// Why its results are not to be trusted, if they are wrong either way.
    wrong: Option<String>,
    /// Texts per second of the GPU, by those of the CPU; 0 if it is not known.
    speedup: f64,
}

impl<'a> Verification<'a> {
    /// With `must_be_faster`, a GPU that is slower than the CPU is refused.
    pub fn new(
        graph: &'a Graph,
        checkpoint: &'a Arc<Checkpoint>,
        options: &'a Options,
        threads: usize,
        adapter: Option<&Adapter>,
        must_be_faster: bool,
    ) -> Self {
        let kept = options.cache_folder.as_ref().zip(adapter);
        let file = kept.map(|(folder, adapter)| {
            let key = format!(
                "{}\n{}\n{adapter:?}\n{graph:?}\n{:?}\n{threads}",
                env!("CARGO_PKG_VERSION"),
                ort::info(),
                checkpoint.digests(),
            );
            let name = format!("{}.json", sha256_hex(key.as_bytes()));
            folder.join(NAME).join(name)
        });
        Self {
            graph,
            checkpoint,
            options,
            threads,
            name: adapter.map_or_else(
                || "the GPU".to_owned(),
                |adapter| format!("{} ({})", adapter.name, adapter.driver),
            ),
            must_be_faster,
            file,
        }
    }

    /// Makes a model whose results are right, by `make`. What is known to be wrong or slow is refused at once, and what is
    /// known to be right is not compared again.
    ///
    /// # Errors
    /// The GPU's results differ from the CPU's, or it is slower and has to be faster; or the comparison itself failed.
    pub fn choose<W: Worker>(&self, mut make: impl FnMut(Attention) -> Result<W>) -> Result<W> {
        let known = self.known();
        if let Some(attention) = self.judge(&known)? {
            return make(attention);
        }
        if self.must_be_faster && known.attempts >= MOST_ATTEMPTS {
            let reason = format!(
                "the process ended {} times while {} was tried; load the model with the backend \"webgpu\" to try again",
                known.attempts, self.name
            );
            return Err(Error::unavailable(NAME, reason));
        }
        let mut verdict = Verdict {
            adapter: self.name.clone(),
            attempts: known.attempts + 1,
            ..Verdict::default()
        };
        self.keep(&verdict);
        let outcome = self.compare(&mut make, &mut verdict);
        verdict.attempts = 0;
        if outcome.is_err() {
            // What failed may succeed later: there may be no memory now.
            verdict.wrong = None;
        }
        self.keep(&verdict);
        let right = outcome?;
        self.judge(&verdict)?;
        right.ok_or_else(|| Error::unavailable(NAME, "no worker is right"))
    }

    /// What the GPU computes right by, if that is known.
    fn judge(&self, verdict: &Verdict) -> Result<Option<Attention>> {
        if let Some(wrong) = &verdict.wrong {
            return Err(Error::unavailable(NAME, wrong.as_str()));
        }
        let is_measured = verdict.speedup > 0.0;
        if self.must_be_faster && is_measured && verdict.speedup < 1.0 {
            let reason = format!(
                "{} takes {:.1} times as long for this model as the CPU",
                self.name,
                verdict.speedup.recip()
            );
            return Err(Error::unavailable(NAME, reason));
        }
        Ok(verdict
            .attention
            .filter(|_| is_measured || !self.must_be_faster))
    }

    /// Finds the first worker whose results are right, and writes into the verdict what was found.
    fn compare<W: Worker>(
        &self,
        make: &mut impl FnMut(Attention) -> Result<W>,
        verdict: &mut Verdict,
    ) -> Result<Option<W>> {
        let on_cpu = Options {
            dtype: Dtype::F32,
            ..self.options.clone()
        };
        let cpu = cpu::load(self.graph, self.checkpoint, &on_cpu, self.threads)?;
        let mut cpu = (cpu.urgent_worker)()?;
        let mut numbers = Numbers(1);
        let vocabulary = self.vocabulary();
        let longest = self.graph.longest_text().unwrap_or(usize::MAX);
        let mut texts = |lengths: &mut dyn Iterator<Item = usize>| -> Vec<Vec<u32>> {
            let text = |length: usize| {
                let ids = std::iter::repeat_with(|| numbers.below(vocabulary));
                ids.take(length.min(longest)).collect()
            };
            lengths.map(text).collect()
        };
        // Longest first, as a plan sorts them.
        let compared = texts(&mut LENGTHS.into_iter().rev());
        let compared = tokens(&compared, self.graph.takes_token_types());
        let expected = forward(cpu.as_mut(), &compared)?;
        for attention in [Attention::Fused, Attention::StepByStep] {
            let computed = make(attention).and_then(|mut gpu| {
                let vectors = forward(&mut gpu, &compared)?;
                Ok((gpu, vectors))
            });
            let (mut gpu, vectors) = match computed {
                Ok(computed) => computed,
                // It may be the operator that the GPU cannot compute.
                Err(_) if attention == Attention::Fused => continue,
                Err(error) => return Err(error),
            };
            verdict.wrong = self.difference(&vectors, &expected);
            if verdict.wrong.is_some() {
                continue;
            }
            verdict.attention = Some(attention);
            if self.must_be_faster {
                let bulk = texts(&mut std::iter::repeat_n(BULK_LENGTH, BULK_TEXTS_GPU));
                let bulk = tokens(&bulk, false);
                verdict.speedup = per_second(&mut gpu, &bulk)?
                    / per_second(cpu.as_mut(), &bulk[..BULK_TEXTS_CPU])?;
            }
            return Ok(Some(gpu));
        }
        Ok(None)
    }

    fn difference(&self, vectors: &[f32], expected: &[f32]) -> Option<String> {
        let width = self.graph.width();
        let name = &self.name;
        if !vectors.iter().all(|number| number.is_finite()) {
            return Some(format!("{name} computes NaN or infinity"));
        }
        if width == 1 {
            let difference = |(a, b): (&f32, &f32)| f64::from((a - b).abs() / (1.0 + b.abs()));
            let most = vectors
                .iter()
                .zip(expected)
                .map(difference)
                .fold(0.0, f64::max);
            return (most > MOST_SCORE_DIFFERENCE).then(|| {
                format!("scores of {name} differ from those of the CPU by up to {most:.1e}")
            });
        }
        let rows = vectors
            .chunks_exact(width)
            .zip(expected.chunks_exact(width));
        let most = rows.map(|(a, b)| 1.0 - cosine(a, b)).fold(0.0, f64::max);
        (most > MOST_DISTANCE).then(|| {
            format!(
                "vectors of {name} differ from those of the CPU: cosine {:.4}",
                1.0 - most
            )
        })
    }

    /// How many ids there are.
    fn vocabulary(&self) -> usize {
        let tables = self.graph.nodes().iter().filter_map(|node| match &node.op {
            Op::Embed(tables) => Some(
                tables
                    .rows
                    .as_ref()
                    .map_or(tables.words.shape[0], |rows| rows.len()),
            ),
            _ => None,
        });
        tables.min().unwrap_or(1)
    }

    /// What was found before; nothing if the file is not there, or not as it was written.
    fn known(&self) -> Verdict {
        let read = || {
            let text = std::fs::read(self.file.as_ref()?).ok()?;
            serde_json::from_slice(&text).ok()
        };
        read().unwrap_or_default()
    }

    /// Keeps the verdict. If it cannot be written, the next process compares again.
    fn keep(&self, verdict: &Verdict) {
        let write = || -> Option<()> {
            let file = self.file.as_ref()?;
            std::fs::create_dir_all(file.parent()?).ok()?;
            file::replace(file, &serde_json::to_vec(verdict).ok()?).ok()
        };
        let _ = write();
    }
}

fn tokens(texts: &[Vec<u32>], are_pairs: bool) -> Vec<Tokens<'_>> {
    let texts = texts.iter().map(|ids| Tokens {
        second: if are_pairs { ids.len() / 2 } else { ids.len() },
        ids,
    });
    texts.collect()
}

fn forward(worker: &mut dyn Worker, texts: &[Tokens]) -> Result<Vec<f32>> {
    worker.forward(texts, &Arc::new(Stop::new()))
}

/// Texts per second, once kernels for them are compiled.
fn per_second(worker: &mut dyn Worker, texts: &[Tokens]) -> Result<f64> {
    forward(worker, texts)?;
    let start = Instant::now();
    forward(worker, texts)?;
    Ok(texts.len() as f64 / start.elapsed().as_secs_f64())
}

/// In double precision; 1 if both are zero.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum()
    };
    let lengths = dot(a, a).sqrt() * dot(b, b).sqrt();
    if lengths == 0.0 && a == b {
        1.0
    } else {
        dot(a, b) / lengths
    }
}

/// The generator `minstd_rand`, so that the texts are the same everywhere. Source: C++ standard, [rand.predef].
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> u32 {
        self.0 = self.0 * 48_271 % 0x7fff_ffff;
        (self.0 % end as u64) as u32
    }
}
