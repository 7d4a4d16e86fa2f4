//! Threads and the queue between a call and its vectors.
//!
//! One engine per loaded model, one thread per worker of its runtime. A call is cut into tasks: tokenization of a few
//! texts at a time, then, when all lengths are known, the batches of its plan. Tasks of all calls share one queue, in
//! which calls of a single text go first;
//! whichever worker finishes the last task of a call replies to it. Nothing here ever blocks a caller.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use crate::batch::{self, Batch, Limits};
use crate::error::{Error, Result};
use crate::runtime::{Runtime, Worker};
use crate::tokenizer::{TokenizedText, Tokenizer};
use crate::vector;

/// Texts tokenized by one task.
const TEXTS_PER_TASK: usize = 64;

/// The vectors of one call.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// `[texts, dimension]`, row-major.
    pub vectors: Vec<f32>,
    /// Indices of the texts that were cut to the token limit, ascending.
    pub truncated: Vec<u32>,
    /// Tokens computed; equal texts count once.
    pub tokens: usize,
}

/// Receives the outcome of a call, on a worker's thread.
pub type Reply = Box<dyn FnOnce(Result<Embeddings>) + Send>;

/// The threads of a loaded model.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    tokenizer: Tokenizer,
    limits: Limits,
    dimension: usize,
    normalize: bool,
    queue: Mutex<Queue>,
    ready: Condvar,
    /// Computes a text that comes alone, with all threads of the machine.
    lone: Mutex<Option<Box<dyn Worker>>>,
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    closed: bool,
}

struct Task {
    call: Arc<Call>,
    step: Step,
}

enum Step {
    /// Finds equal texts and cuts the call into tasks.
    Start,
    /// Tokenizes a range of the distinct texts.
    Tokenize(Range<usize>),
    /// Computes one batch of distinct texts.
    Forward(Vec<usize>),
}

/// One call and how far it is.
struct Call {
    texts: Vec<String>,
    is_query: bool,
    distinct: OnceLock<Distinct>,
    /// Tokenization tasks, then batches, still to be done.
    remaining: AtomicUsize,
    /// `[distinct texts, dimension]`.
    vectors: Mutex<Vec<f32>>,
    /// Taken by whoever finishes the call: with its result, an error, or because the engine closes.
    reply: Mutex<Option<Reply>>,
}

/// The texts of a call without repetitions.
struct Distinct {
    /// For each text of the call, its place among the distinct ones.
    places: Vec<usize>,
    /// For each distinct text, its first occurrence in the call.
    firsts: Vec<usize>,
    tokenized: Vec<OnceLock<TokenizedText>>,
}

impl Engine {
    /// Starts one thread per worker.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(
        runtime: Runtime,
        tokenizer: Tokenizer,
        dimension: usize,
        normalize: bool,
    ) -> Result<Self> {
        let engine = Self {
            shared: Arc::new(Shared {
                tokenizer,
                limits: runtime.limits,
                dimension,
                normalize,
                queue: Mutex::default(),
                ready: Condvar::new(),
                lone: Mutex::new(runtime.lone),
            }),
            threads: Mutex::default(),
        };
        for (index, mut worker) in runtime.workers.into_iter().enumerate() {
            let shared = Arc::clone(&engine.shared);
            let thread = std::thread::Builder::new()
                .name(format!("embedder-{index}"))
                .spawn(move || shared.work(worker.as_mut()))
                .map_err(|error| Error::InferenceFailed {
                    reason: format!("no thread could be started: {error}"),
                })?;
            lock(&engine.threads).push(thread);
        }
        Ok(engine)
    }

    /// Embeds `texts`; returns at once. `reply` is called exactly once, also when the engine is closed first.
    pub fn submit(&self, texts: Vec<String>, is_query: bool, reply: Reply) {
        let call = Arc::new(Call {
            texts,
            is_query,
            distinct: OnceLock::new(),
            remaining: AtomicUsize::new(0),
            vectors: Mutex::default(),
            reply: Mutex::new(Some(reply)),
        });
        self.shared.push(&call, [Step::Start]);
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.shared.tokenizer
    }

    /// Ends the engine: calls that are not finished fail with [`Error::Closed`], batches that are being computed are
    /// let run out, and the weights are freed. Waits for that. Later calls fail; closing again does nothing.
    pub fn close(&self) {
        self.shared.close();
        for thread in lock(&self.threads).drain(..) {
            // A worker cannot panic: it catches those of its tasks.
            let _ = thread.join();
        }
        lock(&self.shared.lone).take();
    }
}

impl Drop for Engine {
    /// Lets the threads end by themselves, without waiting: the last reference may be dropped by a garbage collector.
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    /// The life of a worker's thread.
    fn work(&self, worker: &mut dyn Worker) {
        while let Some(Task { call, step }) = self.next() {
            if call.is_settled() {
                continue;
            }
            let outcome = catch_unwind(AssertUnwindSafe(|| match step {
                Step::Start => {
                    self.start(&call);
                    Ok(())
                }
                Step::Tokenize(range) => self.tokenize(&call, range),
                Step::Forward(batch) => self.forward(&call, &batch, worker),
            }));
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => call.settle(Err(error)),
                Err(panic) => call.settle(Err(Error::from_panic(&*panic))),
            }
        }
    }

    /// The next task; `None` when the engine is closed.
    fn next(&self) -> Option<Task> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.closed {
                return None;
            }
            if let Some(task) = queue.tasks.pop_front() {
                return Some(task);
            }
            queue = self
                .ready
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn push(&self, call: &Arc<Call>, steps: impl IntoIterator<Item = Step>) {
        let mut queue = lock(&self.queue);
        if queue.closed {
            drop(queue);
            call.settle(Err(Error::Closed));
            return;
        }
        for step in steps {
            let task = Task {
                call: Arc::clone(call),
                step,
            };
            // A single text is somebody waiting for a search result: it overtakes bulk work.
            if call.texts.len() == 1 {
                queue.tasks.push_front(task);
            } else {
                queue.tasks.push_back(task);
            }
        }
        drop(queue);
        self.ready.notify_all();
    }

    fn close(&self) {
        let tasks = {
            let mut queue = lock(&self.queue);
            queue.closed = true;
            std::mem::take(&mut queue.tasks)
        };
        self.ready.notify_all();
        for task in tasks {
            task.call.settle(Err(Error::Closed));
        }
    }

    fn start(&self, call: &Arc<Call>) {
        let mut places_by_text: HashMap<&str, usize> = HashMap::with_capacity(call.texts.len());
        let mut firsts = Vec::new();
        let places = call
            .texts
            .iter()
            .enumerate()
            .map(|(index, text)| {
                *places_by_text.entry(text).or_insert_with(|| {
                    firsts.push(index);
                    firsts.len() - 1
                })
            })
            .collect();
        let count = firsts.len();
        let tokenized = std::iter::repeat_with(OnceLock::new).take(count).collect();
        let distinct = call.distinct.get_or_init(|| Distinct {
            places,
            firsts,
            tokenized,
        });
        if distinct.firsts.is_empty() {
            self.finish(call, distinct);
            return;
        }
        lock(&call.vectors).resize(count * self.dimension, 0.0);
        let starts = (0..count).step_by(TEXTS_PER_TASK);
        call.remaining.store(starts.len(), Ordering::Release);
        self.push(
            call,
            starts.map(|start| Step::Tokenize(start..count.min(start + TEXTS_PER_TASK))),
        );
    }

    fn tokenize(&self, call: &Arc<Call>, range: Range<usize>) -> Result<()> {
        let distinct = call.distinct();
        for place in range {
            let text = &call.texts[distinct.firsts[place]];
            let tokenized = self.tokenizer.tokenize(text, call.is_query)?;
            distinct.tokenized[place].get_or_init(|| tokenized);
        }
        if call.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            let lengths: Vec<usize> = distinct.tokenized().map(|text| text.ids.len()).collect();
            let batches = batch::plan(&lengths, self.limits);
            call.remaining.store(batches.len(), Ordering::Release);
            self.push(call, batches.into_iter().map(Step::Forward));
        }
        Ok(())
    }

    fn forward(&self, call: &Call, places: &[usize], worker: &mut dyn Worker) -> Result<()> {
        let distinct = call.distinct();
        let ids = places.iter().map(|&place| &*distinct.tokens(place).ids);
        let batch = Batch::from_texts(ids);
        let rows = match self.lone_worker(distinct).as_deref_mut() {
            Some(Some(lone)) => lone.forward(&batch)?,
            _ => worker.forward(&batch)?,
        };
        vector::check_finite(&rows, self.dimension)?;
        {
            let mut vectors = lock(&call.vectors);
            for (&place, row) in places.iter().zip(rows.chunks_exact(self.dimension)) {
                vectors[place * self.dimension..][..self.dimension].copy_from_slice(row);
            }
        }
        if call.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish(call, distinct);
        }
        Ok(())
    }

    /// The worker with all threads, for a call of one text while nothing else uses it.
    fn lone_worker(&self, distinct: &Distinct) -> Option<MutexGuard<'_, Option<Box<dyn Worker>>>> {
        match distinct.firsts.len() {
            1 => self.lone.try_lock().ok(),
            _ => None,
        }
    }

    fn finish(&self, call: &Call, distinct: &Distinct) {
        let mut rows = std::mem::take(&mut *lock(&call.vectors));
        if self.normalize {
            vector::normalize(&mut rows, self.dimension);
        }
        let vectors = if distinct.places.len() == distinct.firsts.len() {
            rows
        } else {
            let row = |&place: &usize| &rows[place * self.dimension..][..self.dimension];
            distinct.places.iter().flat_map(row).copied().collect()
        };
        let is_truncated = |&(_, &place): &(usize, &usize)| distinct.tokens(place).truncated;
        let truncated = distinct.places.iter().enumerate().filter(is_truncated);
        call.settle(Ok(Embeddings {
            vectors,
            truncated: truncated.map(|(index, _)| index as u32).collect(),
            tokens: distinct.tokenized().map(|text| text.ids.len()).sum(),
        }));
    }
}

impl Call {
    fn is_settled(&self) -> bool {
        lock(&self.reply).is_none()
    }

    /// Replies, unless somebody did already.
    fn settle(&self, result: Result<Embeddings>) {
        let reply = lock(&self.reply).take();
        if let Some(reply) = reply {
            reply(result);
        }
    }

    fn distinct(&self) -> &Distinct {
        self.distinct
            .get()
            .expect("set by Step::Start, which pushes every other step")
    }
}

impl Distinct {
    fn tokens(&self, place: usize) -> &TokenizedText {
        self.tokenized[place]
            .get()
            .expect("batches are planned after the last text is tokenized")
    }

    fn tokenized(&self) -> impl Iterator<Item = &TokenizedText> {
        (0..self.tokenized.len()).map(|place| self.tokens(place))
    }
}

/// Locks, also after a panic elsewhere: every critical section here leaves its data whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
