//! How a matrix of weights becomes int8: symmetric, one scale per output. Pure.

use crate::error::Result;
use crate::memory;

/// Largest magnitude of a quantized number.
const LARGEST: f32 = 127.0;

/// Outputs that are transposed together: they stay in the processor's cache meanwhile.
const BLOCK: usize = 64;

/// Added and subtracted again it leaves the nearest integer, ties to even: behind it a float32 has no room for a
/// fraction. Unlike `round_ties_even` it is no function call on x86's smallest common denominator.
const ROUNDING: f32 = 12_582_912.0; // 1.5 · 2²³

/// A quantized matrix.
pub struct Quantized {
    /// int8 `[inputs, outputs]` row-major, in two's complement.
    pub values: Vec<u8>,
    /// `[outputs]`; a weight is its value times the scale of its output.
    pub scales: Vec<f32>,
}

/// Quantizes weights `[outputs, inputs]`, row-major, for every processor, and transposes them.
///
/// # Errors
/// There is no memory for the quantized ones.
pub fn quantize(weights: &[f32], inputs: usize) -> Result<Quantized> {
    const WHAT: &str = "weights in int8";
    let scales = memory::collected(
        weights.chunks_exact(inputs).map(|row| scale(row, true)),
        WHAT,
    )?;
    let outputs = scales.len();
    let mut values = memory::filled(weights.len(), 0, WHAT)?;
    let mut block = memory::room(BLOCK * inputs, WHAT)?;
    for (index, rows) in weights.chunks(BLOCK * inputs).enumerate() {
        let first = index * BLOCK;
        block.clear();
        for (row, scale) in rows.chunks_exact(inputs).zip(&scales[first..]) {
            block.extend(row.iter().map(|weight| nearest(*weight, *scale) as u8));
        }
        let rows = block.len() / inputs;
        for (input, target) in values.chunks_exact_mut(outputs).enumerate() {
            for (row, value) in target[first..][..rows].iter_mut().enumerate() {
                *value = block[row * inputs + input];
            }
        }
    }
    Ok(Quantized { values, scales })
}

/// The smallest scale with which all weights of an output fit into int8; with `pairs` also on x86 processors without VNNI.
///
/// Those multiply unsigned activations by signed weights and add the products of two neighbouring inputs in 16 bits, which
/// saturates. The usual way out is to give up one bit of all weights. But 255 · (|a| + |b|) stays below 2¹⁵ as long as
/// |a| + |b| ≤ 128, and neighbours that are both near the largest weight, with the same sign, are rare: asking for just that
/// costs far less precision.
#[must_use]
pub fn scale(row: &[f32], pairs: bool) -> f32 {
    let mut largest = largest_magnitude(row.iter().copied());
    if pairs {
        // Where neighbours differ in sign, the sum is smaller than the larger of them.
        let sums = row.windows(2).map(|pair| pair[0] + pair[1]);
        largest = largest.max(largest_magnitude(sums));
    }
    // Rounding may add one half to each of two neighbours: 127 + 1 = 128.
    let scale = largest / LARGEST;
    if scale > 0.0 { scale } else { 1.0 }
}

/// The integer of a weight.
#[must_use]
pub fn nearest(weight: f32, scale: f32) -> i8 {
    ((weight / scale + ROUNDING) - ROUNDING) as i32 as i8
}

/// Compares magnitudes as integers, whose order is the same: compilers make vector code of that alone.
fn largest_magnitude(numbers: impl Iterator<Item = f32>) -> f32 {
    let magnitudes = numbers.map(|number| number.abs().to_bits() as i32);
    f32::from_bits(magnitudes.fold(0, i32::max) as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weights() -> impl Strategy<Value = (Vec<f32>, usize)> {
        (1_usize..40, 1_usize..150).prop_flat_map(|(inputs, outputs)| {
            let weight = prop_oneof![8 => -1.0_f32..1.0, 1 => Just(0.0), 1 => -30.0_f32..30.0];
            (
                prop::collection::vec(weight, inputs * outputs),
                Just(inputs),
            )
        })
    }

    proptest! {
        #[test]
        fn a_weight_is_at_most_half_a_step_off((weights, inputs) in weights()) {
            let Quantized { values, scales } = quantize(&weights, inputs).unwrap();
            let outputs = scales.len();
            for (index, weight) in weights.iter().enumerate() {
                let (output, input) = (index / inputs, index % inputs);
                let value = f32::from(values[input * outputs + output] as i8) * scales[output];
                prop_assert!((value - weight).abs() <= scales[output] * 0.5001, "{weight} became {value}");
            }
        }

        #[test]
        fn sixteen_bits_hold_the_products_of_neighbours((weights, inputs) in weights()) {
            let Quantized { values, scales } = quantize(&weights, inputs).unwrap();
            let outputs = scales.len();
            let value = |input: usize, output: usize| i32::from(values[input * outputs + output] as i8);
            for output in 0..outputs {
                for input in 0..inputs {
                    let mine = value(input, output);
                    prop_assert!(mine.abs() <= 127);
                    if input + 1 == inputs {
                        continue;
                    }
                    let next = value(input + 1, output);
                    // Activations are 0 to 255, each on its own.
                    for sum in [255 * mine, 255 * next, 255 * (mine + next)] {
                        prop_assert!(i16::try_from(sum).is_ok(), "{mine} and {next} saturate");
                    }
                }
            }
        }

        #[test]
        fn a_column_uses_the_range((weights, inputs) in weights()) {
            let Quantized { values, scales } = quantize(&weights, inputs).unwrap();
            for (output, row) in weights.chunks_exact(inputs).enumerate() {
                let used = (0..inputs).map(|input| (values[input * scales.len() + output] as i8).unsigned_abs()).max();
                // At worst two neighbours are both the largest.
                prop_assert!(row.iter().all(|weight| *weight == 0.0) || used >= Some(63), "{used:?}");
            }
        }
    }
}
