//! From pooled vectors to those that are handed out. [`Finish::apply`] is the only way: it scans for NaN, truncates to fewer
//! dimensions, normalizes and encodes. Pure; sums are taken in double precision, since the error of a long float32 sum would
//! show in the last digits.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::memory;
use crate::options::named;

/// For errors: what memory is allocated for.
pub(crate) const VECTORS: &str = "the vectors";

/// How the vectors of a model are finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finish {
    /// Length of a pooled vector.
    pub pooled: usize,
    /// Whether only the first components are kept.
    pub matryoshka: Option<Matryoshka>,
    /// Whether vectors are scaled to length 1.
    pub normalize: bool,
}

impl Finish {
    /// Finishes pooled vectors, `[n, self.pooled]` row-major; the result is `[n, self.dimension()]`, encoded.
    ///
    /// # Errors
    /// A vector holds a NaN or an infinity, or there is no memory for the encoded vectors.
    pub fn apply(&self, mut vectors: Vec<f32>, encoding: Encoding) -> Result<Vectors> {
        check_finite(&vectors, self.pooled)?;
        if let Some(matryoshka) = self.matryoshka {
            matryoshka.apply(&mut vectors, self.pooled);
        }
        if self.normalize {
            normalize(&mut vectors, self.dimension());
        }
        encoding.encode(vectors, self.dimension())
    }

    /// Length of a finished vector.
    #[must_use]
    pub fn dimension(&self) -> usize {
        let kept = self.matryoshka.map(|matryoshka| matryoshka.dimensions);
        kept.unwrap_or(self.pooled)
    }
}

/// Truncation of vectors to their first components, for models trained by Matryoshka representation learning, which puts
/// what matters most there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matryoshka {
    /// Components that are kept.
    pub dimensions: usize,
    /// Whether the full vector is layer-normalized first, as nomic-embed-text-v1.5 asks for.
    pub layer_norm: bool,
}

impl Matryoshka {
    /// Truncates every row of `vectors` (`[n, dimension]`, row-major), which then is `[n, self.dimensions]`.
    pub fn apply(self, vectors: &mut Vec<f32>, dimension: usize) {
        if self.layer_norm {
            layer_norm(vectors, dimension);
        }
        let rows = vectors.len() / dimension;
        for row in 0..rows {
            let start = row * dimension;
            vectors.copy_within(start..start + self.dimensions, row * self.dimensions);
        }
        vectors.truncate(rows * self.dimensions);
    }
}

/// `torch.nn.functional.layer_norm` of every row: mean 0, biased variance 1, no weights, its default epsilon.
fn layer_norm(vectors: &mut [f32], dimension: usize) {
    const EPSILON: f64 = 1e-5;
    for row in vectors.chunks_exact_mut(dimension) {
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / dimension as f64;
        let squares: f64 = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
        let scale = 1.0 / (squares / dimension as f64 + EPSILON).sqrt();
        for x in row {
            *x = ((f64::from(*x) - mean) * scale) as f32;
        }
    }
}

/// Scales every row of `vectors` (`[n, dimension]`, row-major) to length 1. A row of zeros stays as it is.
pub fn normalize(vectors: &mut [f32], dimension: usize) {
    for row in vectors.chunks_exact_mut(dimension) {
        let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        if squares > 0.0 {
            let scale = 1.0 / squares.sqrt();
            for x in row {
                *x = (f64::from(*x) * scale) as f32;
            }
        }
    }
}

/// Refuses vectors that hold a NaN or an infinity.
///
/// # Errors
/// Says how many rows are affected.
pub fn check_finite(vectors: &[f32], dimension: usize) -> Result<()> {
    let broken = vectors
        .chunks_exact(dimension)
        .filter(|row| !row.iter().all(|x| x.is_finite()))
        .count();
    if broken == 0 {
        return Ok(());
    }
    Err(Error::inference(format!(
        "{broken} of {} vectors hold NaN or infinity; the weights or the number format do not fit the model",
        vectors.len() / dimension
    )))
}

/// How finished vectors are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Unchanged.
    #[default]
    Float32,
    /// One byte per component, `x ≈ value / 127`. One scale for all vectors: dot product, cosine and Euclidean distance
    /// order them as in float32. For vectors of length 1; components beyond ±1 are clipped.
    Int8,
    /// One bit per component, 1 where it is positive, most significant bit first, each row filled up with zeros to whole
    /// bytes: `numpy.packbits`, the "ubinary" of sentence-transformers.
    Binary,
}

impl FromStr for Encoding {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [
            ("float32", Self::Float32),
            ("int8", Self::Int8),
            ("binary", Self::Binary),
        ];
        named("encoding", name, &all)
    }
}

/// Finished vectors, row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum Vectors {
    /// `[n, dimension]`.
    Float32(Vec<f32>),
    /// `[n, dimension]`.
    Int8(Vec<i8>),
    /// `[n, ⌈dimension / 8⌉]`.
    Binary(Vec<u8>),
}

/// Evaluates an expression for the numbers of some [`Vectors`], whatever their type.
macro_rules! with_numbers {
    ($vectors:expr, $numbers:ident => $body:expr) => {
        match $vectors {
            Vectors::Float32($numbers) => $body,
            Vectors::Int8($numbers) => $body,
            Vectors::Binary($numbers) => $body,
        }
    };
}

impl Vectors {
    /// No vectors.
    pub(crate) const fn none(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Float32 => Self::Float32(Vec::new()),
            Encoding::Int8 => Self::Int8(Vec::new()),
            Encoding::Binary => Self::Binary(Vec::new()),
        }
    }

    /// Appends copies of some of the first `rows` rows.
    ///
    /// # Errors
    /// There is no memory for them.
    pub(crate) fn append_copies(&mut self, rows: usize, sources: &[usize]) -> Result<()> {
        with_numbers!(self, numbers => {
            let width = numbers.len() / rows;
            memory::reserve(numbers, sources.len() * width, VECTORS)?;
            for &row in sources {
                numbers.extend_from_within(row * width..(row + 1) * width);
            }
            Ok(())
        })
    }

    /// Copies `rows`, of the same encoding, to these of `self`'s rows. `self` gets `count` rows if it has none.
    ///
    /// # Errors
    /// There is no memory for `count` rows.
    pub(crate) fn scatter(&mut self, count: usize, indices: &[u32], rows: &Self) -> Result<()> {
        fn scatter<T: Copy + Default>(
            all: &mut Vec<T>,
            count: usize,
            indices: &[u32],
            rows: &[T],
        ) -> Result<()> {
            let width = rows.len() / indices.len();
            if all.is_empty() {
                *all = memory::filled(count * width, T::default(), VECTORS)?;
            }
            for (&index, row) in indices.iter().zip(rows.chunks_exact(width)) {
                all[index as usize * width..][..width].copy_from_slice(row);
            }
            Ok(())
        }
        match (self, rows) {
            (Self::Float32(all), Self::Float32(rows)) => scatter(all, count, indices, rows),
            (Self::Int8(all), Self::Int8(rows)) => scatter(all, count, indices, rows),
            (Self::Binary(all), Self::Binary(rows)) => scatter(all, count, indices, rows),
            _ => unreachable!("a call has one encoding"),
        }
    }
}

impl Encoding {
    /// Encodes `vectors` (`[n, dimension]`, row-major).
    ///
    /// # Errors
    /// There is no memory for the encoded vectors.
    pub fn encode(self, vectors: Vec<f32>, dimension: usize) -> Result<Vectors> {
        const WHAT: &str = "the encoded vectors";
        Ok(match self {
            Self::Float32 => Vectors::Float32(vectors),
            Self::Int8 => {
                let components = vectors.into_iter().map(to_int8);
                Vectors::Int8(memory::collected(components, WHAT)?)
            }
            Self::Binary => {
                let rows = vectors.chunks_exact(dimension);
                let mut bytes = memory::room(rows.len() * dimension.div_ceil(8), WHAT)?;
                bytes.extend(rows.flat_map(|row| row.chunks(8)).map(to_bits));
                Vectors::Binary(bytes)
            }
        })
    }
}

/// Rounds to the nearest. The only ties are those of ±0.5, which rounding away from zero takes to ±64 and rounding to even
/// as well: `numpy.rint` gives the same. The product is exact in double precision.
fn to_int8(x: f32) -> i8 {
    (f64::from(x) * 127.0).round().clamp(-127.0, 127.0) as i8
}

/// The signs of at most eight components, the first in the highest bit.
fn to_bits(components: &[f32]) -> u8 {
    let bits = components.iter().enumerate();
    bits.fold(0, |byte, (index, &x)| {
        byte | u8::from(x > 0.0) << (7 - index)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_get_length_one_and_zeros_stay() {
        let mut vectors = vec![3.0, 4.0, 0.0, 0.0, 1e-30, 0.0];
        normalize(&mut vectors, 2);
        assert_eq!(vectors, [0.6, 0.8, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn truncation_keeps_the_first_components_of_every_row() {
        let truncated = |dimensions, layer_norm| {
            let mut vectors = vec![1.0, 2.0, 3.0, 5.0, 5.0, 5.0];
            Matryoshka {
                dimensions,
                layer_norm,
            }
            .apply(&mut vectors, 3);
            vectors
        };
        assert_eq!(truncated(1, false), [1.0, 5.0]);
        assert_eq!(truncated(2, false), [1.0, 2.0, 5.0, 5.0]);
        assert_eq!(truncated(3, false), [1.0, 2.0, 3.0, 5.0, 5.0, 5.0]);
        // Mean 2, variance 2/3; a constant row has no direction that the norm could keep.
        let first = (-1.0 / (2.0 / 3.0 + 1e-5_f64).sqrt()) as f32;
        assert_eq!(truncated(2, true), [first, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_row_with_nan_or_infinity_is_refused() {
        assert!(check_finite(&[1.0, 2.0], 2).is_ok());
        let error = check_finite(&[1.0, 2.0, f32::NAN, 0.0, f32::INFINITY, 1.0], 2).unwrap_err();
        assert_eq!(error.code(), "INFERENCE_FAILED");
        assert!(error.to_string().contains("2 of 3 vectors"), "{error}");
    }
}
