//! One forward pass over a batch. The tokens of its texts lie one after the other, without padding: values are float32
//! `[tokens, width]`, or `[texts, width]` where there is one row per text.

use std::ops::Range;

use super::attention::{self, Rotations, Scratch};
use super::matrix::{Matrix, Rows as Converted, Slots};
use super::steps::{Experts, Operation, Step};
use super::team::Team;
use super::wide::{self, Then};
use super::{Level, Model};
use crate::checkpoint::TensorSlice;
use crate::error::{Error, Result};
use crate::graph::{EmbeddingTables, Pooling, Rows};
use crate::memory;
use crate::runtime::Tokens;

/// What memory is for, in errors.
const BATCH: &str = "a batch";

/// Buffers that are kept between batches.
#[derive(Default)]
pub struct Buffers {
    free: Vec<Vec<f32>>,
    pub converted: Converted,
    pub rotations: Rotations,
    pub scratches: Vec<Scratch>,
}

impl Buffers {
    /// A buffer of so many numbers, whose contents are undefined.
    pub fn take(&mut self, length: usize) -> Result<Vec<f32>> {
        // The smallest that is large enough, so that large ones stay for those that need them.
        let fits = self
            .free
            .iter()
            .enumerate()
            .filter(|(_, free)| free.capacity() >= length);
        let place = fits
            .min_by_key(|(_, free)| free.capacity())
            .map(|(place, _)| place);
        let mut buffer = place.map_or_else(Vec::new, |place| self.free.swap_remove(place));
        memory::resize(&mut buffer, length, BATCH)?;
        Ok(buffer)
    }

    pub fn give(&mut self, buffer: Vec<f32>) {
        self.free.push(buffer);
    }
}

/// A batch on its way through a model.
pub struct Pass<'a> {
    pub model: &'a Model,
    pub texts: &'a [Tokens<'a>],
    /// The rows of each text.
    pub places: Vec<Range<usize>>,
    /// The text of each row and its position there.
    pub positions: Vec<(usize, usize)>,
    pub level: Level,
    pub buffers: &'a mut Buffers,
    pub team: &'a Team,
    /// Whether nobody wants the result any more.
    pub is_unwanted: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Pass<'a> {
    pub fn new(
        model: &'a Model,
        texts: &'a [Tokens<'a>],
        buffers: &'a mut Buffers,
        team: &'a Team,
        is_unwanted: &'a (dyn Fn() -> bool + Sync),
    ) -> Result<Self> {
        let mut places = memory::room(texts.len(), BATCH)?;
        let mut positions = memory::room(texts.iter().map(|text| text.ids.len()).sum(), BATCH)?;
        for (index, text) in texts.iter().enumerate() {
            places.push(positions.len()..positions.len() + text.ids.len());
            positions.extend((0..text.ids.len()).map(|position| (index, position)));
        }
        Ok(Self {
            model,
            texts,
            places,
            positions,
            level: model.level,
            buffers,
            team,
            is_unwanted,
        })
    }

    /// The result of the model, one row per text.
    ///
    /// # Errors
    /// There is no memory for the batch, or nobody wants its result.
    pub fn run(&mut self) -> Result<Vec<f32>> {
        let mut values: Vec<Option<Vec<f32>>> = Vec::new();
        for step in &self.model.steps {
            if (self.is_unwanted)() {
                return Err(Error::Aborted);
            }
            let made = self.step(step, &mut values)?;
            for value in &step.frees {
                if let Some(buffer) = values[value.index()].take() {
                    self.buffers.give(buffer);
                }
            }
            values.resize_with(step.makes, || None);
            values.push(Some(made));
        }
        let result = values.pop().flatten();
        result.ok_or_else(|| Error::inference("a model without operations"))
    }

    /// Tokens of the longest text.
    pub fn longest(&self) -> usize {
        self.places.iter().map(Range::len).max().unwrap_or(0)
    }

    /// [`Matrix::multiply`] with this pass's buffers and threads.
    pub fn multiply(
        &mut self,
        matrix: &Matrix,
        x: &[f32],
        then: Then,
        out: &mut [f32],
    ) -> Result<()> {
        matrix.multiply(x, then, out, &mut self.buffers.converted, self.team)
    }

    fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::All => self.places.last().map_or(0, |last| last.end),
            Rows::First | Rows::Last => self.texts.len(),
        }
    }

    fn step(&mut self, step: &Step, values: &mut [Option<Vec<f32>>]) -> Result<Vec<f32>> {
        // A value that is not needed any more is changed in place.
        let mut owned = |pass: &mut Self, place: usize| -> Result<Vec<f32>> {
            let value = step.takes[place];
            if step.frees.contains(&value) {
                return values[value.index()].take().ok_or_else(missing);
            }
            let x = values[value.index()].as_deref().ok_or_else(missing)?;
            let mut copy = pass.buffers.take(x.len())?;
            copy.copy_from_slice(x);
            Ok(copy)
        };
        let made = match &step.operation {
            Operation::Product(_, Then::Add) => Some(owned(self, 1)?),
            Operation::Combine(_)
            | Operation::Norm(_)
            | Operation::Activate(_)
            | Operation::Gate(_) => Some(owned(self, 0)?),
            _ => None,
        };
        let taken = |place: usize| -> Result<&[f32]> {
            let value = step.takes[place].index();
            values[value].as_deref().ok_or_else(missing)
        };
        let level = self.level;
        let mut made = match made {
            Some(made) => made,
            None => self.buffers.take(self.rows(step.rows) * step.width)?,
        };
        let parts = Slots::of(&mut made);
        let part = |row: usize| {
            // SAFETY: each row is changed by one thread.
            unsafe { parts.slice(row * step.width, step.width) }
        };
        let rows = parts.len() / step.width;
        match &step.operation {
            Operation::Embed(tables) => self.embed(tables, step.width, &mut made),
            Operation::Product(matrix, then) => {
                self.multiply(matrix, taken(0)?, *then, &mut made)?;
            }
            Operation::Combine(factor) => {
                let other = taken(1)?;
                self.team.each_row(rows, |row| {
                    wide::add(level, part(row), *factor, row_of(other, row, step.width));
                });
            }
            Operation::Norm(norm) => self.team.each_row(rows, |row| norm.apply(level, part(row))),
            Operation::Activate(activation) => {
                self.team
                    .each_row(rows, |row| wide::activate(level, *activation, part(row)));
            }
            Operation::Gate(activation) => {
                let gates = taken(1)?;
                self.team.each_row(rows, |row| {
                    wide::gate(
                        level,
                        *activation,
                        part(row),
                        row_of(gates, row, step.width),
                    );
                });
            }
            Operation::Experts(experts) => self.experts(experts, taken(0)?, &mut made)?,
            Operation::Attend(attention) => {
                attention::attend(self, attention, taken(0)?, step.rows, &mut made)?;
            }
            Operation::Select(rows) => self.select(taken(0)?, *rows, step.width, &mut made),
            Operation::Pool(poolings) => self.pool(taken(0)?, poolings, step.width, &mut made),
        }
        Ok(made)
    }

    fn embed(&self, tables: &EmbeddingTables, width: usize, made: &mut [f32]) {
        let mut row = vec![0.0; width];
        let mut add = |sum: &mut [f32], table: &TensorSlice, index: usize| {
            self.model.checkpoint.row(table, index, &mut row);
            wide::add(self.level, sum, 1.0, &row);
        };
        for (text, place) in self.texts.iter().zip(&self.places) {
            let positions = tables.positions.as_ref();
            let mut positions = positions.map(|one| (&one.table, one.numbering.rows(text.ids)));
            let sums = made[place.start * width..place.end * width].chunks_exact_mut(width);
            for ((index, &id), sum) in text.ids.iter().enumerate().zip(sums) {
                let id = id as usize;
                let word = tables.rows.as_deref().map_or(id, |rows| rows[id] as usize);
                self.model.checkpoint.row(&tables.words, word, sum);
                let factors = [
                    tables.word_scale,
                    tables.factors.as_deref().map(|factors| factors[id]),
                ];
                for factor in factors.into_iter().flatten() {
                    wide::multiply(self.level, sum, factor);
                }
                if let Some((table, rows)) = &mut positions
                    && let Some(row) = rows.next()
                {
                    add(sum, table, row);
                }
                if let Some(types) = &tables.token_types {
                    let of_second = types.vary && index >= text.second;
                    add(sum, &types.table, usize::from(of_second));
                }
            }
        }
    }

    /// The rows of one token of each text.
    pub fn select(&self, x: &[f32], rows: Rows, width: usize, made: &mut [f32]) {
        for (made, place) in made.chunks_exact_mut(width).zip(&self.places) {
            let row = match rows {
                Rows::Last => place.end - 1,
                Rows::All | Rows::First => place.start,
            };
            made.copy_from_slice(row_of(x, row, width));
        }
    }

    /// Each row is computed by the experts that its router chooses; they are added in the order of the experts.
    fn experts(&mut self, experts: &Experts, x: &[f32], made: &mut [f32]) -> Result<()> {
        let (width, count) = (experts.bias.len(), experts.up.len());
        let (level, rows) = (self.level, x.len() / width);
        let mut shares = self.buffers.take(rows * count)?;
        self.multiply(&experts.router, x, Then::Store, &mut shares)?;
        let mut chosen: Vec<Vec<usize>> = vec![Vec::new(); count];
        for (row, shares) in shares.chunks_exact_mut(count).enumerate() {
            let factor = wide::softmax(level, shares, 1.0, None);
            wide::multiply(level, shares, factor);
            let mut order: Vec<usize> = (0..count).collect();
            order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
            order[..experts.chosen]
                .iter()
                .for_each(|&expert| chosen[expert].push(row));
        }
        for row in made.chunks_exact_mut(width) {
            row.copy_from_slice(&experts.bias);
        }
        for (expert, rows) in chosen
            .iter()
            .enumerate()
            .filter(|(_, rows)| !rows.is_empty())
        {
            let mut taken = self.buffers.take(rows.len() * width)?;
            for (to, row) in taken.chunks_exact_mut(width).zip(rows) {
                to.copy_from_slice(row_of(x, *row, width));
            }
            let mut inner = self.buffers.take(rows.len() * experts.inner)?;
            let then = Then::Activate(experts.activation);
            self.multiply(&experts.up[expert], &taken, then, &mut inner)?;
            self.multiply(&experts.down[expert], &inner, Then::Store, &mut taken)?;
            for (from, row) in taken.chunks_exact(width).zip(rows) {
                wide::add(
                    level,
                    &mut made[row * width..][..width],
                    shares[row * count + expert],
                    from,
                );
            }
            self.buffers.give(taken);
            self.buffers.give(inner);
        }
        self.buffers.give(shares);
        Ok(())
    }

    /// The poolings of each text side by side, `of_all` numbers together.
    fn pool(&self, x: &[f32], poolings: &[Pooling], of_all: usize, made: &mut [f32]) {
        let width = of_all / poolings.len();
        let level = self.level;
        for (made, place) in made.chunks_exact_mut(of_all).zip(&self.places) {
            let rows = || x[place.start * width..place.end * width].chunks_exact(width);
            let length = place.len() as f32;
            for (made, pooling) in made.chunks_exact_mut(width).zip(poolings) {
                let mut sum = |weight: &dyn Fn(f32) -> f32, divisor: f32| {
                    made.fill(0.0);
                    for (index, row) in rows().enumerate() {
                        wide::add(level, made, weight(index as f32), row);
                    }
                    for number in made.iter_mut() {
                        *number /= divisor;
                    }
                };
                match pooling {
                    Pooling::Cls => made.copy_from_slice(row_of(x, place.start, width)),
                    Pooling::LastToken => made.copy_from_slice(row_of(x, place.end - 1, width)),
                    Pooling::Mean => sum(&|_| 1.0, length),
                    Pooling::MeanSqrtLength => sum(&|_| 1.0, length.sqrt()),
                    Pooling::WeightedMean => {
                        sum(&|index| index + 1.0, length * (length + 1.0) / 2.0);
                    }
                    Pooling::Max => {
                        made.fill(f32::NEG_INFINITY);
                        rows().for_each(|row| wide::maximum(level, made, row));
                    }
                }
            }
        }
    }
}

fn row_of(x: &[f32], row: usize, width: usize) -> &[f32] {
    &x[row * width..][..width]
}

fn missing() -> Error {
    Error::inference("an operation takes a value that was not computed")
}
