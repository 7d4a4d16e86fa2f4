//! Which call gets the next step on which worker.
//!
//! Calls wait in three lists, one per [`Priority`]. Within a list they take turns, one step each, so that a small call does
//! not wait for a large one. Bulk workers take steps of every priority. One more worker takes urgent steps only, so that a
//! query need not even wait for the end of a batch: it takes an urgent call that waits alone. Where several wait, bulk
//! workers take them, since they compute more in total, and the urgent worker stays free for the next query, unless some
//! bulk worker is on bulk work.
//!
//! Calls of one text are taken together, so that they can share a batch.

use std::collections::VecDeque;

use crate::sync::{Arc, Condvar, Mutex, lock, wait};

/// Most calls of one text that are taken together.
const MOST_SINGLES: usize = 64;

/// In which order calls are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for the result of a search.
    Query,
    /// One text that is not a query. Urgent as well.
    Single,
    /// Everything else.
    Bulk,
}

/// What a worker is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Urgent work only. An engine has at most one such worker.
    Urgent,
    /// All work.
    Bulk,
}

/// A call, as far as the queue has to know it.
pub trait Job {
    /// What a worker does for a call before others get their turn.
    type Step;

    fn priority(&self) -> Priority;

    /// Whether the call has one text. Such a call has no steps; it is taken as a whole.
    fn is_single(&self) -> bool;

    /// Steps that no worker has taken yet. For the queue only, which holds its own lock meanwhile.
    fn steps(&self) -> &Mutex<VecDeque<Self::Step>>;

    /// Whether the remaining steps can be dropped.
    fn has_ended(&self) -> bool;
}

/// What a worker is to do next.
pub enum Work<J: Job> {
    Step(Arc<J>, J::Step),
    /// Calls of one text each, oldest first.
    Singles(Vec<Arc<J>>),
}

/// Calls that wait for a worker.
pub struct Queue<J: Job> {
    state: Mutex<State<J>>,
    /// There is something new to take, or the queue was closed.
    changed: Condvar,
}

struct State<J: Job> {
    /// By priority. A call with steps is in its list once.
    waiting: [VecDeque<Arc<J>>; 3],
    bulk_workers: usize,
    /// How many of them are on urgent work.
    bulk_workers_on_urgent: usize,
    /// Also true before the urgent worker has started. While it is, bulk workers take all urgent work.
    urgent_worker_is_busy: bool,
    is_closed: bool,
}

impl<J: Job> Queue<J> {
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State {
                waiting: [VecDeque::new(), VecDeque::new(), VecDeque::new()],
                bulk_workers: 0,
                bulk_workers_on_urgent: 0,
                urgent_worker_is_busy: true,
                is_closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Adds a new call. Returns false if the queue is closed; then the call is not served.
    #[must_use]
    pub fn add(&self, call: Arc<J>) -> bool {
        self.change(|state| state.list(&*call).push_back(call))
    }

    /// Adds steps to a call that a worker is on.
    pub fn add_steps(&self, call: &Arc<J>, steps: impl IntoIterator<Item = J::Step>) {
        self.change(|state| {
            let mut pending = lock(call.steps());
            let is_waiting = !pending.is_empty();
            pending.extend(steps);
            if !is_waiting && !pending.is_empty() {
                state.list(&**call).push_back(Arc::clone(call));
            }
        });
    }

    /// Returns calls of one text to the front of their list.
    pub fn put_back(&self, calls: Vec<Arc<J>>) {
        self.change(|state| {
            for call in calls.into_iter().rev() {
                state.list(&*call).push_front(call);
            }
        });
    }

    /// Changes what waits, unless the queue is closed, and wakes the workers.
    fn change(&self, change: impl FnOnce(&mut State<J>)) -> bool {
        let mut state = lock(&self.state);
        let is_open = !state.is_closed;
        if is_open {
            change(&mut state);
            drop(state);
            self.changed.notify_all();
        }
        is_open
    }

    /// The life of a worker: runs what is its turn until the queue is closed.
    pub fn serve(&self, role: Role, mut run: impl FnMut(Work<J>)) {
        let mut state = lock(&self.state);
        match role {
            Role::Urgent => state.urgent_worker_is_busy = false,
            Role::Bulk => state.bulk_workers += 1,
        }
        while !state.is_closed {
            let Some((work, is_urgent)) = state.take(role) else {
                state = wait(&self.changed, state);
                continue;
            };
            match role {
                Role::Urgent => state.urgent_worker_is_busy = true,
                Role::Bulk => state.bulk_workers_on_urgent += usize::from(is_urgent),
            }
            if state.has_urgent_work() {
                // What is left may be another worker's now.
                self.changed.notify_all();
            }
            drop(state);
            run(work);
            state = lock(&self.state);
            match role {
                Role::Urgent => state.urgent_worker_is_busy = false,
                Role::Bulk => state.bulk_workers_on_urgent -= usize::from(is_urgent),
            }
        }
    }

    /// Drops all calls and sends the workers home. The calls are not ended.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        let dropped = state.waiting.each_mut().map(std::mem::take);
        drop(state);
        self.changed.notify_all();
        drop(dropped);
    }

    pub fn is_closed(&self) -> bool {
        lock(&self.state).is_closed
    }
}

impl<J: Job> State<J> {
    fn list(&mut self, call: &J) -> &mut VecDeque<Arc<J>> {
        &mut self.waiting[call.priority() as usize]
    }

    fn has_urgent_work(&self) -> bool {
        let [queries, singles, _] = &self.waiting;
        !queries.is_empty() || !singles.is_empty()
    }

    /// Takes what is this worker's turn, and says whether it is urgent.
    fn take(&mut self, role: Role) -> Option<(Work<J>, bool)> {
        let [queries, singles, bulk] = &mut self.waiting;
        for urgent in [queries, singles] {
            let is_mine = match role {
                Role::Urgent => {
                    urgent.len() == 1 || self.bulk_workers_on_urgent < self.bulk_workers
                }
                Role::Bulk => urgent.len() > 1 || self.urgent_worker_is_busy,
            };
            if is_mine && let Some(work) = take_turn(urgent) {
                return Some((work, true));
            }
        }
        match role {
            Role::Urgent => None,
            Role::Bulk => take_turn(bulk).map(|work| (work, false)),
        }
    }
}

/// The next step of the call whose turn it is; the call goes to the end of the list if it has more. A call of one text
/// comes with others near it.
fn take_turn<J: Job>(list: &mut VecDeque<Arc<J>>) -> Option<Work<J>> {
    while let Some(call) = list.pop_front() {
        if call.is_single() {
            let near = list.drain(..list.len().min(MOST_SINGLES - 1));
            let (mut singles, others): (Vec<_>, Vec<_>) = near.partition(|call| call.is_single());
            singles.insert(0, call);
            for call in others.into_iter().rev() {
                list.push_front(call);
            }
            return Some(Work::Singles(singles));
        }
        let (step, has_more) = {
            let mut steps = lock(call.steps());
            if call.has_ended() {
                steps.clear();
            }
            (steps.pop_front(), !steps.is_empty())
        };
        if let Some(step) = step {
            if has_more {
                list.push_back(Arc::clone(&call));
            }
            return Some(Work::Step(call, step));
        }
    }
    None
}
