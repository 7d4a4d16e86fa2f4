//! A call from its submission to its end, which comes exactly once: after the last vectors, with an error, because the
//! caller cancelled, or because the engine closes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::sink::{Rows, Sink};
use crate::error::{Error, Result};
use crate::guard;
use crate::runtime::stop::Stop;
use crate::sync::{Arc, Mutex, lock};

/// How far a call has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Texts whose vectors are ready; equal texts are ready together.
    pub done: usize,
    /// Tokens computed.
    pub tokens: usize,
}

/// A submitted call, as its caller sees it.
pub struct Ticket {
    /// Taken by whoever ends the call.
    sink: Mutex<Option<Box<dyn Sink>>>,
    /// Texts with a vector, repetitions included.
    done: AtomicUsize,
    /// Tokens computed.
    tokens: AtomicUsize,
    /// Distinct texts without a vector.
    missing: AtomicUsize,
    /// Requested when the call ends, for whatever reason: from then on nobody wants what is computed for it.
    stop: Arc<Stop>,
    open_calls: Arc<OpenCalls>,
    number: u64,
}

impl Ticket {
    /// Ends the call with [`Error::Aborted`], unless it has ended. Batches of it that are being computed are interrupted;
    /// its remaining steps are dropped when their turn comes.
    pub fn cancel(&self) {
        self.end(Err(Error::Aborted));
    }

    /// How far the call has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            done: self.done.load(Ordering::Relaxed),
            tokens: self.tokens.load(Ordering::Relaxed),
        }
    }

    /// Does not wait for a sink that is just taking vectors.
    pub(super) fn has_ended(&self) -> bool {
        self.stop.is_requested()
    }

    pub(super) fn stop(&self) -> &Arc<Stop> {
        &self.stop
    }

    /// Says how many distinct texts the call has; without any it ends. To be called once, before anything is delivered.
    pub(super) fn expect(&self, texts: usize) {
        self.missing.store(texts, Ordering::Relaxed);
        if texts == 0 {
            self.end(Ok(0));
        }
    }

    /// Hands the vectors of some distinct texts to the sink, unless the call has ended. The last ones end it, and so does
    /// a sink that cannot keep them.
    pub(super) fn deliver(&self, rows: Rows, texts: usize, tokens: usize) {
        let mut guard = lock(&self.sink);
        let Some(sink) = guard.as_mut() else { return };
        self.done.fetch_add(rows.indices.len(), Ordering::Relaxed);
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
        let outcome = match sink.rows(rows) {
            Ok(()) if self.missing.fetch_sub(texts, Ordering::Relaxed) > texts => return,
            Ok(()) => Ok(self.tokens.load(Ordering::Relaxed)),
            Err(error) => Err(error),
        };
        // Taken under the same lock, so that nobody can deliver in between.
        let sink = guard.take();
        drop(guard);
        self.end_sink(sink, outcome);
    }

    /// Ends the call, unless it has ended.
    pub(super) fn end(&self, outcome: Result<usize>) {
        let sink = lock(&self.sink).take();
        self.end_sink(sink, outcome);
    }

    fn end_sink(&self, sink: Option<Box<dyn Sink>>, outcome: Result<usize>) {
        self.stop.request();
        if let Some(sink) = sink {
            self.open_calls.remove(self.number);
            // A panic in the sink must not end a worker's thread or reach a caller in another language.
            let _ = guard::catch(|| sink.end(outcome));
        }
    }
}

/// The calls of an engine that have not ended.
#[derive(Default)]
pub struct OpenCalls(Mutex<BTreeMap<u64, Arc<Ticket>>>);

impl OpenCalls {
    /// Opens a call whose vectors go to `sink`.
    pub fn open(this: &Arc<Self>, sink: Box<dyn Sink>) -> Arc<Ticket> {
        let mut calls = lock(&this.0);
        let number = calls.last_key_value().map_or(0, |(last, _)| last + 1);
        let ticket = Arc::new(Ticket {
            sink: Mutex::new(Some(sink)),
            done: AtomicUsize::new(0),
            tokens: AtomicUsize::new(0),
            missing: AtomicUsize::new(0),
            stop: Arc::default(),
            open_calls: Arc::clone(this),
            number,
        });
        calls.insert(number, Arc::clone(&ticket));
        ticket
    }

    pub fn count(&self) -> usize {
        lock(&self.0).len()
    }

    /// Ends all open calls with [`Error::Closed`].
    pub fn close(&self) {
        let tickets: Vec<_> = lock(&self.0).values().cloned().collect();
        for ticket in tickets {
            ticket.end(Err(Error::Closed));
        }
    }

    fn remove(&self, number: u64) {
        let removed = lock(&self.0).remove(&number);
        // Outside of the lock.
        drop(removed);
    }
}
