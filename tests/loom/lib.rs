//! The engine's queue and tickets under all interleavings of their threads (up to a number of preemptions): every call ends
//! exactly once, no wake-up is lost, nothing deadlocks. Compiles these two sources with loom's locks and with doubles of
//! what else they use.

#![cfg(test)]
#![allow(dead_code, reason = "the queue's and the tickets' interface, in part")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../src/engine/queue.rs"]
mod queue;
#[path = "../../src/engine/ticket.rs"]
mod ticket;

mod sync {
    pub use loom::sync::{Arc, Condvar, Mutex, MutexGuard};

    pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }

    pub fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condvar.wait(guard).unwrap()
    }
}

mod error {
    #[derive(Debug, PartialEq, Eq)]
    pub enum Error {
        Aborted,
        Closed,
    }

    pub type Result<T> = std::result::Result<T, Error>;
}

mod guard {
    pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, ()> {
        Ok(work())
    }
}

mod runtime {
    pub mod stop {
        use loom::sync::atomic::{AtomicBool, Ordering};

        #[derive(Default)]
        pub struct Stop(AtomicBool);

        impl Stop {
            pub fn request(&self) {
                self.0.store(true, Ordering::SeqCst);
            }

            pub fn is_requested(&self) -> bool {
                self.0.load(Ordering::SeqCst)
            }
        }
    }
}

mod sink {
    use crate::error::Result;

    pub struct Rows {
        pub indices: Vec<u32>,
    }

    pub trait Sink {
        fn rows(&mut self, rows: Rows) -> Result<()>;
        fn end(self: Box<Self>, outcome: Result<usize>);
    }
}

use std::collections::VecDeque;

use loom::thread::{self, JoinHandle};

use self::error::{Error, Result};
use self::queue::{Job, Priority, Queue, Role, Work};
use self::sink::{Rows, Sink};
use self::sync::{Arc, Condvar, Mutex, lock, wait};
use self::ticket::{OpenCalls, Ticket};

/// How many texts a call has; each is a batch of its own.
type Texts = usize;

enum Step {
    Plan,
    Compute,
}

struct Call {
    texts: Texts,
    priority: Priority,
    steps: Mutex<VecDeque<Step>>,
    ticket: Arc<Ticket>,
}

impl Job for Call {
    type Step = Step;

    fn priority(&self) -> Priority {
        self.priority
    }

    fn is_single(&self) -> bool {
        self.texts == 1
    }

    fn steps(&self) -> &Mutex<VecDeque<Step>> {
        &self.steps
    }

    fn has_ended(&self) -> bool {
        self.ticket.has_ended()
    }
}

/// How calls have ended.
#[derive(Default)]
struct Ends {
    outcomes: Mutex<Vec<Result<usize>>>,
    changed: Condvar,
}

impl Ends {
    fn wait_for(&self, count: usize) {
        let mut outcomes = lock(&self.outcomes);
        while outcomes.len() < count {
            outcomes = wait(&self.changed, outcomes);
        }
    }
}

struct Recorder {
    ends: Arc<Ends>,
    texts: Texts,
    rows: usize,
}

impl Sink for Recorder {
    fn rows(&mut self, rows: Rows) -> Result<()> {
        self.rows += rows.indices.len();
        Ok(())
    }

    fn end(self: Box<Self>, outcome: Result<usize>) {
        if let Ok(tokens) = outcome {
            assert_eq!((self.rows, tokens), (self.texts, self.texts));
        }
        lock(&self.ends.outcomes).push(outcome);
        self.ends.changed.notify_all();
    }
}

/// As the engine uses the queue, with one worker of each role.
#[derive(Clone)]
struct Engine {
    queue: Arc<Queue<Call>>,
    open_calls: Arc<OpenCalls>,
    ends: Arc<Ends>,
}

impl Engine {
    fn start() -> (Self, [JoinHandle<()>; 2]) {
        let engine = Self {
            queue: Arc::new(Queue::new()),
            open_calls: Arc::default(),
            ends: Arc::default(),
        };
        let workers = [Role::Bulk, Role::Urgent].map(|role| {
            let queue = Arc::clone(&engine.queue);
            thread::spawn(move || queue.serve(role, |work| run(&queue, work)))
        });
        (engine, workers)
    }

    fn submit(&self, texts: Texts, priority: Priority) -> Arc<Ticket> {
        let sink = Recorder {
            ends: Arc::clone(&self.ends),
            texts,
            rows: 0,
        };
        let ticket = OpenCalls::open(&self.open_calls, Box::new(sink));
        let call = Call {
            texts,
            priority,
            steps: Mutex::new(VecDeque::from([Step::Plan])),
            ticket: Arc::clone(&ticket),
        };
        if !self.queue.add(Arc::new(call)) {
            ticket.end(Err(Error::Closed));
        }
        ticket
    }

    fn close(&self) {
        self.queue.close();
        self.open_calls.close();
    }

    /// Closes the engine and returns how the calls have ended.
    fn end(self, workers: [JoinHandle<()>; 2]) -> Vec<Result<usize>> {
        self.close();
        for worker in workers {
            worker.join().unwrap();
        }
        assert_eq!(self.open_calls.count(), 0);
        std::mem::take(&mut *lock(&self.ends.outcomes))
    }
}

fn run(queue: &Queue<Call>, work: Work<Call>) {
    let deliver = |call: &Call| call.ticket.deliver(Rows { indices: vec![0] }, 1, 1);
    match work {
        Work::Step(call, Step::Plan) => {
            call.ticket.expect(call.texts);
            queue.add_steps(&call, (0..call.texts).map(|_| Step::Compute));
        }
        Work::Step(call, Step::Compute) => deliver(&call),
        // One of them fills a batch.
        Work::Singles(mut calls) => {
            let call = calls.remove(0);
            if !calls.is_empty() {
                queue.put_back(calls);
            }
            call.ticket.expect(1);
            deliver(&call);
        }
    }
}

/// Runs a model in all interleavings with at most so many preemptions.
fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Submits calls at once and waits for their vectors.
fn serve(calls: &[(Texts, Priority)]) {
    let (engine, workers) = Engine::start();
    for &(texts, priority) in calls {
        engine.submit(texts, priority);
    }
    engine.ends.wait_for(calls.len());
    let outcomes = engine.end(workers);
    assert_eq!(outcomes.len(), calls.len());
    assert!(outcomes.iter().all(Result::is_ok));
}

#[test]
fn queries_are_served() {
    check(2, || serve(&[(2, Priority::Query), (2, Priority::Query)]));
}

#[test]
fn single_texts_are_served() {
    check(2, || serve(&[(1, Priority::Single), (1, Priority::Single)]));
}

#[test]
fn bulk_and_urgent_work_is_served() {
    check(2, || serve(&[(2, Priority::Bulk), (1, Priority::Query)]));
}

#[test]
fn a_cancelled_call_ends_once_and_others_are_served() {
    check(2, || {
        let (engine, workers) = Engine::start();
        let cancelled = engine.submit(2, Priority::Query);
        let caller = {
            let engine = engine.clone();
            thread::spawn(move || engine.submit(1, Priority::Query))
        };
        cancelled.cancel();
        caller.join().unwrap();
        engine.ends.wait_for(2);
        let outcomes = engine.end(workers);
        let aborted = outcomes
            .iter()
            .filter(|&outcome| *outcome == Err(Error::Aborted));
        assert!(outcomes.len() == 2 && aborted.count() <= 1);
        assert!(!outcomes.contains(&Err(Error::Closed)));
    });
}

#[test]
fn closing_ends_every_call_once() {
    check(2, || {
        let (engine, workers) = Engine::start();
        engine.submit(2, Priority::Query);
        let caller = {
            let engine = engine.clone();
            thread::spawn(move || engine.submit(1, Priority::Single))
        };
        engine.close();
        caller.join().unwrap();
        assert_eq!(engine.end(workers).len(), 2);
    });
}
