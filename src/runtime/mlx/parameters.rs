//! An encoder's weights as MLX arrays, laid out as the forward pass wants them.
//!
//! They are found by a dry run: [`Loader`] implements [`Ops`] without computing anything and takes from each operation
//! the weights that it names. What would be done to weights on every pass is done here once: q, k and v are
//! joined, matrices are seen transposed, the token type is added to a table.

use std::collections::HashMap;

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, ops, transforms};

use super::{mlx_error, size};
use crate::arch::{
    Activation, Attention, Embeddings, Encoder, LayerNorm, Linear, Ops, Pooling, Projections,
    Tokens,
};
use crate::checkpoint::{Checkpoint, TensorSlice, WeightType};
use crate::error::{Error, Result};

/// A fully connected layer.
pub struct Affine {
    /// `[in, out]`: the checkpoint's matrix seen transposed, without a copy.
    pub weight: Array,
    /// `[out]`.
    pub bias: Option<Array>,
}

/// The projections of an attention, joined.
pub enum FusedProjections {
    /// q|k|v of all tokens.
    All(Affine),
    /// q of the first token, k|v of all.
    First(Affine, Affine),
}

/// All weights of an encoder.
pub struct Parameters {
    /// Number format of everything but the norms, which stay float32.
    pub dtype: Dtype,
    /// `[vocabulary, width]`.
    pub words: Array,
    /// `[positions, width]`.
    pub positions: Option<Array>,
    /// By the weight's name.
    pub linears: HashMap<String, Affine>,
    /// Scale and shift, float32, by the scale's name.
    pub norms: HashMap<String, (Array, Array)>,
    /// By the name of the query's weight.
    pub projections: HashMap<String, FusedProjections>,
}

impl Parameters {
    /// Loads what the encoder's forward pass needs.
    ///
    /// # Errors
    /// MLX failed, for lack of memory for instance.
    pub fn load(
        encoder: &Encoder,
        checkpoint: &Checkpoint,
        pooling: &[Pooling],
        dtype: Dtype,
    ) -> Result<Self> {
        let mut loader = Loader {
            checkpoint,
            dtype,
            embeddings: None,
            linears: HashMap::new(),
            norms: HashMap::new(),
            projections: HashMap::new(),
        };
        encoder.embed(&mut loader, pooling)?;
        let (words, positions) = loader.embeddings.ok_or_else(|| Error::InferenceFailed {
            reason: "the encoder embeds no tokens".to_owned(),
        })?;
        let parameters = Self {
            dtype,
            words,
            positions,
            linears: loader.linears,
            norms: loader.norms,
            projections: loader.projections,
        };
        transforms::eval(parameters.arrays()).map_err(mlx_error)?;
        Ok(parameters)
    }

    fn arrays(&self) -> Vec<&Array> {
        let projections = self.projections.values().flat_map(|fused| match fused {
            FusedProjections::All(all) => vec![all],
            FusedProjections::First(query, rest) => vec![query, rest],
        });
        let affines = self.linears.values().chain(projections);
        let mut arrays: Vec<&Array> = affines
            .flat_map(|affine| std::iter::once(&affine.weight).chain(&affine.bias))
            .collect();
        arrays.extend(
            self.norms
                .values()
                .flat_map(|(scale, shift)| [scale, shift]),
        );
        arrays.push(&self.words);
        arrays.extend(&self.positions);
        arrays
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    dtype: Dtype,
    embeddings: Option<(Array, Option<Array>)>,
    linears: HashMap<String, Affine>,
    norms: HashMap<String, (Array, Array)>,
    projections: HashMap<String, FusedProjections>,
}

impl Loader<'_> {
    fn array(&self, tensor: &TensorSlice, dtype: Dtype) -> Result<Array> {
        let stored = match tensor.dtype {
            WeightType::F32 => Dtype::Float32,
            WeightType::F16 => Dtype::Float16,
            WeightType::BF16 => Dtype::Bfloat16,
        };
        let shape = tensor.shape.iter().map(|&length| size(length));
        let shape = shape.collect::<Result<Vec<i32>>>()?;
        let bytes = self.checkpoint.bytes(tensor);
        // SAFETY: MLX copies shape × dtype bytes, which is the length of `bytes`; any address will do for a copy.
        let array = unsafe { Array::from_raw_data(bytes.as_ptr().cast(), &shape, stored) };
        if array.as_ptr().ctx.is_null() {
            return Err(Error::no_memory(bytes.len(), &format!("`{}`", tensor.name)));
        }
        if stored == dtype {
            Ok(array)
        } else {
            array.as_dtype(dtype).map_err(mlx_error)
        }
    }

    /// Several layers with the same input as one.
    fn join(&self, layers: &[&Linear]) -> Result<Affine> {
        let load = |tensor: &TensorSlice| self.array(tensor, self.dtype);
        let weights = layers
            .iter()
            .map(|layer| load(&layer.weight))
            .collect::<Result<Vec<_>>>()?;
        let biases = layers
            .iter()
            .filter_map(|layer| layer.bias.as_ref())
            .map(load);
        let biases = biases.collect::<Result<Vec<_>>>()?;
        let joined = || -> Result<Affine, Exception> {
            Ok(Affine {
                weight: concatenate(weights)?.transpose()?,
                bias: if biases.is_empty() {
                    None
                } else {
                    Some(concatenate(biases)?)
                },
            })
        };
        joined().map_err(mlx_error)
    }

    fn add_norm_weights(&mut self, norm: &LayerNorm) -> Result<()> {
        let pair = (
            self.array(&norm.weight, Dtype::Float32)?,
            self.array(&norm.bias, Dtype::Float32)?,
        );
        self.norms.insert(norm.weight.name.clone(), pair);
        Ok(())
    }
}

fn concatenate(mut arrays: Vec<Array>) -> Result<Array, Exception> {
    match arrays.len() {
        1 => Ok(arrays.remove(0)),
        _ => ops::concatenate(&arrays, 0),
    }
}

impl Ops for Loader<'_> {
    type Tensor = ();

    fn embed(&mut self, embeddings: &Embeddings) -> Result<()> {
        let mut words = self.array(&embeddings.words, self.dtype)?;
        let mut positions = match &embeddings.positions {
            Some(table) => Some(self.array(table, self.dtype)?),
            None => None,
        };
        if let Some(token_type) = &embeddings.token_type {
            let token_type = self.array(token_type, self.dtype)?;
            let table = positions.as_mut().unwrap_or(&mut words);
            *table = ops::add(&*table, &token_type).map_err(mlx_error)?;
        }
        self.embeddings = Some((words, positions));
        Ok(())
    }

    fn linear(&mut self, _x: &(), linear: &Linear) -> Result<()> {
        let affine = self.join(&[linear])?;
        self.linears.insert(linear.weight.name.clone(), affine);
        Ok(())
    }

    fn layer_norm(&mut self, _x: &(), norm: &LayerNorm) -> Result<()> {
        self.add_norm_weights(norm)
    }

    fn add_norm(&mut self, _x: &(), _residual: &(), norm: &LayerNorm) -> Result<()> {
        self.add_norm_weights(norm)
    }

    fn activate(&mut self, _x: &(), _activation: Activation) -> Result<()> {
        Ok(())
    }

    fn gate(&mut self, _x: &(), _gate: &(), _activation: Activation) -> Result<()> {
        Ok(())
    }

    fn attention(
        &mut self,
        _x: &(),
        projections: &Projections,
        _attention: &Attention,
        tokens: Tokens,
    ) -> Result<()> {
        let Projections { query, key, value } = projections;
        let fused = match tokens {
            Tokens::All => FusedProjections::All(self.join(&[query, key, value])?),
            Tokens::First => {
                FusedProjections::First(self.join(&[query])?, self.join(&[key, value])?)
            }
        };
        self.projections.insert(query.weight.name.clone(), fused);
        Ok(())
    }

    fn first_token(&mut self, _x: &()) -> Result<()> {
        Ok(())
    }

    fn pool(&mut self, _x: &(), _pooling: &[Pooling]) -> Result<()> {
        Ok(())
    }
}
