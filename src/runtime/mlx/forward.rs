//! One forward pass over a padded batch, as MLX arrays.
//!
//! Hidden states are kept flat, `[batch · length, width]`, so that a linear layer is a single matrix product; only
//! attention sees `[batch, heads, length, head_dim]`. Nothing is computed until the pass is evaluated.
//!
//! In half precision the norms compute in float32 (their weights are float32, which MLX takes for the result as
//! well), and their results are rounded back; so does pooling. Everything else stays in the weights' format.

use std::ffi::c_void;

use half::{bf16, f16};
use mlx_rs::error::Exception;
use mlx_rs::fast::{self, ScaledDotProductAttentionMask};
use mlx_rs::transforms::compile::compile;
use mlx_rs::{Array, Dtype, ops};

use super::parameters::{Affine, FusedProjections, Parameters};
use super::{mlx_error, size};
use crate::arch::{
    Activation, Attention, Embeddings, LayerNorm, Linear, Ops, Pooling, Projections, Rotary, Tokens,
};
use crate::error::{Error, Result};
use crate::runtime::gate;
use crate::runtime::stop::Stop;

type Unary = Box<dyn for<'a> FnMut(&'a Array) -> Result<Array, Exception>>;
type Binary = Box<dyn for<'a> FnMut((&'a Array, &'a Array)) -> Result<Array, Exception>>;

/// Element-wise functions, each compiled once to a single kernel where compiling is switched on (on a GPU).
pub struct Kernels {
    gelu: Unary,
    gelu_tanh: Unary,
    silu: Unary,
    swiglu: Binary,
}

impl Kernels {
    /// For the MLX thread only: compiled functions belong to it.
    pub fn new() -> Self {
        Self {
            gelu: Box::new(compile(gelu, true)),
            gelu_tanh: Box::new(compile(gelu_tanh, true)),
            silu: Box::new(compile(silu, true)),
            swiglu: Box::new(compile(
                |(x, gate): (&Array, &Array)| ops::multiply(x, silu(gate)?),
                true,
            )),
        }
    }
}

/// `x · (1 + erf(x / √2)) / 2`
fn gelu(x: &Array) -> Result<Array, Exception> {
    let constant = |value| constant(value, x.dtype());
    let curve = ops::erf(ops::multiply(x, constant(std::f32::consts::FRAC_1_SQRT_2))?)?;
    ops::multiply(
        ops::multiply(x, constant(0.5))?,
        ops::add(curve, constant(1.0))?,
    )
}

/// `x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2`
fn gelu_tanh(x: &Array) -> Result<Array, Exception> {
    let constant = |value| constant(value, x.dtype());
    let cube = ops::multiply(ops::multiply(x, x)?, x)?;
    let inner = ops::add(x, ops::multiply(cube, constant(0.044_715))?)?;
    let curve = ops::tanh(ops::multiply(
        inner,
        constant((2.0 / std::f32::consts::PI).sqrt()),
    )?)?;
    ops::multiply(
        ops::multiply(x, constant(0.5))?,
        ops::add(curve, constant(1.0))?,
    )
}

fn silu(x: &Array) -> Result<Array, Exception> {
    ops::multiply(x, ops::sigmoid(x)?)
}

/// A scalar that does not widen what it is combined with, as a float32 one would.
fn constant(value: f32, dtype: Dtype) -> Array {
    match dtype {
        Dtype::Float16 => Array::from_slice(&[f16::from_f32(value)], &[]),
        Dtype::Bfloat16 => Array::from_slice(&[bf16::from_f32(value)], &[]),
        _ => Array::from_f32(value),
    }
}

/// Hidden states, flat.
pub struct States {
    array: Array,
    /// Which tokens the rows stand for.
    tokens: Tokens,
}

/// The lengths of a padded batch.
pub struct Shape {
    /// Number of texts.
    pub batch: i32,
    /// Length that every text is padded to.
    pub length: i32,
    /// Real lengths of the texts; empty where nothing is padded.
    pub lengths: Vec<i32>,
    /// [`crate::arch::NtkScaling::stretch`] of the batch; all its texts share one.
    pub stretch: f64,
}

/// One batch on its way through an encoder.
pub struct Pass<'a> {
    parameters: &'a Parameters,
    kernels: &'a mut Kernels,
    stop: &'a Stop,
    shape: Shape,
    ids: Array,
    /// `[batch, 1, 1, length]`, true for real tokens; only where something is padded.
    mask: Option<Array>,
    /// Divisors of the positions, `[dimensions / 2]`, made by the first rotation.
    wavelengths: Option<Array>,
}

impl<'a> Pass<'a> {
    /// `ids` is `[batch · length]`, padded with any valid id.
    ///
    /// # Errors
    /// MLX has no memory for the batch.
    pub fn new(
        parameters: &'a Parameters,
        kernels: &'a mut Kernels,
        shape: Shape,
        ids: &[u32],
        stop: &'a Stop,
    ) -> Result<Self> {
        let (batch, length) = (shape.batch, shape.length);
        let mask = if shape.lengths.is_empty() {
            None
        } else {
            let real = shape
                .lengths
                .iter()
                .flat_map(|&real| (0..length).map(move |token| token < real));
            Some(array(&real.collect::<Vec<bool>>(), &[batch, 1, 1, length])?)
        };
        Ok(Self {
            parameters,
            kernels,
            stop,
            ids: array(ids, &[batch, length])?,
            mask,
            shape,
            wavelengths: None,
        })
    }

    fn norm(&self, x: &Array, norm: &LayerNorm) -> Result<Array> {
        let (weight, bias) = &self.parameters.norms[&norm.weight.name];
        let normed = fast::layer_norm(x, weight, bias, norm.epsilon).map_err(mlx_error)?;
        self.narrow(normed).map_err(mlx_error)
    }

    /// Back to the format of the weights.
    fn narrow(&self, x: Array) -> Result<Array, Exception> {
        match self.parameters.dtype {
            Dtype::Float32 => Ok(x),
            dtype => x.as_dtype(dtype),
        }
    }

    /// `[batch · length, n · heads · head_dim]` → `[batch, n · heads, length, head_dim]`, a view.
    fn to_heads(&self, x: &Array, length: i32, head_dim: i32) -> Result<Array, Exception> {
        x.reshape(&[self.shape.batch, length, -1, head_dim])?
            .transpose_axes(&[0, 2, 1, 3])
    }

    fn rotate(&mut self, x: &Array, rotary: &Rotary) -> Result<Array> {
        let wavelengths = match self.wavelengths.take() {
            Some(wavelengths) => wavelengths,
            None => wavelengths(rotary, self.shape.stretch)?,
        };
        let dimensions = size(rotary.dimensions)?;
        let rotated =
            fast::rope(x, dimensions, false, None, 1.0, 0, &wavelengths).map_err(mlx_error);
        self.wavelengths = Some(wavelengths);
        rotated
    }

    /// Queries, keys and values as heads, rotated.
    fn project(
        &mut self,
        x: &Array,
        projections: &Projections,
        attention: &Attention,
    ) -> Result<[Array; 3]> {
        let (heads, head_dim) = (size(attention.heads)?, size(attention.head_dim)?);
        let length = self.shape.length;
        match &self.parameters.projections[&projections.query.weight.name] {
            FusedProjections::All(all) => {
                let joined =
                    affine(x, all).and_then(|joined| self.to_heads(&joined, length, head_dim));
                let joined = joined.map_err(mlx_error)?;
                let Some(rotary) = &attention.rotary else {
                    return parts(&joined, &[heads, 2 * heads]);
                };
                // One rotation for queries and keys together.
                let [to_rotate, value] = parts(&joined, &[2 * heads])?;
                let [query, key] = parts(&self.rotate(&to_rotate, rotary)?, &[heads])?;
                Ok([query, key, value])
            }
            FusedProjections::First(first, rest) => {
                // A first token is at position 0, where the rotation is the identity.
                let query = self.first_rows(x).and_then(|rows| affine(&rows, first));
                let query = query
                    .and_then(|query| self.to_heads(&query, 1, head_dim))
                    .map_err(mlx_error)?;
                let rest = affine(x, rest).and_then(|rest| self.to_heads(&rest, length, head_dim));
                let [mut key, value] = parts(&rest.map_err(mlx_error)?, &[heads])?;
                if let Some(rotary) = &attention.rotary {
                    key = self.rotate(&key, rotary)?;
                }
                Ok([query, key, value])
            }
        }
    }

    /// `[batch · length, width]` → `[batch, width]`.
    fn first_rows(&self, x: &Array) -> Result<Array, Exception> {
        self.per_text(x)?.take_axis(Array::from_int(0), 1)
    }

    /// `[batch · length, width]` → `[batch, length, width]`.
    fn per_text(&self, x: &Array) -> Result<Array, Exception> {
        x.reshape(&[self.shape.batch, self.shape.length, -1])
    }

    /// Real lengths as float32, `[batch, 1]`.
    fn token_counts(&self) -> Result<Array> {
        let counts: Vec<f32> = match &self.shape.lengths[..] {
            [] => vec![self.shape.length as f32; self.shape.batch as usize],
            lengths => lengths.iter().map(|&length| length as f32).collect(),
        };
        array(&counts, &[self.shape.batch, 1])
    }

    /// The mask as `[batch, length, 1]`.
    fn token_mask(&self) -> Result<Option<Array>, Exception> {
        let mask = self.mask.as_ref();
        mask.map(|mask| mask.reshape(&[self.shape.batch, self.shape.length, 1]))
            .transpose()
    }

    /// `x` (float32, `[batch, length, width]`) with `filler` in place of padding.
    fn without_padding(&self, x: &Array, filler: f32) -> Result<Array, Exception> {
        match self.token_mask()? {
            Some(mask) => ops::select(mask, x, Array::from_f32(filler)),
            None => Ok(x.clone()),
        }
    }

    fn pool_one(&self, x: &Array, pooling: Pooling) -> Result<Array> {
        let zero_padded = || self.without_padding(x, 0.0);
        let counts = self.token_counts()?;
        let pooled = || -> Result<Array, Exception> {
            match pooling {
                Pooling::Cls => x.take_axis(Array::from_int(0), 1),
                Pooling::Max => self
                    .without_padding(x, f32::NEG_INFINITY)?
                    .max_axis(1, false),
                Pooling::Mean => zero_padded()?.sum_axis(1, false)?.divide(&counts),
                Pooling::MeanSqrtLength => zero_padded()?
                    .sum_axis(1, false)?
                    .divide(ops::sqrt(&counts)?),
                Pooling::WeightedMean => {
                    let positions =
                        ops::arange::<f32, f32>(1.0, (self.shape.length + 1) as f32, 1.0)?;
                    let weighted = zero_padded()?.multiply(positions.reshape(&[1, -1, 1])?)?;
                    // 1 + 2 + … + n
                    let total = counts.multiply(counts.add(Array::from_f32(1.0))?)?;
                    let total = total.multiply(Array::from_f32(0.5))?;
                    weighted.sum_axis(1, false)?.divide(total)
                }
                Pooling::LastToken => {
                    // Rows of the flat states: text · length + its last token.
                    let texts = ops::arange::<i32, i32>(0, self.shape.batch, 1)?;
                    let starts = texts.multiply(Array::from_int(self.shape.length))?;
                    let last = counts
                        .reshape(&[-1])?
                        .as_dtype(Dtype::Int32)?
                        .subtract(Array::from_int(1))?;
                    let width = x.dim(2);
                    x.reshape(&[-1, width])?.take_axis(starts.add(last)?, 0)
                }
            }
        };
        pooled().map_err(mlx_error)
    }
}

impl Ops for Pass<'_> {
    type Tensor = States;

    /// MLX cannot be interrupted while it evaluates. So a long batch is evaluated layer by layer, which costs it nothing
    /// that would show, and given up between two of them.
    fn between_layers(&mut self, x: States) -> Result<States> {
        /// Batches of more tokens are long.
        const LONG: i32 = 1024;
        if self.shape.batch * self.shape.length > LONG {
            x.array.eval().map_err(mlx_error)?;
            if gate::is_unwanted(self.stop) {
                return Err(Error::Aborted);
            }
        }
        Ok(x)
    }

    fn embed(&mut self, embeddings: &Embeddings) -> Result<States> {
        let width = size(embeddings.words.shape[1])?;
        let embedded = || -> Result<Array, Exception> {
            let words = self.parameters.words.take_axis(&self.ids, 0)?;
            let summed = match &self.parameters.positions {
                Some(table) => {
                    let positions = ops::arange::<i32, i32>(0, self.shape.length, 1)?;
                    ops::add(words, table.take_axis(positions, 0)?)?
                }
                None => words,
            };
            summed.reshape(&[-1, width])
        };
        Ok(States {
            array: embedded().map_err(mlx_error)?,
            tokens: Tokens::All,
        })
    }

    fn linear(&mut self, x: &States, linear: &Linear) -> Result<States> {
        let layer = &self.parameters.linears[&linear.weight.name];
        Ok(States {
            array: affine(&x.array, layer).map_err(mlx_error)?,
            tokens: x.tokens,
        })
    }

    fn layer_norm(&mut self, x: &States, norm: &LayerNorm) -> Result<States> {
        Ok(States {
            array: self.norm(&x.array, norm)?,
            tokens: x.tokens,
        })
    }

    fn add_norm(&mut self, x: &States, residual: &States, norm: &LayerNorm) -> Result<States> {
        let sum = ops::add(&x.array, &residual.array).map_err(mlx_error)?;
        Ok(States {
            array: self.norm(&sum, norm)?,
            tokens: x.tokens,
        })
    }

    fn activate(&mut self, x: &States, activation: Activation) -> Result<States> {
        let array = match activation {
            Activation::Gelu => (self.kernels.gelu)(&x.array),
            Activation::GeluTanh => (self.kernels.gelu_tanh)(&x.array),
            Activation::Relu => ops::maximum(&x.array, constant(0.0, x.array.dtype())),
            Activation::Silu => (self.kernels.silu)(&x.array),
        };
        Ok(States {
            array: array.map_err(mlx_error)?,
            tokens: x.tokens,
        })
    }

    fn gate(&mut self, x: &States, gate: &States, activation: Activation) -> Result<States> {
        if activation == Activation::Silu {
            let gated = (self.kernels.swiglu)((&x.array, &gate.array));
            return Ok(States {
                array: gated.map_err(mlx_error)?,
                tokens: x.tokens,
            });
        }
        let gate = self.activate(gate, activation)?;
        Ok(States {
            array: ops::multiply(&x.array, &gate.array).map_err(mlx_error)?,
            tokens: x.tokens,
        })
    }

    fn attention(
        &mut self,
        x: &States,
        projections: &Projections,
        attention: &Attention,
        tokens: Tokens,
    ) -> Result<States> {
        let [query, key, value] = self.project(&x.array, projections, attention)?;
        let scale = (attention.head_dim as f32).sqrt().recip();
        let mask = self.mask.as_ref().map(ScaledDotProductAttentionMask::from);
        let width = size(attention.heads * attention.head_dim)?;
        let mixed = fast::scaled_dot_product_attention(query, key, value, scale, mask, None)
            .and_then(|mixed| mixed.transpose_axes(&[0, 2, 1, 3])?.reshape(&[-1, width]));
        Ok(States {
            array: mixed.map_err(mlx_error)?,
            tokens,
        })
    }

    fn first_token(&mut self, x: &States) -> Result<States> {
        Ok(States {
            array: self.first_rows(&x.array).map_err(mlx_error)?,
            tokens: Tokens::First,
        })
    }

    fn pool(&mut self, x: &States, pooling: &[Pooling]) -> Result<States> {
        let wide = x.array.as_dtype(Dtype::Float32).map_err(mlx_error)?;
        let array = match x.tokens {
            Tokens::First => wide,
            Tokens::All => {
                let states = self.per_text(&wide).map_err(mlx_error)?;
                let parts = pooling
                    .iter()
                    .map(|&one| self.pool_one(&states, one))
                    .collect::<Result<Vec<_>>>()?;
                match &parts[..] {
                    [single] => single.clone(),
                    _ => ops::concatenate(&parts, 1).map_err(mlx_error)?,
                }
            }
        };
        Ok(States {
            array,
            tokens: Tokens::First,
        })
    }
}

impl States {
    /// The array behind a finished pass.
    pub fn into_array(self) -> Array {
        self.array
    }
}

fn affine(x: &Array, layer: &Affine) -> Result<Array, Exception> {
    match &layer.bias {
        Some(bias) => ops::addmm(bias, x, &layer.weight, None, None),
        None => ops::matmul(x, &layer.weight),
    }
}

/// Splits `[batch, heads, length, head_dim]` before these heads.
fn parts<const N: usize>(x: &Array, before: &[i32]) -> Result<[Array; N]> {
    let parts = x.split_at_indices(before, 1).map_err(mlx_error)?;
    parts
        .try_into()
        .map_err(|parts: Vec<Array>| Error::InferenceFailed {
            reason: format!(
                "MLX split an array into {} parts instead of {N}",
                parts.len()
            ),
        })
}

/// `base'^(2i/d)` with `base' = base · stretch^(d/(d−2))`: what positions are divided by before the rotation.
fn wavelengths(rotary: &Rotary, stretch: f64) -> Result<Array> {
    let dimensions = rotary.dimensions as f64;
    let base = if stretch > 1.0 {
        rotary.base * stretch.powf(dimensions / (dimensions - 2.0))
    } else {
        rotary.base
    };
    let wavelengths: Vec<f32> = (0..rotary.dimensions / 2)
        .map(|i| base.powf(2.0 * i as f64 / dimensions) as f32)
        .collect();
    array(&wavelengths, &[size(wavelengths.len())?])
}

/// An element type of arrays made here.
trait Element: Copy {
    const DTYPE: Dtype;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::Float32;
}

impl Element for u32 {
    const DTYPE: Dtype = Dtype::Uint32;
}

impl Element for bool {
    const DTYPE: Dtype = Dtype::Bool;
}

/// A copy of `values` in MLX's memory. mlx-rs's own constructor leaves a failed allocation unnoticed.
fn array<T: Element>(values: &[T], shape: &[i32]) -> Result<Array> {
    debug_assert_eq!(values.len() as i32, shape.iter().product::<i32>());
    // SAFETY: MLX copies as many values as the shape has, which is the length of `values`.
    let array = unsafe { Array::from_raw_data(values.as_ptr().cast::<c_void>(), shape, T::DTYPE) };
    if array.as_ptr().ctx.is_null() {
        return Err(Error::no_memory(size_of_val(values), "a batch"));
    }
    Ok(array)
}
