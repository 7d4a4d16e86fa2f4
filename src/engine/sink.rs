//! Where the vectors of a call go.

use crate::error::Result;
use crate::memory;
use crate::vector::{Encoding, Vectors};

/// All vectors of one call.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings<V = Vec<f32>> {
    /// `[texts, dimension]`, row-major.
    pub vectors: V,
    /// Indices of the texts that were cut to the token limit, ascending.
    pub truncated: Vec<u32>,
    /// Tokens computed; equal texts count once.
    pub tokens: usize,
}

impl Embeddings<Vectors> {
    /// The result of a call with [`Encoding::Float32`].
    ///
    /// # Panics
    /// The call had another encoding.
    #[must_use]
    pub fn floats(self) -> Embeddings {
        let Vectors::Float32(vectors) = self.vectors else {
            panic!("the call had another encoding than float32")
        };
        Embeddings {
            vectors,
            truncated: self.truncated,
            tokens: self.tokens,
        }
    }
}

/// Receives the outcome of a call, on a worker's thread.
pub type Reply = Box<dyn FnOnce(Result<Embeddings<Vectors>>) + Send>;

/// Vectors of a call that were ready together.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// The text of each row, by its index in the call. A text that the call repeats has a row for each repetition.
    pub indices: Vec<u32>,
    /// `[indices, dimension]`, row-major.
    pub vectors: Vectors,
    /// Those of `indices` whose texts were cut to the token limit.
    pub truncated: Vec<u32>,
}

/// Receives the vectors of a call as they are ready, on workers' threads, one batch after the other.
pub trait Sink: Send {
    /// Takes over some vectors. A call that succeeds delivers each of its texts once, in no particular order.
    ///
    /// # Errors
    /// They cannot be kept; the call fails.
    fn rows(&mut self, rows: Rows) -> Result<()>;

    /// The call has ended: with the number of tokens that were computed, after its last vectors, or with an error. Called
    /// exactly once, and last.
    fn end(self: Box<Self>, outcome: Result<usize>);
}

/// Gathers all vectors of a call and replies at its end.
pub struct Gather {
    texts: usize,
    /// `[texts, dimension]`; empty before the first ones arrive.
    vectors: Vectors,
    truncated: Vec<u32>,
    reply: Reply,
}

impl Gather {
    pub fn new(texts: usize, encoding: Encoding, reply: Reply) -> Self {
        Self {
            texts,
            vectors: Vectors::none(encoding),
            truncated: Vec::new(),
            reply,
        }
    }
}

impl Sink for Gather {
    fn rows(&mut self, rows: Rows) -> Result<()> {
        self.vectors
            .scatter(self.texts, &rows.indices, &rows.vectors)?;
        let more = rows.truncated.len();
        memory::reserve(&mut self.truncated, more, "the list of truncated texts")?;
        self.truncated.extend(rows.truncated);
        Ok(())
    }

    fn end(self: Box<Self>, outcome: Result<usize>) {
        let Self {
            vectors,
            mut truncated,
            reply,
            ..
        } = *self;
        truncated.sort_unstable();
        reply(outcome.map(|tokens| Embeddings {
            vectors,
            truncated,
            tokens,
        }));
    }
}
