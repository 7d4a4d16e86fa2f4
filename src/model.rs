//! A loaded model: folder, tokenizer, encoder, runtime and threads, put together.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use crate::checkpoint::Checkpoint;
use crate::engine::{Activity, Embeddings, Engine, Reply, Request, Sink, Ticket};
use crate::error::{Error, Result};
use crate::file;
use crate::graph::Graph;
use crate::guard;
use crate::memory;
use crate::model_dir::ModelDir;
use crate::options::{Options, Task};
use crate::runtime::onnx::{self, ExportedEncoder, Precision};
use crate::runtime::{self, Adapter, Memory};
use crate::tokenizer::{Input, TokenizedText, Tokenizer};
use crate::vector::{Encoding, Finish};

/// Name of the graph that [`export_onnx`] writes into a model's folder, where the JavaScript fallback looks for it.
pub const EXPORTED_GRAPH: &str = "semantic-search-native.onnx";
/// The same with int8 weights.
pub const EXPORTED_INT8_GRAPH: &str = "semantic-search-native.int8.onnx";

/// A model that embeds texts, or a reranker that scores pairs of texts. All methods take `&self` and may be called from any thread.
pub struct Model {
    dir: ModelDir,
    engine: Engine,
    fingerprint: String,
    backend: &'static str,
    is_gpu: bool,
    fallback_reason: Option<String>,
    adapter: Option<Adapter>,
}

impl Model {
    /// Loads the model of a folder.
    ///
    /// # Errors
    /// The folder cannot be used, or no runtime works; the error names the file and what was expected.
    pub fn load(path: &Path, options: &Options) -> Result<Self> {
        guard::run(|| Self::load_unguarded(path, options))
    }

    fn load_unguarded(path: &Path, options: &Options) -> Result<Self> {
        let Parts {
            dir,
            vectors: graph,
            checkpoint,
            ..
        } = read(path, options)?;
        let tokenizer = Tokenizer::load(&dir)?;
        let checkpoint = Arc::new(checkpoint);
        let threads = match options.threads {
            Some(0) => {
                return Err(Error::argument("threads", "a positive number", "0"));
            }
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        // Reading every weight once, for the fingerprint and to scan for NaN, overlaps the runtime's start.
        let check = || (checkpoint.check_finite()).map(|()| checkpoint.digests());
        let load = || runtime::load(&graph, &checkpoint, options, threads);
        let (digests, (runtime, fallback_reason)) =
            guard::side_by_side("embedder-check", check, load)?;
        let fingerprint = dir.fingerprint(digests, tokenizer.digest(), runtime.dtype);
        // From here on only the runtime holds the checkpoint, and may free what it no longer reads.
        drop(checkpoint);
        Ok(Self {
            fingerprint,
            backend: runtime.backend,
            is_gpu: runtime.is_gpu,
            fallback_reason,
            adapter: runtime.adapter.clone(),
            engine: Engine::start(
                runtime,
                tokenizer,
                Finish {
                    pooled: dir.full_dimension,
                    matryoshka: dir.matryoshka,
                    normalize: dir.normalize,
                },
            )?,
            dir,
        })
    }

    /// Embeds `texts`, strings or [`Input`], and waits for the vectors.
    ///
    /// # Errors
    /// A text cannot be tokenized, a token id is not in the model's vocabulary, the runtime fails, or the model is closed.
    pub fn embed<T: Into<Input>>(&self, texts: Vec<T>, is_query: bool) -> Result<Embeddings> {
        let texts = memory::collected(texts.into_iter().map(Into::into), "the list of texts")?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let reply = move |result| {
            // The receiver waits below; it cannot be gone.
            let _ = sender.send(result);
        };
        let request = Request {
            texts,
            is_query,
            encoding: Encoding::Float32,
        };
        self.submit(request, Box::new(reply));
        receiver
            .recv()
            .unwrap_or(Err(Error::Closed))
            .map(Embeddings::floats)
    }

    /// Scores `texts` for `query` and waits: one number for each text, as the model gives it (a logit). The model is one that
    /// was loaded with [`Task::Rerank`].
    ///
    /// # Errors
    /// As [`Self::embed`]; the query leaves no room for a text.
    pub fn score(&self, query: &str, texts: Vec<String>) -> Result<Embeddings> {
        let query = Arc::from(query);
        let pairs = texts.into_iter().map(|text| Input::from((&query, text)));
        self.embed(pairs.collect(), false)
    }

    /// See [`Engine::submit`].
    pub fn submit(&self, request: Request, reply: Reply) -> Arc<Ticket> {
        self.engine.submit(request, reply)
    }

    /// See [`Engine::stream`].
    pub fn stream(&self, request: Request, sink: Box<dyn Sink>) -> Arc<Ticket> {
        self.engine.stream(request, sink)
    }

    /// What the model's threads have done and what is queued.
    #[must_use]
    pub fn activity(&self) -> Activity {
        self.engine.activity()
    }

    /// The token ids of a text, as the model would see them.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn tokenize(&self, text: &str, is_query: bool) -> Result<TokenizedText> {
        guard::run(|| self.engine.tokenizer().tokenize(text, is_query))
    }

    /// The token ids of a query and a text, as a reranker would see them.
    ///
    /// # Errors
    /// As [`Self::score`].
    pub fn tokenize_pair(&self, query: &str, text: &str) -> Result<TokenizedText> {
        guard::run(|| {
            let tokenizer = self.engine.tokenizer();
            tokenizer.tokenize_pair(query, text, &|| false)
        })
    }

    /// See [`Engine::close`].
    pub fn close(&self) {
        self.engine.close();
    }

    /// See [`Engine::close_soon`].
    pub fn close_soon(&self) {
        self.engine.close_soon();
    }

    /// What the folder and the options say.
    #[must_use]
    pub fn dir(&self) -> &ModelDir {
        &self.dir
    }

    /// See [`ModelDir::fingerprint`].
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The backend that computes, as users name it.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// Whether a GPU computes.
    #[must_use]
    pub fn is_gpu(&self) -> bool {
        self.is_gpu
    }

    /// The GPU, if WebGPU computes on one that can be named.
    #[must_use]
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// Why a faster backend is not used, if one was tried.
    #[must_use]
    pub fn fallback_reason(&self) -> Option<&str> {
        self.fallback_reason.as_deref()
    }

    /// The memory of a backend that manages its own: MLX, for all its models together.
    ///
    /// # Errors
    /// MLX failed.
    pub fn memory(&self) -> Result<Option<Memory>> {
        match self.backend {
            "mlx" => runtime::mlx_memory(),
            _ => Ok(None),
        }
    }
}

/// A folder, read.
struct Parts {
    dir: ModelDir,
    checkpoint: Checkpoint,
    /// The graph of the states of all tokens.
    states: Graph,
    /// The graph of one row per text: its vector before it is finished, or a pair's score.
    vectors: Graph,
}

fn read(path: &Path, options: &Options) -> Result<Parts> {
    guard::read(path, || {
        let dir = ModelDir::read(path, options)?;
        let mut checkpoint = Checkpoint::open(&dir.path, &dir.weights)?;
        let [states, vectors] = dir.record(&mut checkpoint)?;
        Ok(Parts {
            dir,
            checkpoint,
            states,
            vectors,
        })
    })
}

/// Writes the model's graph as [`EXPORTED_GRAPH`] into its folder and returns the path. The file holds no weights, except for
/// the columns of a static model: its initializers point into the checkpoint's files. With
/// [`Dtype::Int8`](crate::options::Dtype) it is [`EXPORTED_INT8_GRAPH`], which holds the int8 weights. Input `input_ids` (int64
/// `[batch, length]`, texts of equal length), output `last_hidden_state` (float `[batch, length, width]`): what follows, such
/// as `Dense` modules, is computed by the reader. Of a reranker, the input is joined by `token_type_ids` if its tokens have
/// types, and the output is `logits` (float `[batch, 1]`). The fallback knows no architectures: what it has to know of the encoder,
/// its [`Facts`](crate::arch::Facts), is among the file's properties.
///
/// # Errors
/// The folder cannot be used or written.
pub fn export_onnx(path: &Path, options: &Options) -> Result<PathBuf> {
    guard::run(|| export_unguarded(path, options))
}

fn export_unguarded(path: &Path, options: &Options) -> Result<PathBuf> {
    let precision = Precision::of(options.dtype)?;
    let options = &Options {
        task: guard::read(path, || ModelDir::task_of(path))?,
        ..options.clone()
    };
    let Parts {
        dir,
        checkpoint,
        states,
        vectors,
    } = read(path, options)?;
    let graph = match dir.task {
        Task::Embed => states,
        Task::Rerank => vectors,
    };
    let encoder = ExportedEncoder {
        facts: dir.encoder.facts(),
        config_sha256: &dir.config_digest,
    };
    let graph = onnx::export(&graph, &encoder, &checkpoint, precision)?;
    let folder = dir.weights[0].parent().unwrap_or(&dir.path);
    let name = match precision {
        Precision::Float => EXPORTED_GRAPH,
        Precision::Int8 => EXPORTED_INT8_GRAPH,
    };
    let target = folder.join(name);
    file::replace(&target, &graph)
        .map_err(|error| Error::invalid_from(&target, "cannot be written", error))?;
    Ok(target)
}
