//! Vectors that JavaScript takes as they are ready.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use napi::bindgen_prelude::{Either3, Float32Array, Int8Array, Object, Uint8Array, Uint32Array};
use napi::{Env, JsDeferred};
use napi_derive::napi;

use super::{node_error, settlement, typed_array};
use crate::engine::{self, Sink};
use crate::error::Result;
use crate::vector::{Encoding, Vectors};

/// Vectors of a call that were ready together.
#[napi(object)]
pub struct Rows {
    /// The texts that they are of, by index in the call: a text that occurs again is there again.
    pub indices: Uint32Array,
    /// A row per index, as in `Embeddings`.
    pub vectors: Either3<Float32Array, Int8Array, Uint8Array>,
    /// Those of `indices` whose texts were cut to the token limit.
    pub truncated: Uint32Array,
}

/// Between the engine, which gives vectors when they are ready, and JavaScript, which asks for the next ones. What is not
/// asked for waits here: no more than the vectors of one call.
#[derive(Default)]
pub struct Channel(Mutex<State>);

#[derive(Default)]
struct State {
    ready: VecDeque<EncodedRows>,
    /// How the call has ended, until it is told.
    end: Option<Result<()>>,
    /// Who has asked before there was an answer.
    waiting: Option<Deferred>,
}

struct EncodedRows {
    indices: Vec<u32>,
    vectors: Vectors,
    truncated: Vec<u32>,
}

type Resolver = Box<dyn FnOnce(Env) -> napi::Result<Option<Rows>> + Send>;
type Deferred = JsDeferred<Option<Rows>, Resolver>;

impl Channel {
    /// A promise for the vectors that come next; for `null` after the last, for the error if the call fails.
    pub fn next<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let (deferred, promise) = env.create_deferred().map_err(node_error)?;
        let mut state = self.lock();
        state.waiting = Some(deferred);
        state.answer();
        Ok(promise)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Answers who waits, if there is something to answer with.
    fn answer(&mut self) {
        if self.ready.is_empty() && self.end.is_none() {
            return;
        }
        let Some(deferred) = self.waiting.take() else {
            return;
        };
        // A failed call has no use for vectors that were not taken.
        let failed = matches!(self.end, Some(Err(_)));
        let rows = if failed { None } else { self.ready.pop_front() };
        let result = match rows {
            Some(rows) => Ok(Some(rows)),
            // Whoever asks on after the end hears that it is over.
            None => self.end.replace(Ok(())).unwrap_or(Ok(())).map(|()| None),
        };
        let answer = settlement(result, |_, rows: Option<EncodedRows>| {
            Ok(rows.map(|rows| Rows {
                indices: Uint32Array::new(rows.indices),
                vectors: typed_array(rows.vectors),
                truncated: Uint32Array::new(rows.truncated),
            }))
        });
        deferred.resolve(Box::new(answer));
    }
}

/// The engine's side of a channel.
pub struct Sender {
    pub channel: Arc<Channel>,
    pub encoding: Encoding,
    /// Length of a vector.
    pub dimension: usize,
}

impl Sink for Sender {
    fn rows(&mut self, rows: engine::Rows) -> Result<()> {
        let engine::Rows {
            indices,
            vectors,
            truncated,
        } = rows;
        let rows = EncodedRows {
            indices,
            vectors: self.encoding.encode(vectors, self.dimension)?,
            truncated,
        };
        let mut state = self.channel.lock();
        state.ready.push_back(rows);
        state.answer();
        Ok(())
    }

    fn end(self: Box<Self>, outcome: Result<usize>) {
        let mut state = self.channel.lock();
        state.end = Some(outcome.map(|_| ()));
        state.answer();
    }
}
