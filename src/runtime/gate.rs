//! Keeps a process from ending while a thread is inside a runtime.
//!
//! `exit` runs the destructors of every library while other threads go on; one that is just then inside ONNX Runtime or
//! MLX reads what was destroyed, and the process ends with a crash instead of its exit code. So threads pass a gate on
//! their way in, and the process, when it ends, waits for those inside and shuts it for good.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

static GATE: RwLock<()> = RwLock::new(());

thread_local! {
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A library behind the gate.
#[derive(Debug)]
pub struct Library {
    visits: AtomicUsize,
}

/// ONNX Runtime.
pub static ONNX: Library = Library::new();

/// MLX.
#[cfg(mlx)]
pub static MLX: Library = Library::new();

/// Being inside a library.
pub struct Inside {
    library: &'static Library,
    /// `None` where the thread was inside already.
    guard: Option<RwLockReadGuard<'static, ()>>,
}

impl Library {
    const fn new() -> Self {
        Self {
            visits: AtomicUsize::new(0),
        }
    }

    /// Enters; once the process is ending this never returns.
    #[must_use]
    pub fn enter(&'static self) -> Inside {
        // A second entry may not wait: it would wait for a process that waits for the first.
        let is_first = !IS_INSIDE.replace(true);
        Inside {
            library: self,
            guard: is_first.then(|| GATE.read().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Keeps a value of this library's.
    pub const fn keep<T>(&'static self, value: T) -> Kept<T> {
        Kept {
            library: self,
            value: ManuallyDrop::new(value),
        }
    }
}

impl Drop for Inside {
    /// What is destroyed first at the end is what came last, and a library makes some of its state when it is first used.
    /// So the gate is put before it again after many of the first visits to that library, and after fewer and fewer later.
    fn drop(&mut self) {
        const FIRST: usize = 64;
        if self.guard.is_none() {
            return;
        }
        let visit = self.library.visits.fetch_add(1, Ordering::Relaxed);
        if visit < FIRST || visit.is_power_of_two() {
            at_exit();
        }
        IS_INSIDE.set(false);
    }
}

/// A value whose destructor calls its library, and does so inside it.
pub struct Kept<T> {
    library: &'static Library,
    value: ManuallyDrop<T>,
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Kept<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        let _inside = self.library.enter();
        // SAFETY: dropped once, here, and not used again.
        unsafe { ManuallyDrop::drop(&mut self.value) };
    }
}

/// On Windows the other threads are gone by the time that libraries are told.
#[cfg(unix)]
fn at_exit() {
    extern "C" fn shut() {
        static IS_SHUT: AtomicBool = AtomicBool::new(false);
        if !IS_SHUT.swap(true, Ordering::AcqRel) {
            std::mem::forget(GATE.write().unwrap_or_else(PoisonError::into_inner));
        }
    }
    // SAFETY: the handler neither panics nor needs anything but two statics without destructors.
    unsafe { libc::atexit(shut) };
}

#[cfg(not(unix))]
fn at_exit() {}
