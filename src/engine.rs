//! Threads and the queue between a call and its vectors.
//!
//! One engine per loaded model, one thread per worker of its runtime. A call is cut into steps: tokenization of a few
//! texts at a time, then the batches planned from their lengths. Long calls go window by window, so that the next
//! window is tokenized while the batches of this one are computed.
//!
//! There are three lanes. Queries and single texts are urgent: somebody waits for a search result; queries go first.
//! Everything else is bulk. Within a lane the calls take turns, one step each, so that a small call does not wait for a
//! large one. Bulk work runs on the workers of the runtime; urgent work has one more, `lone`, with a thread of its own
//! and all processors, so that it need not even wait for the end of a batch. While that one is busy, or several urgent
//! calls wait, the others take urgent steps before bulk ones.
//!
//! Calls of one text that wait are computed together: whoever takes one takes along those that fit into its batch. A
//! text that comes while nothing else is to be done waits for no other; the more callers, the fuller the batches.
//!
//! The vectors of a batch go to the call's [`Sink`] as soon as the batch is done, on the thread that computed it; whichever
//! thread finishes the last batch ends the call. Nothing here ever blocks a caller.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::batch::{self, Batch, Limits};
use crate::error::{Error, Result};
use crate::guard;
use crate::memory;
use crate::runtime::gate;
use crate::runtime::stop::Stop;
use crate::runtime::{Runtime, Worker};
use crate::tokenizer::{Input, TokenizedText, Tokenizer};
use crate::vector::Finish;

/// Texts tokenized by one step.
const TEXTS_PER_STEP: usize = 64;

/// Texts planned together. Enough that texts of like length find each other; few enough that a long call soon computes.
const TEXTS_PER_WINDOW: usize = 1024;

/// What there may be no memory for.
const VECTORS: &str = "the vectors";

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

/// Vectors of a call that were ready together.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// The texts that they are of, by index in the call: a text that occurs again is there again.
    pub indices: Vec<u32>,
    /// `[indices, dimension]`, row-major.
    pub vectors: Vec<f32>,
    /// Those of `indices` whose texts were cut to the token limit.
    pub truncated: Vec<u32>,
}

/// Receives the vectors of a call as they are ready, on workers' threads, one batch after the other.
pub trait Sink: Send {
    /// Takes vectors over. Each text of a call that succeeds is among them once, in no particular order.
    ///
    /// # Errors
    /// They cannot be kept; the call fails.
    fn rows(&mut self, rows: Rows) -> Result<()>;

    /// The call has ended: with the tokens that were computed, where all vectors were given, or with an error. Called
    /// exactly once, and last.
    fn end(self: Box<Self>, outcome: Result<usize>);
}

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
    /// Taken by whoever ends the call: after its last vectors, with an error, or because it was cancelled or the engine
    /// closes.
    sink: Mutex<Option<Box<dyn Sink>>>,
    /// Texts with a vector, repetitions included.
    done: AtomicUsize,
    /// Tokens computed.
    tokens: AtomicUsize,
    /// Requested when the call ends, whatever the reason: then nothing of it is to be computed any more.
    stop: Arc<Stop>,
    /// The engine's number of calls that have not ended.
    open_calls: Arc<AtomicUsize>,
}

impl Ticket {
    /// Ends the call with [`Error::Aborted`], unless it has ended before. Batches of it that are being computed are
    /// interrupted, and what it still has to do is dropped when its turn comes.
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
        lock(&self.sink).is_none()
    }

    /// Gives vectors to the call, unless it has ended; ends it if they cannot be kept.
    fn deliver(&self, rows: Rows) {
        let mut guard = lock(&self.sink);
        let Some(sink) = guard.as_mut() else { return };
        if let Err(error) = sink.rows(rows) {
            // Before anybody else can deliver.
            let sink = guard.take();
            drop(guard);
            self.end(sink, Err(error));
        }
    }

    /// Ends the call, unless somebody did already.
    fn settle(&self, outcome: Result<usize>) {
        let sink = lock(&self.sink).take();
        self.end(sink, outcome);
    }

    fn end(&self, sink: Option<Box<dyn Sink>>, outcome: Result<usize>) {
        if let Some(sink) = sink {
            self.open_calls.fetch_sub(1, Ordering::Relaxed);
            self.stop.request();
            // On whatever thread this is: a mistake of the receiver's must not end a worker, or a garbage collector.
            let _ = guard::catch(|| sink.end(outcome));
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
    finish: Finish,
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
    queries: VecDeque<Arc<Call>>,
    /// Calls of one text that is no query.
    singles: VecDeque<Arc<Call>>,
    bulk: VecDeque<Arc<Call>>,
    bulk_workers: usize,
    /// How many of them are on urgent work.
    on_urgent: usize,
    /// The calls that threads are at.
    running: Vec<Arc<Call>>,
    /// Whether the worker for urgent work is computing, so that others have to see to it.
    lone_is_busy: bool,
    closed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lane {
    Queries,
    Singles,
    Bulk,
}

/// What a thread is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Bulk work, and urgent work while the lone worker is busy.
    Bulk,
    /// Urgent work only.
    Lone,
}

/// What a thread is to do next.
enum Work {
    Step(Arc<Call>, Step),
    /// Calls of one text each, in the order of their lane.
    Singles(Vec<Arc<Call>>),
}

impl Work {
    fn calls(&self) -> &[Arc<Call>] {
        match self {
            Self::Step(call, _) => std::slice::from_ref(call),
            Self::Singles(calls) => calls,
        }
    }
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
    texts: Vec<Input>,
    is_query: bool,
    /// Whether batches are computed about in the order of their texts, else in the order that ends soonest.
    is_streamed: bool,
    /// To be done next. Changed only by who holds the queue.
    steps: Mutex<VecDeque<Step>>,
    distinct: OnceLock<Distinct>,
    /// Distinct texts without a vector.
    missing: AtomicUsize,
    ticket: Arc<Ticket>,
}

/// The texts of a call without repetitions.
struct Distinct {
    /// For each distinct text, its first occurrence in the call.
    firsts: Vec<usize>,
    /// For each distinct text that occurs again, by its place among them, where else.
    repetitions: HashMap<usize, Vec<usize>>,
    tokenized: Vec<OnceLock<TokenizedText>>,
    /// For each window, its texts that are not tokenized yet.
    untokenized: Vec<AtomicUsize>,
}

impl Engine {
    /// Starts one thread per worker.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(runtime: Runtime, tokenizer: Tokenizer, finish: Finish) -> Result<Self> {
        let engine = Self {
            shared: Arc::new(Shared {
                tokenizer,
                limits: runtime.limits,
                finish,
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
                // One that cannot be made, for lack of memory, is done without: the first worker is always there.
                if let Ok(mut worker) = guard::run(make) {
                    shared.work(role, worker.as_mut());
                }
            };
            // Without it those before it end too: dropping the engine closes it.
            let thread = guard::spawn(&name, life)?;
            lock(&engine.threads).push(thread);
        }
        Ok(engine)
    }

    /// Embeds `texts`; returns at once. `reply` is called exactly once, also when the engine is closed first.
    pub fn submit(&self, texts: Vec<Input>, is_query: bool, reply: Reply) -> Arc<Ticket> {
        let whole = Whole {
            texts: texts.len(),
            dimension: self.shared.finish.dimension(),
            vectors: Vec::new(),
            truncated: Vec::new(),
            reply,
        };
        self.begin(texts, is_query, false, Box::new(whole))
    }

    /// Embeds `texts`; returns at once. `sink` is given the vectors of each batch when it is done, about in the order of
    /// the texts.
    pub fn stream(&self, texts: Vec<Input>, is_query: bool, sink: Box<dyn Sink>) -> Arc<Ticket> {
        self.begin(texts, is_query, true, sink)
    }

    fn begin(
        &self,
        texts: Vec<Input>,
        is_query: bool,
        is_streamed: bool,
        sink: Box<dyn Sink>,
    ) -> Arc<Ticket> {
        let open_calls = Arc::clone(&self.shared.counters.calls);
        open_calls.fetch_add(1, Ordering::Relaxed);
        let ticket = Arc::new(Ticket {
            sink: Mutex::new(Some(sink)),
            done: AtomicUsize::new(0),
            tokens: AtomicUsize::new(0),
            stop: Arc::default(),
            open_calls,
        });
        let call = Arc::new(Call {
            texts,
            is_query,
            is_streamed,
            steps: Mutex::default(),
            distinct: OnceLock::new(),
            missing: AtomicUsize::new(0),
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
    /// interrupted, and the weights are freed. Waits for that. Later calls fail; closing again does nothing.
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

    /// [`Self::close`] for who cannot wait: batches have a moment for the operator that they are at, then their threads are
    /// left to end by themselves.
    pub fn close_soon(&self) {
        let Some(patience) = gate::PATIENCE else {
            self.close();
            return;
        };
        self.shared.close();
        let deadline = Instant::now() + patience;
        // Somebody else may be closing, and have the lock for long.
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
    /// Lets the threads end by themselves, without waiting: the last reference may be dropped by a garbage collector.
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    /// The life of a worker's thread.
    fn work(&self, role: Role, worker: &mut dyn Worker) {
        lock(&self.queue).bulk_workers += usize::from(role == Role::Bulk);
        let mut is_urgent = false;
        while let Some(work) = self.next(role, &mut is_urgent) {
            let calls = work.calls().to_vec();
            match work {
                Work::Step(call, step) => call.run(|| match step {
                    Step::Start => self.start(&call),
                    Step::Tokenize(range) => self.tokenize(&call, range),
                    Step::Forward(batch) => self.forward(&[(&call, &batch)], worker),
                }),
                Work::Singles(calls) => self.compute_singles(calls, worker),
            }
            self.done(&calls);
        }
    }

    /// A thread is at these calls no more.
    fn done(&self, calls: &[Arc<Call>]) {
        let running = &mut lock(&self.queue).running;
        for call in calls {
            let place = running.iter().position(|other| Arc::ptr_eq(other, call));
            running.swap_remove(place.expect("put there when the thread took it"));
        }
    }

    /// What to do next; `None` when the engine is closed. `is_urgent` is whether a worker for bulk work has urgent work in
    /// hand.
    fn next(&self, role: Role, is_urgent: &mut bool) -> Option<Work> {
        let mut queue = lock(&self.queue);
        if role == Role::Lone {
            queue.lone_is_busy = false;
        }
        if std::mem::take(is_urgent) {
            queue.on_urgent -= 1;
        }
        loop {
            if queue.closed {
                return None;
            }
            let mut work = None;
            for lane in [Lane::Queries, Lane::Singles] {
                // Where several wait they are work in bulk, for threads that do not share a text: those compute more of
                // them. The lone worker then stays ready for a query, unless one of the others is on bulk work.
                let waiting = queue.lane(lane).len();
                let are_mine = match role {
                    Role::Lone => waiting == 1 || queue.on_urgent < queue.bulk_workers,
                    Role::Bulk => waiting > 1 || queue.lone_is_busy,
                };
                if work.is_none() && are_mine {
                    work = take_turn(queue.lane(lane));
                }
            }
            if role == Role::Bulk && work.is_some() {
                *is_urgent = true;
                queue.on_urgent += 1;
            }
            if work.is_none() && role == Role::Bulk {
                work = take_turn(queue.lane(Lane::Bulk));
            }
            if let Some(work) = work {
                queue.running.extend_from_slice(work.calls());
                if role == Role::Lone {
                    queue.lone_is_busy = true;
                    if !queue.queries.is_empty() || !queue.singles.is_empty() {
                        // More than one thread can do: now the others may help.
                        self.ready.notify_all();
                    }
                }
                return Some(work);
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
                queue.lane(call.lane()).push_back(Arc::clone(call));
            }
        }
        self.ready.notify_all();
    }

    fn close(&self) {
        let calls: Vec<Arc<Call>> = {
            let mut queue = lock(&self.queue);
            queue.closed = true;
            let queue = &mut *queue;
            let lanes = [&mut queue.queries, &mut queue.singles, &mut queue.bulk];
            let queued = lanes.into_iter().flat_map(|lane| lane.drain(..));
            queued.chain(queue.running.iter().cloned()).collect()
        };
        self.ready.notify_all();
        for call in calls {
            call.ticket.settle(Err(Error::Closed));
        }
    }

    fn start(&self, call: &Arc<Call>) -> Result<()> {
        let distinct = call.prepare()?;
        let count = distinct.firsts.len();
        if count == 0 {
            call.ticket.settle(Ok(0));
        } else if count <= TEXTS_PER_STEP {
            // The way through the queue would take longer than they do.
            return self.tokenize(call, 0..count);
        } else {
            self.push(call, distinct.tokenization(0));
        }
        Ok(())
    }

    fn tokenize_texts(&self, call: &Call, places: Range<usize>) -> Result<()> {
        let distinct = call.distinct();
        let is_settled = || call.ticket.is_settled();
        for place in places {
            let index = distinct.firsts[place];
            let tokenized = match &call.texts[index] {
                Input::Text(text) => {
                    self.tokenizer
                        .tokenize_unless(text, call.is_query, &is_settled)?
                }
                Input::Tokens(ids) => self.tokenizer.take(ids, index)?,
            };
            distinct.tokenized[place].get_or_init(|| tokenized);
        }
        Ok(())
    }

    fn tokenize(&self, call: &Arc<Call>, range: Range<usize>) -> Result<()> {
        let distinct = call.distinct();
        let window = range.start / TEXTS_PER_WINDOW;
        let count = range.len();
        self.tokenize_texts(call, range)?;
        if distinct.untokenized[window].fetch_sub(count, Ordering::AcqRel) > count {
            return Ok(());
        }
        let places = distinct.window(window);
        let first = places.start;
        let lengths: Vec<usize> = places
            .map(|place| distinct.tokens(place).ids.len())
            .collect();
        let mut batches = batch::plan(&lengths, self.limits);
        if call.is_streamed {
            batches.sort_by_key(|batch| batch.iter().copied().min());
        }
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

    /// Computes the first of these calls, with those that fit into its batch. The others go back to where they were.
    fn compute_singles(&self, mut calls: Vec<Arc<Call>>, worker: &mut dyn Worker) {
        for call in calls.iter().filter(|call| call.distinct.get().is_none()) {
            call.run(|| {
                call.prepare()?;
                self.tokenize_texts(call, 0..1)
            });
        }
        calls.retain(|call| !call.ticket.is_settled());
        let lengths: Vec<usize> = calls
            .iter()
            .map(|call| call.distinct().tokens(0).ids.len())
            .collect();
        let batches = batch::plan(&lengths, self.limits);
        let Some(batch) = batches.iter().find(|batch| batch.contains(&0)) else {
            return;
        };
        let is_chosen: Vec<bool> = (0..calls.len())
            .map(|index| batch.contains(&index))
            .collect();
        let mut is_chosen = is_chosen.into_iter();
        let (chosen, others): (Vec<_>, Vec<_>) = calls
            .into_iter()
            .partition(|_| is_chosen.next() == Some(true));
        self.put_back(others);
        let parts: Vec<(&Call, &[usize])> = chosen.iter().map(|call| (&**call, &[0][..])).collect();
        if parts.len() > 1 && guard::run(|| self.forward(&parts, worker)).is_ok() {
            return;
        }
        // One that fails is no reason for the others to.
        for part in parts {
            part.0.run(|| self.forward(&[part], worker));
        }
    }

    /// Puts calls of one lane back to its front.
    fn put_back(&self, calls: Vec<Arc<Call>>) {
        if calls.is_empty() {
            return;
        }
        {
            let mut queue = lock(&self.queue);
            if queue.closed {
                drop(queue);
                for call in calls {
                    call.ticket.settle(Err(Error::Closed));
                }
                return;
            }
            for call in calls.into_iter().rev() {
                queue.lane(call.lane()).push_front(call);
            }
        }
        self.ready.notify_all();
    }

    /// Computes one batch: of each call the distinct texts at these places.
    fn forward(&self, parts: &[(&Call, &[usize])], worker: &mut dyn Worker) -> Result<()> {
        let ids = parts.iter().flat_map(|(call, places)| {
            let distinct = call.distinct();
            places.iter().map(|&place| &*distinct.tokens(place).ids)
        });
        let batch = Batch::from_texts(ids);
        let stop = match parts {
            [(call, _)] => Arc::clone(&call.ticket.stop),
            // Short texts: the others want theirs, and it does not take long.
            _ => Arc::default(),
        };
        let mut vectors = self.finish.apply(worker.forward(&batch, &stop)?)?;
        self.counters.batches.fetch_add(1, Ordering::Relaxed);
        // From the last one on, so that each can be split off; a single part takes all of it over.
        for (call, places) in parts.iter().rev() {
            let rest = vectors.len() - places.len() * self.finish.dimension();
            let own = vectors.split_off(rest);
            call.run(|| self.deliver(call, places, own));
        }
        Ok(())
    }

    /// Gives a call the vectors of these places, and ends it after its last ones.
    fn deliver(&self, call: &Call, places: &[usize], vectors: Vec<f32>) -> Result<()> {
        let ticket = &call.ticket;
        if ticket.is_settled() {
            return Ok(());
        }
        let distinct = call.distinct();
        let texts = places.len();
        let tokens = places
            .iter()
            .map(|&place| distinct.tokens(place).ids.len())
            .sum();
        let counters = &self.counters;
        counters.texts.fetch_add(texts as u64, Ordering::Relaxed);
        counters.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        let rows = distinct.rows(places, vectors, self.finish.dimension())?;
        ticket.done.fetch_add(rows.indices.len(), Ordering::Relaxed);
        ticket.tokens.fetch_add(tokens, Ordering::Relaxed);
        ticket.deliver(rows);
        if call.missing.fetch_sub(texts, Ordering::AcqRel) == texts {
            ticket.settle(Ok(ticket.tokens.load(Ordering::Relaxed)));
        }
        Ok(())
    }
}

/// Gathers the vectors of a call that is answered when all of them are there.
struct Whole {
    texts: usize,
    dimension: usize,
    /// `[texts, dimension]`, once there are any.
    vectors: Vec<f32>,
    truncated: Vec<u32>,
    reply: Reply,
}

impl Sink for Whole {
    fn rows(&mut self, rows: Rows) -> Result<()> {
        let dimension = self.dimension;
        if self.vectors.is_empty() {
            self.vectors = memory::filled(self.texts * dimension, 0.0, VECTORS)?;
        }
        for (&index, row) in rows
            .indices
            .iter()
            .zip(rows.vectors.chunks_exact(dimension))
        {
            self.vectors[index as usize * dimension..][..dimension].copy_from_slice(row);
        }
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

/// The next step of the call whose turn it is, which goes to the end of the lane if it has more. A call of one text
/// comes with others that wait.
fn take_turn(lane: &mut VecDeque<Arc<Call>>) -> Option<Work> {
    while let Some(call) = lane.pop_front() {
        if call.is_single() {
            let near = lane.drain(..lane.len().min(TEXTS_PER_STEP - 1));
            let (mut singles, others): (Vec<_>, Vec<_>) = near.partition(|call| call.is_single());
            singles.insert(0, call);
            for call in others.into_iter().rev() {
                lane.push_front(call);
            }
            return Some(Work::Singles(singles));
        }
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
            return Some(Work::Step(call, step));
        }
    }
    None
}

impl Queue {
    fn lane(&mut self, lane: Lane) -> &mut VecDeque<Arc<Call>> {
        match lane {
            Lane::Queries => &mut self.queries,
            Lane::Singles => &mut self.singles,
            Lane::Bulk => &mut self.bulk,
        }
    }
}

impl Call {
    /// Whether it has one text. Its one step is done by [`Shared::compute_singles`], with others.
    fn is_single(&self) -> bool {
        self.texts.len() == 1
    }

    fn lane(&self) -> Lane {
        if self.is_query {
            Lane::Queries
        } else if self.is_single() {
            Lane::Singles
        } else {
            Lane::Bulk
        }
    }

    /// Finds equal texts.
    fn prepare(&self) -> Result<&Distinct> {
        let distinct = Distinct::of(&self.texts)?;
        let distinct = self.distinct.get_or_init(|| distinct);
        self.missing.store(distinct.firsts.len(), Ordering::Release);
        Ok(distinct)
    }

    /// Does a step; its failure ends the call.
    fn run(&self, step: impl FnOnce() -> Result<()>) {
        if let Err(error) = guard::run(step) {
            self.ticket.settle(Err(error));
        }
    }

    fn distinct(&self) -> &Distinct {
        self.distinct
            .get()
            .expect("set before any other step of the call")
    }
}

impl Distinct {
    fn of(texts: &[Input]) -> Result<Self> {
        const WHAT: &str = "the list of texts";
        let mut places_by_text: HashMap<&Input, usize> = HashMap::new();
        places_by_text
            .try_reserve(texts.len())
            .map_err(|_| Error::no_memory(size_of_val(texts), WHAT))?;
        let mut firsts = memory::room(texts.len(), WHAT)?;
        let mut repetitions: HashMap<usize, Vec<usize>> = HashMap::new();
        for (index, text) in texts.iter().enumerate() {
            match places_by_text.entry(text) {
                Entry::Vacant(entry) => {
                    entry.insert(firsts.len());
                    firsts.push(index);
                }
                Entry::Occupied(entry) => {
                    let others = repetitions.entry(*entry.get()).or_default();
                    memory::reserve(others, 1, WHAT)?;
                    others.push(index);
                }
            }
        }
        let count = firsts.len();
        let windows = (0..count).step_by(TEXTS_PER_WINDOW);
        let tokenized = (0..count).map(|_| OnceLock::new());
        Ok(Self {
            firsts,
            repetitions,
            tokenized: memory::collected(tokenized, WHAT)?,
            untokenized: windows
                .map(|start| AtomicUsize::new(TEXTS_PER_WINDOW.min(count - start)))
                .collect(),
        })
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

    /// The vectors of some distinct texts (`[places, dimension]`, row-major), each for all texts equal to its own.
    ///
    /// # Errors
    /// There is no memory for so many repetitions.
    fn rows(&self, places: &[usize], vectors: Vec<f32>, dimension: usize) -> Result<Rows> {
        let indices = places.iter().map(|&place| self.firsts[place] as u32);
        let mut rows = Rows {
            indices: indices.collect(),
            vectors,
            truncated: Vec::new(),
        };
        for (row, &place) in places.iter().enumerate() {
            let first = rows.indices[row];
            let repetitions = self.repetitions.get(&place).map_or(&[][..], Vec::as_slice);
            memory::reserve(&mut rows.indices, repetitions.len(), VECTORS)?;
            let numbers = repetitions.len() * dimension;
            memory::reserve(&mut rows.vectors, numbers, VECTORS)?;
            for &index in repetitions {
                rows.indices.push(index as u32);
                let numbers = row * dimension..(row + 1) * dimension;
                rows.vectors.extend_from_within(numbers);
            }
            if self.tokens(place).truncated {
                let others = repetitions.iter().map(|&index| index as u32);
                rows.truncated.extend([first].into_iter().chain(others));
            }
        }
        Ok(rows)
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
