//! Text and code embeddings for semantic search, and scores of rerankers, computed inside a Node.js process.
//!
//! # From texts to vectors
//!
//! ```text
//! texts     →  TypeScript   checks arguments, chooses the backend
//!           →  node         texts cross into Rust; everything below runs off the JavaScript thread
//!           →  engine       one queue per model, queries before bulk work, one thread per worker
//!           →  tokenizer    texts → token ids, truncated to the limit; or the caller's ids, checked
//!           →  batch        lengths → batches (pure)
//!           →  runtime      ids → pooled vectors, [texts, width]
//!           →  vector       NaN scan, truncation to fewer dimensions, L2 normalization, encoding (pure)
//!           →  one typed array, returned as one view per text
//! ```
//!
//! A reranker goes the same way: its texts are pairs of a query and a text, and its vectors have one number, the score.
//!
//! # Where things are
//!
//! - [`model_dir`] reads a model folder, [`dense`] the layers behind its pooling, [`chat_template`] and [`logit_score`] what
//!   rerankers have that are language models, and `json_file` its settings files; [`checkpoint`] reads the weights. [`options`] is what callers may decide.
//! - [`arch`] holds the encoders: an architecture is one file and one line in a table. It records what it computes into a
//!   [`graph`], which is plain data. A static model is such a graph of one table.
//! - [`runtime`] reads such a graph. [`runtime::onnx`] turns it into an ONNX graph, whose initializers point into the
//!   safetensors file as it was read; [`runtime::cpu`] computes it with kernels of its own, in bfloat16 and int8 above all;
//!   [`runtime::webgpu`] is ONNX Runtime on a GPU, held against the CPU before it is used; `runtime::mlx` computes the graph
//!   batch by batch on Apple's and NVIDIA's GPUs.
//! - [`int8`] quantizes weights.
//! - `pieces` splits long texts, so that no more is tokenized than the limit allows.
//! - [`batch`] and [`vector`] are pure and know neither runtimes nor Node.
//! - [`engine`] owns the queue and the threads. [`model`] puts everything together; it is the Rust API.
//! - `guard` catches panics and starts threads; `memory` allocates what may not fit; `sync` is locks without poisoning.
//! - `node` is the only code that knows Node.js. It is behind the default feature `node`, so that tests link without it.
//!
//! # Promises
//!
//! - The vector of a text does not depend on the other texts of a call: batches are never padded on the CPU.
//! - Pooling, prompts and limits come from the model folder or from the caller. If neither says, that is an error.
//! - No panic and no NaN leaves this crate.

pub mod arch;
pub mod batch;
pub mod chat_template;
pub mod checkpoint;
pub mod dense;
pub mod engine;
pub mod error;
mod file;
pub mod graph;
mod guard;
pub mod int8;
mod json_file;
pub mod logit_score;
mod memory;
pub mod model;
pub mod model_dir;
#[cfg(feature = "node")]
mod node;
pub mod options;
mod pages;
mod pieces;
pub mod runtime;
mod sync;
pub mod tokenizer;
pub mod vector;

pub use engine::Embeddings;
pub use error::{Error, Result};
pub use model::{Model, export_onnx};
pub use options::Options;
pub use tokenizer::Input;
