//! A graph's weights as MLX arrays, laid out for the forward pass: what every pass would do to them is done once. The
//! matrices of q, k and v are joined, matrices are transposed without a copy, the words are scaled, and the token type is added
//! to a table.

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, ops, transforms};

use super::forward::{array, constant};
use super::{mlx_error, size};
use crate::checkpoint::{Checkpoint, TensorSlice, WeightType};
use crate::error::{Error, Result};
use crate::graph::{
    Attention, EmbeddingTables, Experts, Graph, Linear, Mask, Node, Norm, NormKind, Op,
    Projections, Rows,
};

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

/// What first hidden states are made of. The type of tokens that all have the same is added to one of the other tables.
pub struct Tables {
    /// `[rows, width]`.
    pub words: Array,
    /// The row for each token id, uint32 `[vocabulary]`; `None` where it is the id itself.
    pub rows: Option<Array>,
    /// `[vocabulary, 1]`.
    pub factors: Option<Array>,
    /// `[positions, width]`.
    pub positions: Option<Array>,
    /// `[types, width]`, if types vary.
    pub types: Option<Array>,
    /// The type, `[1, width]`, where it is in neither table: words that are multiplied cannot contain it.
    pub shift: Option<Array>,
}

impl Tables {
    fn arrays(&self) -> Vec<&Array> {
        let optional = [
            &self.rows,
            &self.factors,
            &self.positions,
            &self.types,
            &self.shift,
        ];
        let optional = optional.into_iter().flatten();
        std::iter::once(&self.words).chain(optional).collect()
    }
}

/// The weights of one operation.
pub enum Weights {
    /// It has none.
    None,
    Tables(Tables),
    Linear(Affine),
    Norm(NormWeights),
    Experts(ExpertWeights),
    Attention(AttentionWeights),
}

/// Scale and shift of a norm, float32.
pub struct NormWeights {
    pub scale: Array,
    pub shift: Option<Array>,
}

/// The weights of a feed-forward of experts.
pub struct ExpertWeights {
    /// `[width, experts]`
    pub router: Array,
    /// `[experts, width, inner]`
    pub up: Array,
    /// `[experts, inner, width]`
    pub down: Array,
    /// `[width]`
    pub bias: Array,
}

/// The weights of an attention.
pub struct AttentionWeights {
    pub projections: FusedProjections,
    /// Of queries and of keys.
    pub norms: Option<[NormWeights; 2]>,
    /// The table of a bias by distance, `[buckets, heads]`.
    pub bias: Option<Array>,
}

impl NormWeights {
    fn arrays(&self) -> impl Iterator<Item = &Array> {
        std::iter::once(&self.scale).chain(&self.shift)
    }
}

/// All weights of a graph.
pub struct Parameters {
    /// Number format of everything but the norms and, on a CPU, the experts, which stay float32.
    pub dtype: Dtype,
    /// The weights of each operation, in the order of the graph.
    pub weights: Vec<Weights>,
}

impl Parameters {
    /// Loads what the graph names.
    ///
    /// # Errors
    /// MLX failed, for instance for lack of memory.
    pub fn load(
        graph: &Graph,
        checkpoint: &Checkpoint,
        dtype: Dtype,
        is_gpu: bool,
    ) -> Result<Self> {
        let loader = Loader {
            checkpoint,
            dtype,
            // On a CPU, MLX has products with gathered matrices in float32 alone.
            expert_dtype: if is_gpu { dtype } else { Dtype::Float32 },
        };
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
            Self::Tables(tables) => tables.arrays(),
            Self::Linear(affine) => affine.arrays(),
            Self::Norm(norm) => norm.arrays().collect(),
            Self::Experts(experts) => {
                vec![&experts.router, &experts.up, &experts.down, &experts.bias]
            }
            Self::Attention(attention) => {
                let mut arrays = match &attention.projections {
                    FusedProjections::All(all) => all.arrays(),
                    FusedProjections::First(query, rest) => {
                        [query.arrays(), rest.arrays()].concat()
                    }
                };
                let norms = attention.norms.iter().flatten();
                arrays.extend(norms.flat_map(NormWeights::arrays));
                arrays.extend(&attention.bias);
                arrays
            }
        }
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    dtype: Dtype,
    expert_dtype: Dtype,
}

impl Loader<'_> {
    fn weights(&self, node: &Node) -> Result<Weights> {
        Ok(match &node.op {
            Op::Embed(embeddings) => self.tables(embeddings)?,
            Op::Linear { layer, .. } => Weights::Linear(self.join(&[layer])?),
            Op::Norm { layer, .. } => Weights::Norm(self.norm(layer)?),
            Op::Experts { layer, .. } => Weights::Experts(self.experts(layer)?),
            Op::Attend {
                projections,
                attention,
                ..
            } => Weights::Attention(self.attention(projections, attention, node.rows)?),
            Op::Add(..)
            | Op::Subtract(..)
            | Op::Activate { .. }
            | Op::Gate { .. }
            | Op::Select { .. }
            | Op::Pool { .. } => Weights::None,
        })
    }

    fn tables(&self, embeddings: &EmbeddingTables) -> Result<Weights> {
        let mut words = self.array(&embeddings.words, self.dtype)?;
        if let Some(scale) = embeddings.word_scale {
            words = ops::multiply(words, constant(scale, self.dtype)).map_err(mlx_error)?;
        }
        let positions = embeddings.positions.as_ref();
        let positions = positions.map(|positions| self.array(&positions.table, self.dtype));
        let mut positions = positions.transpose()?;
        let (mut types, mut shift) = (None, None);
        match &embeddings.token_types {
            Some(all) if all.vary => types = Some(self.array(&all.table, self.dtype)?),
            Some(all) => {
                let row = self.array(&all.first_row(), self.dtype)?;
                let table = match &mut positions {
                    None if embeddings.factors.is_some() => None,
                    None => Some(&mut words),
                    table => table.as_mut(),
                };
                match table {
                    Some(table) => *table = ops::add(&*table, &row).map_err(mlx_error)?,
                    None => shift = Some(row),
                }
            }
            None => {}
        }
        let rows = embeddings.rows.as_deref();
        let rows = rows.map(|rows| array(rows, &[size(rows.len())?]));
        let factors = embeddings.factors.as_deref().map(|factors| {
            let factors = array(factors, &[size(factors.len())?, 1])?;
            factors.as_dtype(self.dtype).map_err(mlx_error)
        });
        Ok(Weights::Tables(Tables {
            words,
            rows: rows.transpose()?,
            factors: factors.transpose()?,
            positions,
            types,
            shift,
        }))
    }

    fn norm(&self, norm: &Norm) -> Result<NormWeights> {
        let mut scale = self.array(&norm.weight, Dtype::Float32)?;
        if norm.kind == (NormKind::RootMeanSquare { one_more: true }) {
            scale = ops::add(scale, Array::from_f32(1.0)).map_err(mlx_error)?;
        }
        let shift = norm.bias.as_ref();
        let shift = shift.map(|shift| self.array(shift, Dtype::Float32));
        Ok(NormWeights {
            scale,
            shift: shift.transpose()?,
        })
    }

    fn experts(&self, layer: &Experts) -> Result<ExpertWeights> {
        let shape = [layer.count(), layer.inner(), layer.router.shape[1]];
        let [experts, inner, width] = [size(shape[0])?, size(shape[1])?, size(shape[2])?];
        let apart = |tensor| {
            let array = self.array(tensor, self.expert_dtype)?;
            array.reshape(&[experts, inner, width]).map_err(mlx_error)
        };
        let up = apart(&layer.up)?.transpose_axes(&[0, 2, 1]);
        let router = self.array(&layer.router, self.expert_dtype)?.transpose();
        Ok(ExpertWeights {
            router: router.map_err(mlx_error)?,
            up: up.map_err(mlx_error)?,
            down: apart(&layer.down)?,
            bias: self.array(&layer.bias, self.expert_dtype)?,
        })
    }

    fn attention(
        &self,
        projections: &Projections,
        attention: &Attention,
        rows: Rows,
    ) -> Result<AttentionWeights> {
        let norms = match &projections.norms {
            Some([query, key]) => Some([self.norm(query)?, self.norm(key)?]),
            None => None,
        };
        let bias = match &attention.mask {
            Mask::Relative(bias) => Some(self.array(&bias.table, self.dtype)?),
            _ => None,
        };
        Ok(AttentionWeights {
            projections: self.projections(projections, rows)?,
            norms,
            bias,
        })
    }

    fn projections(&self, projections: &Projections, rows: Rows) -> Result<FusedProjections> {
        let Projections {
            query, key, value, ..
        } = projections;
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
