//! Attention within each text: a head's keys are the weights of a product with its queries, and its values those of a product
//! with the shares that come of it. Queries are taken some at a time, so that scores stay in a near cache, with the keys
//! that they see.

use std::ops::Range;
use std::sync::Mutex;

use super::forward::Pass;
use super::kernels::{BLOCK, BLOCK_BYTES, Format, GROUP};
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
            let width = queries + 2 * keys;
            all.multiply(
                x,
                Then::Store,
                &mut joined,
                width,
                &mut pass.buffers.converted,
                pass.team,
            )?;
            (width, queries)
        }
        FusedProjections::First(of_first, rest) => {
            let width = 2 * keys;
            joined.truncate(tokens * width);
            rest.multiply(
                x,
                Then::Store,
                &mut joined,
                width,
                &mut pass.buffers.converted,
                pass.team,
            )?;
            let depth = of_first.depth();
            let mut states = pass.buffers.take(pass.texts.len() * depth)?;
            for (state, place) in states.chunks_exact_mut(depth).zip(&pass.places) {
                state.copy_from_slice(&x[place.start * depth..][..depth]);
            }
            let mut query = pass.buffers.take(pass.texts.len() * queries)?;
            of_first.multiply(
                &states,
                Then::Store,
                &mut query,
                queries,
                &mut pass.buffers.converted,
                pass.team,
            )?;
            pass.buffers.give(states);
            if let Some([norm, _]) = &attention.norms {
                norm.apply(pass.level, &mut query);
            }
            first = Some(query);
            (width, 0)
        }
    };
    prepare(
        pass,
        attention,
        &mut joined,
        stride,
        first.is_none(),
        before_keys,
    )?;
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
            let (text, kv_head) = (index / kv_heads, index % kv_heads);
            let mut scratch = lock(&scratches).pop().unwrap_or_default();
            let head = Head {
                attention,
                text,
                kv_head,
                rows,
                distances: &distances,
            };
            let done = head.mix(shared, parts, out, &mut scratch);
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

/// Normalizes and rotates keys and, if they are there, queries.
fn prepare(
    pass: &mut Pass,
    attention: &SelfAttention,
    joined: &mut [f32],
    stride: usize,
    has_queries: bool,
    before_keys: usize,
) -> Result<()> {
    let Attention {
        heads,
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
        let parts = [
            (has_queries, &mut queries[..], heads, 0),
            (true, rest, kv_heads, 1),
        ];
        for (_, part, heads, which) in parts.into_iter().filter(|(is_there, ..)| *is_there) {
            let part = &mut part[..heads * head_dim];
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
    text: usize,
    kv_head: usize,
    rows: Rows,
    distances: &'a Distances,
}

impl Head<'_> {
    fn mix(
        &self,
        pass: &Pass,
        [query, key, value]: [Part; 3],
        out: Slots<f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Attention {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.attention.settings;
        let (arithmetic, level) = (&self.attention.arithmetic, pass.level);
        let place = &pass.places[self.text];
        let of_group = GROUP / arithmetic.kernel.format.size();
        // Keys, and values that they choose, are taken in whole blocks and groups.
        let unit = BLOCK.max(arithmetic.kernel.groups * of_group);
        let padded = place.len().next_multiple_of(unit);
        let (groups, all_groups) = (arithmetic.groups(head_dim), padded / of_group);
        let key_bytes = groups * BLOCK_BYTES;
        let value_bytes = all_groups * BLOCK_BYTES;
        let first = self.kv_head * head_dim;

        memory::resize(&mut scratch.keys, padded / BLOCK * key_bytes, SCORES)?;
        memory::resize(&mut scratch.queries, QUERIES * groups * GROUP, SCORES)?;
        // Keys behind the text have the score 0, which is masked.
        scratch.keys[place.len() / BLOCK * key_bytes..].fill(0);
        for (index, row) in place.clone().enumerate() {
            let bytes = &mut scratch.queries[..groups * GROUP];
            write_row(
                arithmetic.kernel.format,
                level,
                key.row(row, first, head_dim),
                bytes,
            );
            let block = &mut scratch.keys[index / BLOCK * key_bytes..][..key_bytes];
            let places = block
                .as_chunks_mut::<GROUP>()
                .0
                .iter_mut()
                .skip(index % BLOCK)
                .step_by(BLOCK);
            for (place, group) in places.zip(bytes.as_chunks::<GROUP>().0) {
                *place = *group;
            }
        }
        memory::resize(
            &mut scratch.values,
            head_dim.div_ceil(BLOCK) * value_bytes,
            SCORES,
        )?;
        let nothing = vec![0.0; head_dim];
        for group in 0..all_groups {
            let row = |index: usize| {
                let row = place.start + group * of_group + index;
                if row < place.end {
                    value.row(row, first, head_dim)
                } else {
                    &nothing
                }
            };
            for (block, start) in (0..head_dim).step_by(BLOCK).enumerate() {
                let columns = start..head_dim.min(start + BLOCK);
                let bytes = &mut scratch.values[block * value_bytes + group * BLOCK_BYTES..]
                    .as_chunks_mut()
                    .0[0];
                match arithmetic.kernel.format {
                    Format::BF16 => {
                        wide::narrow_pairs(level, &row(0)[columns.clone()], &row(1)[columns], bytes)
                    }
                    _ => bytes[..columns.len() * GROUP].copy_from_slice(bytes_of(&row(0)[columns])),
                }
            }
        }

        // One row per text, or all of them.
        let (of_text, asking) = match self.rows {
            Rows::All => (place.clone(), place.len()),
            Rows::First | Rows::Last => (self.text..self.text + 1, 1),
        };
        let sharing = heads / kv_heads;
        for head in self.kv_head * sharing..(self.kv_head + 1) * sharing {
            self.distances
                .biases(self.attention, head, place.len(), &mut scratch.biases)?;
            for start in (0..asking).step_by(QUERIES) {
                if (pass.is_unwanted)() {
                    return Err(Error::Aborted);
                }
                let count = QUERIES.min(asking - start);
                // By any of them.
                let seen = self.seen(start, place.len()).start
                    ..self.seen(start + count - 1, place.len()).end;
                let seen = seen.start / unit * unit..seen.end.next_multiple_of(unit);

                let rows = (0..count).map(|index| {
                    query.row(of_text.start + start + index, head * head_dim, head_dim)
                });
                for (row, bytes) in rows.zip(scratch.queries.chunks_exact_mut(groups * GROUP)) {
                    write_row(arithmetic.kernel.format, level, row, bytes);
                }
                memory::resize(&mut scratch.scores, count * seen.len(), SCORES)?;
                let left = Left {
                    bytes: &scratch.queries,
                    stride: groups * GROUP,
                };
                let right = Right {
                    blocks: &scratch.keys[seen.start / BLOCK * key_bytes..],
                    stride: key_bytes,
                    groups,
                    columns: seen.len(),
                };
                let to = Grid {
                    numbers: Slots::of(&mut scratch.scores),
                    first: 0,
                    stride: seen.len(),
                    width: seen.len(),
                };
                product(arithmetic, left, right, count, &plain, to, &Team::ALONE);

                let format = arithmetic.kernel.format;
                let share_bytes = seen.len() * format.size();
                memory::resize(
                    &mut scratch.shares,
                    if format == Format::F32 {
                        0
                    } else {
                        count * share_bytes
                    },
                    SCORES,
                )?;
                for (index, scores) in scratch.scores.chunks_exact_mut(seen.len()).enumerate() {
                    let own = self.seen(start + index, place.len());
                    let (from, to) = (own.start - seen.start, own.end - seen.start);
                    scores[..from].fill(f32::NEG_INFINITY);
                    scores[to..].fill(f32::NEG_INFINITY);
                    let biases = (!scratch.biases.is_empty()).then(|| {
                        // Those of distances, the first of which is from the last query to the first key.
                        &scratch.biases[place.len() - 1 - (start + index)..][..place.len()]
                    });
                    let factor =
                        wide::softmax(level, scores, self.attention.settings.scale, biases);
                    match format {
                        Format::F32 => wide::multiply(level, scores, factor),
                        _ => wide::narrow(
                            level,
                            scores,
                            factor,
                            &mut scratch.shares[index * share_bytes..][..share_bytes],
                        ),
                    }
                }
                let left = Left {
                    bytes: if format == Format::F32 {
                        bytes_of(&scratch.scores)
                    } else {
                        &scratch.shares
                    },
                    stride: share_bytes,
                };
                let right = Right {
                    blocks: &scratch.values[seen.start / of_group * BLOCK_BYTES..],
                    stride: value_bytes,
                    groups: seen.len() / of_group,
                    columns: head_dim,
                };
                let to = Grid {
                    numbers: out,
                    first: (of_text.start + start) * heads * head_dim + head * head_dim,
                    stride: heads * head_dim,
                    width: head_dim,
                };
                product(arithmetic, left, right, count, &plain, to, &Team::ALONE);
            }
        }
        Ok(())
    }

    /// The keys that a query sees.
    fn seen(&self, query: usize, length: usize) -> Range<usize> {
        match self.attention.settings.mask {
            Mask::None | Mask::Relative(_) | Mask::Alibi => 0..length,
            Mask::Causal => 0..query + 1,
            Mask::Window(reach) => query.saturating_sub(reach)..length.min(query + reach + 1),
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

fn write_row(format: Format, level: super::Level, x: &[f32], bytes: &mut [u8]) {
    match format {
        Format::BF16 => wide::narrow(level, x, 1.0, bytes),
        _ => bytes.copy_from_slice(bytes_of(x)),
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
        let growth = |length| {
            rotary
                .scaling
                .map_or(1.0, |scaling| scaling.base_growth(length))
        };
        places
            .iter()
            .map(|place| self.angles_of(rotary, growth(place.len()), place.len()))
            .collect()
    }

    fn angles_of(&mut self, rotary: &Rotary, growth: f64, length: usize) -> Result<usize> {
        let known = self
            .0
            .iter()
            .position(|known| known.rotary == *rotary && known.growth == growth);
        let place = known.unwrap_or_else(|| {
            self.0.push(Angles {
                rotary: *rotary,
                growth,
                numbers: Vec::new(),
            });
            self.0.len() - 1
        });
        let dimensions = rotary.dimensions as f64;
        let base = rotary.base * growth.powf(dimensions / (dimensions - 2.0));
        let half = rotary.dimensions / 2;
        let frequency =
            |i: usize| (base.powf(-2.0 * i as f64 / dimensions) / rotary.position_divisor) as f32;
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
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
        self.0.retain(|angles| angles.growth == 1.0);
    }
}
