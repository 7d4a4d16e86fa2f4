//! Keeps a process from ending while a thread is inside a runtime.
//!
//! `exit` runs the destructors of every library while other threads go on; one that is just then inside ONNX Runtime or
//! MLX reads what was destroyed, and the process ends with a crash instead of its exit code. So threads pass a gate on
//! their way in, and the process, when it ends, shuts it for good, interrupts what runs and waits for those inside.
//!
//! An interrupted run still finishes the operator that it is at, which for a text of thousands of tokens takes seconds.
//! Where the exit code is known here (glibc tells it), the process does not wait for that: it ends without the
//! destructors.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::stop::{Interrupt, Stop};
use crate::error::{Error, Result};

/// How long an ending process, or worker thread of Node.js, waits for operators that are being computed; without end where
/// it cannot end before them.
pub const PATIENCE: Option<Duration> = if cfg!(all(target_os = "linux", target_env = "gnu")) {
    Some(Duration::from_millis(100))
} else {
    None
};

static GATE: Gate = Gate {
    state: Mutex::new(State {
        inside: 0,
        is_shut: false,
    }),
    left: Condvar::new(),
};

/// Requested when the process ends.
static ENDING: Stop = Stop::new();

thread_local! {
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

struct Gate {
    state: Mutex<State>,
    /// Somebody has left while the gate was shut.
    left: Condvar,
}

struct State {
    /// Threads inside a library.
    inside: usize,
    is_shut: bool,
}

impl Gate {
    /// Does not return once the gate is shut.
    fn enter(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.is_shut {
            state = self
                .left
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.inside += 1;
    }

    fn leave(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.inside -= 1;
        if state.is_shut {
            self.left.notify_all();
        }
    }
}

/// Does `work` unless `stop` is requested or the process is ending; `run` interrupts it when that happens meanwhile.
///
/// # Errors
/// [`Error::Aborted`] instead of a result that nobody wants any more.
pub fn interruptible<T>(
    stop: &Stop,
    run: &Arc<dyn Interrupt>,
    work: impl FnOnce() -> T,
) -> Result<T> {
    let done = ENDING.during(run, || stop.during(run, work)).flatten();
    done.filter(|_| !is_unwanted(stop)).ok_or(Error::Aborted)
}

/// Whether `stop` is requested or the process is ending.
pub fn is_unwanted(stop: &Stop) -> bool {
    stop.is_requested() || ENDING.is_requested()
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
    /// Whether the thread was not inside before.
    is_first: bool,
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
        let is_first = !IS_INSIDE.get();
        if is_first {
            GATE.enter();
            IS_INSIDE.set(true);
        }
        Inside {
            library: self,
            is_first,
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
        if !self.is_first {
            return;
        }
        let visit = self.library.visits.fetch_add(1, Ordering::Relaxed);
        if visit < FIRST || visit.is_power_of_two() {
            at_exit();
        }
        IS_INSIDE.set(false);
        GATE.leave();
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

/// Shuts the gate, interrupts what runs, and waits for those inside. Whether they are gone.
#[cfg(unix)]
fn shut() -> bool {
    let mut state = GATE.state.lock().unwrap_or_else(PoisonError::into_inner);
    let is_first = !std::mem::replace(&mut state.is_shut, true);
    drop(state);
    if !is_first {
        return true;
    }
    ENDING.request();
    let state = GATE.state.lock().unwrap_or_else(PoisonError::into_inner);
    let is_occupied = |state: &mut State| state.inside > 0;
    let state = match PATIENCE {
        Some(patience) => {
            GATE.left
                .wait_timeout_while(state, patience, is_occupied)
                .unwrap_or_else(PoisonError::into_inner)
                .0
        }
        None => GATE
            .left
            .wait_while(state, is_occupied)
            .unwrap_or_else(PoisonError::into_inner),
    };
    state.inside == 0
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn at_exit() {
    use std::ffi::{c_int, c_void};

    unsafe extern "C" {
        fn on_exit(handler: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    }

    extern "C" fn handler(status: c_int, _: *mut c_void) {
        if shut() {
            return;
        }
        // What `exit` would still do that matters: libuv gives a terminal its mode back, and C's streams are written.
        // SAFETY: the name ends with a zero; the symbol, where there is one, is libuv's function, which takes nothing and
        // may be called at any time. Neither `fflush` of all streams nor `_exit` has preconditions.
        unsafe {
            let reset = libc::dlsym(libc::RTLD_DEFAULT, c"uv_tty_reset_mode".as_ptr());
            if !reset.is_null() {
                let reset: extern "C" fn() -> c_int = std::mem::transmute(reset);
                reset();
            }
            libc::fflush(std::ptr::null_mut());
            libc::_exit(status);
        }
    }

    stay_loaded(handler as *const c_void);
    // SAFETY: the handler neither panics nor needs anything but statics without destructors, and stays where it is.
    unsafe { on_exit(handler, std::ptr::null_mut()) };
}

/// Keeps the library that holds `address` in the process. Node.js unloads an addon with the last worker thread that has
/// loaded it, but its threads may go on for a moment, and unlike `atexit`, `on_exit` does not know whose handler it has.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn stay_loaded(address: *const std::ffi::c_void) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
        // SAFETY: `dladdr` fills in `info` where it does not return 0; the name that it gives is a C string of the loader's.
        // Opening what is open already runs nothing.
        unsafe {
            if libc::dladdr(address, info.as_mut_ptr()) != 0 {
                let name = info.assume_init().dli_fname;
                let flags = libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
                libc::dlopen(name, flags);
            }
        }
    });
}

/// Where nobody tells the exit code, an operator that takes long is waited for.
#[cfg(all(unix, not(all(target_os = "linux", target_env = "gnu"))))]
fn at_exit() {
    extern "C" fn handler() {
        shut();
    }
    // SAFETY: the handler neither panics nor needs anything but statics without destructors.
    unsafe { libc::atexit(handler) };
}

/// On Windows the other threads are gone by the time that libraries are told.
#[cfg(not(unix))]
fn at_exit() {}
