//! Functions of rows of float32, compiled once for each kind of registers.

#![allow(
    clippy::inline_always,
    reason = "what is not inlined has no access to the instructions of its caller"
)]

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{LANES, Lanes, Portable};
use super::level::Level;
use super::matrix::Grid;
use crate::graph::{Activation, NormKind};

/// Functions that are compiled for each kind of registers, which they know as `L`; the first argument chooses. Closures are
/// compiled with the instructions of the function that they are written in: functions that are inlined into these have none.
macro_rules! per_level {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $name(level: Level, $($argument: $type),*) $(-> $result)? {
            per_level!(portable Portable ($($argument: $type),*) $(-> $result)? $body);
            #[cfg(target_arch = "x86_64")]
            {
                per_level!(
                    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                    avx512 Avx512 ($($argument: $type),*) $(-> $result)? $body
                );
                per_level!(
                    #[target_feature(enable = "avx2,fma")]
                    avx2 Avx2 ($($argument: $type),*) $(-> $result)? $body
                );
                // SAFETY: a level is only made where the processor has what it stands for.
                unsafe {
                    match level {
                        Level::Portable | Level::Dotprod => portable($($argument),*),
                        Level::Avx2 | Level::AvxVnni => avx2($($argument),*),
                        Level::Avx512 | Level::Avx512Vnni | Level::Amx => avx512($($argument),*),
                    }
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = level;
                portable($($argument),*)
            }
        }
    )*};
    ($(#[$features:meta])? $name:ident $lanes:ident ($($argument:ident: $type:ty),*) $(-> $result:ty)? $body:block) => {
        $(#[$features])?
        fn $name($($argument: $type),*) $(-> $result)? {
            type L = $lanes;
            // SAFETY: the instructions of `L` are enabled, and pointers are made of slices.
            unsafe { $body }
        }
    };
}

/// 1.5 · 2²³: added to a number it leaves the nearest integer in the last bits.
const ROUNDING: f32 = 12_582_912.0;

/// `e^x` to 2 units in the last place, 0 below the smallest normal number; NaN of NaN.
#[inline(always)]
unsafe fn exp<L: Lanes>(x: L) -> L {
    const LEAST: f32 = -87.0;
    // SAFETY: as this function.
    unsafe {
        let x = x.at_most(L::splat(88.0));
        let rounded = x.multiply_add(L::splat(std::f32::consts::LOG2_E), L::splat(ROUNDING));
        let power = rounded.subtract(L::splat(ROUNDING));
        // The logarithm of 2 in two parts.
        let rest = power.multiply_add(L::splat(-0.693_359_4), x);
        let rest = power.multiply_add(L::splat(2.121_944_4e-4), rest);
        // Source: Cephes, `expf`.
        let series = [
            1.987_569_1e-4,
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ];
        let series = polynomial(rest, series);
        let mantissa = series
            .multiply_add(rest.multiply(rest), rest)
            .add(L::splat(1.0));
        mantissa.scale(rounded).where_at_least(x, L::splat(LEAST))
    }
}

/// A polynomial, the coefficient of the highest power first.
#[inline(always)]
unsafe fn polynomial<L: Lanes, const N: usize>(x: L, coefficients: [f32; N]) -> L {
    // SAFETY: as this function.
    unsafe {
        let mut sum = L::splat(coefficients[0]);
        for coefficient in &coefficients[1..] {
            sum = sum.multiply_add(x, L::splat(*coefficient));
        }
        sum
    }
}

/// The error function, to 4e-7: a quotient of polynomials, fitted to it up to 3.9, where it is 1 in float32.
#[inline(always)]
unsafe fn erf<L: Lanes>(x: L) -> L {
    const MOST: f32 = 3.9;
    // SAFETY: as this function.
    unsafe {
        let x = x.at_most(L::splat(MOST)).at_least(L::splat(-MOST));
        let square = x.multiply(x);
        let above = [
            2.050_344_8e-6,
            2.874_393_5e-4,
            3.836_462e-3,
            5.296_563_7e-2,
            0.191_932_54,
            std::f32::consts::FRAC_2_SQRT_PI,
        ];
        let below = [
            3.822_935_5e-5,
            1.181_617_4e-3,
            1.510_839_2e-2,
            0.114_754_55,
            0.503_427_57,
            1.0,
        ];
        x.multiply(polynomial(square, above))
            .divide(polynomial(square, below))
    }
}

#[inline(always)]
unsafe fn tanh<L: Lanes>(x: L) -> L {
    // SAFETY: as this function.
    unsafe {
        let one = L::splat(1.0);
        let power = exp(x.add(x));
        one.subtract(L::splat(2.0).divide(power.add(one)))
    }
}

/// `x · (1 + curve) / 2`
#[inline(always)]
unsafe fn share<L: Lanes>(x: L, curve: L) -> L {
    // SAFETY: as this function.
    unsafe {
        let half = x.multiply(L::splat(0.5));
        half.multiply_add(curve, half)
    }
}

#[inline(always)]
unsafe fn apply<L: Lanes>(activation: Activation, x: L) -> L {
    // SAFETY: as this function.
    unsafe {
        match activation {
            Activation::Gelu => {
                let curve = erf(x.multiply(L::splat(std::f32::consts::FRAC_1_SQRT_2)));
                // Below it is nothing, -1e-7 at most, but what the error function lacks to -1 grows with `x`.
                share(x, curve).where_at_least(x, L::splat(-5.5))
            }
            Activation::GeluTanh => {
                let cube = x.multiply(x).multiply(x);
                let inner = cube.multiply_add(L::splat(0.044_715), x);
                share(x, tanh(inner.multiply(L::splat(0.797_884_6))))
            }
            Activation::Relu => x.at_least(L::splat(0.0)),
            Activation::Silu => {
                let power = exp(L::splat(0.0).subtract(x));
                x.divide(power.add(L::splat(1.0)))
            }
            Activation::Tanh => tanh(x),
        }
    }
}

/// Loads up to [`LANES`] numbers from a place; `filler` stands in for others.
#[inline(always)]
unsafe fn load<L: Lanes>(x: &[f32], at: usize, filler: f32) -> L {
    // SAFETY: inside of the slice, or of the array; the rest as this function.
    unsafe {
        if at + LANES <= x.len() {
            return L::load(x.as_ptr().add(at));
        }
        let mut some = [filler; LANES];
        let rest = x.get(at..).unwrap_or_default();
        some[..rest.len()].copy_from_slice(rest);
        L::load(some.as_ptr())
    }
}

#[inline(always)]
unsafe fn store<L: Lanes>(numbers: L, x: &mut [f32], at: usize) {
    // SAFETY: as above.
    unsafe {
        if at + LANES <= x.len() {
            return numbers.store(x.as_mut_ptr().add(at));
        }
        let mut some = [0.0; LANES];
        numbers.store(some.as_mut_ptr());
        let rest = x.len() - at;
        x[at..].copy_from_slice(&some[..rest]);
    }
}

/// Lets `write` put [`LANES`] numbers of some bytes each, of which `out` takes those that it has room for.
#[inline(always)]
fn put<const BYTES: usize>(out: &mut [u8], write: impl FnOnce(*mut u8)) {
    if out.len() == BYTES {
        write(out.as_mut_ptr());
    } else {
        let mut bytes = [0; BYTES];
        write(bytes.as_mut_ptr());
        out.copy_from_slice(&bytes[..out.len()]);
    }
}

/// Replaces numbers by functions of them and their places.
#[inline(always)]
unsafe fn each<L: Lanes>(x: &mut [f32], function: impl Fn(L, usize) -> L) {
    for at in (0..x.len()).step_by(LANES) {
        // SAFETY: as this function.
        unsafe { store(function(load(x, at, 0.0), at), x, at) };
    }
}

/// Joins numbers, four times [`LANES`] at once: in an order that depends on their count alone. `filler` changes nothing.
#[inline(always)]
unsafe fn fold<L: Lanes>(
    x: &[f32],
    filler: f32,
    join: impl Fn(L, L) -> L,
    both: impl Fn(L, L) -> L,
) -> L {
    // SAFETY: as this function.
    unsafe {
        let mut sums = [L::splat(filler); 4];
        let all = x.len() / (4 * LANES) * (4 * LANES);
        for at in (0..all).step_by(4 * LANES) {
            for (index, sum) in sums.iter_mut().enumerate() {
                *sum = join(*sum, L::load(x.as_ptr().add(at + index * LANES)));
            }
        }
        for at in (all..x.len()).step_by(LANES) {
            sums[0] = join(sums[0], load(x, at, filler));
        }
        both(both(sums[0], sums[1]), both(sums[2], sums[3]))
    }
}

/// [`each`], joining the new numbers.
#[inline(always)]
unsafe fn map_fold<L: Lanes>(
    x: &mut [f32],
    filler: f32,
    function: impl Fn(L, usize) -> L,
    join: impl Fn(L, L) -> L,
) -> L {
    // SAFETY: as this function.
    unsafe {
        let mut sums = [L::splat(filler); 2];
        let all = x.len() / (2 * LANES) * (2 * LANES);
        for at in (0..all).step_by(2 * LANES) {
            for (index, sum) in sums.iter_mut().enumerate() {
                let at = at + index * LANES;
                let numbers = function(L::load(x.as_ptr().add(at)), at);
                numbers.store(x.as_mut_ptr().add(at));
                *sum = join(*sum, numbers);
            }
        }
        for at in (all..x.len()).step_by(LANES) {
            store(function(load(x, at, 0.0), at), x, at);
            sums[0] = join(sums[0], load(x, at, filler));
        }
        join(sums[0], sums[1])
    }
}

/// What becomes of the sums of a tile; see [`finish`].
pub struct Finish<'a> {
    /// Where the sums are integers, what makes numbers of them.
    pub integers: Option<Integers<'a>>,
    /// Of each column.
    pub bias: Option<&'a [f32]>,
    /// What follows.
    pub then: Then,
}

/// A number is the sum, minus the zero point of its row times the weights of its column, times the scales of both.
pub struct Integers<'a> {
    /// Of the rows of the product.
    pub rows: &'a [RowScale],
    /// The scale of each column of the tile.
    pub columns: &'a [f32],
    /// The weights of each, added up.
    pub weights: &'a [i32],
}

/// How the bytes of a row became what they are: a number is `scale · (byte − zero)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct RowScale {
    pub scale: f32,
    pub zero: i32,
}

/// Where a tile goes in a [`Grid`].
pub struct Place {
    pub rows: Range<usize>,
    pub column: usize,
    /// Columns that are written.
    pub width: usize,
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

/// One block of a row of sums, scaled and shifted.
#[inline(always)]
unsafe fn block<L: Lanes>(row: &[f32], at: usize, finish: &Finish, of_row: RowScale) -> L {
    // SAFETY: rows, scales and biases have whole blocks; the rest as this function.
    unsafe {
        assert!(at + LANES <= row.len());
        let sums = match &finish.integers {
            Some(Integers {
                columns, weights, ..
            }) => {
                assert!(at + LANES <= columns.len() && at + LANES <= weights.len());
                let factors = L::load(columns.as_ptr().add(at)).multiply(L::splat(of_row.scale));
                L::without(row.as_ptr().add(at), of_row.zero, weights.as_ptr().add(at))
                    .multiply(factors)
            }
            None => L::load(row.as_ptr().add(at)),
        };
        match finish.bias {
            Some(bias) => sums.add(load(bias, at, 0.0)),
            None => sums,
        }
    }
}

per_level! {
    /// Finishes a tile: `sums` has a row of `stride` numbers for each of its rows: float32, or int32 if `finish` has scales.
    fn finish(sums: &[f32], stride: usize, finish: &Finish, out: &Grid, place: &Place) {
        for (row, sums) in place.rows.clone().zip(sums.chunks_exact(stride)) {
            let of_row = finish.integers.as_ref().map(|integers| integers.rows[row]).unwrap_or_default();
            // By the contract of the grid nobody else writes these.
            let out = out.part(row, place.column, place.width);
            match finish.then {
                Then::Store => each::<L>(out, |_, at| block(sums, at, finish, of_row)),
                Then::Activate(activation) => each::<L>(out, |_, at| apply(activation, block(sums, at, finish, of_row))),
                Then::Gate(activation) => each::<L>(out, |_, at| {
                    let gate = apply(activation, block(sums, 2 * at + LANES, finish, of_row));
                    block::<L>(sums, 2 * at, finish, of_row).multiply(gate)
                }),
                Then::Add => each::<L>(out, |x, at| x.add(block(sums, at, finish, of_row))),
            }
        }
    }

    /// The activation of every number.
    fn activate(activation: Activation, x: &mut [f32]) {
        each::<L>(x, |x, _| apply(activation, x));
    }

    /// `x · activation(gate)`
    fn gate(activation: Activation, x: &mut [f32], gate: &[f32]) {
        each::<L>(x, |x, at| x.multiply(apply(activation, load(gate, at, 0.0))));
    }

    /// `x + factor · y`
    fn add(x: &mut [f32], factor: f32, y: &[f32]) {
        each::<L>(x, |x, at| load::<L>(y, at, 0.0).multiply_add(L::splat(factor), x));
    }

    /// The larger numbers.
    fn maximum(x: &mut [f32], y: &[f32]) {
        each::<L>(x, |x, at| load::<L>(y, at, 0.0).at_least(x));
    }

    /// Normalizes each run of as many numbers as `weights` has.
    fn norm(kind: NormKind, x: &mut [f32], weights: &[f32], shift: Option<&[f32]>, epsilon: f32) {
        let width = weights.len() as f32;
        for run in x.chunks_exact_mut(weights.len()) {
            let mut mean = L::splat(0.0);
            if kind == NormKind::Layer {
                let sum = fold::<L>(run, 0.0, |sum, x| sum.add(x), |a, b| a.add(b));
                mean = L::splat(sum.sum() / width);
            }
            let square = |sum: L, x: L| {
                let x = x.subtract(mean);
                x.multiply_add(x, sum)
            };
            // What is missing in the last block is as far away from the mean as the mean itself.
            let whole = run.len() / LANES * LANES;
            let squares = fold::<L>(&run[..whole], 0.0, square, |a, b| a.add(b));
            let mut squares = squares.sum();
            if whole < run.len() {
                let mut rest = [0.0; LANES];
                square(L::splat(0.0), load(run, whole, 0.0)).store(rest.as_mut_ptr());
                squares += rest[..run.len() - whole].iter().sum::<f32>();
            }
            let factor = L::splat(1.0 / (squares / width + epsilon).sqrt());
            each::<L>(run, |x, at| {
                let normal = x.subtract(mean).multiply(factor.multiply(load(weights, at, 0.0)));
                match shift {
                    Some(shift) => normal.add(load(shift, at, 0.0)),
                    None => normal,
                }
            });
        }
    }

    /// Turns a row of scores into shares, which are still to be multiplied by the factor that is returned. `biases` are added to
    /// what is multiplied by `scale`.
    fn softmax(scores: &mut [f32], scale: f32, biases: Option<&[f32]>) -> f32 {
        let largest = map_fold::<L>(scores, f32::NEG_INFINITY, |x, at| match biases {
            Some(biases) => x.multiply_add(L::splat(scale), load(biases, at, 0.0)),
            None => x.multiply(L::splat(scale)),
        }, |a, b| a.at_least(b)).largest();
        let largest = L::splat(largest);
        let sum = map_fold::<L>(scores, 0.0, |x, _| exp(x.subtract(largest)), |a, b| a.add(b));
        1.0 / sum.sum()
    }

    /// `factor · x`
    fn multiply(x: &mut [f32], factor: f32) {
        each::<L>(x, |x, _| x.multiply(L::splat(factor)));
    }

    /// Rotates halves of the first dimensions of each head by angles whose cosines and sines are given.
    fn rotate(x: &mut [f32], head_dim: usize, cosines: &[f32], sines: &[f32]) {
        for head in x.chunks_exact_mut(head_dim) {
            let (first, second) = head.split_at_mut(cosines.len());
            for at in (0..cosines.len()).step_by(LANES) {
                let [a, b] = [&*first, &*second].map(|half| load::<L>(&half[..cosines.len()], at, 0.0));
                let [cosine, sine] = [cosines, sines].map(|angles| load::<L>(angles, at, 0.0));
                store(a.multiply(cosine).subtract(b.multiply(sine)), first, at);
                store(b.multiply(cosine).add(a.multiply(sine)), &mut second[..cosines.len()], at);
            }
        }
    }

    /// `factor · x` as bytes of float32.
    fn scaled(x: &[f32], factor: f32, out: &mut [u8]) {
        for (at, out) in (0..x.len()).step_by(LANES).zip(out.chunks_mut(4 * LANES)) {
            let numbers = load::<L>(x, at, 0.0).multiply(L::splat(factor));
            put::<{ 4 * LANES }>(out, |to| numbers.store(to.cast()));
        }
    }

    /// Multiplies and rounds to bfloat16, and fills up with zeros.
    fn narrow(x: &[f32], factor: f32, out: &mut [u8]) {
        for (at, out) in (0..x.len()).step_by(LANES).zip(out.chunks_mut(2 * LANES)) {
            let numbers = load::<L>(x, at, 0.0).multiply(L::splat(factor));
            put::<{ 2 * LANES }>(out, |to| numbers.store_halves(to));
        }
        let written = (2 * x.len().next_multiple_of(LANES)).min(out.len());
        out[written..].fill(0);
    }

    /// Rounds two rows to bfloat16, whose numbers alternate; up to [`LANES`] of each.
    fn narrow_pairs(x: &[f32], y: &[f32], out: &mut [u8; 4 * LANES]) {
        load::<L>(x, 0, 0.0).store_pairs(load(y, 0, 0.0), out.as_mut_ptr());
    }

    /// Quantizes a row: what lies between its smallest and its largest number, and 0 at least, becomes 0 to 255. The scale of a
    /// row with a NaN or an infinity is NaN.
    fn quantize(x: &[f32], out: &mut [u8]) -> RowScale {
        const STEPS: f32 = 255.0;
        let nothing = L::splat(0.0);
        let (mut largest, mut smallest, mut special) = ([nothing; 2], [nothing; 2], [nothing; 2]);
        for at in (0..x.len()).step_by(2 * LANES) {
            for lane in 0..2 {
                let numbers: L = load(x, at + lane * LANES, 0.0);
                largest[lane] = largest[lane].at_least(numbers);
                smallest[lane] = smallest[lane].at_most(numbers);
                // 0, or what is no number.
                special[lane] = numbers.multiply_add(nothing, special[lane]);
            }
        }
        let largest = largest[0].at_least(largest[1]).largest();
        let smallest = smallest[0].at_most(smallest[1]);
        let smallest = -nothing.subtract(smallest).largest();
        let special = special[0].add(special[1]).sum();
        let range = largest - smallest;
        let factor = if range > 0.0 { STEPS / range } else { 0.0 };
        let zero = (-smallest * factor + ROUNDING) - ROUNDING;
        let [most, least] = [STEPS - zero, -zero].map(|limit| L::splat(limit));
        let [factor, rounding] = [factor, ROUNDING + zero].map(|number| L::splat(number));
        for (at, out) in (0..x.len()).step_by(LANES).zip(out.chunks_mut(LANES)) {
            let steps = load::<L>(x, at, 0.0).multiply(factor).at_most(most).at_least(least);
            put::<LANES>(out, |to| steps.add(rounding).store_bytes(to));
        }
        RowScale { scale: range / STEPS + special, zero: zero as i32 }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn activated(level: Level, activation: Activation, x: f32) -> f32 {
        let mut x = [x];
        activate(level, activation, &mut x);
        x[0]
    }

    /// Source of the error function's values: `math.erf` of Python.
    #[test]
    fn activations_are_close_to_double_precision() {
        let erf = [
            (0.25, 0.276_326_390_168_237),
            (0.5, 0.520_499_877_813_047),
            (1.0, 0.842_700_792_949_715),
            (2.5, 0.999_593_047_982_555),
        ];
        for level in Level::found() {
            for step in -3000..3000 {
                let x = step as f32 * 0.01;
                let wide = f64::from(x);
                let close = |activation, expected: f64| {
                    let found = f64::from(activated(level, activation, x));
                    assert!(
                        (found - expected).abs() < 3e-7 * wide.abs().max(1.0),
                        "{level:?} {activation:?}({x}) = {found}"
                    );
                };
                close(Activation::Tanh, wide.tanh());
                close(Activation::Silu, wide / (1.0 + (-wide).exp()));
                close(Activation::Relu, wide.max(0.0));
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
                close(Activation::GeluTanh, wide * 0.5 * (1.0 + inner.tanh()));
            }
            for (x, erf) in erf.into_iter().chain(erf.map(|(x, erf)| (-x, -erf))) {
                let x: f64 = x * std::f64::consts::SQRT_2;
                let found = f64::from(activated(level, Activation::Gelu, x as f32));
                assert!(
                    (found - x * 0.5 * (1.0 + erf)).abs() < 5e-7,
                    "{level:?} gelu({x})"
                );
            }
            for activation in [
                Activation::Gelu,
                Activation::GeluTanh,
                Activation::Silu,
                Activation::Tanh,
                Activation::Relu,
            ] {
                assert!(
                    activated(level, activation, f32::NAN).is_nan(),
                    "{level:?} {activation:?}"
                );
                assert!(
                    activated(level, activation, 1e30).is_finite(),
                    "{level:?} {activation:?}"
                );
                assert!(
                    activated(level, activation, -1e30).abs() <= 1.0,
                    "{level:?} {activation:?}"
                );
            }
        }
    }

    #[test]
    fn rows_of_any_length_on_every_level() {
        for level in Level::found() {
            for width in [1, 2, 15, 16, 17, 63, 64, 65, 127, 384] {
                let x: Vec<f32> = (0..width)
                    .map(|i| (i as f32 * 0.37).sin() * 4.0 + 1.0)
                    .collect();
                let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                let weights: Vec<f32> = (0..width).map(|i| 0.5 + i as f32 * 0.01).collect();
                let mean = wide.iter().sum::<f64>() / width as f64;
                let variance = wide.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                let mut y = x.clone();
                norm(level, NormKind::Layer, &mut y, &weights, Some(&x), 1e-5);
                for ((y, x), weight) in y.iter().zip(&wide).zip(&weights) {
                    let expected = (x - mean) / (variance + 1e-5).sqrt() * f64::from(*weight) + x;
                    assert!(
                        (f64::from(*y) - expected).abs() < 2e-5,
                        "{level:?} {width}: {y} for {expected}"
                    );
                }
                let mut y = x.clone();
                let factor = softmax(level, &mut y, 0.3, Some(&weights));
                multiply(level, &mut y, factor);
                let powers: Vec<f64> = (wide.iter().zip(&weights))
                    .map(|(x, bias)| (x * 0.3 + f64::from(*bias)).exp())
                    .collect();
                let sum: f64 = powers.iter().sum();
                for (y, power) in y.iter().zip(&powers) {
                    assert!(
                        (f64::from(*y) - power / sum).abs() < 1e-6,
                        "{level:?} {width}"
                    );
                }
                let mut bytes = vec![0; 2 * width];
                narrow(level, &x, 1.0, &mut bytes);
                for (x, bytes) in x.iter().zip(bytes.as_chunks().0) {
                    assert_eq!(u16::from_le_bytes(*bytes), bf16::from_f32(*x).to_bits());
                }
                let mut bytes = vec![0; width];
                let RowScale { scale, zero } = quantize(level, &x, &mut bytes);
                for (x, byte) in x.iter().zip(&bytes) {
                    let back = (i32::from(*byte) - zero) as f32 * scale;
                    assert!(
                        (back - x).abs() <= scale * 1.01,
                        "{level:?} {width}: {back} for {x}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for level in Level::found() {
            for x in [
                0.0,
                -0.0,
                1.0,
                1.003_906_3,
                1.011_718_8,
                -3.3e38,
                1e-40,
                f32::INFINITY,
                f32::from_bits(0x7fff_ffff),
            ] {
                let mut bytes = [0; 2];
                narrow(level, &[x], 1.0, &mut bytes);
                let [found, expected] = [bf16::from_le_bytes(bytes), bf16::from_f32(x)];
                assert!(
                    found.to_bits() == expected.to_bits() || (x.is_nan() && found.is_nan()),
                    "{level:?} {x}"
                );
            }
            let mut bytes = [0; 3];
            for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(
                    quantize(level, &[1.0, special, 2.0], &mut bytes)
                        .scale
                        .is_nan()
                );
            }
            assert!(quantize(level, &[0.0; 3], &mut bytes).scale.abs() < 1e-30);
            let RowScale { scale, zero } = quantize(level, &[-12.8, 0.04, 12.7], &mut bytes);
            assert!((scale - 0.1).abs() < 1e-7 && zero == 128);
            assert_eq!(bytes, [0, 128, 255]);
            let RowScale { zero, .. } = quantize(level, &[1.0, 2.0, 4.0], &mut bytes);
            assert_eq!((zero, bytes), (0, [64, 128, 255]));
            let RowScale { zero, .. } = quantize(level, &[-1.0, -2.0, -4.0], &mut bytes);
            assert_eq!((zero, bytes), (255, [191, 128, 0]));
            let mut scores = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
            assert!((softmax(level, &mut scores, 1.0, None) - 1.0).abs() < 1e-7);
            assert!(scores[0] <= 0.0 && scores[1] > 0.999 && scores[2] <= 0.0);
        }
    }
}
