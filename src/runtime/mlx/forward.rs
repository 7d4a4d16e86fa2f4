//! One forward pass over a padded batch, as MLX arrays.
//!
//! Hidden states are kept flat, `[batch · length, width]`, so that a linear layer is a single matrix product; only
//! attention sees `[batch, heads, length, head_dim]`. Nothing is computed until the pass is evaluated.
//!
//! In half precision, norms and pooling compute in float32. (The norms' weights are float32, which MLX uses for the result as
//! well; it is rounded back.) Everything else stays in the weights' format.

use std::ffi::c_void;

use half::{bf16, f16};
use mlx_rs::error::Exception;
use mlx_rs::fast;
use mlx_rs::transforms::compile::compile;
use mlx_rs::{Array, ArrayElement, Dtype, ops};

use super::parameters::{Affine, NormWeights, Parameters, Tables, Weights};
use super::{mlx_error, size};
use crate::batch;
use crate::error::{Error, Result};
use crate::graph::{Activation, Graph, Node, Norm, NormKind, Numbering, Op, Pooling, Rotary, Rows};
use crate::runtime::stop::Stop;
use crate::runtime::{Tokens, shutdown};

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
pub fn constant(value: f32, dtype: Dtype) -> Array {
    match dtype {
        Dtype::Float16 => Array::from_slice(&[f16::from_f32(value)], &[]),
        Dtype::Bfloat16 => Array::from_slice(&[bf16::from_f32(value)], &[]),
        _ => Array::from_f32(value),
    }
}

/// The token ids of some texts, padded to one length.
pub struct PaddedBatch {
    /// `[texts · length]`; padding has the id 0.
    pub ids: Vec<u32>,
    /// Number of texts.
    pub texts: i32,
    /// Length that every text is padded to.
    pub length: i32,
    /// For each text, its [`Tokens::second`].
    pub seconds: Vec<usize>,
    /// Real lengths of the texts; empty if nothing is padded.
    pub lengths: Vec<i32>,
    /// Real length of every text, if rotations depend on it.
    pub scaled_length: Option<usize>,
}

impl PaddedBatch {
    /// Pads texts to a [`batch::bucket`] length of at most `positions`; if `is_scaled`, they have equal lengths and are not
    /// padded.
    ///
    /// # Errors
    /// MLX cannot count so many tokens.
    pub fn new(texts: &[Tokens], positions: Option<usize>, is_scaled: bool) -> Result<Self> {
        let longest = texts.iter().map(|text| text.ids.len()).max().unwrap_or(0);
        let length = if is_scaled {
            longest
        } else {
            batch::padded(longest, positions)
        };
        // The states of all tokens are the rows of one matrix.
        size(texts.len() * length)?;
        let mut ids = Vec::with_capacity(texts.len() * length);
        for text in texts {
            ids.extend_from_slice(text.ids);
            ids.resize(ids.len() + length - text.ids.len(), 0);
        }
        let is_padded = texts.iter().any(|text| text.ids.len() < length);
        let lengths = texts
            .iter()
            .filter(|_| is_padded)
            .map(|text| size(text.ids.len()));
        Ok(Self {
            ids,
            seconds: texts.iter().map(|text| text.second).collect(),
            texts: size(texts.len())?,
            length: size(length)?,
            lengths: lengths.collect::<Result<_>>()?,
            scaled_length: is_scaled.then_some(longest),
        })
    }
}

/// One batch on its way through a graph.
pub struct Pass<'a> {
    parameters: &'a Parameters,
    kernels: &'a mut Kernels,
    stop: &'a Stop,
    pub(super) batch: &'a PaddedBatch,
    ids: Array,
    /// `[batch, 1, 1, length]`, true for real tokens; only where something is padded.
    pub(super) mask: Option<Array>,
    /// For each rotation so far, the divisors of the positions, `[dimensions / 2]`.
    wavelengths: Vec<(Rotary, Array)>,
    /// Other masks so far, by what they are.
    pub(super) masks: Vec<(String, Array)>,
}

impl<'a> Pass<'a> {
    /// # Errors
    /// MLX has no memory for the batch.
    pub fn new(
        parameters: &'a Parameters,
        kernels: &'a mut Kernels,
        batch: &'a PaddedBatch,
        stop: &'a Stop,
    ) -> Result<Self> {
        let (texts, length) = (batch.texts, batch.length);
        let mask = if batch.lengths.is_empty() {
            None
        } else {
            let lengths = batch.lengths.iter();
            let real = lengths.flat_map(|&real| (0..length).map(move |token| token < real));
            Some(array(&real.collect::<Vec<bool>>(), &[texts, 1, 1, length])?)
        };
        Ok(Self {
            parameters,
            kernels,
            stop,
            ids: array(&batch.ids, &[texts, length])?,
            mask,
            batch,
            wavelengths: Vec::new(),
            masks: Vec::new(),
        })
    }

    /// The result of the graph, float32.
    ///
    /// # Errors
    /// MLX failed, or the batch was interrupted.
    pub fn run(&mut self, graph: &Graph) -> Result<Array> {
        let nodes = graph.nodes();
        let mut uses = vec![0_usize; nodes.len()];
        for value in nodes.iter().flat_map(|node| node.op.operands()) {
            uses[value.index()] += 1;
        }
        // A value that no later operation takes is dropped, so that MLX can reuse its memory.
        let mut values: Vec<Option<Array>> = Vec::with_capacity(nodes.len());
        let parameters = self.parameters;
        for (node, weights) in nodes.iter().zip(&parameters.weights) {
            let operands: Vec<Array> = node
                .op
                .operands()
                .filter_map(|value| {
                    uses[value.index()] -= 1;
                    match uses[value.index()] {
                        0 => values[value.index()].take(),
                        _ => values[value.index()].clone(),
                    }
                })
                .collect();
            values.push(Some(self.compute(node, weights, &operands)?));
        }
        let result = values
            .pop()
            .flatten()
            .ok_or_else(|| unexpected("no graph"))?;
        result.as_dtype(Dtype::Float32).map_err(mlx_error)
    }

    fn compute(&mut self, node: &Node, weights: &Weights, operands: &[Array]) -> Result<Array> {
        let array = match (&node.op, weights, operands) {
            (Op::Embed(embeddings), Weights::Tables(tables), []) => {
                let positions = embeddings.positions.as_ref();
                let numbering = positions.map(|positions| positions.numbering);
                return self.embed(tables, numbering, size(node.width)?);
            }
            (Op::Add(..), _, [a, b]) => ops::add(a, b),
            (Op::Subtract(..), _, [a, b]) => ops::subtract(a, b),
            (Op::Linear { .. }, Weights::Linear(layer), [x]) => affine(x, layer),
            (Op::Norm { layer, .. }, Weights::Norm(weights), [x]) => self.norm(x, layer, weights),
            (Op::Activate { activation, .. }, _, [x]) => self.activate(x, *activation),
            (Op::Gate { activation, .. }, _, [x, gate]) => match activation {
                Activation::Silu => (self.kernels.swiglu)((x, gate)),
                _ => (self.activate(gate, *activation)).and_then(|gate| ops::multiply(x, gate)),
            },
            (Op::Experts { layer, .. }, Weights::Experts(weights), [x]) => {
                self.experts(x, layer, weights)
            }
            (
                Op::Attend {
                    projections,
                    attention,
                    ..
                },
                Weights::Attention(weights),
                [x],
            ) => {
                self.finish_before(x)?;
                return self.attend(x, projections, attention, weights, node.rows);
            }
            (Op::Select { rows, .. }, _, [x]) => match rows {
                Rows::All => Ok(x.clone()),
                Rows::First => self.first_rows(x),
                Rows::Last => return self.last_rows(x),
            },
            (Op::Pool { poolings, .. }, _, [x]) => return self.pool(x, poolings),
            (op, ..) => return Err(unexpected(&format!("{op:?}"))),
        };
        array.map_err(mlx_error)
    }

    /// MLX cannot be interrupted while it evaluates. So a long batch is evaluated layer by layer, before each attention,
    /// which costs nothing measurable, and can be given up between two layers.
    fn finish_before(&self, x: &Array) -> Result<()> {
        /// Batches of more tokens are long.
        const LONG: i32 = 1024;
        if self.batch.texts * self.batch.length > LONG {
            x.eval().map_err(mlx_error)?;
            if shutdown::is_unwanted(self.stop) {
                return Err(Error::Aborted);
            }
        }
        Ok(())
    }

    fn embed(&self, tables: &Tables, numbering: Option<Numbering>, width: i32) -> Result<Array> {
        let types = match &tables.types {
            Some(table) => Some((table, self.token_types()?)),
            None => None,
        };
        let sum = || -> Result<Array, Exception> {
            let mut sum = match &tables.rows {
                Some(rows) => tables.words.take_axis(rows.take_axis(&self.ids, 0)?, 0)?,
                None => tables.words.take_axis(&self.ids, 0)?,
            };
            if let Some(factors) = &tables.factors {
                sum = ops::multiply(sum, factors.take_axis(&self.ids, 0)?)?;
            }
            if let Some((numbering, table)) = numbering.zip(tables.positions.as_ref()) {
                sum = ops::add(sum, table.take_axis(self.position_rows(numbering)?, 0)?)?;
            }
            if let Some(shift) = &tables.shift {
                sum = ops::add(sum, shift)?;
            }
            if let Some((table, types)) = types {
                sum = ops::add(sum, table.take_axis(types, 0)?)?;
            }
            sum.reshape(&[-1, width])
        };
        sum().map_err(mlx_error)
    }

    /// The type of each token, `[batch, length]`.
    fn token_types(&self) -> Result<Array> {
        let PaddedBatch {
            texts,
            length,
            seconds,
            ..
        } = self.batch;
        let types = (seconds.iter())
            .flat_map(|second| (0..*length).map(move |token| u32::from(token as usize >= *second)));
        array(&types.collect::<Vec<_>>(), &[*texts, *length])
    }

    /// Rows of a table of positions, `[length]` or `[batch, length]`.
    fn position_rows(&self, numbering: Numbering) -> Result<Array, Exception> {
        match numbering {
            Numbering::Index => ops::arange::<i32, i32>(0, self.batch.length, 1),
            Numbering::NotPadding { padding } => {
                let padding = Array::from_slice(&[padding as u32], &[]);
                let counts = self.ids.ne(&padding)?.as_dtype(Dtype::Uint32)?;
                let numbers = counts.cumsum(1, None, None)?;
                numbers.multiply(&counts)?.add(&padding)
            }
        }
    }

    pub(super) fn activate(
        &mut self,
        x: &Array,
        activation: Activation,
    ) -> Result<Array, Exception> {
        match activation {
            Activation::Gelu => (self.kernels.gelu)(x),
            Activation::GeluTanh => (self.kernels.gelu_tanh)(x),
            Activation::Relu => ops::maximum(x, constant(0.0, x.dtype())),
            Activation::Silu => (self.kernels.silu)(x),
            Activation::Tanh => ops::tanh(x),
        }
    }

    /// Normalizes as many numbers as there are weights together: the last dimension.
    pub(super) fn norm(
        &self,
        x: &Array,
        norm: &Norm,
        weights: &NormWeights,
    ) -> Result<Array, Exception> {
        let NormWeights { scale, shift } = weights;
        let normed = match norm.kind {
            NormKind::Layer => fast::layer_norm(x, scale, shift.as_ref(), norm.epsilon),
            NormKind::RootMeanSquare { .. } => fast::rms_norm(x, Some(scale), norm.epsilon),
        };
        self.narrow(normed?)
    }

    fn pool(&self, x: &Array, poolings: &[Pooling]) -> Result<Array> {
        let wide = x.as_dtype(Dtype::Float32).map_err(mlx_error)?;
        let parts = poolings.iter().map(|&one| self.pool_one(&wide, one));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        match &parts[..] {
            [single] => Ok(single.clone()),
            _ => ops::concatenate(&parts, 1).map_err(mlx_error),
        }
    }

    /// The format of the weights.
    pub(super) const fn dtype(&self) -> Dtype {
        self.parameters.dtype
    }

    /// Back to the format of the weights.
    pub(super) fn narrow(&self, x: Array) -> Result<Array, Exception> {
        match self.parameters.dtype {
            Dtype::Float32 => Ok(x),
            dtype => x.as_dtype(dtype),
        }
    }

    /// `x` is `[batch, heads, length, head_dim]`.
    pub(super) fn rotate(&mut self, x: &Array, rotary: &Rotary) -> Result<Array> {
        let known = self.wavelengths.iter().find(|known| known.0 == *rotary);
        let wavelengths = if let Some((_, wavelengths)) = known {
            wavelengths.clone()
        } else {
            let wavelengths = wavelengths(rotary, self.batch.scaled_length)?;
            self.wavelengths.push((*rotary, wavelengths.clone()));
            wavelengths
        };
        let dimensions = size(rotary.dimensions)?;
        fast::rope(x, dimensions, false, None, 1.0, 0, &wavelengths).map_err(mlx_error)
    }

    /// `[batch · length, width]` → `[batch, width]`.
    pub(super) fn first_rows(&self, x: &Array) -> Result<Array, Exception> {
        self.per_text(x)?.take_axis(Array::from_int(0), 1)
    }

    /// `[batch · length, width]` → `[batch, length, width]`.
    fn per_text(&self, x: &Array) -> Result<Array, Exception> {
        x.reshape(&[self.batch.texts, self.batch.length, -1])
    }

    /// `[batch · length, width]` → `[batch, width]`: the last real token of each text.
    fn last_rows(&self, x: &Array) -> Result<Array> {
        let PaddedBatch {
            texts,
            length,
            lengths,
            ..
        } = self.batch;
        let real = |text: i32| lengths.get(text as usize).unwrap_or(length);
        let rows: Vec<i32> = (0..*texts)
            .map(|text| text * length + real(text) - 1)
            .collect();
        x.take_axis(array(&rows, &[*texts])?, 0).map_err(mlx_error)
    }

    /// Real lengths as float32, `[batch, 1]`.
    fn token_counts(&self) -> Result<Array> {
        let counts: Vec<f32> = match &self.batch.lengths[..] {
            [] => vec![self.batch.length as f32; self.batch.texts as usize],
            lengths => lengths.iter().map(|&length| length as f32).collect(),
        };
        array(&counts, &[self.batch.texts, 1])
    }

    /// The mask as `[batch, length, 1]`.
    fn token_mask(&self) -> Result<Option<Array>, Exception> {
        let mask = self.mask.as_ref();
        mask.map(|mask| mask.reshape(&[self.batch.texts, self.batch.length, 1]))
            .transpose()
    }

    /// `x` (float32, `[batch, length, width]`) with `filler` in place of padding.
    fn without_padding(&self, x: &Array, filler: f32) -> Result<Array, Exception> {
        match self.token_mask()? {
            Some(mask) => ops::select(mask, x, Array::from_f32(filler)),
            None => Ok(x.clone()),
        }
    }

    /// `x` is flat and float32.
    fn pool_one(&self, x: &Array, pooling: Pooling) -> Result<Array> {
        let states = self.per_text(x).map_err(mlx_error)?;
        let counts = self.token_counts()?;
        let sum = |x: &Array| self.without_padding(x, 0.0)?.sum_axis(1, false);
        let pooled = match pooling {
            Pooling::Cls => self.first_rows(x),
            Pooling::LastToken => return self.last_rows(x),
            Pooling::Max => self
                .without_padding(&states, f32::NEG_INFINITY)
                .and_then(|states| states.max_axis(1, false)),
            Pooling::Mean => sum(&states).and_then(|sum| sum.divide(&counts)),
            Pooling::MeanSqrtLength => sum(&states).and_then(|sum| sum.divide(ops::sqrt(&counts)?)),
            Pooling::WeightedMean => self.weighted_mean(&states, &counts),
        };
        pooled.map_err(mlx_error)
    }

    fn weighted_mean(&self, x: &Array, counts: &Array) -> Result<Array, Exception> {
        let positions = ops::arange::<f32, f32>(1.0, (self.batch.length + 1) as f32, 1.0)?;
        let real = self.without_padding(x, 0.0)?;
        let weighted = real.multiply(positions.reshape(&[1, -1, 1])?)?;
        // 1 + 2 + … + n
        let total = counts.multiply(counts.add(Array::from_f32(1.0))?)?;
        let total = total.multiply(Array::from_f32(0.5))?;
        weighted.sum_axis(1, false)?.divide(total)
    }
}

/// An operation without its weights or operands, which no graph contains.
fn unexpected(what: &str) -> Error {
    Error::inference(format!("MLX was given {what} to compute"))
}

pub fn affine(x: &Array, layer: &Affine) -> Result<Array, Exception> {
    match &layer.bias {
        Some(bias) => ops::addmm(bias, x, &layer.weight, None, None),
        None => ops::matmul(x, &layer.weight),
    }
}

/// `base'^(2i/d)` with `base' = base · growth^(d/(d−2))`, times the divisor of the rotation: what positions are divided by before the rotation.
fn wavelengths(rotary: &Rotary, scaled_length: Option<usize>) -> Result<Array> {
    let dimensions = rotary.dimensions as f64;
    let growth = match (rotary.scaling, scaled_length) {
        (Some(scaling), Some(length)) => scaling.base_growth(length),
        _ => 1.0,
    };
    let base = if growth > 1.0 {
        rotary.base * growth.powf(dimensions / (dimensions - 2.0))
    } else {
        rotary.base
    };
    let wavelengths: Vec<f32> = (0..rotary.dimensions / 2)
        .map(|i| (base.powf(2.0 * i as f64 / dimensions) * rotary.position_divisor) as f32)
        .collect();
    array(&wavelengths, &[size(wavelengths.len())?])
}

/// A copy of `values` in MLX's memory. mlx-rs's own constructor does not notice a failed allocation.
pub fn array<T: ArrayElement>(values: &[T], shape: &[i32]) -> Result<Array> {
    debug_assert_eq!(values.len() as i32, shape.iter().product::<i32>());
    // SAFETY: MLX copies as many values as the shape has, which is the length of `values`.
    let array = unsafe { Array::from_raw_data(values.as_ptr().cast::<c_void>(), shape, T::DTYPE) };
    if array.as_ptr().ctx.is_null() {
        return Err(Error::no_memory(size_of_val(values), "a batch"));
    }
    Ok(array)
}
