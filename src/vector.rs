//! Arithmetic on finished vectors. Pure float32.

use crate::error::{Error, Result};

/// Scales every row of `vectors` (`[n, dimension]`, row-major) to length 1. A row of zeros stays as it is.
pub fn normalize(vectors: &mut [f32], dimension: usize) {
    for row in vectors.chunks_exact_mut(dimension) {
        // Summed in double precision: the error of a long float32 sum would show in the last digits.
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
    Err(Error::InferenceFailed {
        reason: format!(
            "{broken} of {} vectors hold NaN or infinity; the weights or the number format do not fit the model",
            vectors.len() / dimension
        ),
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
    fn a_row_that_is_not_a_number_is_refused() {
        assert!(check_finite(&[1.0, 2.0], 2).is_ok());
        let error = check_finite(&[1.0, 2.0, f32::NAN, 0.0, f32::INFINITY, 1.0], 2).unwrap_err();
        assert_eq!(error.code(), "INFERENCE_FAILED");
        assert!(error.to_string().contains("2 of 3 vectors"), "{error}");
    }
}
