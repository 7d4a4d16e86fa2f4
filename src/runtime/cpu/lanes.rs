//! Sixteen float32 side by side, in whichever registers the processor has.
//!
//! Functions of this module may only be called, inlined, by one that enables the instructions of their type.

#![allow(
    clippy::inline_always,
    clippy::undocumented_unsafe_blocks,
    clippy::wildcard_imports,
    reason = "what is not inlined has no access to the instructions of its caller; instructions have a thousand names; the \
              contract of every unsafe block is that of the trait"
)]

/// How many numbers there are.
pub const LANES: usize = 16;

/// Sixteen numbers. Pointers are to as many of them, and need no alignment.
///
/// # Safety
/// Of all functions: the processor has the instructions of the type, and pointers are valid.
pub trait Lanes: Copy {
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn subtract(self, other: Self) -> Self;
    unsafe fn multiply(self, other: Self) -> Self;
    unsafe fn divide(self, other: Self) -> Self;
    /// `self · factor + sum`, rounded once where the processor can.
    unsafe fn multiply_add(self, factor: Self, sum: Self) -> Self;
    /// The larger numbers; `self` where that is NaN.
    unsafe fn at_least(self, other: Self) -> Self;
    /// The smaller numbers; `self` where that is NaN.
    unsafe fn at_most(self, other: Self) -> Self;
    /// `self` where `x` is at least `least`, 0 elsewhere; NaN counts as large.
    unsafe fn where_at_least(self, x: Self, least: Self) -> Self;
    /// `self · 2ⁿ`, with `n` the integer in the last bits of `exponent`.
    unsafe fn scale(self, exponent: Self) -> Self;
    /// `sums − zero · weights` of sixteen int32 each, as float32. Both may be too large for int32, if the difference is not.
    unsafe fn without(sums: *const f32, zero: i32, weights: *const i32) -> Self;
    /// The nearest bfloat16, ties to even; NaN of NaN.
    unsafe fn store_halves(self, to: *mut u8);
    /// The same, each followed by that of `other`.
    unsafe fn store_pairs(self, other: Self, to: *mut u8);
    /// The last byte of each.
    unsafe fn store_bytes(self, to: *mut u8);

    /// Added up, in the same order on every processor.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as this function.
        unsafe { self.reduce(|a, b| a + b) }
    }

    /// The largest number.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: as this function.
        unsafe { self.reduce(|a, b| if b > a { b } else { a }) }
    }

    #[inline(always)]
    unsafe fn reduce(self, join: impl Fn(f32, f32) -> f32) -> f32 {
        let mut numbers = [0.0; LANES];
        // SAFETY: as this function.
        unsafe { self.store(numbers.as_mut_ptr()) };
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                numbers[lane] = join(numbers[lane], numbers[lane + width]);
            }
        }
        numbers[0]
    }
}

/// The bits of the nearest bfloat16, in the upper half.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    const NAN: u32 = 0x7fc0_0000;
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    if x.is_nan() { NAN } else { nearest }
}

/// Plain numbers, which the compiler may put into registers.
#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, function: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| {
            function(self.0[lane], other.0[lane])
        }))
    }

    #[inline(always)]
    unsafe fn put<const N: usize>(self, to: *mut u8, bytes: impl Fn(f32) -> [u8; N]) {
        for (lane, x) in self.0.into_iter().enumerate() {
            // SAFETY: `to` is valid.
            unsafe { to.add(lane * N).cast::<[u8; N]>().write(bytes(x)) };
        }
    }
}

#[rustfmt::skip]
impl Lanes for Portable {
    #[inline(always)] unsafe fn splat(x: f32) -> Self { Self([x; LANES]) }
    // SAFETY: of all these functions, see the trait.
    #[inline(always)] unsafe fn load(from: *const f32) -> Self { Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() }) }
    #[inline(always)] unsafe fn store(self, to: *mut f32) { unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) } }
    #[inline(always)] unsafe fn add(self, other: Self) -> Self { self.zip(other, |a, b| a + b) }
    #[inline(always)] unsafe fn subtract(self, other: Self) -> Self { self.zip(other, |a, b| a - b) }
    #[inline(always)] unsafe fn multiply(self, other: Self) -> Self { self.zip(other, |a, b| a * b) }
    #[inline(always)] unsafe fn divide(self, other: Self) -> Self { self.zip(other, |a, b| a / b) }
    #[inline(always)] unsafe fn multiply_add(self, factor: Self, sum: Self) -> Self {
        // One instruction on every ARM processor, a call where only some have it.
        let one = |a: f32, b, c| if cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c };
        Self(std::array::from_fn(|lane| one(self.0[lane], factor.0[lane], sum.0[lane])))
    }
    #[inline(always)] unsafe fn at_least(self, other: Self) -> Self { self.zip(other, |a, b| if b > a { b } else { a }) }
    #[inline(always)] unsafe fn at_most(self, other: Self) -> Self { self.zip(other, |a, b| if b < a { b } else { a }) }
    #[inline(always)] unsafe fn where_at_least(self, x: Self, least: Self) -> Self {
        let one = |lane: usize| if x.0[lane] < least.0[lane] { 0.0 } else { self.0[lane] };
        Self(std::array::from_fn(one))
    }
    #[inline(always)] unsafe fn scale(self, exponent: Self) -> Self {
        self.zip(exponent, |x, n| f32::from_bits(x.to_bits().wrapping_add(n.to_bits() << 23)))
    }
    #[inline(always)] unsafe fn without(sums: *const f32, zero: i32, weights: *const i32) -> Self {
        let one = |lane| unsafe { sums.add(lane).cast::<i32>().read().wrapping_sub(zero.wrapping_mul(weights.add(lane).read())) as f32 };
        Self(std::array::from_fn(one))
    }
    #[inline(always)] unsafe fn store_halves(self, to: *mut u8) { unsafe { self.put(to, |x| ((rounded(x) >> 16) as u16).to_le_bytes()) } }
    #[inline(always)] unsafe fn store_pairs(self, other: Self, to: *mut u8) {
        let pairs = self.zip(other, |a, b| f32::from_bits(rounded(a) >> 16 | rounded(b)));
        unsafe { pairs.put(to, |x| x.to_bits().to_le_bytes()) }
    }
    #[inline(always)] unsafe fn store_bytes(self, to: *mut u8) { unsafe { self.put(to, |x| [x.to_bits() as u8]) } }
}

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    /// AVX-512 F, BW, DQ and VL.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    /// AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    impl Avx512 {
        /// [`super::rounded`]
        #[inline(always)]
        unsafe fn rounded(self) -> __m512i {
            unsafe {
                let bits = _mm512_castps_si512(self.0);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
                let nearest = _mm512_and_si512(sum, _mm512_set1_epi32(!0xffff));
                _mm512_mask_mov_epi32(nearest, nan, _mm512_set1_epi32(0x7fc0_0000))
            }
        }
    }

    impl Lanes for Avx512 {
        #[inline(always)] unsafe fn splat(x: f32) -> Self { unsafe { Self(_mm512_set1_ps(x)) } }
        #[inline(always)] unsafe fn load(from: *const f32) -> Self { unsafe { Self(_mm512_loadu_ps(from)) } }
        #[inline(always)] unsafe fn store(self, to: *mut f32) { unsafe { _mm512_storeu_ps(to, self.0) } }
        #[inline(always)] unsafe fn add(self, other: Self) -> Self { unsafe { Self(_mm512_add_ps(self.0, other.0)) } }
        #[inline(always)] unsafe fn subtract(self, other: Self) -> Self { unsafe { Self(_mm512_sub_ps(self.0, other.0)) } }
        #[inline(always)] unsafe fn multiply(self, other: Self) -> Self { unsafe { Self(_mm512_mul_ps(self.0, other.0)) } }
        #[inline(always)] unsafe fn divide(self, other: Self) -> Self { unsafe { Self(_mm512_div_ps(self.0, other.0)) } }
        #[inline(always)] unsafe fn multiply_add(self, factor: Self, sum: Self) -> Self { unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, sum.0)) } }
        // The second operand is the result where either is NaN.
        #[inline(always)] unsafe fn at_least(self, other: Self) -> Self { unsafe { Self(_mm512_max_ps(other.0, self.0)) } }
        #[inline(always)] unsafe fn at_most(self, other: Self) -> Self { unsafe { Self(_mm512_min_ps(other.0, self.0)) } }
        #[inline(always)] unsafe fn where_at_least(self, x: Self, least: Self) -> Self { unsafe {
            let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x.0, least.0);
            Self(_mm512_maskz_mov_ps(kept, self.0))
        } }
        #[inline(always)] unsafe fn scale(self, exponent: Self) -> Self { unsafe {
            let shifted = _mm512_slli_epi32::<23>(_mm512_castps_si512(exponent.0));
            Self(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), shifted)))
        } }
        #[inline(always)] unsafe fn without(sums: *const f32, zero: i32, weights: *const i32) -> Self { unsafe {
            let part = _mm512_mullo_epi32(_mm512_set1_epi32(zero), _mm512_loadu_si512(weights.cast()));
            Self(_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(sums.cast()), part)))
        } }
        #[inline(always)] unsafe fn store_halves(self, to: *mut u8) { unsafe {
            let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(self.rounded()));
            _mm256_storeu_si256(to.cast(), halves);
        } }
        #[inline(always)] unsafe fn store_pairs(self, other: Self, to: *mut u8) { unsafe {
            let first = _mm512_srli_epi32::<16>(self.rounded());
            _mm512_storeu_si512(to.cast(), _mm512_or_si512(first, other.rounded()));
        } }
        #[inline(always)] unsafe fn store_bytes(self, to: *mut u8) { unsafe {
            _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_castps_si512(self.0)));
        } }
        #[inline(always)] unsafe fn sum(self) -> f32 { unsafe {
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            add_up(_mm256_add_ps(_mm512_castps512_ps256(self.0), high))
        } }
        #[inline(always)] unsafe fn largest(self) -> f32 { unsafe { _mm512_reduce_max_ps(self.0) } }
    }

    /// Halves, quarters and neighbours.
    #[inline(always)]
    unsafe fn add_up(x: __m256) -> f32 {
        unsafe {
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }

    impl Avx2 {
        #[inline(always)]
        unsafe fn each(self, other: Self, function: impl Fn(__m256, __m256) -> __m256) -> Self {
            Self(function(self.0, other.0), function(self.1, other.1))
        }

        #[inline(always)]
        unsafe fn rounded(self) -> [__m256i; 2] {
            unsafe {
                [self.0, self.1].map(|x| {
                    let bits = _mm256_castps_si256(x);
                    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                    let sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
                    let nearest = _mm256_and_si256(sum, _mm256_set1_epi32(!0xffff));
                    _mm256_blendv_epi8(nearest, _mm256_set1_epi32(0x7fc0_0000), nan)
                })
            }
        }
    }

    impl Lanes for Avx2 {
        #[inline(always)] unsafe fn splat(x: f32) -> Self { unsafe { let x = _mm256_set1_ps(x); Self(x, x) } }
        #[inline(always)] unsafe fn load(from: *const f32) -> Self { unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) } }
        #[inline(always)] unsafe fn store(self, to: *mut f32) { unsafe { _mm256_storeu_ps(to, self.0); _mm256_storeu_ps(to.add(8), self.1) } }
        #[inline(always)] unsafe fn add(self, other: Self) -> Self { unsafe { self.each(other, |a, b| _mm256_add_ps(a, b)) } }
        #[inline(always)] unsafe fn subtract(self, other: Self) -> Self { unsafe { self.each(other, |a, b| _mm256_sub_ps(a, b)) } }
        #[inline(always)] unsafe fn multiply(self, other: Self) -> Self { unsafe { self.each(other, |a, b| _mm256_mul_ps(a, b)) } }
        #[inline(always)] unsafe fn divide(self, other: Self) -> Self { unsafe { self.each(other, |a, b| _mm256_div_ps(a, b)) } }
        #[inline(always)] unsafe fn multiply_add(self, factor: Self, sum: Self) -> Self { unsafe {
            Self(_mm256_fmadd_ps(self.0, factor.0, sum.0), _mm256_fmadd_ps(self.1, factor.1, sum.1))
        } }
        #[inline(always)] unsafe fn at_least(self, other: Self) -> Self { unsafe { self.each(other, |a, b| _mm256_max_ps(b, a)) } }
        #[inline(always)] unsafe fn at_most(self, other: Self) -> Self { unsafe { self.each(other, |a, b| _mm256_min_ps(b, a)) } }
        #[inline(always)] unsafe fn where_at_least(self, x: Self, least: Self) -> Self { unsafe {
            let kept = x.each(least, |x, least| _mm256_cmp_ps::<_CMP_NLT_UQ>(x, least));
            self.each(kept, |x, kept| _mm256_and_ps(x, kept))
        } }
        #[inline(always)] unsafe fn scale(self, exponent: Self) -> Self { unsafe {
            self.each(exponent, |x, n| {
                let shifted = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), shifted))
            })
        } }
        #[inline(always)] unsafe fn without(sums: *const f32, zero: i32, weights: *const i32) -> Self { unsafe {
            let half = |at: usize| {
                let part = _mm256_mullo_epi32(_mm256_set1_epi32(zero), _mm256_loadu_si256(weights.add(at).cast()));
                _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_loadu_si256(sums.add(at).cast()), part))
            };
            Self(half(0), half(8))
        } }
        #[inline(always)] unsafe fn store_halves(self, to: *mut u8) { unsafe {
            let [first, second] = self.rounded().map(|x| _mm256_srli_epi32::<16>(x));
            let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(first, second));
            _mm256_storeu_si256(to.cast(), halves);
        } }
        #[inline(always)] unsafe fn store_pairs(self, other: Self, to: *mut u8) { unsafe {
            let [first, second] = [self.rounded(), other.rounded()];
            for half in 0..2 {
                let pairs = _mm256_or_si256(_mm256_srli_epi32::<16>(first[half]), second[half]);
                _mm256_storeu_si256(to.add(32 * half).cast(), pairs);
            }
        } }
        #[inline(always)] unsafe fn store_bytes(self, to: *mut u8) { unsafe {
            let [first, second] = [self.0, self.1].map(|x| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0xff)));
            let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(first, second));
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            _mm_storeu_si128(to.cast(), bytes);
        } }
        #[inline(always)] unsafe fn sum(self) -> f32 { unsafe { add_up(_mm256_add_ps(self.0, self.1)) } }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};
