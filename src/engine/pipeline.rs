//! What workers do for a call, one function per step: deduplicate, tokenize, plan, compute, deliver.

use std::ops::Range;

use super::Activity;
use super::call::{Call, Distinct, Step};
use super::queue::{Job, Queue, Role, Work};
use super::sink::Rows;
use super::ticket::OpenCalls;
use crate::batch::{self, Limits};
use crate::error::Result;
use crate::guard;
use crate::memory;
use crate::runtime::stop::Stop;
use crate::runtime::{Tokens, Worker};
use crate::sync::{Arc, Mutex, lock};
use crate::tokenizer::{Input, Tokenizer};
use crate::vector::{Finish, VECTORS, Vectors};

/// What the workers of an engine share.
pub struct Pipeline {
    pub tokenizer: Tokenizer,
    pub limits: Limits,
    pub finish: Finish,
    pub queue: Queue<Call>,
    pub open_calls: Arc<OpenCalls>,
    pub activity: Mutex<Activity>,
}

impl Pipeline {
    /// The life of a worker's thread. Ends when the queue is closed.
    pub fn work(&self, role: Role, worker: &mut dyn Worker) {
        self.queue.serve(role, |work| match work {
            Work::Step(call, step) => call.run(|| self.run(&call, step, worker)),
            Work::Singles(calls) => self.compute_singles(calls, worker),
        });
    }

    /// Refuses new calls and ends those that are open.
    pub fn close(&self) {
        // First the queue: a call that is opened too late to be ended here finds it closed.
        self.queue.close();
        self.open_calls.close();
    }

    fn run(&self, call: &Arc<Call>, step: Step, worker: &mut dyn Worker) -> Result<()> {
        match step {
            Step::Deduplicate => {
                let steps: Vec<Step> = call.deduplicate()?.tokenization(0).collect();
                if let [Step::Tokenize(places)] = &steps[..] {
                    // The way through the queue would take longer than this one step.
                    return self.run(call, Step::Tokenize(places.clone()), worker);
                }
                self.queue.add_steps(call, steps);
            }
            Step::Tokenize(places) => {
                self.tokenize(call, places.clone())?;
                if let Some(window) = call.distinct().finish_tokenization(places) {
                    self.queue.add_steps(call, self.plan(call, window));
                }
            }
            Step::Compute(places) => self.compute(&[(call, &places)], worker)?,
        }
        Ok(())
    }

    fn tokenize(&self, call: &Call, places: Range<usize>) -> Result<()> {
        let distinct = call.distinct();
        let is_unwanted = || call.has_ended();
        for place in places {
            let index = distinct.firsts[place];
            let tokens = match &call.request.texts[index] {
                Input::Text(text) => {
                    self.tokenizer
                        .tokenize_unless(text, call.request.is_query, &is_unwanted)?
                }
                Input::Pair { query, text } => {
                    self.tokenizer.tokenize_pair(query, text, &is_unwanted)?
                }
                Input::Tokens(ids) => self.tokenizer.take(ids, index)?,
            };
            distinct.set_tokens(place, tokens);
        }
        Ok(())
    }

    /// The batches of a window, alternating with the tokenization of the next window, so that neither waits for all of the
    /// other.
    fn plan(&self, call: &Call, window: usize) -> Vec<Step> {
        let distinct = call.distinct();
        let batches = distinct.batches(window, self.limits, call.is_streamed);
        let mut batches = batches.into_iter().map(Step::Compute);
        let mut tokenization = distinct.tokenization(window + 1);
        let mut steps = Vec::new();
        loop {
            let before = steps.len();
            steps.extend(batches.next().into_iter().chain(tokenization.next()));
            if steps.len() == before {
                return steps;
            }
        }
    }

    /// Computes the first of these calls of one text, together with those that fit into its batch. The others go back to
    /// the queue.
    fn compute_singles(&self, mut calls: Vec<Arc<Call>>, worker: &mut dyn Worker) {
        for call in calls.iter().filter(|call| !call.is_tokenized(0)) {
            call.run(|| {
                call.deduplicate()?;
                self.tokenize(call, 0..1)
            });
        }
        calls.retain(|call| call.is_tokenized(0) && !call.has_ended());
        let lengths = calls.iter().map(|call| call.distinct().tokens(0).ids.len());
        let batches = batch::plan(&lengths.collect::<Vec<_>>(), self.limits);
        let Some(batch) = batches.iter().find(|batch| batch.contains(&0)) else {
            return;
        };
        let (chosen, others): (Vec<_>, Vec<_>) =
            (calls.into_iter().enumerate()).partition(|(index, _)| batch.contains(index));
        if !others.is_empty() {
            let others = others.into_iter().map(|(_, call)| call);
            self.queue.put_back(others.collect());
        }
        let parts: Vec<(&Call, &[usize])> = (chosen.iter())
            .map(|(_, call)| (&**call, &[0][..]))
            .collect();
        if parts.len() > 1 && guard::run(|| self.compute(&parts, worker)).is_ok() {
            return;
        }
        // If the batch fails, each call is tried alone, so that only those fail that are at fault.
        for part in parts {
            part.0.run(|| self.compute(&[part], worker));
        }
    }

    /// Computes and delivers one batch: of each call the distinct texts at these places.
    fn compute(&self, parts: &[(&Call, &[usize])], worker: &mut dyn Worker) -> Result<()> {
        let texts = parts.iter().flat_map(|(call, places)| {
            let distinct = call.distinct();
            places
                .iter()
                .map(|&place| distinct.tokens(place).as_tokens())
        });
        let texts: Vec<Tokens> = texts.collect();
        let stop = match parts {
            [(call, _)] => Arc::clone(call.ticket.stop()),
            // One caller who gives up must not stop the others' batch, which is short anyway.
            _ => Arc::default(),
        };
        let mut pooled = forward(worker, &texts, self.finish.pooled, &stop)?;
        lock(&self.activity).batches += 1;
        // From the last part on: each is split off, and the first takes over what remains without a copy.
        for (call, places) in parts.iter().rev() {
            let own = pooled.split_off(pooled.len() - places.len() * self.finish.pooled);
            call.run(|| self.deliver(call, places, own));
        }
        Ok(())
    }

    /// Finishes the pooled vectors of these places and hands them to the call.
    fn deliver(&self, call: &Call, places: &[usize], pooled: Vec<f32>) -> Result<()> {
        if call.has_ended() {
            return Ok(());
        }
        let distinct = call.distinct();
        let lengths = places.iter().map(|&place| distinct.tokens(place).ids.len());
        let tokens = lengths.sum();
        {
            let mut activity = lock(&self.activity);
            activity.texts += places.len() as u64;
            activity.tokens += tokens as u64;
        }
        let vectors = self.finish.apply(pooled, call.request.encoding)?;
        let rows = with_repetitions(distinct, places, vectors)?;
        call.ticket.deliver(rows, places.len(), tokens);
        Ok(())
    }
}

/// [`Worker::forward`], also of texts that have no token. Their vectors, of `width` numbers, are zeros.
fn forward(
    worker: &mut dyn Worker,
    texts: &[Tokens],
    width: usize,
    stop: &Arc<Stop>,
) -> Result<Vec<f32>> {
    let texts_with_tokens: Vec<Tokens> = (texts.iter().copied())
        .filter(|tokens| !tokens.ids.is_empty())
        .collect();
    if texts_with_tokens.len() == texts.len() {
        return worker.forward(texts, stop);
    }
    let mut vectors = memory::filled(texts.len() * width, 0.0, VECTORS)?;
    if texts_with_tokens.is_empty() {
        return Ok(vectors);
    }
    let computed = worker.forward(&texts_with_tokens, stop)?;
    let rows = vectors.chunks_exact_mut(width).zip(texts);
    let rows = rows.filter(|(_, tokens)| !tokens.ids.is_empty());
    let rows = rows.map(|(row, _)| row);
    for (row, vector) in rows.zip(computed.chunks_exact(width)) {
        row.copy_from_slice(vector);
    }
    Ok(vectors)
}

/// The vectors of some distinct texts, one row for each place, and behind them rows for all repetitions of these texts.
///
/// # Errors
/// There is no memory for so many repetitions.
fn with_repetitions(distinct: &Distinct, places: &[usize], vectors: Vectors) -> Result<Rows> {
    let mut rows = Rows {
        indices: places
            .iter()
            .map(|&place| distinct.firsts[place] as u32)
            .collect(),
        vectors,
        truncated: Vec::new(),
    };
    // Of each repetition, the row that it copies.
    let mut sources = Vec::new();
    for (row, &place) in places.iter().enumerate() {
        let repetitions = distinct.repetitions(place);
        let own = rows.indices.len();
        memory::reserve(&mut rows.indices, repetitions.len(), VECTORS)?;
        rows.indices
            .extend(repetitions.iter().map(|&index| index as u32));
        memory::reserve(&mut sources, repetitions.len(), VECTORS)?;
        sources.extend(repetitions.iter().map(|_| row));
        if distinct.tokens(place).truncated {
            rows.truncated.push(rows.indices[row]);
            rows.truncated.extend_from_slice(&rows.indices[own..]);
        }
    }
    rows.vectors.append_copies(places.len(), &sources)?;
    Ok(rows)
}
