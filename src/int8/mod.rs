//! Linear layers in int8: a quarter of the memory, and products that processors compute several times faster than those of
//! float32. Embeddings, norms, biases, softmax and feed-forwards of experts stay float32.
//!
//! Weights have one scale per output ([`scheme`]), activations one per token, computed at run time: a token's numbers never
//! depend on the tokens beside it. `runtime/cpu` computes such layers; [`Int8Weights`] are those of an exported graph.

pub mod scheme;

use crate::checkpoint::{Checkpoint, TensorSlice};
use crate::error::Result;

/// The quantized weights of linear layers.
pub struct Int8Weights(Vec<(TensorSlice, scheme::Quantized)>);

/// A linear layer in int8.
pub struct QuantizedLinear<'a> {
    /// The checkpoint's name of the weights.
    pub name: &'a str,
    /// `[inputs, outputs]`.
    pub shape: [usize; 2],
    /// int8 in two's complement, row-major.
    pub values: &'a [u8],
    /// The factor for the numbers of each output, `[outputs]`.
    pub scales: &'a [f32],
}

impl Int8Weights {
    /// Quantizes layers.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn quantize(checkpoint: &Checkpoint, layers: &[TensorSlice]) -> Result<Self> {
        let quantized = layers.iter().map(|layer| {
            let inputs = layer.len() / layer.shape[0];
            let weights = scheme::quantize(&checkpoint.floats(layer)?, inputs)?;
            Ok((layer.clone(), weights))
        });
        Ok(Self(quantized.collect::<Result<_>>()?))
    }

    /// Every layer.
    pub fn layers(&self) -> impl Iterator<Item = QuantizedLinear<'_>> {
        self.0.iter().map(|(layer, weights)| QuantizedLinear {
            name: &layer.name,
            shape: [layer.len() / layer.shape[0], layer.shape[0]],
            values: &weights.values,
            scales: &weights.scales,
        })
    }
}

/// The name of a layer's scales in graphs.
#[must_use]
pub fn scales_name(layer: &str) -> String {
    format!("{layer}.scale")
}
