//! Threads and the queue between a call and its vectors.
//!
//! One engine per loaded model, one thread per worker of its runtime. A call is cut into steps: tokenization of a few
//! texts at a time, then the batches planned from their lengths. Long calls go window by window, so that the next
//! window is tokenized while the batches of this one are computed.
//!
//! There are two lanes. Queries and single texts are urgent: somebody waits for a search result. Everything else is
//! bulk. Within a lane the calls take turns, one step each, so that a small call does not wait for a large one. Bulk
//! work runs on the workers of the runtime; urgent work has one more, `lone`, with a thread of its own and all
//! processors, so that it need not even wait for the end of a batch. While that one is busy, the others take urgent
//! steps before bulk ones.
//!
//! Whichever thread finishes the last batch of a call replies to it. Nothing here ever blocks a caller.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use crate::batch::{self, Batch, Limits};
use crate::error::{Error, Result};
use crate::runtime::{Runtime, Worker};
use crate::tokenizer::{TokenizedText, Tokenizer};
use crate::vector::{self, Cut};

/// Texts tokenized by one step.
const TEXTS_PER_STEP: usize = 64;

/// Texts planned together. Enough that texts of like length find each other; few enough that a long call soon computes.
const TEXTS_PER_WINDOW: usize = 1024;

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

/// What an engine has done since it was started, and what is before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// Calls that are queued or being computed.
    pub calls: usize,
    /// Texts computed; a repetition within a call does not count.
    pub texts: u64,
    /// Tokens computed.
    pub tokens: u64,
    /// Batches computed.
    pub batches: u64,
}

/// How far a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Texts whose vectors are there; equal texts are done together.
    pub done: usize,
    /// Tokens computed.
    pub tokens: usize,
}

/// A submitted call, as its caller sees it.
pub struct Ticket {
    /// Taken by whoever ends the call: with its result, an error, or because it was cancelled or the engine closes.
    reply: Mutex<Option<Reply>>,
    /// Texts with a vector, repetitions included.
    done: AtomicUsize,
    /// Tokens computed.
    tokens: AtomicUsize,
    /// The engine's number of calls that have not ended.
    open_calls: Arc<AtomicUsize>,
}

impl Ticket {
    /// Ends the call with [`Error::Aborted`], unless it has ended before. What it still has to do is dropped when its turn
    /// comes; a batch that is being computed is of no consequence any more.
    pub fn cancel(&self) {
        self.settle(Err(Error::Aborted));
    }

    /// How far the call is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            done: self.done.load(Ordering::Relaxed),
            tokens: self.tokens.load(Ordering::Relaxed),
        }
    }

    fn is_settled(&self) -> bool {
        lock(&self.reply).is_none()
    }

    /// Replies, unless somebody did already.
    fn settle(&self, result: Result<Embeddings>) {
        let reply = lock(&self.reply).take();
        if let Some(reply) = reply {
            self.open_calls.fetch_sub(1, Ordering::Relaxed);
            reply(result);
        }
    }
}

/// The threads of a loaded model.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    tokenizer: Tokenizer,
    limits: Limits,
    /// Length of a pooled vector.
    dimension: usize,
    cut: Option<Cut>,
    normalize: bool,
    queue: Mutex<Queue>,
    ready: Condvar,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    calls: Arc<AtomicUsize>,
    texts: AtomicU64,
    tokens: AtomicU64,
    batches: AtomicU64,
}

/// Calls that have steps to be done, each of them in its lane once.
#[derive(Default)]
struct Queue {
    urgent: VecDeque<Arc<Call>>,
    bulk: VecDeque<Arc<Call>>,
    /// Whether the worker for urgent work is computing, so that others have to see to it.
    lone_is_busy: bool,
    closed: bool,
}

/// What a thread is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Bulk work, and urgent work while the lone worker is busy.
    Bulk,
    /// Urgent work only.
    Lone,
}

enum Step {
    /// Finds equal texts and cuts the call into steps.
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
    /// To be done next. Changed only by who holds the queue.
    steps: Mutex<VecDeque<Step>>,
    distinct: OnceLock<Distinct>,
    /// Distinct texts without a vector.
    missing: AtomicUsize,
    /// `[distinct texts, dimension]`.
    vectors: Mutex<Vec<f32>>,
    ticket: Arc<Ticket>,
}

/// The texts of a call without repetitions.
struct Distinct {
    /// For each text of the call, its place among the distinct ones.
    places: Vec<usize>,
    /// For each distinct text, its first occurrence in the call.
    firsts: Vec<usize>,
    /// For each distinct text, how often it occurs.
    occurrences: Vec<usize>,
    tokenized: Vec<OnceLock<TokenizedText>>,
    /// For each window, its texts that are not tokenized yet.
    untokenized: Vec<AtomicUsize>,
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
        cut: Option<Cut>,
        normalize: bool,
    ) -> Result<Self> {
        let engine = Self {
            shared: Arc::new(Shared {
                tokenizer,
                limits: runtime.limits,
                dimension,
                cut,
                normalize,
                queue: Mutex::new(Queue {
                    // Until its thread says otherwise.
                    lone_is_busy: true,
                    ..Queue::default()
                }),
                ready: Condvar::new(),
                counters: Counters::default(),
            }),
            threads: Mutex::default(),
        };
        let bulk = runtime.workers.into_iter().enumerate();
        let bulk = bulk.map(|(index, make)| (format!("embedder-{index}"), Role::Bulk, make));
        let lone = ("embedder-lone".to_owned(), Role::Lone, runtime.lone);
        for (name, role, make) in bulk.chain([lone]) {
            let shared = Arc::clone(&engine.shared);
            let life = move || {
                if lock(&shared.queue).closed {
                    return;
                }
                if role == Role::Bulk {
                    yield_to_urgent_work();
                }
                let made = catch_unwind(AssertUnwindSafe(make));
                // One that cannot be made, for lack of memory, is done without: the first worker is always there.
                if let Ok(Ok(mut worker)) = made {
                    shared.work(role, worker.as_mut());
                }
            };
            let thread = std::thread::Builder::new()
                .name(name)
                .spawn(life)
                .map_err(|error| Error::InferenceFailed {
                    reason: format!("no thread could be started: {error}"),
                })?;
            lock(&engine.threads).push(thread);
        }
        Ok(engine)
    }

    /// Embeds `texts`; returns at once. `reply` is called exactly once, also when the engine is closed first.
    pub fn submit(&self, texts: Vec<String>, is_query: bool, reply: Reply) -> Arc<Ticket> {
        let open_calls = Arc::clone(&self.shared.counters.calls);
        open_calls.fetch_add(1, Ordering::Relaxed);
        let ticket = Arc::new(Ticket {
            reply: Mutex::new(Some(reply)),
            done: AtomicUsize::new(0),
            tokens: AtomicUsize::new(0),
            open_calls,
        });
        let call = Arc::new(Call {
            texts,
            is_query,
            steps: Mutex::default(),
            distinct: OnceLock::new(),
            missing: AtomicUsize::new(0),
            vectors: Mutex::default(),
            ticket: Arc::clone(&ticket),
        });
        self.shared.push(&call, [Step::Start]);
        ticket
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.shared.tokenizer
    }

    /// What the engine has done and what is before it.
    #[must_use]
    pub fn activity(&self) -> Activity {
        let counters = &self.shared.counters;
        Activity {
            calls: counters.calls.load(Ordering::Relaxed),
            texts: counters.texts.load(Ordering::Relaxed),
            tokens: counters.tokens.load(Ordering::Relaxed),
            batches: counters.batches.load(Ordering::Relaxed),
        }
    }

    /// Ends the engine: calls that are not finished fail with [`Error::Closed`], batches that are being computed are
    /// let run out, and the weights are freed. Waits for that. Later calls fail; closing again does nothing.
    pub fn close(&self) {
        self.shared.close();
        for thread in lock(&self.threads).drain(..) {
            // A worker cannot panic: it catches those of its steps.
            let _ = thread.join();
        }
        // What was freed goes back to the system, which the allocator of glibc does not do by itself.
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        // SAFETY: has no preconditions.
        unsafe {
            libc::malloc_trim(0)
        };
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
    fn work(&self, role: Role, worker: &mut dyn Worker) {
        while let Some((call, step)) = self.next(role) {
            let outcome = catch_unwind(AssertUnwindSafe(|| match step {
                Step::Start => self.start(&call, worker),
                Step::Tokenize(range) => self.tokenize(&call, range, worker),
                Step::Forward(batch) => self.forward(&call, &batch, worker),
            }));
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => call.ticket.settle(Err(error)),
                Err(panic) => call.ticket.settle(Err(Error::from_panic(&*panic))),
            }
        }
    }

    /// The next step; `None` when the engine is closed.
    fn next(&self, role: Role) -> Option<(Arc<Call>, Step)> {
        let mut queue = lock(&self.queue);
        if role == Role::Lone {
            queue.lone_is_busy = false;
        }
        loop {
            if queue.closed {
                return None;
            }
            let step = match role {
                Role::Lone => take_turn(&mut queue.urgent),
                Role::Bulk if queue.lone_is_busy => {
                    take_turn(&mut queue.urgent).or_else(|| take_turn(&mut queue.bulk))
                }
                Role::Bulk => take_turn(&mut queue.bulk),
            };
            if step.is_some() {
                if role == Role::Lone {
                    queue.lone_is_busy = true;
                    if !queue.urgent.is_empty() {
                        // More than one thread can do: now the others may help.
                        self.ready.notify_all();
                    }
                }
                return step;
            }
            queue = self
                .ready
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn push(&self, call: &Arc<Call>, steps: impl IntoIterator<Item = Step>) {
        {
            let mut queue = lock(&self.queue);
            if queue.closed {
                drop(queue);
                call.ticket.settle(Err(Error::Closed));
                return;
            }
            let mut pending = lock(&call.steps);
            let has_its_place = !pending.is_empty();
            pending.extend(steps);
            if !has_its_place && !pending.is_empty() {
                let lane = if call.is_query || call.texts.len() == 1 {
                    &mut queue.urgent
                } else {
                    &mut queue.bulk
                };
                lane.push_back(Arc::clone(call));
            }
        }
        self.ready.notify_all();
    }

    fn close(&self) {
        let calls: Vec<Arc<Call>> = {
            let mut queue = lock(&self.queue);
            queue.closed = true;
            let queue = &mut *queue;
            queue.urgent.drain(..).chain(queue.bulk.drain(..)).collect()
        };
        self.ready.notify_all();
        for call in calls {
            call.ticket.settle(Err(Error::Closed));
        }
    }

    fn start(&self, call: &Arc<Call>, worker: &mut dyn Worker) -> Result<()> {
        let distinct = call.distinct.get_or_init(|| Distinct::of(&call.texts));
        let count = distinct.firsts.len();
        if count == 0 {
            self.finish(call, distinct);
            return Ok(());
        }
        lock(&call.vectors).resize(count * self.dimension, 0.0);
        call.missing.store(count, Ordering::Release);
        if count <= TEXTS_PER_STEP {
            // The way through the queue would take longer than they do.
            return self.tokenize(call, 0..count, worker);
        }
        self.push(call, distinct.tokenization(0));
        Ok(())
    }

    fn tokenize(
        &self,
        call: &Arc<Call>,
        range: Range<usize>,
        worker: &mut dyn Worker,
    ) -> Result<()> {
        let distinct = call.distinct();
        let window = range.start / TEXTS_PER_WINDOW;
        let count = range.len();
        let is_settled = || call.ticket.is_settled();
        for place in range {
            let text = &call.texts[distinct.firsts[place]];
            let tokenized = self
                .tokenizer
                .tokenize_unless(text, call.is_query, &is_settled)?;
            distinct.tokenized[place].get_or_init(|| tokenized);
        }
        if distinct.untokenized[window].fetch_sub(count, Ordering::AcqRel) > count {
            return Ok(());
        }
        if distinct.firsts.len() == 1 {
            return self.forward(call, &[0], worker);
        }
        let places = distinct.window(window);
        let first = places.start;
        let lengths: Vec<usize> = places
            .map(|place| distinct.tokens(place).ids.len())
            .collect();
        let batches = batch::plan(&lengths, self.limits);
        let mut batches = batches.into_iter().map(|batch| {
            batch
                .into_iter()
                .map(|index| first + index)
                .collect::<Vec<_>>()
        });
        // By turns, so that neither the batches nor the tokenization of the next window wait for all of the other.
        let mut following = distinct.tokenization(window + 1);
        let mut steps = Vec::new();
        loop {
            let (batch, tokenization) = (batches.next().map(Step::Forward), following.next());
            if batch.is_none() && tokenization.is_none() {
                break;
            }
            steps.extend(batch.into_iter().chain(tokenization));
        }
        self.push(call, steps);
        Ok(())
    }

    fn forward(&self, call: &Call, places: &[usize], worker: &mut dyn Worker) -> Result<()> {
        let distinct = call.distinct();
        let ids = places.iter().map(|&place| &*distinct.tokens(place).ids);
        let batch = Batch::from_texts(ids);
        let rows = worker.forward(&batch)?;
        vector::check_finite(&rows, self.dimension)?;
        if call.ticket.is_settled() {
            return Ok(());
        }
        {
            let mut vectors = lock(&call.vectors);
            for (&place, row) in places.iter().zip(rows.chunks_exact(self.dimension)) {
                vectors[place * self.dimension..][..self.dimension].copy_from_slice(row);
            }
        }
        let counters = &self.counters;
        counters.batches.fetch_add(1, Ordering::Relaxed);
        counters
            .texts
            .fetch_add(places.len() as u64, Ordering::Relaxed);
        counters
            .tokens
            .fetch_add(batch.ids.len() as u64, Ordering::Relaxed);
        let occurrences: usize = places
            .iter()
            .map(|&place| distinct.occurrences[place])
            .sum();
        call.ticket.done.fetch_add(occurrences, Ordering::Relaxed);
        call.ticket
            .tokens
            .fetch_add(batch.ids.len(), Ordering::Relaxed);
        if call.missing.fetch_sub(places.len(), Ordering::AcqRel) == places.len() {
            self.finish(call, distinct);
        }
        Ok(())
    }

    fn finish(&self, call: &Call, distinct: &Distinct) {
        let mut rows = std::mem::take(&mut *lock(&call.vectors));
        let mut dimension = self.dimension;
        if let Some(cut) = self.cut {
            cut.apply(&mut rows, dimension);
            dimension = cut.dimensions;
        }
        if self.normalize {
            vector::normalize(&mut rows, dimension);
        }
        let vectors = if distinct.places.len() == distinct.firsts.len() {
            rows
        } else {
            let row = |&place: &usize| &rows[place * dimension..][..dimension];
            distinct.places.iter().flat_map(row).copied().collect()
        };
        let is_truncated = |&(_, &place): &(usize, &usize)| distinct.tokens(place).truncated;
        let truncated = distinct.places.iter().enumerate().filter(is_truncated);
        call.ticket.settle(Ok(Embeddings {
            vectors,
            truncated: truncated.map(|(index, _)| index as u32).collect(),
            tokens: call.ticket.tokens.load(Ordering::Relaxed),
        }));
    }
}

/// Lets the scheduler prefer other threads of the process to this one. Without it, a query that is computed beside bulk
/// work takes up to five times as long as alone; with it, half as long again in the median (full-size model, two
/// processors). Alone, the thread has the processor all the same, and beside two other programs that keep both processors
/// busy, 18 % of the speed that it has without them. `SCHED_IDLE` would spare a small model's queries some waits for a tick
/// of the scheduler, but leave 0.3 %.
fn yield_to_urgent_work() {
    #[cfg(target_os = "linux")]
    {
        /// On the scale of `nice`, from 0 to 19.
        const NICENESS: i32 = 10;
        // SAFETY: has no preconditions. On Linux it concerns the calling thread only; elsewhere it would the process.
        unsafe { libc::nice(NICENESS) };
    }
}

/// The next step of the call whose turn it is; the call goes to the end of the lane if it has more.
fn take_turn(lane: &mut VecDeque<Arc<Call>>) -> Option<(Arc<Call>, Step)> {
    while let Some(call) = lane.pop_front() {
        let (step, has_more) = {
            let mut steps = lock(&call.steps);
            if call.ticket.is_settled() {
                steps.clear();
            }
            (steps.pop_front(), !steps.is_empty())
        };
        if has_more {
            lane.push_back(Arc::clone(&call));
        }
        if let Some(step) = step {
            return Some((call, step));
        }
    }
    None
}

impl Call {
    fn distinct(&self) -> &Distinct {
        self.distinct
            .get()
            .expect("set by Step::Start, which pushes every other step")
    }
}

impl Distinct {
    fn of(texts: &[String]) -> Self {
        let mut places_by_text: HashMap<&str, usize> = HashMap::with_capacity(texts.len());
        let mut firsts = Vec::new();
        let mut occurrences: Vec<usize> = Vec::new();
        let mut places = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            let place = *places_by_text.entry(text).or_insert_with(|| {
                firsts.push(index);
                occurrences.push(0);
                firsts.len() - 1
            });
            occurrences[place] += 1;
            places.push(place);
        }
        let count = firsts.len();
        let windows = (0..count).step_by(TEXTS_PER_WINDOW);
        Self {
            places,
            firsts,
            occurrences,
            tokenized: std::iter::repeat_with(OnceLock::new).take(count).collect(),
            untokenized: windows
                .map(|start| AtomicUsize::new(TEXTS_PER_WINDOW.min(count - start)))
                .collect(),
        }
    }

    /// The distinct texts of a window; none beyond the last.
    fn window(&self, index: usize) -> Range<usize> {
        let end = |index: usize| self.firsts.len().min(index * TEXTS_PER_WINDOW);
        end(index)..end(index + 1)
    }

    /// The steps that tokenize a window.
    fn tokenization(&self, window: usize) -> impl Iterator<Item = Step> + use<> {
        let Range { start, end } = self.window(window);
        let starts = (start..end).step_by(TEXTS_PER_STEP);
        starts.map(move |start| Step::Tokenize(start..end.min(start + TEXTS_PER_STEP)))
    }

    fn tokens(&self, place: usize) -> &TokenizedText {
        self.tokenized[place]
            .get()
            .expect("a window's batches are planned after its last text is tokenized")
    }
}

/// Locks, also after a panic elsewhere: every critical section here leaves its data whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
