//! Batches of texts that are padded to one length, and what a graph has to be told about them.
//!
//! A GPU needs more tokens at once than texts of equal length have. What depends on the lengths is computed here, not in the
//! graph, and goes along with the ids: so a GPU is not given integers that it has no operators for, nor sines of large
//! angles, which some compute with three digits only.

use ort::session::{SessionInputValue, SessionInputs};
use ort::value::Tensor;

use super::builder::{INPUT, TOKEN_TYPES};
use super::nodes::tensor_info;
use super::proto::{DataType, DimensionValue, ValueInfoProto};
use crate::batch;
use crate::graph::{Numbering, Pooling, RelativeBias, Rotary};
use crate::runtime::Tokens;

/// What is added to numbers that must not count. Finite, so that nothing becomes NaN, and so large that the softmax of it is
/// 0 and no maximum is below it.
pub const UNSEEN: f64 = -1e30;

/// An input of a padded graph, beside the ids and types of tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum PaddedInput {
    /// What is added to the scores of each key, float `[batch, 1, 1, length]`: 0, or [`UNSEEN`] for padding.
    KeyBias,
    /// The place of each token in its text, float `[length]`.
    Places,
    /// The row of the table of positions that each token takes, int64 `[batch, length]`.
    PositionRows {
        /// See [`Numbering::NotPadding`].
        padding: usize,
    },
    /// The row of the table of a bias for each pair of tokens, int64 `[keys, queries]`.
    Buckets {
        /// Which rows there are.
        rows: usize,
        /// See [`RelativeBias::most_distance`].
        most_distance: usize,
        /// Whether the first token is the only query.
        is_first: bool,
    },
    /// Cosines of the angles of a rotation, float `[length, dimensions / 2]`.
    Cosines(Rotary),
    /// Their sines.
    Sines(Rotary),
    /// What the states of each token are multiplied by in a sum, float `[batch, 1, length]`.
    Weights(Pooling),
}

/// The name of the input of this number.
pub fn padded_name(number: usize) -> String {
    format!("padded_{number}")
}

enum Numbers {
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

impl PaddedInput {
    /// Its type and shape.
    pub fn info(&self, name: &str) -> ValueInfoProto {
        let [batch, length]: [DimensionValue; 2] = ["batch".into(), "length".into()];
        let one = || DimensionValue::from(1);
        match self {
            Self::KeyBias => {
                let dims = [batch, one(), one(), length];
                tensor_info(name, DataType::Float, &dims)
            }
            Self::Places => tensor_info(name, DataType::Float, &[length]),
            Self::PositionRows { .. } => tensor_info(name, DataType::Int64, &[batch, length]),
            Self::Buckets { is_first, .. } => {
                let queries = if *is_first { one() } else { length.clone() };
                tensor_info(name, DataType::Int64, &[length, queries])
            }
            Self::Cosines(rotary) | Self::Sines(rotary) => {
                let dims = [length, (rotary.dimensions / 2).into()];
                tensor_info(name, DataType::Float, &dims)
            }
            Self::Weights(_) => tensor_info(name, DataType::Float, &[batch, one(), length]),
        }
    }

    /// Its shape and numbers for texts that are padded to `length`. Their rotations are equal.
    fn of(&self, texts: &[Tokens], length: usize) -> (Vec<usize>, Numbers) {
        let batch = texts.len();
        match self {
            Self::KeyBias => {
                let biases = texts.iter().flat_map(|text| {
                    let seen = text.ids.len();
                    (0..length).map(move |place| if place < seen { 0.0 } else { UNSEEN as f32 })
                });
                let shape = vec![batch, 1, 1, length];
                (shape, Numbers::Floats(biases.collect()))
            }
            Self::Places => {
                let places = (0..length).map(|place| place as f32);
                (vec![length], Numbers::Floats(places.collect()))
            }
            Self::PositionRows { padding } => {
                let numbering = Numbering::NotPadding { padding: *padding };
                let rows = texts.iter().flat_map(|text| {
                    let rows = numbering.rows(text.ids);
                    padded(rows.map(|row| row as i64), length, 0)
                });
                (vec![batch, length], Numbers::Integers(rows.collect()))
            }
            Self::Buckets {
                rows,
                most_distance,
                is_first,
            } => {
                let queries = if *is_first { 1 } else { length };
                let distances = (0..length as i64)
                    .flat_map(|key| (0..queries as i64).map(move |query| key - query));
                let bucket = |distance| RelativeBias::row(*rows, *most_distance, distance) as i64;
                let buckets = distances.map(bucket);
                (vec![length, queries], Numbers::Integers(buckets.collect()))
            }
            Self::Cosines(rotary) => angles(rotary, texts, length, f32::cos),
            Self::Sines(rotary) => angles(rotary, texts, length, f32::sin),
            Self::Weights(pooling) => {
                let weights = texts.iter().flat_map(|text| {
                    let weights = pooling.weights(text.ids.len());
                    padded(weights.into_iter(), length, 0.0)
                });
                let shape = vec![batch, 1, length];
                (shape, Numbers::Floats(weights.collect()))
            }
        }
    }
}

/// `numbers` and as many times `padding` that there are `length`.
fn padded<T: Copy>(
    numbers: impl Iterator<Item = T>,
    length: usize,
    padding: T,
) -> impl Iterator<Item = T> {
    numbers.chain(std::iter::repeat(padding)).take(length)
}

fn angles(
    rotary: &Rotary,
    texts: &[Tokens],
    length: usize,
    function: fn(f32) -> f32,
) -> (Vec<usize>, Numbers) {
    let frequencies = rotary.frequencies(rotary.growth(texts[0].ids.len()));
    let numbers = (0..length).flat_map(|place| {
        let angles = frequencies
            .iter()
            .map(move |frequency| place as f32 * frequency);
        angles.map(function)
    });
    let shape = vec![length, frequencies.len()];
    (shape, Numbers::Floats(numbers.collect()))
}

/// The inputs of a batch: its ids, the types of its tokens if the graph takes any, and what a padded graph takes beside. The
/// table of positions has `positions` rows for tokens of a text.
pub fn inputs_of(
    texts: &[Tokens],
    positions: Option<usize>,
    takes_token_types: bool,
    inputs: &[PaddedInput],
) -> Result<SessionInputs<'static, 'static>, ort::Error> {
    let longest = texts.iter().map(|text| text.ids.len()).max().unwrap_or(0);
    let length = batch::padded(longest, positions);
    let ids = texts.iter().flat_map(|text| {
        let ids = text.ids.iter().map(|&id| i64::from(id));
        padded(ids, length, 0)
    });
    let shape = [texts.len(), length];
    let mut all = ort::inputs![INPUT => Tensor::from_array((shape, ids.collect::<Vec<_>>()))?];
    if takes_token_types {
        let types = texts.iter().flat_map(|text| {
            let second = text.second..text.ids.len();
            (0..length).map(move |token| i64::from(second.contains(&token)))
        });
        let types = Tensor::from_array((shape, types.collect::<Vec<_>>()))?;
        all.extend(ort::inputs![TOKEN_TYPES => types]);
    }
    for (number, input) in inputs.iter().enumerate() {
        let value: SessionInputValue = match input.of(texts, length) {
            (shape, Numbers::Floats(numbers)) => Tensor::from_array((shape, numbers))?.into(),
            (shape, Numbers::Integers(numbers)) => Tensor::from_array((shape, numbers))?.into(),
        };
        all.push((padded_name(number).into(), value));
    }
    Ok(all.into())
}
