//! Vectors that JavaScript takes as they become ready.

use std::collections::VecDeque;

use napi::bindgen_prelude::{Either3, Float32Array, Int8Array, Object, Uint8Array, Uint32Array};
use napi::{Env, JsDeferred};
use napi_derive::napi;

use super::{node_error, settlement, typed_array};
use crate::engine::{self, Sink};
use crate::error::Result;
use crate::sync::{Arc, Mutex, lock};

/// Vectors of a call that were ready together.
#[napi(object)]
pub struct Rows {
    /// The text of each row, by its index in the call. A text that the call repeats has a row for each repetition.
    pub indices: Uint32Array,
    /// A row per index, as in `Embeddings`.
    pub vectors: Either3<Float32Array, Int8Array, Uint8Array>,
    /// Those of `indices` whose texts were cut to the token limit.
    pub truncated: Uint32Array,
}

/// Carries vectors from the engine, which delivers them when they are ready, to JavaScript, which asks for the next ones.
/// Until then they wait here: at most the vectors of one call.
#[derive(Default)]
pub struct Channel(Mutex<State>);

#[derive(Default)]
struct State {
    ready: VecDeque<engine::Rows>,
    /// How the call has ended, until JavaScript knows.
    end: Option<Result<()>>,
    /// Waits for an answer.
    waiting: Option<Deferred>,
}

type Resolver = Box<dyn FnOnce(Env) -> napi::Result<Option<Rows>> + Send>;
type Deferred = JsDeferred<Option<Rows>, Resolver>;

impl Channel {
    /// A promise of the next vectors: of `null` after the last ones, rejected if the call fails.
    pub fn next<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let (deferred, promise) = env.create_deferred().map_err(node_error)?;
        let mut state = lock(&self.0);
        state.waiting = Some(deferred);
        state.answer();
        Ok(promise)
    }
}

impl State {
    /// Settles the promise that waits, if there is something to settle it with.
    fn answer(&mut self) {
        if self.ready.is_empty() && self.end.is_none() {
            return;
        }
        let Some(deferred) = self.waiting.take() else {
            return;
        };
        // A failed call drops the vectors that were not taken.
        let failed = matches!(self.end, Some(Err(_)));
        let rows = if failed { None } else { self.ready.pop_front() };
        let result = match rows {
            Some(rows) => Ok(Some(rows)),
            // Later calls of `next` get `null`.
            None => self.end.replace(Ok(())).unwrap_or(Ok(())).map(|()| None),
        };
        let answer = settlement(result, |_, rows: Option<engine::Rows>| {
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
pub struct Sender(pub Arc<Channel>);

impl Sink for Sender {
    fn rows(&mut self, rows: engine::Rows) -> Result<()> {
        let mut state = lock(&self.0.0);
        state.ready.push_back(rows);
        state.answer();
        Ok(())
    }

    fn end(self: Box<Self>, outcome: Result<usize>) {
        let mut state = lock(&self.0.0);
        state.end = Some(outcome.map(|_| ()));
        state.answer();
    }
}
