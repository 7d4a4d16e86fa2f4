//! Interrupting a run: because its call was aborted, its model was closed, or the process is ending.

use crate::sync::{Arc, Mutex, lock};

/// A run of a runtime that can be told to end early, from any thread.
pub trait Interrupt: Send + Sync {
    /// Makes the run end soon. Harmless when it has ended.
    fn interrupt(&self);
}

/// A request to stop, and the runs that it interrupts.
#[derive(Default)]
pub struct Stop(Mutex<State>);

#[derive(Default)]
struct State {
    is_requested: bool,
    running: Vec<Arc<dyn Interrupt>>,
}

impl Stop {
    /// Not requested.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(State {
            is_requested: false,
            running: Vec::new(),
        }))
    }

    /// Interrupts what runs and prevents later runs. Does not wait.
    pub fn request(&self) {
        let running = {
            let mut state = lock(&self.0);
            state.is_requested = true;
            std::mem::take(&mut state.running)
        };
        for run in running {
            run.interrupt();
        }
    }

    /// Whether [`Self::request`] was called.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        lock(&self.0).is_requested
    }

    /// Does `work`, which `run` interrupts once a stop is requested. `None` if one was requested before.
    pub fn during<T>(&self, run: &Arc<dyn Interrupt>, work: impl FnOnce() -> T) -> Option<T> {
        {
            let mut state = lock(&self.0);
            if state.is_requested {
                return None;
            }
            state.running.push(Arc::clone(run));
        }
        let _running = Running { stop: self, run };
        Some(work())
    }
}

/// Forgets a run when it has ended, even in a panic.
struct Running<'a> {
    stop: &'a Stop,
    run: &'a Arc<dyn Interrupt>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let is_other = |run: &Arc<dyn Interrupt>| !Arc::ptr_eq(run, self.run);
        lock(&self.stop.0).running.retain(is_other);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Interrupt for Count {
        fn interrupt(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_runs_is_interrupted_once_and_nothing_runs_later() {
        let (stop, count) = (Stop::new(), Arc::new(Count::default()));
        let run: Arc<dyn Interrupt> = count.clone();
        let interrupted = || count.0.load(Ordering::Relaxed);
        assert_eq!(stop.during(&run, || 1), Some(1));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            stop.during(&run, || panic!("on purpose"))
        }));
        assert!(panicked.is_err());
        let during = stop.during(&run, || {
            stop.request();
            interrupted()
        });
        // What had ended, also in a panic, was forgotten.
        assert_eq!(during, Some(1));
        stop.request();
        assert_eq!((interrupted(), stop.during(&run, || 1)), (1, None));
    }
}
