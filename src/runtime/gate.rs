//! Keeps a process from ending while a thread is inside a runtime.
//!
//! `exit` runs the destructors of every library while other threads go on; one that is just then inside ONNX Runtime or
//! MLX reads what was destroyed, and the process ends with a crash instead of its exit code. So threads pass a gate on
//! their way in, and the process, when it ends, waits for those inside and shuts it for good.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

static GATE: RwLock<()> = RwLock::new(());

/// Being inside. Not to be entered twice by one thread.
pub struct Inside {
    _guard: RwLockReadGuard<'static, ()>,
}

/// Enters; once the process is ending this never returns.
#[must_use]
pub fn enter() -> Inside {
    Inside {
        _guard: GATE.read().unwrap_or_else(PoisonError::into_inner),
    }
}

impl Drop for Inside {
    /// What is destroyed first at the end is what came last, and a library makes some of its state when it is first used.
    /// So the gate is put before it again after each of the first visits.
    fn drop(&mut self) {
        const VISITS: usize = 8;
        static VISITED: AtomicUsize = AtomicUsize::new(0);
        if VISITED.load(Ordering::Relaxed) < VISITS
            && VISITED.fetch_add(1, Ordering::Relaxed) < VISITS
        {
            at_exit();
        }
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
