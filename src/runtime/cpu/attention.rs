//! Attention within each text: a head's keys are the weights of a product with its queries, and its values those of a product
//! with the shares that come of it. Queries are taken some at a time, so that scores stay in a near cache, with the keys
//! that they see.

use std::ops::Range;
use std::sync::Mutex;

use super::forward::Pass;
use super::kernels::{BLOCK, BLOCK_BYTES, Format, GROUP};
use super::level::Level;
use super::matrix::{Grid, Left, Right, Slots, bytes_of, product};
use super::steps::{FusedProjections, SelfAttention};
use super::team::Team;
use super::wide::{self, Finish, Then};
use crate::error::{Error, Result};
use crate::graph::{Attention, Mask, Rotary, Rows, alibi_slope};
use crate::memory;
use crate::sync::lock;

/// Queries that are computed together.
const QUERIES: usize = 64;

/// What memory is for, in errors.
const SCORES: &str = "attention";

/// Some columns of rows of numbers.
#[derive(Clone, Copy)]
struct Part<'a> {
    numbers: &'a [f32],
    /// Numbers from one row to the next.
    stride: usize,
    /// The first column.
    first: usize,
}

impl<'a> Part<'a> {
    fn row(&self, row: usize, first: usize, width: usize) -> &'a [f32] {
        &self.numbers[row * self.stride + self.first + first..][..width]
    }
}

/// Buffers of a thread, kept for the next batches.
#[derive(Default)]
pub struct Scratch {
    keys: Vec<u8>,
    values: Vec<u8>,
    queries: Vec<u8>,
    scores: Vec<f32>,
    shares: Vec<u8>,
    biases: Vec<f32>,
}

/// The heads side by side, of all tokens or of the first of each text.
///
/// # Errors
/// There is no memory for it, or nobody wants the result.
pub fn attend(
    pass: &mut Pass,
    attention: &SelfAttention,
    x: &[f32],
    rows: Rows,
    made: &mut [f32],
) -> Result<()> {
    let Attention {
        heads,
        kv_heads,
        head_dim,
        ..
    } = attention.settings;
    let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
    let tokens = pass.positions.len();
    let (mut first, mut joined) = (None, pass.buffers.take(tokens * (queries + 2 * keys))?);
    let (stride, before_keys) = match &attention.projections {
        FusedProjections::All(all) => {
            pass.multiply(all, x, Then::Store, &mut joined)?;
            (queries + 2 * keys, queries)
        }
        FusedProjections::First(of_first, rest) => {
            joined.truncate(tokens * 2 * keys);
            pass.multiply(rest, x, Then::Store, &mut joined)?;
            let depth = of_first.depth();
            let mut states = pass.buffers.take(pass.texts.len() * depth)?;
            pass.select(x, Rows::First, depth, &mut states);
            let mut query = pass.buffers.take(pass.texts.len() * queries)?;
            pass.multiply(of_first, &states, Then::Store, &mut query)?;
            pass.buffers.give(states);
            if let Some([norm, _]) = &attention.norms {
                norm.apply(pass.level, &mut query);
            }
            first = Some(query);
            (2 * keys, 0)
        }
    };
    prepare(pass, attention, &mut joined, stride, before_keys)?;
    let part = |first| Part {
        numbers: &joined,
        stride,
        first,
    };
    let query = match &first {
        Some(query) => Part {
            numbers: query,
            stride: queries,
            first: 0,
        },
        None => part(0),
    };
    let parts = [query, part(before_keys), part(before_keys + keys)];
    let distances = Distances::of(&attention.settings.mask, pass.longest());
    let out = Slots::of(made);
    let scratches = Mutex::new(std::mem::take(&mut pass.buffers.scratches));
    let shared: &Pass = pass;
    let done = shared
        .team
        .try_each(shared.texts.len() * kv_heads, |index| {
            let (text, index) = (index / kv_heads, index % kv_heads);
            let place = shared.places[text].clone();
            let head = Head {
                attention,
                level: shared.level,
                is_unwanted: shared.is_unwanted,
                asking: match rows {
                    Rows::All => place.clone(),
                    Rows::First | Rows::Last => text..text + 1,
                },
                place,
                index,
                distances: &distances,
            };
            let mut scratch = lock(&scratches).pop().unwrap_or_default();
            let done = head.mix(parts, out, &mut scratch);
            lock(&scratches).push(scratch);
            done
        });
    pass.buffers.scratches = std::mem::take(&mut *lock(&scratches));
    pass.buffers.give(joined);
    if let Some(query) = first {
        pass.buffers.give(query);
    }
    done
}

/// Normalizes and rotates keys and what is before them, queries or nothing.
fn prepare(
    pass: &mut Pass,
    attention: &SelfAttention,
    joined: &mut [f32],
    stride: usize,
    before_keys: usize,
) -> Result<()> {
    let Attention {
        kv_heads,
        head_dim,
        rotary,
        ..
    } = attention.settings;
    if attention.norms.is_none() && rotary.is_none() {
        return Ok(());
    }
    let rotations = match &rotary {
        Some(rotary) => pass.buffers.rotations.of(rotary, &pass.places)?,
        None => Vec::new(),
    };
    let (pass, rows) = (&*pass, Slots::of(joined));
    pass.team.each_row(pass.positions.len(), |row| {
        // SAFETY: each row is changed by one thread.
        let numbers = unsafe { rows.slice(row * stride, stride) };
        let (queries, rest) = numbers.split_at_mut(before_keys);
        let parts = [queries, &mut rest[..kv_heads * head_dim]];
        for (which, part) in parts.into_iter().enumerate() {
            if let Some(norms) = &attention.norms {
                norms[which].apply(pass.level, part);
            }
            if let Some(rotary) = &rotary {
                let (text, position) = pass.positions[row];
                let half = rotary.dimensions / 2;
                let [cosines, sines] =
                    pass.buffers
                        .rotations
                        .angles(rotations[text], position, half);
                wide::rotate(pass.level, part, head_dim, cosines, sines);
            }
        }
    });
    Ok(())
}

/// A head of keys and values of a text, and the heads of queries that it is for.
struct Head<'a> {
    attention: &'a SelfAttention,
    level: Level,
    is_unwanted: &'a (dyn Fn() -> bool + Sync),
    /// The rows of the text, and of its queries: one, or as many.
    place: Range<usize>,
    asking: Range<usize>,
    /// Which one of those of keys and values.
    index: usize,
    distances: &'a Distances,
}

impl Head<'_> {
    /// Keys, and values that they choose, are taken in whole blocks and groups: so many at least.
    fn unit(&self) -> usize {
        BLOCK.max(self.attention.arithmetic.kernel.groups * self.in_group())
    }

    /// Numbers of a group.
    fn in_group(&self) -> usize {
        GROUP / self.format().size()
    }

    fn format(&self) -> Format {
        self.attention.arithmetic.kernel.format
    }

    /// Groups of a row of a head.
    fn groups(&self) -> usize {
        (self.attention.arithmetic).groups(self.attention.settings.head_dim)
    }

    /// Bytes of the values of a block of columns.
    fn value_bytes(&self) -> usize {
        self.place.len().next_multiple_of(self.unit()) / self.in_group() * BLOCK_BYTES
    }

    fn mix(
        &self,
        [query, key, value]: [Part; 3],
        out: Slots<f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.pack_keys(key, scratch)?;
        self.pack_values(value, scratch)?;
        let Attention {
            heads, kv_heads, ..
        } = self.attention.settings;
        let sharing = heads / kv_heads;
        for head in self.index * sharing..(self.index + 1) * sharing {
            let length = self.place.len();
            (self.distances).biases(self.attention, head, length, &mut scratch.biases)?;
            for start in (0..self.asking.len()).step_by(QUERIES) {
                if (self.is_unwanted)() {
                    return Err(Error::Aborted);
                }
                let queries = start..self.asking.len().min(start + QUERIES);
                self.mix_some(head, queries, query, out, scratch)?;
            }
        }
        Ok(())
    }

    /// Keys as columns: their numbers are groups of the depth.
    fn pack_keys(&self, key: Part, scratch: &mut Scratch) -> Result<()> {
        let head_dim = self.attention.settings.head_dim;
        let row_bytes = self.groups() * GROUP;
        let block_bytes = self.groups() * BLOCK_BYTES;
        let blocks = self.place.len().next_multiple_of(self.unit()) / BLOCK;
        memory::resize(&mut scratch.keys, blocks * block_bytes, SCORES)?;
        memory::resize(&mut scratch.queries, QUERIES * row_bytes, SCORES)?;
        // Keys behind the text have the score 0, which is masked.
        scratch.keys[self.place.len() / BLOCK * block_bytes..].fill(0);
        for (index, row) in self.place.clone().enumerate() {
            let bytes = &mut scratch.queries[..row_bytes];
            self.write(key.row(row, self.index * head_dim, head_dim), 1.0, bytes);
            let block = &mut scratch.keys[index / BLOCK * block_bytes..][..block_bytes];
            let groups = block.as_chunks_mut::<GROUP>().0.iter_mut();
            let column = groups.skip(index % BLOCK).step_by(BLOCK);
            for (place, group) in column.zip(bytes.as_chunks::<GROUP>().0) {
                *place = *group;
            }
        }
        Ok(())
    }

    /// Values as depth: groups of the same numbers of some tokens.
    fn pack_values(&self, value: Part, scratch: &mut Scratch) -> Result<()> {
        let head_dim = self.attention.settings.head_dim;
        let block_bytes = self.value_bytes();
        let blocks = head_dim.div_ceil(BLOCK);
        memory::resize(&mut scratch.values, blocks * block_bytes, SCORES)?;
        let nothing = vec![0.0; head_dim];
        for group in 0..block_bytes / BLOCK_BYTES {
            let row = |index: usize| {
                let row = self.place.start + group * self.in_group() + index;
                if row < self.place.end {
                    value.row(row, self.index * head_dim, head_dim)
                } else {
                    &nothing
                }
            };
            for block in 0..blocks {
                let columns = block * BLOCK..head_dim.min((block + 1) * BLOCK);
                let bytes = &mut scratch.values[block * block_bytes + group * BLOCK_BYTES..];
                let bytes = &mut bytes.as_chunks_mut().0[0];
                let first = &row(0)[columns.clone()];
                if self.format() == Format::BF16 {
                    wide::narrow_pairs(self.level, first, &row(1)[columns], bytes);
                } else {
                    bytes[..columns.len() * GROUP].copy_from_slice(bytes_of(first));
                }
            }
        }
        Ok(())
    }

    /// Some queries of a head.
    fn mix_some(
        &self,
        head: usize,
        queries: Range<usize>,
        query: Part,
        out: Slots<f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Attention {
            heads,
            head_dim,
            scale,
            ..
        } = self.attention.settings;
        let arithmetic = &self.attention.arithmetic;
        let (length, unit, groups) = (self.place.len(), self.unit(), self.groups());
        // By any of them.
        let seen = self.seen(queries.start).start..self.seen(queries.end - 1).end;
        let seen = seen.start / unit * unit..seen.end.next_multiple_of(unit);

        let rows = queries.clone().map(|index| {
            let row = self.asking.start + index;
            query.row(row, head * head_dim, head_dim)
        });
        for (row, bytes) in rows.zip(scratch.queries.chunks_exact_mut(groups * GROUP)) {
            self.write(row, 1.0, bytes);
        }
        memory::resize(&mut scratch.scores, queries.len() * seen.len(), SCORES)?;
        let left = Left {
            bytes: &scratch.queries,
            stride: groups * GROUP,
        };
        let right = Right {
            blocks: &scratch.keys[seen.start / BLOCK * groups * BLOCK_BYTES..],
            stride: groups * BLOCK_BYTES,
            groups,
            columns: seen.len(),
        };
        let to = Grid {
            numbers: Slots::of(&mut scratch.scores),
            first: 0,
            stride: seen.len(),
            width: seen.len(),
        };
        let alone = &Team::ALONE;
        product(arithmetic, left, right, queries.len(), &plain, to, alone);

        let stride = seen.len() * self.format().size();
        memory::resize(&mut scratch.shares, queries.len() * stride, SCORES)?;
        let rows = scratch.scores.chunks_exact_mut(seen.len());
        for ((index, scores), bytes) in
            (queries.clone().zip(rows)).zip(scratch.shares.chunks_exact_mut(stride))
        {
            let own = self.seen(index);
            scores[..own.start - seen.start].fill(f32::NEG_INFINITY);
            scores[own.end - seen.start..].fill(f32::NEG_INFINITY);
            // Those of distances, the first of which is from the last query to the first key.
            let biases = (!scratch.biases.is_empty())
                .then(|| &scratch.biases[length - 1 - index..][..length]);
            let factor = wide::softmax(self.level, scores, scale, biases);
            self.write(scores, factor, bytes);
        }
        let left = Left {
            bytes: &scratch.shares,
            stride,
        };
        let right = Right {
            blocks: &scratch.values[seen.start / self.in_group() * BLOCK_BYTES..],
            stride: self.value_bytes(),
            groups: seen.len() / self.in_group(),
            columns: head_dim,
        };
        let to = Grid {
            numbers: out,
            first: (self.asking.start + queries.start) * heads * head_dim + head * head_dim,
            stride: heads * head_dim,
            width: head_dim,
        };
        product(arithmetic, left, right, queries.len(), &plain, to, alone);
        Ok(())
    }

    /// The keys that a query sees.
    fn seen(&self, query: usize) -> Range<usize> {
        let length = self.place.len();
        match self.attention.settings.mask {
            Mask::None | Mask::Relative(_) | Mask::Alibi => 0..length,
            Mask::Causal => 0..query + 1,
            Mask::Window(reach) => query.saturating_sub(reach)..length.min(query + reach + 1),
        }
    }

    /// Multiplies a row and writes it in the format of products.
    fn write(&self, x: &[f32], factor: f32, bytes: &mut [u8]) {
        if self.format() == Format::BF16 {
            wide::narrow(self.level, x, factor, bytes);
        } else {
            wide::scaled(self.level, x, factor, bytes);
        }
    }
}

fn plain(_: Range<usize>) -> Finish<'static> {
    Finish {
        integers: None,
        bias: None,
        then: Then::Store,
    }
}

/// What masks that depend on the distance of two tokens are made of.
struct Distances {
    /// The row of the table for each distance, from that of a key as far in front of the query as possible to that of one as
    /// far behind it.
    buckets: Vec<usize>,
}

impl Distances {
    fn of(mask: &Mask, longest: usize) -> Self {
        let most = longest as i64;
        let buckets = match mask {
            Mask::Relative(bias) => (1 - most..most)
                .map(|distance| bias.bucket(distance))
                .collect(),
            _ => Vec::new(),
        };
        Self { buckets }
    }

    /// What a head adds for each distance in a text of this length; nothing if the mask has no biases.
    fn biases(
        &self,
        attention: &SelfAttention,
        head: usize,
        length: usize,
        biases: &mut Vec<f32>,
    ) -> Result<()> {
        let heads = attention.settings.heads;
        match attention.settings.mask {
            Mask::Relative(_) => {
                let first = self.buckets.len() / 2 + 1 - length;
                memory::resize(biases, 2 * length - 1, SCORES)?;
                for (bias, bucket) in biases.iter_mut().zip(&self.buckets[first..]) {
                    *bias = attention.bias[bucket * heads + head];
                }
            }
            Mask::Alibi => {
                let slope = alibi_slope(head, heads) as f32;
                memory::resize(biases, 2 * length - 1, SCORES)?;
                for (index, bias) in biases.iter_mut().enumerate() {
                    *bias = -slope * (index + 1).abs_diff(length) as f32;
                }
            }
            Mask::None | Mask::Causal | Mask::Window(_) => biases.clear(),
        }
        Ok(())
    }
}

/// Cosines and sines of rotations, kept for the next batches.
#[derive(Default)]
pub struct Rotations(Vec<Angles>);

struct Angles {
    rotary: Rotary,
    /// [`crate::graph::NtkScaling::base_growth`]
    growth: f64,
    /// `[positions, 2, dimensions / 2]`
    numbers: Vec<f32>,
}

impl Rotations {
    /// The angles of each text.
    fn of(&mut self, rotary: &Rotary, places: &[Range<usize>]) -> Result<Vec<usize>> {
        places
            .iter()
            .map(|place| self.angles_of(rotary, rotary.growth(place.len()), place.len()))
            .collect()
    }

    fn angles_of(&mut self, rotary: &Rotary, growth: f64, length: usize) -> Result<usize> {
        let known = self.0.iter().position(|known| {
            known.rotary == *rotary && known.growth.to_bits() == growth.to_bits()
        });
        let place = known.unwrap_or_else(|| {
            self.0.push(Angles {
                rotary: *rotary,
                growth,
                numbers: Vec::new(),
            });
            self.0.len() - 1
        });
        let frequencies = rotary.frequencies(growth);
        let numbers = &mut self.0[place].numbers;
        let known = numbers.len() / rotary.dimensions;
        if known < length {
            memory::reserve(numbers, (length - known) * rotary.dimensions, SCORES)?;
        }
        for position in known..length {
            let angles = || {
                frequencies
                    .iter()
                    .map(|frequency| position as f32 * frequency)
            };
            numbers.extend(angles().map(f32::cos));
            numbers.extend(angles().map(f32::sin));
        }
        Ok(place)
    }

    fn angles(&self, place: usize, position: usize, half: usize) -> [&[f32]; 2] {
        let (cosines, sines) =
            self.0[place].numbers[position * 2 * half..][..2 * half].split_at(half);
        [cosines, sines]
    }

    /// Forgets what holds for texts of one length only.
    pub fn forget_scaled(&mut self) {
        self.0.retain(|angles| angles.growth <= 1.0);
    }
}
