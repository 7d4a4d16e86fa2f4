//! Linear layers in int8, for the ONNX backend: a quarter of the memory, and products that processors compute several
//! times faster than those of float32. Embeddings, norms, biases, softmax and feed-forwards of experts stay float32.
//!
//! Weights have one scale per output and are quantized once ([`scheme`]); the result is kept in a file in the cache folder
//! ([`cache`]). Activations have one scale per token, computed at run time (`runtime/onnx/write.rs`), so that a token's
//! numbers never depend on the tokens beside it.

pub mod cache;
pub mod scheme;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::checkpoint::{Checkpoint, TensorSlice, hexadecimal, sha256_hex};
use crate::error::{Error, Result};
use crate::pages::Pages;

/// Metadata of the file: SHA-256 over the [`source_digest`] of the weights that were quantized and over the layers' names,
/// shapes and contents, in the order of their names.
const DIGEST: &str = "sha256";

/// The quantized weights of a model's linear layers, as the bytes of a safetensors file.
pub struct Int8Weights {
    bytes: Pages,
    places: Vec<Place>,
}

/// A linear layer in int8.
pub struct QuantizedLinear<'a> {
    /// The checkpoint's name of the weights.
    pub name: &'a str,
    /// `[inputs, outputs]`.
    pub shape: [usize; 2],
    /// int8 in two's complement, row-major.
    pub values: &'a [u8],
    /// The factor for the numbers of each output: little-endian float32 `[outputs]`.
    pub scales: &'a [u8],
}

/// Where a layer's parts lie among the bytes.
struct Place {
    name: String,
    shape: [usize; 2],
    values: Range<usize>,
    scales: Range<usize>,
}

impl Int8Weights {
    /// The layers' weights in int8: from the cache folder, or quantized and stored there. If the folder cannot be written,
    /// the next process quantizes again. Also returns a warning if the folder is not used because it is not safe.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn load(
        checkpoint: &Checkpoint,
        layers: &[TensorSlice],
        cache_folder: Option<&Path>,
    ) -> Result<(Self, Option<String>)> {
        let source = source_digest(checkpoint);
        let file = cache_folder.map(|folder| cache::file(folder, &source));
        let read = |file| cache::read(file, most_bytes(layers));
        let (found, warning) = match file.as_deref().map(read).transpose() {
            Ok(found) => (found.flatten(), None),
            Err(warning) => (None, Some(warning)),
        };
        if let Some(weights) = found.and_then(|bytes| Self::read(bytes, &source, layers)) {
            return Ok((weights, None));
        }
        let bytes = quantize(checkpoint, layers, &source)?;
        if let Some(file) = file.filter(|_| warning.is_none()) {
            cache::store(&file, &bytes);
        }
        let mut pages = Pages::zeroed(bytes.len(), "int8 weights")?;
        pages.copy_from_slice(&bytes);
        let weights = Self::read(pages, &source, layers)
            .ok_or_else(|| Error::inference("quantized weights cannot be read back"))?;
        Ok((weights, warning))
    }

    /// `None` if the bytes are damaged or are not the result of quantizing these layers.
    fn read(bytes: Pages, source: &str, layers: &[TensorSlice]) -> Option<Self> {
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let digest = header.metadata().as_ref()?.get(DIGEST)?;
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let start = bytes.as_ptr() as usize;
        let range = |view: &TensorView| {
            let offset = view.data().as_ptr() as usize - start;
            offset..offset + view.data().len()
        };
        let mut content = Sha256::new_with_prefix(source);
        let mut places = Vec::with_capacity(layers.len());
        for layer in sorted(layers) {
            let [outputs, inputs] = layer.shape[..] else {
                return None;
            };
            let values = tensors.tensor(&layer.name).ok()?;
            let scales = tensors.tensor(&scales_name(&layer.name)).ok()?;
            let fits = values.dtype() == Dtype::I8
                && values.shape() == [inputs, outputs]
                && scales.dtype() == Dtype::F32
                && scales.shape() == [outputs];
            if !fits {
                return None;
            }
            digest_layer(&mut content, layer, values.data(), scales.data());
            places.push(Place {
                name: layer.name.clone(),
                shape: [inputs, outputs],
                values: range(&values),
                scales: range(&scales),
            });
        }
        if *digest != hexadecimal(&content.finalize()) {
            return None;
        }
        Some(Self { bytes, places })
    }

    /// The memory that holds the layers.
    pub(crate) fn pages(&self) -> &Pages {
        &self.bytes
    }

    /// Every layer, ordered by name.
    pub fn layers(&self) -> impl Iterator<Item = QuantizedLinear<'_>> {
        self.places.iter().map(|place| QuantizedLinear {
            name: &place.name,
            shape: place.shape,
            values: &self.bytes[place.values.clone()],
            scales: &self.bytes[place.scales.clone()],
        })
    }
}

/// The name of a layer's scales, in files and graphs.
#[must_use]
pub fn scales_name(layer: &str) -> String {
    format!("{layer}.scale")
}

/// Identifies the checkpoint's contents and the way of quantizing them.
fn source_digest(checkpoint: &Checkpoint) -> String {
    let identity = format!(
        "scheme {}, {}",
        scheme::VERSION,
        checkpoint.digests().join(",")
    );
    sha256_hex(identity.as_bytes())
}

/// Quantizes every layer into one safetensors file.
fn quantize(checkpoint: &Checkpoint, layers: &[TensorSlice], source: &str) -> Result<Vec<u8>> {
    let mut content = Sha256::new_with_prefix(source);
    let mut tensors = Vec::with_capacity(2 * layers.len());
    for layer in sorted(layers) {
        let (outputs, inputs) = (layer.shape[0], layer.len() / layer.shape[0]);
        let quantized = scheme::quantize(&checkpoint.floats(layer)?, inputs)?;
        let scales: Vec<u8> = quantized
            .scales
            .iter()
            .flat_map(|scale| scale.to_le_bytes())
            .collect();
        digest_layer(&mut content, layer, &quantized.values, &scales);
        let values = Part(Dtype::I8, vec![inputs, outputs], quantized.values);
        tensors.push((layer.name.clone(), values));
        let scales = Part(Dtype::F32, vec![outputs], scales);
        tensors.push((scales_name(&layer.name), scales));
    }
    let digest = hexadecimal(&content.finalize());
    let metadata = HashMap::from([(DIGEST.to_owned(), digest)]);
    safetensors::serialize(tensors, Some(metadata)).map_err(Error::inference)
}

/// Most bytes that a file with these layers may have.
fn most_bytes(layers: &[TensorSlice]) -> u64 {
    let layer = |layer: &TensorSlice| {
        // A number each and a scale for each output; in the header, name and place of both.
        let scales = layer
            .shape
            .first()
            .map_or(0, |outputs| outputs * size_of::<f32>());
        layer.len() + scales + 2 * (layer.name.len() + 256)
    };
    let header = 4096;
    layers.iter().map(layer).sum::<usize>() as u64 + header
}

fn sorted(layers: &[TensorSlice]) -> Vec<&TensorSlice> {
    let mut layers: Vec<_> = layers.iter().collect();
    layers.sort_by(|a, b| a.name.cmp(&b.name));
    layers
}

fn digest_layer(content: &mut Sha256, layer: &TensorSlice, values: &[u8], scales: &[u8]) {
    content.update(format!("{} {:?}", layer.name, layer.shape));
    content.update(scales);
    content.update(values);
}

/// A tensor of the file that is written.
struct Part(Dtype, Vec<usize>, Vec<u8>);

impl safetensors::View for Part {
    fn dtype(&self) -> Dtype {
        self.0
    }

    fn shape(&self) -> &[usize] {
        &self.1
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.2)
    }

    fn data_len(&self) -> usize {
        self.2.len()
    }
}
