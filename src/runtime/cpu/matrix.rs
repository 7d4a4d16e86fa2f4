//! Matrix products: packed weights, rows to multiply them by, and the loop over tiles.

use super::kernels::{BLOCK, BLOCK_BYTES, Format, GROUP, Kernel, MOST_COLUMNS, MOST_ROWS, Tile};
use super::level::Level;
use super::team::Team;
use super::wide::{self, Finish, Then};
use crate::error::Result;
use crate::int8::scheme;
use crate::memory;
use crate::pages::Pages;

/// The byte that stands for 0 in quantized rows.
const ZERO_POINT: i32 = 128;

/// How numbers are multiplied on this processor.
#[derive(Clone, Copy)]
pub struct Arithmetic {
    pub level: Level,
    pub kernel: Kernel,
}

impl Arithmetic {
    /// The fastest way.
    pub fn of(format: Format, level: Level) -> Self {
        let kernel = Kernel::best(format, level);
        Self { level, kernel }
    }

    const fn format(&self) -> Format {
        self.kernel.format
    }

    /// Groups of a row of so many numbers.
    pub const fn groups(&self, depth: usize) -> usize {
        (depth * self.format().size()).div_ceil(GROUP)
    }
}

/// Weights of one or more layers with the same input, packed for the kernels.
pub struct Matrix {
    arithmetic: Arithmetic,
    blocks: Pages,
    depth: usize,
    /// Columns of the blocks, the last of which may have more than there are.
    columns: usize,
    /// int8: the scale of each column, and the sum of its weights times the zero point.
    scales: Vec<f32>,
    zeros: Vec<i32>,
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
            zeros: Vec::new(),
            bias: None,
        };
        if arithmetic.format() == Format::Int8 {
            matrix.scales = memory::filled(padded, 0.0, WHAT)?;
            matrix.zeros = memory::filled(padded, 0, WHAT)?;
        }
        // The layer and the output of a column.
        let source = |column: usize| {
            if alternating {
                let (pair, place) = (column / (2 * BLOCK), column % (2 * BLOCK));
                let output = pair * BLOCK + place % BLOCK;
                return Some((&layers[place / BLOCK], output)).filter(|(layer, output)| *output < layer.outputs);
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
        let (scales, zeros) = (Slots::of(&mut matrix.scales), Slots::of(&mut matrix.zeros));
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
                    Format::F32 => bytes.copy_from_slice(bytes_of(&row)),
                    Format::BF16 => wide::narrow(arithmetic.level, &row, &mut bytes),
                    Format::Int8 => {
                        let scale = scheme::scale(&row);
                        let mut sum = 0;
                        for (weight, byte) in row.iter().zip(&mut bytes) {
                            let value = scheme::nearest(*weight, scale);
                            sum += i32::from(value);
                            *byte = value as u8;
                        }
                        // SAFETY: as above.
                        unsafe {
                            scales.slice(column, 1)[0] = scale;
                            zeros.slice(column, 1)[0] = ZERO_POINT * sum;
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

    /// `x · weightsᵀ + bias` of every row, and what `then` says, into rows of `width` numbers.
    ///
    /// # Errors
    /// There is no memory for the converted rows.
    pub fn multiply(&self, x: &[f32], then: Then, out: &mut [f32], width: usize, scratch: &mut Rows, team: &Team) -> Result<()> {
        let rows = x.len() / self.depth;
        scratch.convert(self.arithmetic, x, self.depth, team)?;
        let left = scratch.view(x, self.depth);
        let right = Right {
            blocks: &self.blocks,
            stride: self.arithmetic.groups(self.depth) * BLOCK_BYTES,
            groups: self.arithmetic.groups(self.depth),
            columns: self.columns,
        };
        debug_assert_eq!(out.len(), rows * width);
        let finish = |columns: std::ops::Range<usize>| Finish {
            integers: (self.arithmetic.format() == Format::Int8).then(|| {
                (&scratch.scales[..], &self.scales[columns.clone()], &self.zeros[columns.clone()])
            }),
            bias: self.bias.as_ref().map(|bias| &bias[columns]),
            then,
        };
        let out = Grid { numbers: Slots::of(out), first: 0, stride: width, width };
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

/// The loop over tiles: a strip of blocks stays in the nearest cache while all rows pass by.
pub fn product<'f>(
    arithmetic: &Arithmetic,
    left: Left,
    right: Right,
    rows: usize,
    finish: &(impl Fn(std::ops::Range<usize>) -> Finish<'f> + Sync),
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
        let halved = if matches!(of_columns.then, Then::Gate(_)) { 2 } else { 1 };
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
            let of_rows = Finish {
                integers: of_columns.integers.map(|(of_rows, scales, zeros)| (&of_rows[row..], scales, zeros)),
                ..of_columns
            };
            let mut targets: [&mut [f32]; MOST_ROWS] = std::array::from_fn(|_| &mut [][..]);
            for (place, target) in targets[..count].iter_mut().enumerate() {
                // SAFETY: each strip of a row is written by one thread.
                *target = unsafe { out.numbers.slice(out.first + (row + place) * out.stride + first / halved, width) };
            }
            wide::finish(arithmetic.level, &mut sums, MOST_COLUMNS, blocks * BLOCK, &of_rows, &mut targets[..count]);
            row += count;
        }
    });
}

/// Rows in the format of a product, kept for the next ones.
#[derive(Default)]
pub struct Rows {
    bytes: Vec<u8>,
    scales: Vec<f32>,
    stride: usize,
}

impl Rows {
    /// Converts rows of `depth` numbers; float32 stays where it is.
    fn convert(&mut self, arithmetic: Arithmetic, x: &[f32], depth: usize, team: &Team) -> Result<()> {
        const WHAT: &str = "converted rows";
        let rows = x.len() / depth;
        self.bytes.clear();
        self.scales.clear();
        self.stride = arithmetic.groups(depth) * GROUP;
        if arithmetic.format() == Format::F32 {
            return Ok(());
        }
        memory::reserve(&mut self.bytes, rows * self.stride, WHAT)?;
        self.bytes.resize(rows * self.stride, 0);
        memory::reserve(&mut self.scales, rows, WHAT)?;
        self.scales.resize(rows, 0.0);
        let (bytes, scales) = (Slots::of(&mut self.bytes), Slots::of(&mut self.scales));
        team.each_row(rows, |row| {
            let x = &x[row * depth..][..depth];
            // SAFETY: each row is written once.
            let bytes = unsafe { bytes.slice(row * self.stride, self.stride) };
            match arithmetic.format() {
                Format::F32 => {}
                Format::BF16 => wide::narrow(arithmetic.level, x, bytes),
                Format::Int8 => {
                    // SAFETY: as above.
                    unsafe { scales.slice(row, 1)[0] = wide::quantize(arithmetic.level, x, bytes) };
                }
            }
        });
        Ok(())
    }

    fn view<'a>(&'a self, x: &'a [f32], depth: usize) -> Left<'a> {
        if self.bytes.is_empty() {
            return Left { bytes: bytes_of(x), stride: depth * size_of::<f32>() };
        }
        Left { bytes: &self.bytes, stride: self.stride }
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
        Self { start: slice.as_mut_ptr(), length: slice.len(), of: std::marker::PhantomData }
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
