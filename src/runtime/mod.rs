//! What computes an encoder: one [`Runtime`] per loaded model, made of workers that own their state.

pub mod onnx;

use crate::batch::{Batch, Limits};
use crate::error::Result;

/// Computes batches, one at a time, on the thread that owns it.
pub trait Worker: Send {
    /// The pooled vectors of the batch, `[texts, dimension]` row-major, not yet normalized.
    ///
    /// # Errors
    /// The runtime failed.
    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>>;
}

/// A model on a runtime, ready to compute.
pub struct Runtime {
    /// The backend's name, as users know it.
    pub backend: &'static str,
    /// Whether a GPU computes.
    pub is_gpu: bool,
    /// Number format of the weights while computing, as it enters the fingerprint.
    pub dtype: &'static str,
    /// What suits a worker's batch.
    pub limits: Limits,
    /// Workers for bulk work, each to be given a thread.
    pub workers: Vec<Box<dyn Worker>>,
    /// A worker that uses the whole machine for one text, where that is another one than `workers[0]`.
    pub lone: Option<Box<dyn Worker>>,
}
