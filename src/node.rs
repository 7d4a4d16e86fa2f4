//! The Node.js boundary: the only code that knows JavaScript.
//!
//! Arguments arrive valid from TypeScript and are copied at once; promises are settled from the engine's threads, so no
//! thread of Node's own pool ever waits for a model. Every error is a JavaScript `Error` with a `code`.

#![allow(
    clippy::needless_pass_by_value,
    reason = "napi hands arguments over by value"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use napi::bindgen_prelude::{
    Either3, Float32Array, Int8Array, Object, ToNapiValue, Uint8Array, Uint32Array,
};
use napi::{Env, JsError};
use napi_derive::napi;

use crate::engine::{self, Ticket};
use crate::error::Error;
use crate::model::{self, Model as LoadedModel};
use crate::options::Options;
use crate::runtime;
use crate::vector::{Encoding, Vectors};

/// Options of a model; every one may be left out.
#[napi(object)]
pub struct ModelOptions {
    /// Overrides the folder's pooling: "cls", "mean", "max", "`mean_sqrt_len_tokens`", "weightedmean" or "lasttoken".
    pub pooling: Option<String>,
    /// Overrides the text put in front of queries.
    pub query_prompt: Option<String>,
    /// Overrides the text put in front of documents.
    pub document_prompt: Option<String>,
    /// Most tokens of a text, special tokens included; default 512, clipped to the model's limit.
    pub max_tokens: Option<u32>,
    /// Whether vectors are scaled to length 1; default true.
    pub normalize: Option<bool>,
    /// Keeps this many of the first components of each vector.
    pub dimensions: Option<u32>,
    /// With `dimensions`: whether a layer norm comes before the cut; default: what the model asks for.
    pub layer_norm: Option<bool>,
    /// Number format of the weights while computing: "auto", "f32", "int8" (ONNX Runtime), "f16" or "bf16" (MLX).
    pub dtype: Option<String>,
    /// "auto", "mlx" or "onnx".
    pub backend: Option<String>,
    /// Threads that compute; default: what the machine, or its cgroup, offers.
    pub threads: Option<u32>,
    /// Most bytes that the activations of one batch may take.
    pub memory_budget: Option<f64>,
    /// ONNX Runtime's shared library.
    pub onnx_runtime_library: Option<String>,
}

impl TryFrom<Option<ModelOptions>> for Options {
    type Error = Error;

    fn try_from(options: Option<ModelOptions>) -> Result<Self, Error> {
        let Some(options) = options else {
            return Ok(Self::default());
        };
        Ok(Self {
            pooling: options.pooling.as_deref().map(str::parse).transpose()?,
            query_prompt: options.query_prompt,
            document_prompt: options.document_prompt,
            max_tokens: options.max_tokens.map(|tokens| tokens as usize),
            keep_length: options.normalize == Some(false),
            dimensions: options.dimensions.map(|dimensions| dimensions as usize),
            layer_norm: options.layer_norm,
            dtype: options.dtype.as_deref().unwrap_or("auto").parse()?,
            backend: options.backend.as_deref().unwrap_or("auto").parse()?,
            threads: options.threads.map(|threads| threads as usize),
            memory_budget: options.memory_budget.map(|bytes| bytes as usize),
            cache_folder: None,
            onnx_runtime_library: options.onnx_runtime_library.map(PathBuf::from),
        })
    }
}

/// The vectors of one call.
#[napi(object)]
pub struct Embeddings {
    /// `[texts, dimension]`, row-major; "binary": `[texts, ⌈dimension / 8⌉]`.
    pub vectors: Either3<Float32Array, Int8Array, Uint8Array>,
    /// Indices of the texts that were cut to the token limit, ascending.
    pub truncated: Uint32Array,
    /// Tokens computed; equal texts count once.
    pub tokens: u32,
}

/// Vectors as a typed array of their own kind, which takes the memory over.
fn typed_array(vectors: Vectors) -> Either3<Float32Array, Int8Array, Uint8Array> {
    match vectors {
        Vectors::Float32(vectors) => Either3::A(Float32Array::new(vectors)),
        Vectors::Int8(vectors) => Either3::B(Int8Array::new(vectors)),
        Vectors::Binary(vectors) => Either3::C(Uint8Array::new(vectors)),
    }
}

/// What the backend's own memory management says, in bytes. MLX counts all its models of the process together.
#[napi(object)]
#[allow(clippy::struct_field_names, reason = "units belong in names")]
pub struct Memory {
    /// In arrays that are in use: weights and running batches.
    pub active_bytes: f64,
    /// Freed, and kept for reuse.
    pub cache_bytes: f64,
    /// Most that was ever in use.
    pub peak_bytes: f64,
}

impl From<runtime::Memory> for Memory {
    fn from(memory: runtime::Memory) -> Self {
        Self {
            active_bytes: memory.active_bytes as f64,
            cache_bytes: memory.cache_bytes as f64,
            peak_bytes: memory.peak_bytes as f64,
        }
    }
}

/// What a model has done since it was loaded, and what is before it.
#[napi(object)]
pub struct Activity {
    /// Calls that are queued or being computed.
    pub calls: u32,
    /// Texts computed; a repetition within a call does not count.
    pub texts: f64,
    /// Tokens computed.
    pub tokens: f64,
    /// Batches computed.
    pub batches: f64,
}

impl From<engine::Activity> for Activity {
    fn from(activity: engine::Activity) -> Self {
        Self {
            calls: activity.calls as u32,
            texts: activity.texts as f64,
            tokens: activity.tokens as f64,
            batches: activity.batches as f64,
        }
    }
}

/// How far a call is.
#[napi(object)]
pub struct Progress {
    /// Texts whose vectors are there.
    pub done: u32,
    /// Tokens computed.
    pub tokens: u32,
}

/// One call of `Model.embed`: first its texts on their way in, then its progress. Copying strings out of JavaScript takes
/// time on its thread, so a long list is pushed in slices, with turns of the event loop between them.
#[napi]
#[derive(Default)]
pub struct Call {
    texts: Vec<String>,
    ticket: Option<Arc<Ticket>>,
}

#[napi]
impl Call {
    /// A call without texts.
    #[napi(constructor)]
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a copy of the strings.
    #[napi]
    pub fn push(&mut self, texts: Vec<String>) {
        self.texts.extend(texts);
    }

    /// Rejects the promise of `Model.embed` with `ABORT_ERR`, unless it is settled.
    #[napi]
    pub fn cancel(&self) {
        if let Some(ticket) = &self.ticket {
            ticket.cancel();
        }
    }

    /// How far the call is.
    #[napi(getter)]
    #[must_use]
    pub fn progress(&self) -> Progress {
        let progress = self.ticket.as_ref().map(|ticket| ticket.progress());
        Progress {
            done: progress.map_or(0, |progress| progress.done as u32),
            tokens: progress.map_or(0, |progress| progress.tokens as u32),
        }
    }
}

/// A loaded model. A process may hold several, in any of its threads.
#[napi]
pub struct Model {
    model: Arc<LoadedModel>,
}

#[napi]
impl Model {
    /// Loads the model of a folder, off the JavaScript thread.
    #[napi(ts_return_type = "Promise<Model>")]
    pub fn load(
        env: &Env,
        model_dir: String,
        options: Option<ModelOptions>,
    ) -> napi::Result<Object<'_>> {
        promise(
            env,
            move || {
                let options = Options::try_from(options)?;
                LoadedModel::load(&PathBuf::from(model_dir), &options).map(Arc::new)
            },
            |env, model| {
                close_with_environment(env, &model)?;
                Ok(Self { model })
            },
        )
    }

    /// Embeds the texts of a call. `encoding`: "float32" (default), "int8" or "binary". The promise is settled from the
    /// engine's threads, which also encode.
    #[napi(ts_return_type = "Promise<Embeddings>")]
    pub fn embed<'env>(
        &self,
        env: &'env Env,
        call: &mut Call,
        is_query: bool,
        encoding: Option<String>,
    ) -> napi::Result<Object<'env>> {
        let encoding: Encoding = encoding
            .as_deref()
            .unwrap_or("float32")
            .parse()
            .map_err(|error| rejection(*env, &error))?;
        let dimension = self.model.dir().dimension();
        let (deferred, promise) = env.create_deferred()?;
        let texts = std::mem::take(&mut call.texts);
        let reply = move |result: Result<engine::Embeddings, Error>| {
            // Here, not in the closure below: that one runs on the JavaScript thread.
            let result = result.map(|embeddings| {
                let vectors = encoding.encode(embeddings.vectors, dimension);
                (vectors, embeddings.truncated, embeddings.tokens)
            });
            deferred.resolve(move |env| match result {
                Ok((vectors, truncated, tokens)) => Ok(Embeddings {
                    vectors: typed_array(vectors),
                    truncated: Uint32Array::new(truncated),
                    tokens: tokens as u32,
                }),
                Err(error) => Err(rejection(env, &error)),
            });
        };
        call.ticket = Some(self.model.submit(texts, is_query, Box::new(reply)));
        Ok(promise)
    }

    /// The token ids of a text as the model would see them: behind its prompt, special tokens included, truncated.
    /// Synchronous.
    #[napi]
    pub fn tokenize(
        &self,
        text: String,
        is_query: bool,
    ) -> napi::Result<Uint32Array, &'static str> {
        let tokenized = self
            .model
            .tokenize(&text, is_query)
            .map_err(|error| thrown(&error))?;
        Ok(Uint32Array::new(tokenized.ids))
    }

    /// Ends the model: calls in progress fail with `CLOSED`, its memory is returned. Closing again does nothing.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn close<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        let model = Arc::clone(&self.model);
        let close = move || {
            model.close();
            Ok(())
        };
        promise(env, close, |_, ()| Ok(()))
    }

    /// The backend's memory; `null` for a backend that leaves memory to the system.
    #[napi(ts_return_type = "Promise<Memory | null>")]
    pub fn memory<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>> {
        let model = Arc::clone(&self.model);
        promise(
            env,
            move || model.memory(),
            |_, memory| Ok(memory.map(Memory::from)),
        )
    }

    /// What the model has done since it was loaded, and what is before it.
    #[napi(getter)]
    #[must_use]
    pub fn activity(&self) -> Activity {
        self.model.activity().into()
    }

    /// Why a faster backend of the addon was not taken; `null` where none was tried.
    #[napi(getter)]
    #[must_use]
    pub fn fallback_reason(&self) -> Option<String> {
        self.model.fallback_reason().map(str::to_owned)
    }

    /// What the user should know although everything works; `null` mostly.
    #[napi(getter)]
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        self.model.warning().map(str::to_owned)
    }

    /// Length of a vector.
    #[napi(getter)]
    #[must_use]
    pub fn dimension(&self) -> u32 {
        self.model.dir().dimension() as u32
    }

    /// Most tokens of a text, special tokens included.
    #[napi(getter)]
    #[must_use]
    pub fn max_tokens(&self) -> u32 {
        self.model.dir().max_tokens as u32
    }

    /// The token limit that the model was made for.
    #[napi(getter)]
    #[must_use]
    pub fn model_max_tokens(&self) -> u32 {
        self.model.dir().model_max_tokens as u32
    }

    /// The backend that computes.
    #[napi(getter)]
    #[must_use]
    pub fn backend(&self) -> String {
        self.model.backend().to_owned()
    }

    /// Whether a GPU computes.
    #[napi(getter)]
    #[must_use]
    pub fn is_gpu(&self) -> bool {
        self.model.is_gpu()
    }

    /// A name for everything that decides what vectors this model gives.
    #[napi(getter)]
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.model.fingerprint().to_owned()
    }

    /// Threads that compute.
    #[napi(getter)]
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.model.threads() as u32
    }

    /// How token states become a vector; several are concatenated.
    #[napi(getter)]
    #[must_use]
    pub fn pooling(&self) -> Vec<String> {
        self.model
            .dir()
            .pooling
            .iter()
            .map(|pooling| pooling.name().to_owned())
            .collect()
    }

    /// Text put in front of queries.
    #[napi(getter)]
    #[must_use]
    pub fn query_prompt(&self) -> String {
        self.model.dir().query_prompt.clone()
    }

    /// Text put in front of documents.
    #[napi(getter)]
    #[must_use]
    pub fn document_prompt(&self) -> String {
        self.model.dir().document_prompt.clone()
    }
}

/// The process-wide model of [`init`].
struct ProcessModel {
    model_dir: PathBuf,
    options: Options,
    model: LoadedModel,
}

static PROCESS_MODEL: OnceLock<ProcessModel> = OnceLock::new();

/// Loads the process-wide model. Synchronous: it blocks the calling thread until the model is ready. Calling it again
/// with the same arguments does nothing.
#[napi]
pub fn init(model_dir: String, options: Option<ModelOptions>) -> napi::Result<(), &'static str> {
    init_process_model(PathBuf::from(model_dir), options).map_err(|error| thrown(&error))
}

fn init_process_model(model_dir: PathBuf, options: Option<ModelOptions>) -> Result<(), Error> {
    /// Held while loading, so that two threads do not load the model twice.
    static LOADING: Mutex<()> = Mutex::new(());
    let options = Options::try_from(options)?;
    let _loading = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = PROCESS_MODEL.get() {
        if loaded.model_dir == model_dir && loaded.options == options {
            return Ok(());
        }
        return Err(Error::AlreadyInitialized {
            loaded: loaded.model_dir.clone(),
            requested: model_dir,
        });
    }
    let model = LoadedModel::load(&model_dir, &options)?;
    PROCESS_MODEL.get_or_init(|| ProcessModel {
        model_dir,
        options,
        model,
    });
    Ok(())
}

/// Embeds texts with the process-wide model: `[texts, dimension]`, row-major. Synchronous: it blocks the calling thread
/// until the vectors are there.
#[napi]
pub fn embed(
    texts: Vec<String>,
    is_query: Option<bool>,
) -> napi::Result<Float32Array, &'static str> {
    let loaded = process_model()?;
    let embeddings = loaded
        .embed(texts, is_query.unwrap_or(false))
        .map_err(|error| thrown(&error))?;
    Ok(Float32Array::new(embeddings.vectors))
}

/// Whether the process-wide model computes on a GPU.
#[napi]
pub fn is_gpu() -> napi::Result<bool, &'static str> {
    Ok(process_model()?.is_gpu())
}

/// Writes the model's graph as `semantic-search-native.onnx` into its folder, for the JavaScript fallback. The file
/// holds no weights; its initializers point into the safetensors files beside it. With the dtype "int8" it is
/// `semantic-search-native.int8.onnx`, which holds the quantized ones. Resolves to its path.
#[napi(ts_return_type = "Promise<string>")]
pub fn export_onnx(
    env: &Env,
    model_dir: String,
    options: Option<ModelOptions>,
) -> napi::Result<Object<'_>> {
    promise(
        env,
        move || {
            let options = Options::try_from(options)?;
            model::export_onnx(&PathBuf::from(model_dir), &options)
        },
        |_, path| Ok(path.display().to_string()),
    )
}

fn process_model() -> napi::Result<&'static LoadedModel, &'static str> {
    let loaded = PROCESS_MODEL
        .get()
        .ok_or_else(|| thrown(&Error::NotInitialized))?;
    Ok(&loaded.model)
}

/// A promise for what `work` does on a thread of its own and `finish` makes of it on the JavaScript thread.
fn promise<T, J>(
    env: &Env,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    finish: impl FnOnce(Env, T) -> napi::Result<J> + Send + 'static,
) -> napi::Result<Object<'_>>
where
    T: Send + 'static,
    J: ToNapiValue + 'static,
{
    let (deferred, promise) = env.create_deferred()?;
    let run = move || {
        let result = catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|panic| Err(Error::from_panic(&*panic)));
        deferred.resolve(move |env| match result {
            Ok(value) => finish(env, value),
            Err(error) => Err(rejection(env, &error)),
        });
    };
    std::thread::Builder::new().spawn(run).map_err(|error| {
        napi::Error::from_reason(format!("no thread could be started: {error}"))
    })?;
    Ok(promise)
}

/// Ends the model's threads before the environment that loaded it is torn down (a worker thread that exits, or the
/// process): a thread must not compute while the libraries below it are being unloaded.
fn close_with_environment(env: Env, model: &Arc<LoadedModel>) -> napi::Result<()> {
    env.add_env_cleanup_hook(Arc::downgrade(model), |model: Weak<LoadedModel>| {
        if let Some(model) = model.upgrade() {
            model.close();
        }
    })?;
    Ok(())
}

/// An error to be thrown by a synchronous function; napi makes the status the JavaScript error's `code`.
fn thrown(error: &Error) -> napi::Error<&'static str> {
    napi::Error::new(error.code(), error.to_string())
}

/// The same error for a promise, whose rejections carry only napi's own statuses: made here, passed by reference.
fn rejection(env: Env, error: &Error) -> napi::Error {
    napi::Error::from(JsError::from(thrown(error)).into_unknown(env))
}
