//! Element-wise functions over rows of float32, compiled once for each width of registers: the compiler vectorizes plain
//! loops, and every width gives the same numbers.

use half::bf16;

use super::level::Level;
use crate::graph::{Activation, NormKind};

/// Numbers that are added up side by side, whatever the width of registers.
const LANES: usize = 16;

/// Functions that are compiled for each level: the first argument chooses.
macro_rules! per_level {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $name(level: Level, $($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($argument: $type),*) $(-> $result)? {
                    body($($argument),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($argument: $type),*) $(-> $result)? {
                    body($($argument),*)
                }
                // SAFETY: a level is only made where the processor has what it stands for.
                return unsafe {
                    match level {
                        Level::Portable => body($($argument),*),
                        Level::Avx2 | Level::AvxVnni => avx2($($argument),*),
                        Level::Avx512 | Level::Avx512Vnni | Level::Amx => avx512($($argument),*),
                    }
                };
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = level;
                body($($argument),*)
            }
        }
    )*};
}

/// `e^x` to 2 units in the last place, between the smallest and the largest normal number; NaN of NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: added to a number it leaves the nearest integer in the last bits.
    const ROUNDING: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons that are false for NaN, which stays.
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUNDING;
    let power = rounded - ROUNDING;
    let rest = x - power * LN_2_HIGH - power * LN_2_LOW;
    // Source: Cephes, `expf`.
    let mut series = 1.987_569_1e-4;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        series = series * rest + coefficient;
    }
    let mantissa = series * rest * rest + rest + 1.0;
    let exponent = (rounded.to_bits() << 23).wrapping_add(1.0_f32.to_bits());
    mantissa * f32::from_bits(exponent)
}

/// The error function, to 1.5e-7. Source: Abramowitz and Stegun, 7.1.26.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let magnitude = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * magnitude);
    let mut series = 1.061_405_4;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        series = series * t + coefficient;
    }
    (1.0 - series * t * exp(-magnitude * magnitude)).copysign(x)
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

#[inline(always)]
fn apply(activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Gelu => each(x, |x| {
            x * 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
        }),
        Activation::GeluTanh => each(x, |x| {
            let inner = 0.797_884_6 * (x + 0.044_715 * x * x * x);
            x * 0.5 * (1.0 + tanh(inner))
        }),
        Activation::Relu => each(x, |x| if x < 0.0 { 0.0 } else { x }),
        Activation::Silu => each(x, |x| x / (1.0 + exp(-x))),
        Activation::Tanh => each(x, tanh),
    }
}

#[inline(always)]
fn each(x: &mut [f32], function: impl Fn(f32) -> f32) {
    for x in x {
        *x = function(*x);
    }
}

/// Added up in [`LANES`] lanes and then in pairs: an order that depends on the length alone.
#[inline(always)]
fn reduce(x: &[f32], start: f32, of_one: impl Fn(f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = join(*lane, of_one(*x));
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = join(*lane, of_one(*x));
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
    }
    lanes[0]
}

/// The nearest bfloat16, ties to even, as its bits; NaN of NaN.
#[inline(always)]
fn narrowed(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = u32::from(bf16::NAN.to_bits());
    (if x.is_nan() { nan } else { rounded }) as u16
}

/// What becomes of the sums of a tile; see [`finish`].
pub struct Finish<'a> {
    /// int8: the scale of each row, those of the columns, and what the zero point adds to each column.
    pub integers: Option<(&'a [f32], &'a [f32], &'a [i32])>,
    /// Of each column.
    pub bias: Option<&'a [f32]>,
    /// What follows.
    pub then: Then,
}

/// What follows a product in the same pass.
#[derive(Clone, Copy)]
pub enum Then {
    /// Nothing.
    Store,
    /// A function of each number.
    Activate(Activation),
    /// Columns come in blocks of 16 numbers and then 16 gates of theirs: each number is multiplied by the function of its gate.
    Gate(Activation),
    /// The numbers that are there already are added.
    Add,
}

per_level! {
    /// Finishes a tile: `sums` has a row of `stride` numbers, of which `columns` count, for each of `out`: float32, or int32
    /// if `finish` has scales. `out` are the parts of rows that the tile makes.
    fn finish(sums: &mut [f32], stride: usize, columns: usize, finish: &Finish, out: &mut [&mut [f32]]) {
        for (index, (row, out)) in sums.chunks_exact_mut(stride).zip(out.iter_mut()).enumerate() {
            let row = &mut row[..columns];
            if let Some((of_rows, of_columns, zeros)) = finish.integers {
                let scale = of_rows[index];
                for ((sum, of_column), zero) in row.iter_mut().zip(of_columns).zip(zeros) {
                    *sum = (sum.to_bits() as i32 - zero) as f32 * (scale * of_column);
                }
            }
            if let Some(bias) = finish.bias {
                for (sum, bias) in row.iter_mut().zip(bias) {
                    *sum += bias;
                }
            }
            match finish.then {
                Then::Store => out.copy_from_slice(&row[..out.len()]),
                Then::Activate(activation) => {
                    apply(activation, row);
                    out.copy_from_slice(&row[..out.len()]);
                }
                Then::Gate(activation) => {
                    for (pair, out) in row.chunks_exact_mut(2 * LANES).zip(out.chunks_mut(LANES)) {
                        let (numbers, gates) = pair.split_at_mut(LANES);
                        apply(activation, gates);
                        for ((out, number), gate) in out.iter_mut().zip(numbers).zip(gates) {
                            *out = *number * *gate;
                        }
                    }
                }
                Then::Add => {
                    for (out, sum) in out.iter_mut().zip(row) {
                        *out += *sum;
                    }
                }
            }
        }
    }

    /// The activation of every number.
    fn activate(activation: Activation, x: &mut [f32]) {
        apply(activation, x);
    }

    /// `x · activation(gate)`; `gate` becomes its activation.
    fn gate(activation: Activation, x: &mut [f32], gate: &mut [f32]) {
        apply(activation, gate);
        for (x, gate) in x.iter_mut().zip(gate) {
            *x *= *gate;
        }
    }

    /// `x + factor · y`.
    fn add(x: &mut [f32], factor: f32, y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += factor * *y;
        }
    }

    /// The larger ones; NaN where one is.
    fn maximum(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x = if *y > *x || y.is_nan() { *y } else { *x };
        }
    }

    /// Normalizes each run of as many numbers as `scale` has.
    fn norm(kind: NormKind, x: &mut [f32], scale: &[f32], shift: Option<&[f32]>, epsilon: f32) {
        let width = scale.len() as f32;
        for run in x.chunks_exact_mut(scale.len()) {
            if kind == NormKind::Layer {
                let mean = reduce(run, 0.0, |x| x, |a, b| a + b) / width;
                each(run, |x| x - mean);
            }
            let square = reduce(run, 0.0, |x| x * x, |a, b| a + b) / width;
            let factor = 1.0 / (square + epsilon).sqrt();
            for (x, scale) in run.iter_mut().zip(scale) {
                *x *= factor * scale;
            }
            for (x, shift) in run.iter_mut().zip(shift.unwrap_or_default()) {
                *x += shift;
            }
        }
    }

    /// Turns a row of scores into shares: `bias` is added to what is multiplied by `scale`.
    fn softmax(scores: &mut [f32], scale: f32, bias: Option<&[f32]>) {
        each(scores, |x| x * scale);
        for (score, bias) in scores.iter_mut().zip(bias.unwrap_or_default()) {
            *score += bias;
        }
        let largest = reduce(scores, f32::NEG_INFINITY, |x| x, |a, b| if b > a { b } else { a });
        each(scores, |x| exp(x - largest));
        let factor = 1.0 / reduce(scores, 0.0, |x| x, |a, b| a + b);
        each(scores, |x| x * factor);
    }

    /// Rotates halves of the first dimensions of each head by angles whose cosines and sines are given.
    fn rotate(x: &mut [f32], head_dim: usize, cosines: &[f32], sines: &[f32]) {
        for head in x.chunks_exact_mut(head_dim) {
            let (first, second) = head.split_at_mut(cosines.len());
            for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
            }
        }
    }

    /// Rounds two rows to bfloat16, whose numbers alternate.
    fn narrow_pairs(x: &[f32], y: &[f32], out: &mut [u8]) {
        for ((x, y), out) in x.iter().zip(y).zip(out.as_chunks_mut().0) {
            *out = (u32::from(narrowed(*x)) | u32::from(narrowed(*y)) << 16).to_le_bytes();
        }
    }

    /// Rounds to bfloat16.
    fn narrow(x: &[f32], out: &mut [u8]) {
        for (x, out) in x.iter().zip(out.as_chunks_mut().0) {
            *out = narrowed(*x).to_le_bytes();
        }
    }

    /// Quantizes a row symmetrically around 128; returns its scale. That of a row with a NaN or an infinity is NaN.
    fn quantize(x: &[f32], out: &mut [u8]) -> f32 {
        /// 1.5 · 2²³ + 128: added to a number it leaves the nearest integer, plus 128, in the last byte.
        const ROUNDING: f32 = 12_582_912.0 + 128.0;
        let largest = reduce(x, 0.0, f32::abs, |a, b| if b > a { b } else { a });
        let special = reduce(x, 0.0, |x| x * 0.0, |a, b| a + b);
        let factor = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        for (x, out) in x.iter().zip(out) {
            *out = (*x * factor + ROUNDING).to_bits() as u8;
        }
        largest / 127.0 + special
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_close_to_those_of_double_precision() {
        let mut x = -30.0_f32;
        while x < 30.0 {
            let wide = f64::from(x);
            let exact = wide.exp();
            assert!(((f64::from(exp(x)) - exact) / exact).abs() < 2.5e-7, "exp({x})");
            assert!((f64::from(tanh(x)) - wide.tanh()).abs() < 2e-7, "tanh({x})");
            x += 0.001;
        }
        assert!(exp(f32::NAN).is_nan() && erf(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
        assert!(exp(1e30).is_finite() && exp(-1e30) > 0.0);
        // Source of the values: Abramowitz and Stegun, table 7.1.
        for (x, expected) in [(0.0, 0.0), (0.5, 0.520_499_88), (1.0, 0.842_700_8), (2.0, 0.995_322_3)] {
            assert!((erf(x) - expected).abs() < 3e-7, "erf({x})");
            assert!((erf(-x) + expected).abs() < 3e-7, "erf({x})");
        }
    }

    #[test]
    fn every_level_gives_the_same_numbers() {
        let x: Vec<f32> = (0..83).map(|i| (i as f32 * 0.37).sin() * 4.0).collect();
        let scale = vec![1.5; x.len()];
        let of = |level| {
            let mut all = Vec::new();
            for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Tanh, Activation::Relu] {
                let mut y = x.clone();
                activate(level, activation, &mut y);
                all.extend(y);
            }
            let mut y = x.clone();
            norm(level, NormKind::Layer, &mut y, &scale, Some(&x), 1e-5);
            all.extend_from_slice(&y);
            softmax(level, &mut y, 0.3, Some(&x));
            all.extend(y);
            let mut bytes = vec![0; x.len()];
            all.push(quantize(level, &x, &mut bytes));
            all.extend(bytes.iter().map(|byte| f32::from(*byte)));
            let mut bytes = vec![0; 2 * x.len()];
            narrow(level, &x, &mut bytes);
            all.extend(bytes.iter().map(|byte| f32::from(*byte)));
            all
        };
        let portable = of(Level::Portable);
        assert!(portable.iter().all(|number| number.is_finite()));
        for level in Level::found() {
            assert_eq!(of(level), portable, "{level:?}");
        }
    }

    #[test]
    fn rounding_is_that_of_half_and_keeps_what_is_no_number() {
        for x in [0.0, -0.0, 1.0, 1.003_906_3, 1.011_718_8, -3.3e38, 1e-40, f32::INFINITY] {
            assert_eq!(narrowed(x), bf16::from_f32(x).to_bits(), "{x}");
        }
        assert!(bf16::from_bits(narrowed(f32::from_bits(0x7fff_ffff))).is_nan());
        let mut bytes = [0; 3];
        assert!(quantize(Level::Portable, &[1.0, f32::NAN, 2.0], &mut bytes).is_nan());
        assert!(quantize(Level::Portable, &[1.0, f32::INFINITY, 2.0], &mut bytes).is_nan());
        assert_eq!(quantize(Level::Portable, &[0.0; 3], &mut bytes), 0.0);
        assert_eq!(quantize(Level::Portable, &[-12.7, 0.04, 6.0], &mut bytes), 0.1);
        assert_eq!(bytes, [1, 128, 188]);
    }
}
