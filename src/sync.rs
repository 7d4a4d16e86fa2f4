//! The standard library's locks without poisoning. `tests/loom` builds `engine/queue.rs` and `engine/ticket.rs` with loom's
//! locks in their place.

pub use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Locks, even after a panic elsewhere: no critical section of this crate leaves its data half changed.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a notification. May wake up without one.
pub fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
}
