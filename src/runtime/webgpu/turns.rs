//! WebGPU's sessions, and whose turn it is to use them.
//!
//! All sessions of a process share one device, which ONNX Runtime does not guard against use by several threads at once. So
//! everything that touches it happens here, one thing at a time, whichever thread it is on.

use std::collections::HashMap;
use std::sync::Once;

use ort::session::Session;

use crate::runtime::Turn;
use crate::runtime::shutdown::{self, Guarded};
use crate::sync::{Condvar, Mutex, lock, wait};

/// What is on the GPU.
#[derive(Default)]
pub struct Sessions {
    /// Those of all models, by the model's number.
    pub of_models: HashMap<u64, Guarded<Session>>,
    /// Why sessions were last given up.
    pub failure: String,
}

struct Queue {
    is_taken: bool,
    /// Threads that wait for [`Turn::Next`].
    urgent: usize,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    is_taken: false,
    urgent: 0,
});
static GIVEN_UP: Condvar = Condvar::new();
static SESSIONS: Mutex<Option<Sessions>> = Mutex::new(None);

/// Waits for a turn and does `work` in it, inside ONNX Runtime.
pub fn take<T>(turn: Turn, work: impl FnOnce(&mut Sessions) -> T) -> T {
    static ONCE: Once = Once::new();
    // First the turn: the process ends without those that wait for one.
    let _taken = Taken::wait(turn);
    let _inside = shutdown::ONNX.enter();
    // What a GPU computes when the process ends may not go on while the library's destructors free its arrays. The device
    // waits for it when it goes, which it does with the last session.
    ONCE.call_once(|| shutdown::before_destructors(|| drop(lock(&SESSIONS).take())));
    work(lock(&SESSIONS).get_or_insert_default())
}

/// Held during a turn.
struct Taken;

impl Taken {
    fn wait(turn: Turn) -> Self {
        let mut queue = lock(&QUEUE);
        let is_urgent = turn == Turn::Next;
        queue.urgent += usize::from(is_urgent);
        while queue.is_taken || (!is_urgent && queue.urgent > 0) {
            queue = wait(&GIVEN_UP, queue);
        }
        queue.urgent -= usize::from(is_urgent);
        queue.is_taken = true;
        Self
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        lock(&QUEUE).is_taken = false;
        GIVEN_UP.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_at_a_time_and_the_urgent_first() {
        let (sender, receiver) = mpsc::channel();
        let first = Taken::wait(Turn::Last);
        let spawn = |turn, name: &'static str| {
            let sender = sender.clone();
            let thread = thread::spawn(move || {
                let _taken = Taken::wait(turn);
                sender.send(name).unwrap();
            });
            // Until it waits.
            thread::sleep(Duration::from_millis(50));
            thread
        };
        let threads = [spawn(Turn::Last, "last"), spawn(Turn::Next, "next")];
        assert!(receiver.try_recv().is_err(), "while another has its turn");
        drop(first);
        for thread in threads {
            thread.join().unwrap();
        }
        let order: Vec<_> = receiver.try_iter().collect();
        assert_eq!(order, ["next", "last"]);
    }
}
