//! The innermost loops: tiles of matrix products, for each number format and instruction set.
//!
//! Every format lays numbers out alike. Along the depth they are grouped into 4 bytes: one float32, two bfloat16 or four
//! int8. Rows are plain. Weights come in blocks of 16 columns; of each group, a block has 64 bytes, column by column: what
//! one register of AVX-512 holds, and one row of an AMX tile. A kernel holds the sums of some rows and blocks in registers
//! and goes through the groups in order, so that a sum never depends on the rows and columns beside it.
//!
//! Bytes of rows are unsigned, those of weights signed. No instruction saturates: where products of neighbours are added up
//! in 16 bits, two weights make at most 128 (see [`crate::int8::scheme`]). So sums of integers are exact.

#![allow(
    clippy::inline_always,
    clippy::wildcard_imports,
    reason = "what is not inlined has no access to the instructions of its caller; instructions have a thousand names"
)]

use std::marker::PhantomData;

use super::lanes::{self, Lanes};
use super::level::Level;

/// Columns of a block of weights.
pub const BLOCK: usize = 16;

/// Bytes of a block for one group.
pub const BLOCK_BYTES: usize = 64;

/// Bytes of a group of a row.
pub const GROUP: usize = 4;

/// Most rows and columns of a tile of any kernel.
pub const MOST_ROWS: usize = 32;
pub const MOST_COLUMNS: usize = 64;

/// Numbers that are multiplied. Their products are added up in float32 or int32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    F32,
    BF16,
    Int8,
}

impl Format {
    /// Bytes of a number.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::BF16 => 2,
            Self::Int8 => 1,
        }
    }
}

/// What a tile is computed from and where it goes.
#[derive(Clone, Copy)]
pub struct Tile {
    /// The first row, and bytes from one to the next.
    pub a: *const u8,
    pub a_stride: usize,
    /// The first block, and bytes from one to the next.
    pub b: *const u8,
    pub b_stride: usize,
    /// Groups of the depth.
    pub groups: usize,
    /// Room for the sums of a whole tile, 4 bytes each: rows of [`MOST_COLUMNS`].
    pub sums: *mut f32,
}

/// A loop for one format and instruction set.
#[derive(Clone, Copy)]
pub struct Kernel {
    /// The instruction that multiplies.
    pub name: &'static str,
    pub format: Format,
    /// The level that it needs.
    level: Level,
    /// Whether the processor has what the level does not promise.
    is_found: fn() -> bool,
    /// Most rows and blocks of a tile.
    pub rows: usize,
    pub blocks: usize,
    /// What the number of groups is a multiple of.
    pub groups: usize,
    /// int8: whether 128 is taken off the bytes of rows before they are multiplied.
    pub is_centered: bool,
    /// int8: whether the products of neighbours are added up in 16 bits first, which the weights have to leave room for.
    pub adds_pairs: bool,
    /// Computes so many rows and blocks. The processor has the instructions; what the tile points to is there.
    run: unsafe fn(Tile, usize, usize),
}

impl Kernel {
    /// The fastest one up to a level. bfloat16 is multiplied by instructions of its own or not at all: converted to float32
    /// first, it takes longer than float32 (0.8 and 0.4 times its speed with AVX-512 and AVX2, measured on an AMD EPYC).
    pub fn best(format: Format, level: Level) -> Option<Self> {
        let fits = |one: &&Self| one.format == format && one.level <= level && (one.is_found)();
        ALL.iter().find(fits).copied()
    }

    /// Multiplies up to [`Self::rows`] rows and [`Self::blocks`] blocks.
    ///
    /// # Safety
    /// All that the tile points to is valid for so many rows, blocks and groups.
    pub unsafe fn run(&self, tile: Tile, rows: usize, blocks: usize) {
        debug_assert!((1..=self.rows).contains(&rows) && (1..=self.blocks).contains(&blocks));
        debug_assert!(tile.groups > 0);
        // SAFETY: kernels are only found where the processor has their instructions; the rest is this function's contract.
        unsafe { (self.run)(tile, rows, blocks) }
    }
}

/// What a register, or some, do for one block.
trait Unit {
    /// The weights of a group.
    type Weights: Copy;
    /// The numbers of a group of a row, for every column.
    type Numbers: Copy;
    type Sums: Copy;

    unsafe fn zeros() -> Self::Sums;
    unsafe fn weights(from: *const u8) -> Self::Weights;
    unsafe fn numbers(from: *const u8) -> Self::Numbers;
    unsafe fn add(sums: Self::Sums, numbers: Self::Numbers, weights: Self::Weights) -> Self::Sums;
    unsafe fn store(sums: Self::Sums, to: *mut f32);
}

/// `ROWS` rows times `BLOCKS` blocks.
#[inline(always)]
unsafe fn multiply<U: Unit, const ROWS: usize, const BLOCKS: usize>(tile: Tile) {
    // SAFETY: the caller's tile is valid for all of it, and has the instructions of `U`.
    unsafe {
        let mut sums = [[U::zeros(); BLOCKS]; ROWS];
        for group in 0..tile.groups {
            let block = tile.b.add(group * BLOCK_BYTES);
            let weights: [_; BLOCKS] =
                std::array::from_fn(|index| U::weights(block.add(index * tile.b_stride)));
            let numbers = tile.a.add(group * GROUP);
            for (row, sums) in sums.iter_mut().enumerate() {
                let numbers = U::numbers(numbers.add(row * tile.a_stride));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = U::add(*sum, numbers, weights);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (block, sum) in sums.iter().enumerate() {
                U::store(*sum, tile.sums.add(row * MOST_COLUMNS + block * BLOCK));
            }
        }
    }
}

/// A function that chooses among the sizes of a tile.
macro_rules! sizes {
    ($(#[$attribute:meta])* $name:ident, $unit:ty, $([$rows:literal $blocks:literal])*) => {
        $(#[$attribute])*
        pub unsafe fn $name(tile: Tile, rows: usize, blocks: usize) {
            // SAFETY: this function's contract is that of what it calls.
            unsafe {
                match (rows, blocks) {
                    $(($rows, $blocks) => multiply::<$unit, $rows, $blocks>(tile),)*
                    _ => unreachable!("a tile of {rows} rows and {blocks} blocks"),
                }
            }
        }
    };
}

/// float32, in any registers.
struct F32<L>(PhantomData<L>);

// SAFETY of all: the tile is valid, and the functions that use this unit enable the instructions of `L`.
impl<L: Lanes> Unit for F32<L> {
    type Weights = L;
    type Numbers = L;
    type Sums = L;

    #[inline(always)]
    unsafe fn zeros() -> L {
        // SAFETY: as above.
        unsafe { L::splat(0.0) }
    }
    #[inline(always)]
    unsafe fn weights(from: *const u8) -> L {
        // SAFETY: as above.
        unsafe { L::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn numbers(from: *const u8) -> L {
        // SAFETY: as above.
        unsafe { L::splat(from.cast::<f32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn add(sums: L, numbers: L, weights: L) -> L {
        // SAFETY: as above.
        unsafe { numbers.multiply_add(weights, sums) }
    }
    #[inline(always)]
    unsafe fn store(sums: L, to: *mut f32) {
        // SAFETY: as above.
        unsafe { sums.store(to) }
    }
}

/// Plain loops, which the compiler vectorizes.
mod portable {
    use super::*;

    pub struct Int8;

    impl Unit for Int8 {
        type Weights = [[i8; GROUP]; BLOCK];
        type Numbers = [u8; GROUP];
        type Sums = [i32; BLOCK];

        #[inline(always)]
        unsafe fn zeros() -> [i32; BLOCK] {
            [0; BLOCK]
        }
        #[inline(always)]
        unsafe fn weights(from: *const u8) -> [[i8; GROUP]; BLOCK] {
            // SAFETY: the tile is valid.
            unsafe { from.cast::<[[i8; GROUP]; BLOCK]>().read() }
        }
        #[inline(always)]
        unsafe fn numbers(from: *const u8) -> [u8; GROUP] {
            // SAFETY: the tile is valid.
            unsafe { from.cast::<[u8; GROUP]>().read() }
        }
        #[inline(always)]
        unsafe fn add(
            mut sums: [i32; BLOCK],
            numbers: [u8; GROUP],
            weights: [[i8; GROUP]; BLOCK],
        ) -> [i32; BLOCK] {
            for (sum, weights) in sums.iter_mut().zip(weights) {
                for (number, weight) in numbers.into_iter().zip(weights) {
                    *sum += i32::from(number) * i32::from(weight);
                }
            }
            sums
        }
        #[inline(always)]
        unsafe fn store(sums: [i32; BLOCK], to: *mut f32) {
            // SAFETY: the tile is valid; an int32 is as large as a float32.
            unsafe { to.cast::<[i32; BLOCK]>().write_unaligned(sums) }
        }
    }

    sizes!(f32, F32<lanes::Portable>, [1 1][2 1][3 1][4 1]);
    sizes!(int8, Int8, [1 1][2 1][3 1][4 1]);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    /// Loads 4 bytes.
    #[inline(always)]
    unsafe fn word(from: *const u8) -> i32 {
        // SAFETY: the tile is valid.
        unsafe { from.cast::<i32>().read_unaligned() }
    }

    /// The units of one register width: a block is one register of AVX-512 or two of AVX2.
    macro_rules! unit {
        ($name:ident, $weights:ty, $numbers:ty, $sums:ty, $zeros:expr, |$from:ident| $load:expr, |$number:ident| $broadcast:expr,
         |$sum:ident, $a:ident, $b:ident| $add:expr, |$stored:ident, $to:ident| $store:expr) => {
            pub struct $name;

            // SAFETY of all: the tile is valid, and the functions that use this unit enable its instructions.
            impl Unit for $name {
                type Weights = $weights;
                type Numbers = $numbers;
                type Sums = $sums;

                #[inline(always)]
                unsafe fn zeros() -> $sums {
                    // SAFETY: as above.
                    unsafe { $zeros }
                }
                #[inline(always)]
                unsafe fn weights($from: *const u8) -> $weights {
                    // SAFETY: as above.
                    unsafe { $load }
                }
                #[inline(always)]
                unsafe fn numbers($number: *const u8) -> $numbers {
                    // SAFETY: as above.
                    unsafe { $broadcast }
                }
                #[inline(always)]
                unsafe fn add($sum: $sums, $a: $numbers, $b: $weights) -> $sums {
                    // SAFETY: as above.
                    unsafe { $add }
                }
                #[inline(always)]
                unsafe fn store($stored: $sums, $to: *mut f32) {
                    // SAFETY: as above.
                    unsafe { $store }
                }
            }
        };
    }

    unit!(
        BF16By32,
        __m512i,
        __m512i,
        __m512,
        _mm512_setzero_ps(),
        |from| _mm512_loadu_si512(from.cast()),
        |from| _mm512_set1_epi32(word(from)),
        |sum, a, b| _mm512_dpbf16_ps(
            sum,
            std::mem::transmute::<__m512i, __m512bh>(a),
            std::mem::transmute::<__m512i, __m512bh>(b)
        ),
        |sum, to| _mm512_storeu_ps(to, sum)
    );

    /// int8 in a register of AVX-512.
    macro_rules! int8_by_512 {
        ($name:ident, |$sum:ident, $a:ident, $b:ident| $add:expr) => {
            unit!(
                $name,
                __m512i,
                __m512i,
                __m512i,
                _mm512_setzero_si512(),
                |from| _mm512_loadu_si512(from.cast()),
                |from| _mm512_set1_epi32(word(from)),
                |$sum, $a, $b| $add,
                |sum, to| _mm512_storeu_si512(to.cast(), sum)
            );
        };
    }
    int8_by_512!(Int8By64, |sum, a, b| _mm512_dpbusd_epi32(sum, a, b));
    int8_by_512!(Int8In16By64, |sum, a, b| {
        let pairs = _mm512_maddubs_epi16(a, b);
        _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
    });

    /// int8 in two registers of AVX2; what is added is the same for both.
    macro_rules! int8_by_256 {
        ($name:ident, |$sum:ident, $a:ident, $b:ident| $add:expr) => {
            unit!(
                $name,
                [__m256i; 2],
                __m256i,
                [__m256i; 2],
                [_mm256_setzero_si256(); 2],
                |from| [0, 32].map(|half| _mm256_loadu_si256(from.add(half).cast())),
                |from| _mm256_set1_epi32(word(from)),
                |sums, $a, weights| std::array::from_fn(|half| {
                    let ($sum, $b) = (sums[half], weights[half]);
                    $add
                }),
                |sums, to| {
                    _mm256_storeu_si256(to.cast(), sums[0]);
                    _mm256_storeu_si256(to.add(8).cast(), sums[1]);
                }
            );
        };
    }
    int8_by_256!(Int8By32, |sum, a, b| _mm256_dpbusd_avx_epi32(sum, a, b));
    int8_by_256!(Int8In16By32, |sum, a, b| {
        let pairs = _mm256_maddubs_epi16(a, b);
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    });

    macro_rules! by_512 {
        ($name:ident, $unit:ty, $features:literal) => {
            sizes!(#[target_feature(enable = $features)] $name, $unit,
                [1 1][2 1][3 1][4 1][5 1][6 1] [1 2][2 2][3 2][4 2][5 2][6 2]
                [1 3][2 3][3 3][4 3][5 3][6 3] [1 4][2 4][3 4][4 4][5 4][6 4]);
        };
    }
    macro_rules! by_256 {
        ($name:ident, $unit:ty, $features:literal) => {
            sizes!(#[target_feature(enable = $features)] $name, $unit, [1 1][2 1][3 1][4 1][5 1][6 1]);
        };
    }
    by_512!(
        f32_512,
        F32<lanes::Avx512>,
        "avx512f,avx512bw,avx512dq,avx512vl"
    );
    by_512!(
        bf16_512,
        BF16By32,
        "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"
    );
    by_512!(
        int8_512,
        Int8By64,
        "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
    );
    by_512!(
        int8_in_16_512,
        Int8In16By64,
        "avx512f,avx512bw,avx512dq,avx512vl"
    );
    by_256!(f32_256, F32<lanes::Avx2>, "avx2,fma");
    by_256!(int8_in_16_256, Int8In16By32, "avx2");
    by_256!(int8_256, Int8By32, "avx2,avxvnni");
}

/// Tiles of AMX: two times two tiles of 16 rows and 16 columns. Written as assembly, since Rust has no stable functions for
/// these instructions.
#[cfg(target_arch = "x86_64")]
mod amx {
    use std::arch::asm;

    use super::*;

    /// Rows of a tile register, and of a block of groups.
    const ROWS: usize = 16;

    /// What `ldtilecfg` reads. Registers 0 to 3 are sums, 4 and 5 rows, 6 and 7 weights.
    #[repr(C, align(64))]
    struct Shapes {
        palette: u8,
        start: u8,
        reserved: [u8; 14],
        bytes: [u16; 16],
        rows: [u8; 16],
    }

    impl Shapes {
        fn of(rows: usize) -> Self {
            let (first, second) = (rows.min(ROWS) as u8, rows.saturating_sub(ROWS).max(1) as u8);
            let mut shapes = Self {
                palette: 1,
                start: 0,
                reserved: [0; 14],
                bytes: [0; 16],
                rows: [0; 16],
            };
            shapes.bytes[..8].fill(BLOCK_BYTES as u16);
            shapes.rows[..8].copy_from_slice(&[
                first, first, second, second, first, second, ROWS as u8, ROWS as u8,
            ]);
            shapes
        }
    }

    macro_rules! function {
        ($name:ident, $multiply:literal) => {
            pub unsafe fn $name(tile: Tile, rows: usize, blocks: usize) {
                let shapes = Shapes::of(rows);
                // What is not there is computed from the first block or row.
                let second_block = if blocks > 1 { tile.b_stride } else { 0 };
                let second_rows = if rows > ROWS { ROWS * tile.a_stride } else { 0 };
                let stride = MOST_COLUMNS * size_of::<f32>();
                // SAFETY: the tile is valid, and the processor has AMX, which the process may use. Every register is
                // loaded or cleared before it is read, and all are released. Rust uses none of them.
                unsafe {
                    asm!(
                        "ldtilecfg [{shapes}]",
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "2:",
                        "tileloadd tmm6, [{b} + {row_bytes}*1]",
                        "tileloadd tmm7, [{b_second} + {row_bytes}*1]",
                        "tileloadd tmm4, [{a} + {a_stride}*1]",
                        concat!($multiply, " tmm0, tmm4, tmm6"),
                        concat!($multiply, " tmm1, tmm4, tmm7"),
                        "tileloadd tmm5, [{a_second} + {a_stride}*1]",
                        concat!($multiply, " tmm2, tmm5, tmm6"),
                        concat!($multiply, " tmm3, tmm5, tmm7"),
                        "add {a}, 64",
                        "add {a_second}, 64",
                        "add {b}, 1024",
                        "add {b_second}, 1024",
                        "dec {steps}",
                        "jnz 2b",
                        "tilestored [{sums} + {stride}*1], tmm0",
                        "tilestored [{sums} + {stride}*1 + 64], tmm1",
                        "tilestored [{sums_second} + {stride}*1], tmm2",
                        "tilestored [{sums_second} + {stride}*1 + 64], tmm3",
                        "tilerelease",
                        shapes = in(reg) &raw const shapes,
                        a = inout(reg) tile.a => _,
                        a_second = inout(reg) tile.a.wrapping_add(second_rows) => _,
                        b = inout(reg) tile.b => _,
                        b_second = inout(reg) tile.b.wrapping_add(second_block) => _,
                        row_bytes = in(reg) BLOCK_BYTES,
                        a_stride = in(reg) tile.a_stride,
                        steps = inout(reg) tile.groups / ROWS => _,
                        stride = in(reg) stride,
                        sums = in(reg) tile.sums,
                        sums_second = in(reg) tile.sums.wrapping_add(ROWS * MOST_COLUMNS),
                        options(nostack),
                    );
                }
            }
        };
    }

    function!(bf16, "tdpbf16ps");
    function!(int8, "tdpbusd");
}

/// The dot products of ARM. Written as assembly, since Rust has no stable function for the instruction.
#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;
    use std::arch::asm;

    use super::*;

    /// Multiplies signed bytes: those of rows, less 128, have the first bit inverted.
    pub struct Int8By16;

    // SAFETY of all: the tile is valid, and the function that uses this unit enables its instructions.
    impl Unit for Int8By16 {
        type Weights = [int8x16_t; 4];
        type Numbers = int8x16_t;
        type Sums = [int32x4_t; 4];

        #[inline(always)]
        unsafe fn zeros() -> Self::Sums {
            // SAFETY: as above.
            unsafe { [vdupq_n_s32(0); 4] }
        }
        #[inline(always)]
        unsafe fn weights(from: *const u8) -> Self::Weights {
            // SAFETY: as above.
            std::array::from_fn(|part| unsafe { vld1q_s8(from.add(16 * part).cast()) })
        }
        #[inline(always)]
        unsafe fn numbers(from: *const u8) -> int8x16_t {
            // SAFETY: as above.
            unsafe {
                vreinterpretq_s8_u32(vdupq_n_u32(
                    from.cast::<u32>().read_unaligned() ^ 0x8080_8080,
                ))
            }
        }
        #[inline(always)]
        unsafe fn add(mut sums: [int32x4_t; 4], a: int8x16_t, b: [int8x16_t; 4]) -> [int32x4_t; 4] {
            for (sum, b) in sums.iter_mut().zip(b) {
                // SAFETY: as above; the instruction only changes the sum.
                unsafe {
                    asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) *sum, in(vreg) a, in(vreg) b,
                        options(pure, nomem, nostack, preserves_flags));
                }
            }
            sums
        }
        #[inline(always)]
        unsafe fn store(sums: Self::Sums, to: *mut f32) {
            for (part, sum) in sums.into_iter().enumerate() {
                // SAFETY: as above.
                unsafe { vst1q_s32(to.add(4 * part).cast(), sum) }
            }
        }
    }

    sizes!(#[target_feature(enable = "dotprod")] int8, Int8By16, [1 1][2 1][3 1][4 1][5 1][6 1]);
}

const ANYWHERE: fn() -> bool = || true;

macro_rules! kernel {
    ($name:literal, $format:ident, $level:ident, $is_found:expr, $rows:literal x $blocks:literal x $groups:literal, $run:path) => {
        Kernel {
            name: $name,
            format: Format::$format,
            level: Level::$level,
            is_found: $is_found,
            rows: $rows,
            blocks: $blocks,
            groups: $groups,
            is_centered: false,
            adds_pairs: false,
            run: $run,
        }
    };
}

/// All kernels, the fastest of each format first.
#[rustfmt::skip]
pub const ALL: &[Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    kernel!("AVX-512 F", F32, Avx512, ANYWHERE, 6 x 4 x 1, x86::f32_512),
    #[cfg(target_arch = "x86_64")]
    kernel!("FMA", F32, Avx2, ANYWHERE, 6 x 1 x 1, x86::f32_256),
    kernel!("portable", F32, Portable, ANYWHERE, 4 x 1 x 1, portable::f32),
    #[cfg(target_arch = "x86_64")]
    kernel!("AMX-BF16", BF16, Amx, ANYWHERE, 32 x 2 x 16, amx::bf16),
    #[cfg(target_arch = "x86_64")]
    kernel!("AVX-512 BF16", BF16, Avx512Vnni, || is_x86_feature_detected!("avx512bf16"), 6 x 4 x 1, x86::bf16_512),
    #[cfg(target_arch = "x86_64")]
    kernel!("AMX-INT8", Int8, Amx, ANYWHERE, 32 x 2 x 16, amx::int8),
    #[cfg(target_arch = "x86_64")]
    kernel!("AVX-512 VNNI", Int8, Avx512Vnni, ANYWHERE, 6 x 4 x 1, x86::int8_512),
    #[cfg(target_arch = "x86_64")]
    Kernel { adds_pairs: true, ..kernel!("AVX-512 BW", Int8, Avx512, ANYWHERE, 6 x 4 x 1, x86::int8_in_16_512) },
    #[cfg(target_arch = "x86_64")]
    kernel!("AVX-VNNI", Int8, AvxVnni, || is_x86_feature_detected!("avxvnni"), 6 x 1 x 1, x86::int8_256),
    #[cfg(target_arch = "x86_64")]
    Kernel { adds_pairs: true, ..kernel!("AVX2", Int8, Avx2, ANYWHERE, 6 x 1 x 1, x86::int8_in_16_256) },
    #[cfg(target_arch = "aarch64")]
    Kernel { is_centered: true, ..kernel!("SDOT", Int8, Dotprod, ANYWHERE, 6 x 1 x 1, neon::int8) },
    kernel!("portable", Int8, Portable, ANYWHERE, 4 x 1 x 1, portable::int8),
];
