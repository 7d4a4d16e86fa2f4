//! Matrix products: packed weights, rows to multiply them by, and the loop over tiles.

use std::ops::Range;

use super::kernels::{BLOCK, BLOCK_BYTES, Format, GROUP, Kernel, MOST_COLUMNS, MOST_ROWS, Tile};
use super::level::Level;
use super::team::Team;
use super::wide::{self, Finish, Integers, Place, RowScale, Then};
use crate::error::Result;
use crate::int8::scheme;
use crate::memory;
use crate::pages::Pages;

/// What kernels of signed bytes take off the bytes of a row.
const CENTER: i32 = 128;

/// How numbers are multiplied on this processor.
#[derive(Clone, Copy)]
pub struct Arithmetic {
    pub level: Level,
    pub kernel: Kernel,
}

impl Arithmetic {
    /// The fastest way; `None` if there is none.
    pub fn of(format: Format, level: Level) -> Option<Self> {
        let kernel = Kernel::best(format, level)?;
        Some(Self { level, kernel })
    }

    const fn format(&self) -> Format {
        self.kernel.format
    }

    /// Groups of a row of so many numbers.
    pub const fn groups(&self, depth: usize) -> usize {
        (depth * self.format().size())
            .div_ceil(GROUP)
            .next_multiple_of(self.kernel.groups)
    }
}

/// Weights of one or more layers with the same input, packed for the kernels.
pub struct Matrix {
    arithmetic: Arithmetic,
    blocks: Pages,
    depth: usize,
    /// Columns of the blocks, the last of which may have more than there are.
    columns: usize,
    /// int8: the scale of each column, and its weights added up.
    scales: Vec<f32>,
    weights: Vec<i32>,
    bias: Option<Vec<f32>>,
}

/// A layer that becomes columns of a [`Matrix`]: its outputs, and a function that writes the weights of one.
pub struct Columns<'a> {
    pub outputs: usize,
    pub weights: &'a (dyn Fn(usize, &mut [f32]) + Sync),
    pub bias: Option<&'a [f32]>,
}

impl Matrix {
    /// Packs layers side by side or, with `alternating`, two layers of as many outputs block by block.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn pack(
        arithmetic: Arithmetic,
        depth: usize,
        layers: &[Columns],
        alternating: bool,
        team: &Team,
    ) -> Result<Self> {
        const WHAT: &str = "packed weights";
        let outputs: usize = layers.iter().map(|layer| layer.outputs).sum();
        let columns = if alternating {
            2 * layers[0].outputs.next_multiple_of(BLOCK)
        } else {
            outputs
        };
        let padded = columns.next_multiple_of(BLOCK);
        let groups = arithmetic.groups(depth);
        let block_bytes = groups * BLOCK_BYTES;
        let mut matrix = Self {
            arithmetic,
            blocks: Pages::zeroed(padded / BLOCK * block_bytes, WHAT)?,
            depth,
            columns,
            scales: Vec::new(),
            weights: Vec::new(),
            bias: None,
        };
        if arithmetic.format() == Format::Int8 {
            matrix.scales = memory::filled(padded, 0.0, WHAT)?;
            matrix.weights = memory::filled(padded, 0, WHAT)?;
        }
        // The layer and the output of a column.
        let source = |column: usize| {
            if alternating {
                let (pair, place) = (column / (2 * BLOCK), column % (2 * BLOCK));
                let output = pair * BLOCK + place % BLOCK;
                return Some((&layers[place / BLOCK], output))
                    .filter(|(layer, output)| *output < layer.outputs);
            }
            let mut before = 0;
            layers.iter().find_map(|layer| {
                let output = column.checked_sub(before)?;
                before += layer.outputs;
                (output < layer.outputs).then_some((layer, output))
            })
        };
        if layers.iter().any(|layer| layer.bias.is_some()) {
            let mut bias = memory::filled(padded, 0.0, WHAT)?;
            for (column, bias) in bias.iter_mut().enumerate() {
                if let Some((layer, output)) = source(column) {
                    *bias = layer.bias.map_or(0.0, |bias| bias[output]);
                }
            }
            matrix.bias = Some(bias);
        }
        let blocks = Slots::of(&mut matrix.blocks);
        let (scales, sums) = (
            Slots::of(&mut matrix.scales),
            Slots::of(&mut matrix.weights),
        );
        team.each(padded / BLOCK, |block| {
            let mut row = vec![0.0; depth];
            let mut bytes = vec![0; groups * GROUP];
            // SAFETY: every block is made once, and so are its columns.
            let target = unsafe { blocks.slice(block * block_bytes, block_bytes) };
            for place in 0..BLOCK {
                let column = block * BLOCK + place;
                let Some((layer, output)) = source(column) else {
                    continue;
                };
                (layer.weights)(output, &mut row);
                match arithmetic.format() {
                    Format::F32 => bytes[..depth * GROUP].copy_from_slice(bytes_of(&row)),
                    Format::BF16 => wide::narrow(arithmetic.level, &row, 1.0, &mut bytes),
                    Format::Int8 => {
                        let scale = scheme::scale(&row, arithmetic.kernel.adds_pairs);
                        let mut sum = 0;
                        for (weight, byte) in row.iter().zip(&mut bytes) {
                            let value = scheme::nearest(*weight, scale);
                            sum += i32::from(value);
                            *byte = value as u8;
                        }
                        // SAFETY: as above.
                        unsafe {
                            scales.slice(column, 1)[0] = scale;
                            sums.slice(column, 1)[0] = sum;
                        }
                    }
                }
                for (group, bytes) in bytes.chunks_exact(GROUP).enumerate() {
                    target[group * BLOCK_BYTES + place * GROUP..][..GROUP].copy_from_slice(bytes);
                }
            }
        });
        Ok(matrix)
    }

    /// Numbers that a row is multiplied by.
    pub const fn depth(&self) -> usize {
        self.depth
    }

    /// `x · weightsᵀ + bias` of every row, and what `then` says, into as many rows.
    ///
    /// # Errors
    /// There is no memory for the converted rows.
    pub fn multiply(
        &self,
        x: &[f32],
        then: Then,
        out: &mut [f32],
        scratch: &mut Rows,
        team: &Team,
    ) -> Result<()> {
        let rows = x.len() / self.depth;
        scratch.convert(self.arithmetic, x, self.depth, team)?;
        let groups = self.arithmetic.groups(self.depth);
        let right = Right {
            blocks: &self.blocks,
            stride: groups * BLOCK_BYTES,
            groups,
            columns: self.columns,
        };
        let is_int8 = self.arithmetic.format() == Format::Int8;
        let finish = |columns: Range<usize>| Finish {
            integers: is_int8.then(|| Integers {
                rows: &scratch.scales,
                columns: &self.scales[columns.clone()],
                weights: &self.weights[columns.clone()],
            }),
            bias: self.bias.as_ref().map(|bias| &bias[columns]),
            then,
        };
        let width = out.len() / rows;
        let out = Grid {
            numbers: Slots::of(out),
            first: 0,
            stride: width,
            width,
        };
        let left = scratch.view(self.arithmetic.format(), x);
        product(&self.arithmetic, left, right, rows, &finish, out, team);
        Ok(())
    }
}

/// The left side of a product.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    /// Bytes from the first row on.
    pub bytes: &'a [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
}

/// The right side: blocks of columns.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    pub blocks: &'a [u8],
    /// Bytes from one block to the next.
    pub stride: usize,
    pub groups: usize,
    pub columns: usize,
}

/// Where a product goes. Parts of it are written by several threads at once, none of them twice.
#[derive(Clone, Copy)]
pub struct Grid<'a> {
    pub numbers: Slots<'a, f32>,
    /// The first number.
    pub first: usize,
    /// Numbers from one row to the next.
    pub stride: usize,
    /// Numbers of a row that are written.
    pub width: usize,
}

impl Grid<'_> {
    /// A part of a row.
    ///
    /// # Safety
    /// No other part that is in use overlaps it.
    #[allow(clippy::mut_from_ref, reason = "by the contract")]
    pub unsafe fn part(&self, row: usize, column: usize, width: usize) -> &mut [f32] {
        // SAFETY: this function's contract.
        unsafe {
            self.numbers
                .slice(self.first + row * self.stride + column, width)
        }
    }
}

/// The loop over tiles: a strip of blocks stays in the nearest cache while all rows pass by.
pub fn product<'f>(
    arithmetic: &Arithmetic,
    left: Left,
    right: Right,
    rows: usize,
    finish: &(impl Fn(Range<usize>) -> Finish<'f> + Sync),
    out: Grid,
    team: &Team,
) {
    let kernel = &arithmetic.kernel;
    // Pairs of a number and its gate stay together.
    let strip = kernel.blocks.max(2) * BLOCK;
    assert!(rows == 0 || left.bytes.len() >= (rows - 1) * left.stride + right.groups * GROUP);
    let all_blocks = right.columns.div_ceil(BLOCK);
    assert!(right.blocks.len() >= (all_blocks - 1) * right.stride + right.groups * BLOCK_BYTES);
    team.each(right.columns.div_ceil(strip), |index| {
        let mut sums = [0.0; MOST_ROWS * MOST_COLUMNS];
        let first = index * strip;
        let blocks = (right.columns - first).div_ceil(BLOCK).min(strip / BLOCK);
        let of_columns = finish(first..first + blocks * BLOCK);
        let halved = if matches!(of_columns.then, Then::Gate(_)) {
            2
        } else {
            1
        };
        let width = (out.width - first / halved).min(blocks * BLOCK / halved);
        let mut row = 0;
        while row < rows {
            let count = kernel.rows.min(rows - row);
            for block in (0..blocks).step_by(kernel.blocks) {
                let tile = Tile {
                    a: left.bytes[row * left.stride..].as_ptr(),
                    a_stride: left.stride,
                    b: right.blocks[(first / BLOCK + block) * right.stride..].as_ptr(),
                    b_stride: right.stride,
                    groups: right.groups,
                    sums: sums[block * BLOCK..].as_mut_ptr(),
                };
                // SAFETY: rows, blocks and sums are there, as asserted above.
                unsafe { kernel.run(tile, count, kernel.blocks.min(blocks - block)) };
            }
            let place = Place {
                rows: row..row + count,
                column: first / halved,
                width,
            };
            wide::finish(
                arithmetic.level,
                &sums,
                MOST_COLUMNS,
                &of_columns,
                &out,
                &place,
            );
            row += count;
        }
    });
}

/// Rows in the format of a product, kept for the next ones.
#[derive(Default)]
pub struct Rows {
    bytes: Vec<u8>,
    scales: Vec<RowScale>,
    stride: usize,
}

impl Rows {
    /// Converts rows of `depth` numbers; float32 stays where it is.
    fn convert(
        &mut self,
        arithmetic: Arithmetic,
        x: &[f32],
        depth: usize,
        team: &Team,
    ) -> Result<()> {
        const WHAT: &str = "converted rows";
        let rows = x.len() / depth;
        self.stride = arithmetic.groups(depth) * GROUP;
        if arithmetic.format() == Format::F32 {
            return Ok(());
        }
        memory::resize(&mut self.bytes, rows * self.stride, WHAT)?;
        memory::resize(&mut self.scales, rows, WHAT)?;
        let (bytes, scales) = (Slots::of(&mut self.bytes), Slots::of(&mut self.scales));
        team.each_row(rows, |row| {
            let x = &x[row * depth..][..depth];
            // SAFETY: each row is written once.
            let bytes = unsafe { bytes.slice(row * self.stride, self.stride) };
            match arithmetic.format() {
                Format::F32 => {}
                Format::BF16 => wide::narrow(arithmetic.level, x, 1.0, bytes),
                Format::Int8 => {
                    let mut scale = wide::quantize(arithmetic.level, x, bytes);
                    if arithmetic.kernel.is_centered {
                        scale.zero -= CENTER;
                    }
                    // SAFETY: as above.
                    unsafe { scales.slice(row, 1)[0] = scale };
                }
            }
        });
        Ok(())
    }

    /// The rows that were converted last, or float32.
    fn view<'a>(&'a self, format: Format, x: &'a [f32]) -> Left<'a> {
        let bytes = if format == Format::F32 {
            bytes_of(x)
        } else {
            &self.bytes
        };
        Left {
            bytes,
            stride: self.stride,
        }
    }
}

/// Parts of a slice for several threads.
#[derive(Clone, Copy)]
pub struct Slots<'a, T> {
    start: *mut T,
    length: usize,
    of: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: parts are only made by `slice`, whose contract excludes two for one place.
unsafe impl<T: Send> Send for Slots<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Slots<'_, T> {}

impl<'a, T> Slots<'a, T> {
    pub fn of(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            length: slice.len(),
            of: std::marker::PhantomData,
        }
    }

    /// Of the whole.
    pub const fn len(&self) -> usize {
        self.length
    }

    /// A part.
    ///
    /// # Safety
    /// No other part that is in use overlaps it.
    #[allow(clippy::mut_from_ref, reason = "by the contract")]
    pub unsafe fn slice(&self, first: usize, length: usize) -> &'a mut [T] {
        assert!(first + length <= self.length);
        // SAFETY: inside of the slice; the rest is this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), length) }
    }
}

/// The bytes of float32.
pub fn bytes_of(x: &[f32]) -> &[u8] {
    // SAFETY: float32 have no padding, and bytes no alignment.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Activation;

    const FORMATS: [Format; 3] = [Format::F32, Format::BF16, Format::Int8];

    /// Numbers of both signs and many magnitudes, the same in every run.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| next() * (4.0 * next()).exp2()).collect()
    }

    fn pack(
        arithmetic: Arithmetic,
        depth: usize,
        weights: &[&[f32]],
        bias: Option<&[f32]>,
        alternating: bool,
    ) -> Matrix {
        let rows: Vec<_> = weights
            .iter()
            .map(|weights| {
                move |output: usize, row: &mut [f32]| {
                    row.copy_from_slice(&weights[output * depth..][..depth]);
                }
            })
            .collect();
        let layers = rows.iter().zip(weights).map(|(rows, weights)| Columns {
            outputs: weights.len() / depth,
            weights: rows,
            bias,
        });
        Matrix::pack(
            arithmetic,
            depth,
            &layers.collect::<Vec<_>>(),
            alternating,
            &Team::ALONE,
        )
        .unwrap()
    }

    /// Rows of `columns` numbers, all of which were `start`.
    fn multiply(
        matrix: &Matrix,
        x: &[f32],
        then: Then,
        (columns, start): (usize, f32),
        team: &Team,
    ) -> Vec<f32> {
        let mut out = vec![start; x.len() / matrix.depth() * columns];
        let scratch = &mut Rows::default();
        matrix.multiply(x, then, &mut out, scratch, team).unwrap();
        out
    }

    /// The product in double precision, and how far off each format may be: by the roundings of two numbers.
    fn reference(x: &[f32], weights: &[f32], depth: usize, format: Format) -> Vec<(f64, f64)> {
        let largest = |numbers: &[f32]| {
            f64::from(
                numbers
                    .iter()
                    .fold(0.0_f32, |most, number| most.max(number.abs())),
            )
        };
        let products = x.chunks_exact(depth).flat_map(|row| {
            weights.chunks_exact(depth).map(move |column| {
                let pairs = || {
                    row.iter()
                        .zip(column)
                        .map(|(a, b)| (f64::from(*a), f64::from(*b)))
                };
                let sizes: f64 = pairs().map(|(a, b)| (a * b).abs()).sum();
                let off = match format {
                    Format::F32 => sizes * 1e-6,
                    Format::BF16 => sizes / 128.0,
                    // Half a step of either, times all of the other; a step is a 63rd at most.
                    Format::Int8 => {
                        let (a, b) = (largest(row), largest(column));
                        pairs()
                            .map(|(x, w)| {
                                a / 254.0 * w.abs() + b / 126.0 * x.abs() + a * b / 31_000.0
                            })
                            .sum()
                    }
                };
                (pairs().map(|(a, b)| a * b).sum(), off + 1e-6)
            })
        });
        products.collect()
    }

    fn every_arithmetic() -> impl Iterator<Item = Arithmetic> {
        let levels = Level::found().into_iter();
        levels.flat_map(|level| {
            FORMATS
                .into_iter()
                .filter_map(move |format| Arithmetic::of(format, level))
        })
    }

    #[test]
    fn products_are_those_of_double_precision() {
        let shapes = [
            (1, 1, 1),
            (1, 17, 3),
            (5, 1, 70),
            (7, 33, 64),
            (13, 64, 129),
            (33, 95, 200),
            (70, 130, 31),
            (2, 384, 1536),
        ];
        for arithmetic in every_arithmetic() {
            for (rows, columns, depth) in shapes {
                let what = format!("{} {rows} x {columns} x {depth}", arithmetic.kernel.name);
                let (x, weights) = (numbers(rows * depth, 1), numbers(columns * depth, 2));
                let bias = numbers(columns, 3);
                let matrix = pack(arithmetic, depth, &[&weights], Some(&bias), false);
                let empty = (columns, f32::NAN);
                let out = multiply(&matrix, &x, Then::Store, empty, &Team::ALONE);
                let expected = reference(&x, &weights, depth, arithmetic.format());
                for ((index, found), (sum, off)) in out.iter().enumerate().zip(expected) {
                    let expected = sum + f64::from(bias[index % columns]);
                    assert!(
                        (f64::from(*found) - expected).abs() <= off,
                        "{what}: {found} for {expected}, off by more than {off}"
                    );
                }
            }
        }
    }

    #[test]
    fn integers_are_the_same_on_every_level() {
        let (rows, columns, depth) = (37, 80, 147);
        let x = numbers(rows * depth, 4);
        // Where neighbours differ in sign, kernels that add up pairs take the same steps as others.
        let mut weights = numbers(columns * depth, 5);
        for row in weights.chunks_exact_mut(depth) {
            for (index, weight) in row.iter_mut().enumerate() {
                *weight = weight.abs() * if index % 2 == 0 { 1.0 } else { -1.0 };
            }
        }
        let of = |arithmetic: Arithmetic| {
            let matrix = pack(arithmetic, depth, &[&weights], None, false);
            multiply(&matrix, &x, Then::Store, (columns, 0.0), &Team::ALONE)
        };
        let int8 = every_arithmetic().filter(|one| one.format() == Format::Int8);
        let results: Vec<_> = int8.map(|one| (one.kernel.name, of(one))).collect();
        for (name, result) in &results {
            assert_eq!(*result, results[0].1, "{name}");
        }
    }

    #[test]
    fn a_row_depends_on_no_other_and_on_no_thread() {
        let team = Team::of(3, "test").unwrap();
        let (rows, columns, depth) = (45, 200, 96);
        let (x, weights) = (numbers(rows * depth, 6), numbers(columns * depth, 7));
        for arithmetic in every_arithmetic() {
            let matrix = pack(arithmetic, depth, &[&weights], None, false);
            let product =
                |x: &[f32], team: &Team| multiply(&matrix, x, Then::Store, (columns, 0.0), team);
            let all = product(&x, &Team::ALONE);
            assert_eq!(
                team.run(|| product(&x, &team)),
                all,
                "{}",
                arithmetic.kernel.name
            );
            for (x, row) in x.chunks_exact(depth).zip(all.chunks_exact(columns)) {
                assert_eq!(product(x, &Team::ALONE), row, "{}", arithmetic.kernel.name);
            }
        }
    }

    #[test]
    fn what_follows_a_product_is_that_of_its_numbers() {
        let (rows, columns, depth) = (9, 70, 48);
        let x = numbers(rows * depth, 8);
        let (weights, gates) = (numbers(columns * depth, 9), numbers(columns * depth, 10));
        for arithmetic in every_arithmetic() {
            let name = arithmetic.kernel.name;
            let [numbers, gates_only] =
                [&weights, &gates].map(|weights| pack(arithmetic, depth, &[weights], None, false));
            let both = pack(arithmetic, depth, &[&weights, &gates], None, true);
            let run = |matrix: &Matrix, then, start: f32| {
                multiply(matrix, &x, then, (columns, start), &Team::ALONE)
            };
            let plain = run(&numbers, Then::Store, 0.0);
            let added: Vec<f32> = plain.iter().map(|number| 3.0 + number).collect();
            assert_eq!(run(&numbers, Then::Add, 3.0), added, "{name}");
            let mut active = plain.clone();
            wide::activate(arithmetic.level, Activation::Relu, &mut active);
            assert_eq!(
                run(&numbers, Then::Activate(Activation::Relu), 0.0),
                active,
                "{name}"
            );
            let gates = run(&gates_only, Then::Store, 0.0);
            let mut expected = plain.clone();
            wide::gate(arithmetic.level, Activation::Silu, &mut expected, &gates);
            assert_eq!(
                run(&both, Then::Gate(Activation::Silu), 0.0),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for arithmetic in every_arithmetic() {
            let weights = numbers(40 * 20, 11);
            let matrix = pack(arithmetic, 20, &[&weights], None, false);
            for special in [f32::NAN, f32::INFINITY] {
                let mut x = numbers(3 * 20, 12);
                x[25] = special;
                let out = multiply(&matrix, &x, Then::Store, (40, 0.0), &Team::ALONE);
                let is_finite = |row: usize| {
                    out[row * 40..][..40]
                        .iter()
                        .map(|number| number.is_finite())
                };
                assert!(
                    is_finite(1).all(|is_finite| !is_finite),
                    "{} {special}",
                    arithmetic.kernel.name
                );
                assert!(
                    is_finite(0).chain(is_finite(2)).all(|is_finite| is_finite),
                    "{} {special}",
                    arithmetic.kernel.name
                );
            }
        }
    }
}
