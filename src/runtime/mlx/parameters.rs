//! A graph's weights as MLX arrays, laid out for the forward pass: what every pass would do to them is done once. The
//! matrices of q, k and v are joined, matrices are transposed without a copy, and the token type is added to a table.

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, ops, transforms};

use super::{mlx_error, size};
use crate::checkpoint::{Checkpoint, TensorSlice, WeightType};
use crate::error::{Error, Result};
use crate::graph::{EmbeddingTables, Graph, LayerNorm, Linear, Node, Op, Projections, Rows};

/// A fully connected layer.
pub struct Affine {
    /// `[in, out]`: the checkpoint's matrix transposed, without a copy.
    pub weight: Array,
    /// `[out]`.
    pub bias: Option<Array>,
}

impl Affine {
    fn arrays(&self) -> Vec<&Array> {
        std::iter::once(&self.weight).chain(&self.bias).collect()
    }
}

/// The projections of an attention, joined.
pub enum FusedProjections {
    /// q|k|v of all tokens.
    All(Affine),
    /// q of the first token, k|v of all.
    First(Affine, Affine),
}

/// The tables of embeddings; the type of tokens that all have the same is added to one of the others.
pub struct Tables {
    /// `[vocabulary, width]`
    pub words: Array,
    /// `[positions, width]`
    pub positions: Option<Array>,
    /// `[types, width]`, if types vary.
    pub types: Option<Array>,
}

/// The weights of one operation.
pub enum Weights {
    /// It has none.
    None,
    Tables(Tables),
    Linear(Affine),
    /// Scale and shift, float32.
    Norm(Array, Array),
    /// With the table of a bias, `[buckets, heads]`.
    Projections(FusedProjections, Option<Array>),
}

/// All weights of a graph.
pub struct Parameters {
    /// Number format of everything but the norms, which stay float32.
    pub dtype: Dtype,
    /// The weights of each operation, in the order of the graph.
    pub weights: Vec<Weights>,
}

impl Parameters {
    /// Loads what the graph names.
    ///
    /// # Errors
    /// MLX failed, for instance for lack of memory.
    pub fn load(graph: &Graph, checkpoint: &Checkpoint, dtype: Dtype) -> Result<Self> {
        let loader = Loader { checkpoint, dtype };
        let weights = graph.nodes().iter().map(|node| loader.weights(node));
        let weights = weights.collect::<Result<Vec<_>>>()?;
        transforms::eval(weights.iter().flat_map(Weights::arrays)).map_err(mlx_error)?;
        Ok(Self { dtype, weights })
    }
}

impl Weights {
    fn arrays(&self) -> Vec<&Array> {
        match self {
            Self::None => vec![],
            Self::Tables(Tables {
                words,
                positions,
                types,
            }) => std::iter::once(words)
                .chain(positions)
                .chain(types)
                .collect(),
            Self::Linear(affine) => affine.arrays(),
            Self::Norm(scale, shift) => vec![scale, shift],
            Self::Projections(projections, bias) => {
                let mut arrays = match projections {
                    FusedProjections::All(all) => all.arrays(),
                    FusedProjections::First(query, rest) => {
                        [query.arrays(), rest.arrays()].concat()
                    }
                };
                arrays.extend(bias);
                arrays
            }
        }
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    dtype: Dtype,
}

impl Loader<'_> {
    fn weights(&self, node: &Node) -> Result<Weights> {
        Ok(match &node.op {
            Op::Embed(embeddings) => self.tables(embeddings)?,
            Op::Linear { layer, .. } => Weights::Linear(self.join(&[layer])?),
            Op::Norm { layer, .. } => self.norm(layer)?,
            Op::Attend {
                projections, bias, ..
            } => {
                let bias = bias
                    .as_ref()
                    .map(|bias| self.array(&bias.table, self.dtype));
                Weights::Projections(self.projections(projections, node.rows)?, bias.transpose()?)
            }
            Op::Add(..)
            | Op::Activate { .. }
            | Op::Gate { .. }
            | Op::Select { .. }
            | Op::Pool { .. } => Weights::None,
        })
    }

    fn tables(&self, embeddings: &EmbeddingTables) -> Result<Weights> {
        let mut words = self.array(&embeddings.words, self.dtype)?;
        let positions = embeddings.positions.as_ref();
        let positions = positions.map(|positions| self.array(&positions.table, self.dtype));
        let mut positions = positions.transpose()?;
        let mut types = None;
        match &embeddings.token_types {
            Some(all) if all.vary => types = Some(self.array(&all.table, self.dtype)?),
            Some(all) => {
                let row = self.array(&all.first_row(), self.dtype)?;
                let table = positions.as_mut().unwrap_or(&mut words);
                *table = ops::add(&*table, &row).map_err(mlx_error)?;
            }
            None => {}
        }
        Ok(Weights::Tables(Tables {
            words,
            positions,
            types,
        }))
    }

    fn norm(&self, norm: &LayerNorm) -> Result<Weights> {
        Ok(Weights::Norm(
            self.array(&norm.weight, Dtype::Float32)?,
            self.array(&norm.bias, Dtype::Float32)?,
        ))
    }

    fn projections(&self, projections: &Projections, rows: Rows) -> Result<FusedProjections> {
        let Projections { query, key, value } = projections;
        Ok(if rows == Rows::All {
            FusedProjections::All(self.join(&[query, key, value])?)
        } else {
            FusedProjections::First(self.join(&[query])?, self.join(&[key, value])?)
        })
    }

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
}

fn concatenate(mut arrays: Vec<Array>) -> Result<Array, Exception> {
    match arrays.len() {
        1 => Ok(arrays.remove(0)),
        _ => ops::concatenate(&arrays, 0),
    }
}
