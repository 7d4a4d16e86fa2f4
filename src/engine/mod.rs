//! Threads and the queue between a call and its vectors.
//!
//! An engine serves one loaded model. It has one thread per worker of the model's [`Runtime`], and none of its functions
//! makes a caller wait for a vector.
//!
//! # The life of a call
//!
//! [`Engine::submit`] opens a call (`call.rs`), puts it into the queue (`queue.rs`) and returns a [`Ticket`] (`ticket.rs`).
//! Worker threads then take it through these steps (`pipeline.rs`), sharing them as they become free:
//!
//! 1. *Deduplicate*: equal texts are computed once.
//! 2. *Tokenize*: 64 texts at a time.
//! 3. *Plan*: the texts of a window of 1024 are grouped into batches of similar length. Meanwhile the next window is
//!    tokenized.
//! 4. *Compute*: a worker computes the pooled vectors of one batch.
//! 5. *Deliver*: the vectors are finished ([`crate::vector`]) and given to the call's [`Sink`] (`sink.rs`) by the thread that
//!    computed them. The thread that delivers the last ones ends the call.
//!
//! Calls of one text are tokenized and computed together with others of their kind that happen to wait: the more callers,
//! the fuller the batches. A text that comes while a worker is free waits for no other.

mod call;
mod pipeline;
mod queue;
mod sink;
mod ticket;

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::call::Call;
pub use self::call::Request;
use self::pipeline::Pipeline;
use self::queue::{Queue, Role};
use self::sink::Gather;
pub use self::sink::{Embeddings, Reply, Rows, Sink};
use self::ticket::OpenCalls;
pub use self::ticket::{Progress, Ticket};
use crate::error::{Error, Result};
use crate::guard;
use crate::runtime::{Runtime, shutdown};
use crate::sync::{Arc, Mutex, lock};
use crate::tokenizer::Tokenizer;
use crate::vector::Finish;

/// What an engine has done since it was started, and what is queued.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// Calls that are queued or being computed.
    pub calls: usize,
    /// Texts computed; repetitions within a call do not count.
    pub texts: u64,
    /// Tokens computed.
    pub tokens: u64,
    /// Batches computed.
    pub batches: u64,
}

/// The threads of a loaded model.
pub struct Engine {
    pipeline: Arc<Pipeline>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// Starts one thread per worker.
    ///
    /// # Errors
    /// The operating system refuses a thread.
    pub fn start(runtime: Runtime, tokenizer: Tokenizer, finish: Finish) -> Result<Self> {
        let engine = Self {
            pipeline: Arc::new(Pipeline {
                tokenizer,
                limits: runtime.limits,
                finish,
                queue: Queue::new(),
                open_calls: Arc::default(),
                activity: Mutex::default(),
            }),
            threads: Mutex::default(),
        };
        let bulk = runtime.workers.into_iter().enumerate();
        let bulk = bulk.map(|(index, make)| (format!("embedder-{index}"), Role::Bulk, make));
        let urgent = (
            "embedder-urgent".to_owned(),
            Role::Urgent,
            runtime.urgent_worker,
        );
        for (name, role, make) in bulk.chain([urgent]) {
            let pipeline = Arc::clone(&engine.pipeline);
            let life = move || {
                if pipeline.queue.is_closed() {
                    return;
                }
                if role == Role::Bulk {
                    yield_to_urgent_work();
                }
                // A worker that cannot be made, for lack of memory, is skipped: the first one always exists.
                if let Ok(mut worker) = guard::run(make) {
                    pipeline.work(role, worker.as_mut());
                }
            };
            // If a thread is refused, those before it end too: dropping the engine closes it.
            let thread = guard::spawn(&name, life)?;
            lock(&engine.threads).push(thread);
        }
        Ok(engine)
    }

    /// Opens a call; returns at once. `reply` is called exactly once, even if the engine is closed first.
    pub fn submit(&self, request: Request, reply: Reply) -> Arc<Ticket> {
        let sink = Gather::new(request.texts.len(), request.encoding, reply);
        self.open(request, false, Box::new(sink))
    }

    /// Opens a call; returns at once. `sink` is given the vectors of each batch as soon as it is computed, roughly in the
    /// order of the texts.
    pub fn stream(&self, request: Request, sink: Box<dyn Sink>) -> Arc<Ticket> {
        self.open(request, true, sink)
    }

    fn open(&self, request: Request, is_streamed: bool, sink: Box<dyn Sink>) -> Arc<Ticket> {
        let ticket = OpenCalls::open(&self.pipeline.open_calls, sink);
        let call = Call::new(request, is_streamed, Arc::clone(&ticket));
        if !self.pipeline.queue.add(Arc::new(call)) {
            ticket.end(Err(Error::Closed));
        }
        ticket
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.pipeline.tokenizer
    }

    /// What the engine has done and what is queued.
    #[must_use]
    pub fn activity(&self) -> Activity {
        Activity {
            calls: self.pipeline.open_calls.count(),
            ..*lock(&self.pipeline.activity)
        }
    }

    /// Ends the engine and waits for its threads: open calls fail with [`Error::Closed`], batches that are being computed are
    /// interrupted, and the weights are freed. Later calls fail; closing again does nothing.
    pub fn close(&self) {
        self.pipeline.close();
        for thread in lock(&self.threads).drain(..) {
            // A worker's thread catches the panics of its steps.
            let _ = thread.join();
        }
        // Returns what was freed to the system, which glibc's allocator does not do by itself.
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        // SAFETY: has no preconditions.
        unsafe {
            libc::malloc_trim(0)
        };
    }

    /// [`Self::close`] for callers that cannot wait: batches get a short time to finish the operator that they are at; after
    /// that their threads are left to end by themselves.
    pub fn close_soon(&self) {
        let Some(grace_period) = shutdown::GRACE_PERIOD else {
            self.close();
            return;
        };
        self.pipeline.close();
        let deadline = Instant::now() + grace_period;
        // Another thread may be in `close` and hold the lock for long.
        let have_ended = || match self.threads.try_lock() {
            Ok(threads) => threads.iter().all(JoinHandle::is_finished),
            Err(_) => false,
        };
        while !have_ended() {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.close();
    }
}

impl Drop for Engine {
    /// Closes without waiting for the threads: the last reference may be dropped by a garbage collector.
    fn drop(&mut self) {
        self.pipeline.close();
    }
}

/// Lets the scheduler prefer other threads of the process to this one. Without it, a query that is computed beside bulk
/// work takes up to five times as long as alone; with it, half as long again in the median (full-size model, two
/// processors). If nothing else runs, the thread still gets a whole processor; beside two other programs that keep both
/// processors busy, it gets 18 % of the speed that it has alone. `SCHED_IDLE` would save a small model's queries some waits
/// for a scheduler tick, but leave only 0.3 %.
fn yield_to_urgent_work() {
    #[cfg(target_os = "linux")]
    {
        /// On the scale of `nice`, from 0 to 19.
        const NICENESS: i32 = 10;
        // SAFETY: has no preconditions. On Linux it affects the calling thread only; elsewhere it would affect the process.
        unsafe { libc::nice(NICENESS) };
    }
}
