//! The initializers that all sessions of a model share.
//!
//! # What is kept in memory
//!
//! Sessions are given pointers. While a session is made, the kernels of linear layers pack the matrices into a layout of
//! their own, which all sessions share, and do not read the matrices again: ONNX Runtime itself drops its own initializers
//! at that point. So once the last session of a model is made, [`SharedWeights::keep_only`] returns their pages to the
//! system. What other operators read in place stays: embedding tables, norms and biases.
//!
//! ONNX Runtime requires the buffers to outlive the sessions, and as addresses they do. Whether the kernels still read them
//! depends on ONNX Runtime's version, the processor and the shape of the matrix. So each shape is tested (see
//! [`super::packing`]), and matrices that are still read are kept.

use std::ffi::CString;
use std::ops::Range;
use std::sync::Arc;

use ort::AsPointer;
use ort::session::builder::{PrepackedWeights, SessionBuilder};
use ort::value::TensorRef;

use super::packing::Matrix;
use crate::checkpoint::{Checkpoint, TensorSlice};
use crate::error::{Error, Result};
use crate::pages::{Pages, addresses};

/// Weights by name, as sessions take them, and their packed form.
pub struct Initializers {
    tensors: Vec<(CString, TensorRef<'static, f32>)>,
    pub prepacked: PrepackedWeights,
}

impl Initializers {
    pub fn new() -> Self {
        Self {
            tensors: Vec::new(),
            prepacked: PrepackedWeights::new(),
        }
    }

    /// Adds a float32 tensor, whose bytes are aligned.
    ///
    /// # Safety
    /// The bytes outlive `self` and every session that it is added to. Until then they change only where no session reads
    /// them any more.
    pub unsafe fn add_floats(&mut self, name: &str, shape: &[usize], bytes: &[u8]) -> Result<()> {
        // SAFETY: aligned, and every bit pattern is a float32; the rest is the contract of this function.
        let values: &'static [f32] = unsafe {
            std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<f32>())
        };
        let tensor =
            TensorRef::from_array_view((shape.to_vec(), values)).map_err(Error::inference)?;
        let name = CString::new(name).map_err(Error::inference)?;
        self.tensors.push((name, tensor));
        Ok(())
    }

    /// Hands the initializers to a session under construction.
    pub fn add_to(&self, builder: &mut SessionBuilder) -> Result<(), ort::Error> {
        for (name, tensor) in &self.tensors {
            // SAFETY: both pointers are valid for the call, and the name is copied. The session keeps the tensor's
            // data pointer, which is valid by the contracts above.
            unsafe {
                let status =
                    (ort::api().AddInitializer)(builder.ptr_mut(), name.as_ptr(), tensor.ptr());
                ort::Error::result_from_status(status)?;
            }
        }
        Ok(())
    }

    /// The same for a session on a GPU, which copies them: only what is put into the graph itself reaches another device.
    pub fn copy_to(&self, builder: &mut SessionBuilder) -> Result<(), ort::Error> {
        let names: Vec<_> = self.tensors.iter().map(|(name, _)| name.as_ptr()).collect();
        let tensors: Vec<_> = self
            .tensors
            .iter()
            .map(|(_, tensor)| tensor.ptr())
            .collect();
        // SAFETY: all pointers are valid for the call, and names are copied. The tensors' data is valid by the contracts above.
        unsafe {
            let status = (ort::api().AddExternalInitializers)(
                builder.ptr_mut(),
                names.as_ptr(),
                tensors.as_ptr(),
                names.len(),
            );
            ort::Error::result_from_status(status)
        }
    }
}

/// A model's weights. Its sessions point into them: workers hold them until their sessions are gone.
pub struct SharedWeights {
    pub initializers: Initializers,
    checkpoint: Arc<Checkpoint>,
    /// float32 copies of weights that the checkpoint has in half precision.
    converted: Vec<Pages>,
    /// Where the bytes of linear layers lie, as addresses.
    matrices: Vec<Range<usize>>,
    /// Where the bytes of all other weights lie.
    others: Vec<Range<usize>>,
}

impl SharedWeights {
    /// `weights` are converted to float32.
    pub fn new(checkpoint: Arc<Checkpoint>, weights: &[GraphWeight]) -> Result<Self> {
        let mut shared = Self {
            initializers: Initializers::new(),
            checkpoint,
            converted: Vec::new(),
            matrices: Vec::new(),
            others: Vec::new(),
        };
        for GraphWeight { tensor, matrix } in weights {
            let converted = shared.checkpoint.converted(tensor)?;
            let bytes = match &converted {
                Some(pages) => pages,
                None => shared.checkpoint.bytes(tensor),
            };
            let place = addresses(bytes);
            // SAFETY: the bytes lie in the checkpoint or in pages of `converted`, neither of which moves, and this struct
            // keeps both for as long as the initializers. `keep_only` alone changes them.
            unsafe {
                (shared.initializers).add_floats(&tensor.name, &tensor.shape, bytes)?;
            };
            shared.converted.extend(converted);
            if matrix.is_some() {
                shared.matrices.push(place);
            } else {
                shared.others.push(place);
            }
        }
        Ok(shared)
    }

    /// Where the weights lie that sessions read in place: all that kernels have not packed, if they pack matrices.
    pub fn read_in_place(&self, are_packed: bool) -> Vec<Range<usize>> {
        if are_packed {
            self.others.clone()
        } else {
            [&self.others[..], &self.matrices].concat()
        }
    }

    /// Returns the memory of all other weights, and of what the checkpoint holds beside them, to the system.
    ///
    /// # Safety
    /// No more sessions are made from these weights, and those that there are read nothing that is not kept.
    pub unsafe fn keep_only(&self, kept: &[Range<usize>]) {
        // SAFETY: only this struct has the pages, and refers to them through the initializers only; sessions read those that
        // are kept.
        unsafe {
            for pages in &self.converted {
                pages.keep_only(kept);
            }
            Checkpoint::keep_only(&self.checkpoint, kept);
        }
    }
}

/// A weight that a graph takes as float32.
pub struct GraphWeight {
    pub tensor: TensorSlice,
    /// How it is taken, if it is only used as the matrix of a product.
    pub matrix: Option<Matrix>,
}
