//! The Node.js boundary: the only code that knows JavaScript.
//!
//! TypeScript validates arguments, which are copied here at once. Promises are settled from the engine's threads, so that no
//! thread of Node's own pool ever waits for a model. Every error is a JavaScript `Error` with a `code`.

#![allow(
    clippy::needless_pass_by_value,
    reason = "napi hands arguments over by value"
)]
#![allow(
    clippy::missing_errors_doc,
    clippy::unnecessary_wraps,
    reason = "every function may throw a caught panic; TypeScript documents the errors"
)]

mod stream;

use std::ffi::c_char;
use std::path::PathBuf;
use std::sync::{OnceLock, Weak, mpsc};

use napi::bindgen_prelude::{
    Array, Either3, Float32Array, FromNapiValue, Int8Array, JsValue, Object, ToNapiValue, TypeName,
    Uint8Array, Uint32Array, Unknown, ValidateNapiValue,
};
use napi::{Env, JsError, ValueType, check_status, sys, type_of};
use napi_derive::napi;

use self::stream::{Channel, Sender};
use crate::arch;
use crate::engine::{self, Request, Ticket};
use crate::error::Error;
use crate::guard;
use crate::json_file::JsonFile;
use crate::memory;
use crate::model::{self, Model as LoadedModel};
use crate::model_dir::ModelDir;
use crate::options::Options;
use crate::runtime::{self, cpu};
use crate::sync::{Arc, Mutex, lock};
use crate::tokenizer::{Input, Tokenizer};
use crate::vector::Vectors;

/// Runs first, on the thread that loads the addon, where changing the environment is as safe as it can be.
#[napi_derive::module_init]
fn on_load() {
    let _ = guarded(|| {
        runtime::onnx::disable_telemetry();
        Ok(())
    });
}

/// Options of a model; every one may be left out.
#[napi(object)]
pub struct ModelOptions {
    /// What the model is loaded for: "embed" (default) or "rerank".
    pub task: Option<String>,
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
    /// With `dimensions`: whether the full vector is layer-normalized first; default: what the model asks for.
    pub layer_norm: Option<bool>,
    /// Number format of the weights while computing: "auto", "f32", "f16" (MLX), "bf16" (MLX, CPU) or "int8" (CPU).
    pub dtype: Option<String>,
    /// "auto", "mlx", "webgpu", "onnx" or "cpu".
    pub backend: Option<String>,
    /// Threads that compute; default: as many as the machine, or its cgroup, offers.
    pub threads: Option<u32>,
    /// Most bytes that the activations of one batch may take.
    pub memory_budget: Option<f64>,
    /// ONNX Runtime's shared library.
    pub onnx_runtime_library: Option<String>,
    /// Where it is kept between processes what a GPU's results were like.
    pub cache_folder: Option<String>,
}

impl TryFrom<Option<ModelOptions>> for Options {
    type Error = Error;

    fn try_from(options: Option<ModelOptions>) -> Result<Self, Error> {
        let Some(options) = options else {
            return Ok(Self::default());
        };
        Ok(Self {
            task: options.task.as_deref().unwrap_or("embed").parse()?,
            pooling: options.pooling.as_deref().map(str::parse).transpose()?,
            query_prompt: options.query_prompt,
            document_prompt: options.document_prompt,
            max_tokens: options.max_tokens.map(|tokens| tokens as usize),
            normalize: options.normalize,
            dimensions: options.dimensions.map(|dimensions| dimensions as usize),
            layer_norm: options.layer_norm,
            dtype: options.dtype.as_deref().unwrap_or("auto").parse()?,
            backend: options.backend.as_deref().unwrap_or("auto").parse()?,
            threads: options.threads.map(|threads| threads as usize),
            memory_budget: options.memory_budget.map(|bytes| bytes as usize),
            onnx_runtime_library: options.onnx_runtime_library.map(PathBuf::from),
            cache_folder: options.cache_folder.map(PathBuf::from),
        })
    }
}

/// What a model folder and the options resolve to. The JavaScript fallback resolves the same.
#[napi(object)]
pub struct Description {
    /// What the model is loaded for: "embed" or "rerank".
    pub task: String,
    /// Length of a vector; 1 of a reranker, whose vector is the score.
    pub dimension: u32,
    /// Most tokens of a text, special tokens included.
    pub max_tokens: u32,
    /// How token states become a vector; the results of several poolings are concatenated.
    pub pooling: Vec<String>,
    /// Text put in front of queries.
    pub query_prompt: String,
    /// Text put in front of documents.
    pub document_prompt: String,
    /// Whether vectors are scaled to length 1.
    pub normalize: bool,
    /// If vectors are truncated to `dimensions`: whether they are layer-normalized first.
    pub layer_norm: Option<bool>,
    /// Whether texts are lower-cased before tokenization.
    pub lower_case: bool,
    /// The side on which texts that are too long are truncated: "left" or "right".
    pub truncation_side: String,
    /// Rows of the embedding table; token ids are below this.
    pub vocabulary_size: u32,
    /// Identifies everything that decides what vectors the model gives.
    pub fingerprint: String,
}

impl Description {
    fn of(dir: &ModelDir, fingerprint: String) -> Self {
        let pooling = dir.pooling.iter();
        Self {
            task: dir.task.name().to_owned(),
            dimension: dir.dimension() as u32,
            max_tokens: dir.max_tokens as u32,
            pooling: pooling.map(|mode| mode.name().to_owned()).collect(),
            query_prompt: dir.query_prompt.clone(),
            document_prompt: dir.document_prompt.clone(),
            normalize: dir.normalize,
            layer_norm: dir.matryoshka.map(|matryoshka| matryoshka.layer_norm),
            lower_case: dir.lower_case,
            truncation_side: if dir.truncate_left { "left" } else { "right" }.to_owned(),
            vocabulary_size: dir.encoder.facts().vocabulary as u32,
            fingerprint,
        }
    }
}

/// Reads settings and tokenizer of a model folder, but no weights: the fingerprint is that of a model without weights.
/// Synchronous; for tests that compare the addon with the JavaScript fallback.
#[napi]
pub fn describe(
    model_dir: String,
    options: Option<ModelOptions>,
) -> napi::Result<Description, Code> {
    guarded(|| {
        let path = PathBuf::from(model_dir);
        let options = Options::try_from(options)?;
        guard::read(&path, || {
            let dir = ModelDir::read(&path, &options)?;
            let tokenizer = Tokenizer::load(&dir)?;
            let fingerprint = dir.fingerprint(&[], tokenizer.digest(), "f32");
            Ok(Description::of(&dir, fingerprint))
        })
    })
}

/// Refuses a `config.json` whose model cannot be computed here, so that its weights need not be downloaded. Synchronous.
#[napi]
pub fn check_config(file: String) -> napi::Result<(), Code> {
    guarded(|| {
        let path = PathBuf::from(file);
        guard::read(&path, || {
            let config = JsonFile::read(path.clone(), "the architecture's settings")?;
            match arch::read(&config.path, &config.json) {
                // Of a static model the weights tell what else is to be known, and they are still to be downloaded.
                Ok(_) | Err(Error::ModelNotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        })
    })
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

/// Vectors as a typed array of the same kind, which takes over the memory.
fn typed_array(vectors: Vectors) -> Either3<Float32Array, Int8Array, Uint8Array> {
    match vectors {
        Vectors::Float32(vectors) => Either3::A(Float32Array::new(vectors)),
        Vectors::Int8(vectors) => Either3::B(Int8Array::new(vectors)),
        Vectors::Binary(vectors) => Either3::C(Uint8Array::new(vectors)),
    }
}

/// Memory that the backend manages itself, in bytes. MLX counts all its models of the process together.
#[napi(object)]
#[allow(clippy::struct_field_names, reason = "units belong in names")]
pub struct Memory {
    /// In arrays that are in use: weights and running batches.
    pub active_bytes: f64,
    /// Freed, but kept for reuse.
    pub cache_bytes: f64,
    /// The most that was ever in use.
    pub peak_bytes: f64,
}

/// A GPU as WebGPU sees it.
#[napi(object)]
pub struct Adapter {
    /// Its name.
    pub name: String,
    /// Its driver, with its version.
    pub driver: String,
    /// Its memory in bytes; that of the whole machine if it has none of its own.
    pub memory_bytes: f64,
    /// The most bytes of one array.
    pub array_bytes: f64,
}

impl From<&runtime::Adapter> for Adapter {
    fn from(adapter: &runtime::Adapter) -> Self {
        Self {
            name: adapter.name.clone(),
            driver: adapter.driver.clone(),
            memory_bytes: adapter.memory_bytes as f64,
            array_bytes: adapter.array_bytes as f64,
        }
    }
}

/// What a model has done since it was loaded, and what is queued.
#[napi(object)]
pub struct Activity {
    /// Calls that are queued or being computed.
    pub calls: u32,
    /// Texts computed; repetitions within a call do not count.
    pub texts: f64,
    /// Tokens computed.
    pub tokens: f64,
    /// Batches computed.
    pub batches: f64,
}

/// How far a call has come.
#[napi(object)]
pub struct Progress {
    /// Texts whose vectors are ready.
    pub done: u32,
    /// Tokens computed.
    pub tokens: u32,
}

/// A copied array of texts. napi's own conversion ends the process if there is no memory for the copy.
pub struct Texts {
    /// An error is kept for the function's body, which throws it with its code.
    copied: Result<Vec<Input>, Error>,
}

const TEXTS: &str = "a copy of the texts";

impl TypeName for Texts {
    fn type_name() -> &'static str {
        "Array<string | Uint32Array>"
    }

    fn value_type() -> ValueType {
        ValueType::Object
    }
}

impl ValidateNapiValue for Texts {}

impl FromNapiValue for Texts {
    unsafe fn from_napi_value(env: sys::napi_env, value: sys::napi_value) -> napi::Result<Self> {
        let copied = guard::run(|| {
            // SAFETY: `env` and `value` are those of the running call.
            let array = unsafe { Array::from_napi_value(env, value) }.map_err(not_texts)?;
            let mut texts = memory::room(array.len() as usize, TEXTS)?;
            for index in 0..array.len() {
                let text: Option<Unknown> = array.get(index).map_err(not_texts)?;
                let text = text.ok_or_else(|| not_texts(napi::Error::from_reason("a hole")))?;
                // SAFETY: as above.
                texts.push(unsafe { copy_text(env, text.raw()) }?);
            }
            Ok(texts)
        });
        Ok(Self { copied })
    }
}

/// A copy of a text or of its token ids.
///
/// # Safety
/// `env` is the running call's, `value` one of its values.
unsafe fn copy_text(env: sys::napi_env, value: sys::napi_value) -> Result<Input, Error> {
    if type_of!(env, value).map_err(not_texts)? != ValueType::Object {
        // SAFETY: by the contract of this function.
        return unsafe { copy_string(env, value) }.map(Input::Text);
    }
    // SAFETY: as above. Nothing writes to the ids until they are copied: this package's TypeScript passes copies that no
    // other thread has.
    let ids = unsafe { <&[u32]>::from_napi_value(env, value) }.map_err(not_texts)?;
    memory::collected(ids.iter().copied(), TEXTS).map(Input::Tokens)
}

/// A copy of a JavaScript string as UTF-8; lone surrogates become U+FFFD.
///
/// # Safety
/// `env` is the running call's, `value` one of its values.
unsafe fn copy_string(env: sys::napi_env, value: sys::napi_value) -> Result<String, Error> {
    let copy_to = |target: *mut c_char, size: usize| {
        let mut length = 0;
        // SAFETY: `target` has room for `size` bytes or is null, which asks for the length alone.
        let status =
            unsafe { sys::napi_get_value_string_utf8(env, value, target, size, &raw mut length) };
        check_status!(status).map(|()| length).map_err(not_texts)
    };
    // The text is followed by a zero.
    let size = copy_to(std::ptr::null_mut(), 0)? + 1;
    let mut bytes: Vec<u8> = memory::filled(size, 0, TEXTS)?;
    let length = copy_to(bytes.as_mut_ptr().cast(), size)?;
    bytes.truncate(length);
    // Node.js replaces lone surrogates itself; other hosts of Node-API need not.
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| lossy(error.as_bytes())))
}

/// For callers other than this package's TypeScript, which names the element that is not a text.
fn not_texts(error: napi::Error) -> Error {
    let expected = "an array of strings or of Uint32Arrays of token ids";
    Error::argument("texts", expected, error.reason.clone())
}

/// One call of `Model.embed` or `Model.stream`: first it collects the texts, then it shows the progress. Copying strings
/// takes time on the JavaScript thread, so a long list is pushed in slices, with turns of the event loop between them.
#[napi]
#[derive(Default)]
pub struct Call {
    texts: Vec<Input>,
    ticket: Option<Arc<Ticket>>,
    /// Of a call of `Model.stream`.
    channel: Arc<Channel>,
}

#[napi]
impl Call {
    /// A call without texts.
    #[napi(constructor)]
    pub fn new() -> napi::Result<Self, Code> {
        guarded(|| Ok(Self::default()))
    }

    /// Appends a copy of texts, each a string or its token ids.
    #[napi]
    pub fn push(
        &mut self,
        #[napi(ts_arg_type = "Array<string | Uint32Array>")] texts: Texts,
    ) -> napi::Result<(), Code> {
        guarded(|| {
            let texts = texts.copied?;
            // Not `try_reserve_exact`: there may be many small slices.
            self.texts.try_reserve(texts.len()).map_err(|_| {
                Error::no_memory(size_of_val(&*self.texts) + size_of_val(&*texts), TEXTS)
            })?;
            self.texts.extend(texts);
            Ok(())
        })
    }

    /// The next vectors of `Model.stream`; `null` after the last ones. May be called again when the promise is settled.
    #[napi(ts_return_type = "Promise<Rows | null>")]
    pub fn next<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>, Code> {
        guarded(|| self.channel.next(env))
    }

    /// Ends the call with `ABORT_ERR`, unless it has ended, and interrupts what is computed for it.
    #[napi]
    pub fn cancel(&self) -> napi::Result<(), Code> {
        guarded(|| {
            if let Some(ticket) = &self.ticket {
                ticket.cancel();
            }
            Ok(())
        })
    }

    /// How far the call has come.
    #[napi(getter)]
    pub fn progress(&self) -> napi::Result<Progress, Code> {
        guarded(|| {
            let progress = self.ticket.as_ref().map(|ticket| ticket.progress());
            let engine::Progress { done, tokens } = progress.unwrap_or_default();
            Ok(Progress {
                done: done as u32,
                tokens: tokens as u32,
            })
        })
    }
}

impl Call {
    /// What the call asks for; takes its texts.
    fn request(&mut self, is_query: bool, encoding: Option<&str>) -> Result<Request, Error> {
        Ok(Request {
            encoding: encoding.unwrap_or("float32").parse()?,
            texts: std::mem::take(&mut self.texts),
            is_query,
        })
    }

    /// The same with a query in front of each text.
    fn pairs(&mut self, query: &str) -> Result<Request, Error> {
        let query: Arc<str> = query.into();
        let mut request = self.request(false, None)?;
        let pairs = request.texts.into_iter().map(|text| match text {
            Input::Text(text) => Ok(Input::from((&query, text))),
            _ => Err(Error::argument("texts", "strings", "token ids")),
        });
        request.texts = pairs.collect::<Result<_, _>>()?;
        Ok(request)
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
    ) -> napi::Result<Object<'_>, Code> {
        guarded(|| {
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
        })
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
    ) -> napi::Result<Object<'env>, Code> {
        guarded(|| {
            let request = call.request(is_query, encoding.as_deref())?;
            self.submit(env, call, request)
        })
    }

    /// Scores the texts of a call, all of them strings, for a query, as [`Self::embed`]: the vector of a text is its score, a
    /// float32 logit.
    #[napi(ts_return_type = "Promise<Embeddings>")]
    pub fn score<'env>(
        &self,
        env: &'env Env,
        call: &mut Call,
        query: String,
    ) -> napi::Result<Object<'env>, Code> {
        guarded(|| {
            let request = call.pairs(&query)?;
            self.submit(env, call, request)
        })
    }

    /// Embeds the texts of a call; its `next` gives the vectors of each batch as soon as it is computed.
    #[napi]
    pub fn stream(
        &self,
        call: &mut Call,
        is_query: bool,
        encoding: Option<String>,
    ) -> napi::Result<(), Code> {
        guarded(|| {
            let request = call.request(is_query, encoding.as_deref())?;
            let sink = Box::new(Sender(Arc::clone(&call.channel)));
            call.ticket = Some(self.model.stream(request, sink));
            Ok(())
        })
    }

    /// The token ids of a text as the model would see them: with its prompt and special tokens, truncated. Synchronous.
    #[napi]
    pub fn tokenize(&self, text: String, is_query: bool) -> napi::Result<Uint32Array, Code> {
        guarded(|| {
            let tokenized = self.model.tokenize(&text, is_query)?;
            Ok(Uint32Array::new(tokenized.ids))
        })
    }

    /// Ends the model: calls in progress fail with `CLOSED` and its memory is freed. Closing again does nothing.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn close<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>, Code> {
        guarded(|| {
            let model = Arc::clone(&self.model);
            let close = move || {
                model.close();
                Ok(())
            };
            promise(env, close, |_, ()| Ok(()))
        })
    }

    /// The backend's memory; `null` for a backend that does not manage its own.
    #[napi(ts_return_type = "Promise<Memory | null>")]
    pub fn memory<'env>(&self, env: &'env Env) -> napi::Result<Object<'env>, Code> {
        guarded(|| {
            let model = Arc::clone(&self.model);
            promise(
                env,
                move || model.memory(),
                |_, memory| {
                    Ok(memory.map(|memory| Memory {
                        active_bytes: memory.active_bytes as f64,
                        cache_bytes: memory.cache_bytes as f64,
                        peak_bytes: memory.peak_bytes as f64,
                    }))
                },
            )
        })
    }

    /// What the model has done since it was loaded, and what is queued.
    #[napi(getter)]
    pub fn activity(&self) -> napi::Result<Activity, Code> {
        guarded(|| {
            let activity = self.model.activity();
            Ok(Activity {
                calls: activity.calls as u32,
                texts: activity.texts as f64,
                tokens: activity.tokens as f64,
                batches: activity.batches as f64,
            })
        })
    }

    /// Why a faster backend of the addon is not used; `null` if none was tried.
    #[napi(getter)]
    pub fn fallback_reason(&self) -> napi::Result<Option<String>, Code> {
        guarded(|| Ok(self.model.fallback_reason().map(str::to_owned)))
    }

    /// The model's resolved settings.
    #[napi(getter)]
    pub fn description(&self) -> napi::Result<Description, Code> {
        guarded(|| {
            let fingerprint = self.model.fingerprint().to_owned();
            Ok(Description::of(self.model.dir(), fingerprint))
        })
    }

    /// The backend that computes.
    #[napi(getter)]
    pub fn backend(&self) -> napi::Result<String, Code> {
        guarded(|| Ok(self.model.backend().to_owned()))
    }

    /// Whether a GPU computes.
    #[napi(getter)]
    pub fn is_gpu(&self) -> napi::Result<bool, Code> {
        guarded(|| Ok(self.model.is_gpu()))
    }

    /// The GPU, if WebGPU computes on one that can be named; otherwise `null`.
    #[napi(getter)]
    pub fn adapter(&self) -> napi::Result<Option<Adapter>, Code> {
        guarded(|| Ok(self.model.adapter().map(Adapter::from)))
    }
}

impl Model {
    /// A promise of a call's vectors.
    fn submit<'env>(
        &self,
        env: &'env Env,
        call: &mut Call,
        request: Request,
    ) -> Result<Object<'env>, Error> {
        let (deferred, promise) = env.create_deferred().map_err(node_error)?;
        let reply = move |result| {
            deferred.resolve(settlement(
                result,
                |_, result: engine::Embeddings<Vectors>| {
                    Ok(Embeddings {
                        vectors: typed_array(result.vectors),
                        truncated: Uint32Array::new(result.truncated),
                        tokens: result.tokens as u32,
                    })
                },
            ));
        };
        call.ticket = Some(self.model.submit(request, Box::new(reply)));
        Ok(promise)
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
pub fn init(model_dir: String, options: Option<ModelOptions>) -> napi::Result<(), Code> {
    guarded(|| init_process_model(PathBuf::from(model_dir), options))
}

fn init_process_model(model_dir: PathBuf, options: Option<ModelOptions>) -> Result<(), Error> {
    /// Held while loading, so that two threads do not load the model twice.
    static LOADING: Mutex<()> = Mutex::new(());
    let options = Options::try_from(options)?;
    let _loading = lock(&LOADING);
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
    #[napi(ts_arg_type = "Array<string | Uint32Array>")] texts: Texts,
    is_query: Option<bool>,
) -> napi::Result<Float32Array, Code> {
    guarded(|| {
        let texts = texts.copied?;
        let embeddings = process_model()?.embed(texts, is_query.unwrap_or(false))?;
        Ok(Float32Array::new(embeddings.vectors))
    })
}

/// Whether the process-wide model computes on a GPU.
#[napi]
pub fn is_gpu() -> napi::Result<bool, Code> {
    guarded(|| Ok(process_model()?.is_gpu()))
}

/// Writes the model's graph as `semantic-search-native.onnx` into its folder, for the JavaScript fallback. The file
/// holds no weights; its initializers point into the safetensors files beside it. With the dtype "int8" it is
/// `semantic-search-native.int8.onnx`, which holds the quantized ones. Resolves to its path.
#[napi(ts_return_type = "Promise<string>")]
pub fn export_onnx(
    env: &Env,
    model_dir: String,
    options: Option<ModelOptions>,
) -> napi::Result<Object<'_>, Code> {
    guarded(|| {
        promise(
            env,
            move || {
                let options = Options::try_from(options)?;
                model::export_onnx(&PathBuf::from(model_dir), &options)
            },
            |_, path| Ok(path.display().to_string()),
        )
    })
}

/// The instructions that the backend cpu computes with.
#[napi(object)]
pub struct CpuKernels {
    /// The level of instruction sets, as `SEMANTIC_SEARCH_CPU` names it.
    pub level: String,
    /// In float32.
    pub f32: String,
    /// In bfloat16; missing if the processor has no instructions for it.
    pub bf16: Option<String>,
    /// In int8.
    pub int8: String,
}

/// See `CpuKernels`.
#[napi]
pub fn cpu_kernels() -> napi::Result<CpuKernels, Code> {
    guarded(|| {
        let cpu::Kernels {
            level,
            f32,
            bf16,
            int8,
        } = cpu::kernel_names()?;
        Ok(CpuKernels {
            level: level.to_owned(),
            f32: f32.to_owned(),
            bf16: bf16.map(str::to_owned),
            int8: int8.to_owned(),
        })
    })
}

fn process_model() -> Result<&'static LoadedModel, Error> {
    let loaded = PROCESS_MODEL.get().ok_or(Error::NotInitialized)?;
    Ok(&loaded.model)
}

/// A promise of the result of `work`, which runs on a thread of its own, converted by `finish` on the JavaScript thread.
fn promise<T, J>(
    env: &Env,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    finish: impl FnOnce(Env, T) -> Result<J, Error> + Send + 'static,
) -> Result<Object<'_>, Error>
where
    T: Send + 'static,
    J: ToNapiValue + 'static,
{
    // The thread first: a promise that is never settled would keep the process alive for ever.
    let (sender, receiver) = mpsc::sync_channel::<Box<dyn FnOnce(Result<T, Error>) + Send>>(1);
    guard::spawn("embedder-call", move || {
        if let Ok(settle) = receiver.recv() {
            settle(guard::run(work));
        }
    })?;
    let (deferred, promise) = env.create_deferred().map_err(node_error)?;
    let settle = move |result| deferred.resolve(settlement(result, finish));
    // The thread waits for it.
    let _ = sender.send(Box::new(settle));
    Ok(promise)
}

/// Ends the model's threads before the environment that loaded it is torn down (when a worker thread or the process
/// exits): no thread may compute while the libraries that it uses are being unloaded.
fn close_with_environment(env: Env, model: &Arc<LoadedModel>) -> Result<(), Error> {
    env.add_env_cleanup_hook(Arc::downgrade(model), |model: Weak<LoadedModel>| {
        let _ = guard::catch(|| {
            if let Some(model) = model.upgrade() {
                model.close_soon();
            }
        });
    })
    .map_err(node_error)?;
    Ok(())
}

/// The status of a thrown error, which napi uses as the JavaScript error's `code`.
type Code = &'static str;

/// Wraps the body of every function that JavaScript calls, so that no panic escapes.
fn guarded<T>(body: impl FnOnce() -> Result<T, Error>) -> napi::Result<T, Code> {
    guard::run(body).map_err(|error| thrown(&error))
}

/// Settles a promise on the JavaScript thread: with `result` as converted by `finish`, or by rejecting it.
fn settlement<T, J>(
    result: Result<T, Error>,
    finish: impl FnOnce(Env, T) -> Result<J, Error> + Send + 'static,
) -> impl FnOnce(Env) -> napi::Result<J> + Send + 'static
where
    T: Send + 'static,
    J: ToNapiValue + 'static,
{
    move |env| {
        guard::run(|| finish(env, result?)).map_err(|error| {
            // napi rejects with its own statuses only, so the error object is created here and passed by reference.
            napi::Error::from(JsError::from(thrown(&error)).into_unknown(env))
        })
    }
}

fn thrown(error: &Error) -> napi::Error<Code> {
    napi::Error::new(error.code(), error.to_string())
}

/// Node.js itself refused.
fn node_error(error: napi::Error) -> Error {
    Error::inference(error.reason.clone())
}
