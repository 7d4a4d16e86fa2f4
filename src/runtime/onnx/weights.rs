//! The initializers that all sessions of a model share.

use std::borrow::Cow;
use std::ffi::CString;
use std::sync::Arc;

use ort::AsPointer;
use ort::session::builder::{PrepackedWeights, SessionBuilder};
use ort::value::TensorRef;

use crate::checkpoint::{Checkpoint, TensorSlice};
use crate::error::{Error, Result};
use crate::int8::Int8Weights;

/// The graph's weights, and their packed form, shared by all sessions.
pub struct SharedWeights {
    initializers: Vec<(CString, Initializer)>,
    pub prepacked: PrepackedWeights,
    /// What `initializers` point into.
    _checkpoint: Arc<Checkpoint>,
    _converted: Vec<Vec<f32>>,
    _int8: Option<Int8Weights>,
}

enum Initializer {
    Float(TensorRef<'static, f32>),
    Int8(TensorRef<'static, i8>),
}

impl SharedWeights {
    /// `weights` become float32, `int8` is handed over as it is.
    pub fn new(
        checkpoint: Arc<Checkpoint>,
        weights: &[TensorSlice],
        int8: Option<Int8Weights>,
    ) -> Result<Self> {
        let mut converted = Vec::new();
        let mut initializers = Vec::with_capacity(weights.len());
        for weight in weights {
            let values = match checkpoint.floats(weight)? {
                Cow::Borrowed(values) => std::ptr::from_ref(values),
                Cow::Owned(values) => {
                    converted.push(values);
                    std::ptr::from_ref(&*converted[converted.len() - 1])
                }
            };
            // SAFETY: the values lie in the mapped checkpoint or in a vector that is not touched again, neither of
            // which moves, and this struct keeps both for as long as the tensors exist: fields drop in order of
            // declaration.
            let values: &'static [f32] = unsafe { &*values };
            let tensor = TensorRef::from_array_view((weight.shape.clone(), values))
                .map_err(|error| Error::inference(&error))?;
            initializers.push((name(&weight.name)?, Initializer::Float(tensor)));
        }
        for layer in int8.iter().flat_map(Int8Weights::layers) {
            // SAFETY: a byte is an int8, and the bytes lie in a mapping or a vector of `int8`, as above.
            let values: &'static [i8] = unsafe {
                std::slice::from_raw_parts(layer.values.as_ptr().cast(), layer.values.len())
            };
            let tensor = TensorRef::from_array_view((layer.shape, values))
                .map_err(|error| Error::inference(&error))?;
            initializers.push((name(layer.name)?, Initializer::Int8(tensor)));
        }
        Ok(Self {
            initializers,
            prepacked: PrepackedWeights::new(),
            _checkpoint: checkpoint,
            _converted: converted,
            _int8: int8,
        })
    }

    /// Hands the initializers to a session under construction.
    pub fn add_to(&self, builder: &mut SessionBuilder) -> Result<(), ort::Error> {
        for (name, initializer) in &self.initializers {
            let tensor = match initializer {
                Initializer::Float(tensor) => tensor.ptr(),
                Initializer::Int8(tensor) => tensor.ptr(),
            };
            // SAFETY: both pointers are valid for the call, and the name is copied. The session keeps the tensor's
            // data pointer; its worker holds an `Arc` of `self` until the session is gone.
            unsafe {
                let status = (ort::api().AddInitializer)(builder.ptr_mut(), name.as_ptr(), tensor);
                ort::Error::result_from_status(status)?;
            }
        }
        Ok(())
    }
}

fn name(name: &str) -> Result<CString> {
    CString::new(name).map_err(|error| Error::inference(&error))
}
