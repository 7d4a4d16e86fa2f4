//! Keeps a process from ending while a thread is inside a runtime.
//!
//! `exit` runs the destructors of every library while other threads go on. A thread that is inside ONNX Runtime or MLX at
//! that moment reads what was destroyed, and the process crashes instead of returning its exit code. So threads register on
//! their way in. When the process ends, no thread enters any more, runs are interrupted, and the process waits for the
//! threads inside.
//!
//! An interrupted run still finishes the operator that it is at, which may take seconds for a text of thousands of tokens.
//! Where the exit code is known here (glibc passes it on), the process does not wait for that: it ends without the
//! destructors.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::stop::{Interrupt, Stop};
use crate::error::{Error, Result};
use crate::sync::{Arc, Condvar, Mutex, PoisonError, lock, wait};

/// How long an ending process, or worker thread of Node.js, waits for operators that are being computed; without limit where
/// it cannot end before them.
pub const GRACE_PERIOD: Option<Duration> = if cfg!(all(target_os = "linux", target_env = "gnu")) {
    Some(Duration::from_millis(100))
} else {
    None
};

static OCCUPANCY: Mutex<Occupancy> = Mutex::new(Occupancy {
    threads: 0,
    is_ending: false,
});

/// A thread has left a library while the process was ending.
static LEFT: Condvar = Condvar::new();

/// Requested when the process ends.
static ENDING: Stop = Stop::new();

thread_local! {
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

struct Occupancy {
    /// Threads inside a library.
    threads: usize,
    /// Whether the process is ending; then no thread enters any more.
    is_ending: bool,
}

/// Does `work` unless `stop` is requested or the process is ending. If that happens meanwhile, `run` interrupts it.
///
/// # Errors
/// [`Error::Aborted`] instead of a result that nobody wants.
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

/// A library that threads may not be inside while its destructors run.
#[derive(Debug)]
pub struct Library {
    visits: AtomicUsize,
}

/// ONNX Runtime.
pub static ONNX: Library = Library::new();

/// The kernels of this crate, which may not be unloaded while they run.
pub static CPU: Library = Library::new();

/// MLX.
#[cfg(mlx)]
pub static MLX: Library = Library::new();

/// Held while a thread is inside a library.
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

    /// Enters the library. Once the process is ending this never returns.
    #[must_use]
    pub fn enter(&'static self) -> Inside {
        // A thread that is inside may not wait here: the process waits for it to leave.
        let is_first = !IS_INSIDE.get();
        if is_first {
            let mut occupancy = lock(&OCCUPANCY);
            while occupancy.is_ending {
                occupancy = wait(&LEFT, occupancy);
            }
            occupancy.threads += 1;
            IS_INSIDE.set(true);
        }
        Inside {
            library: self,
            is_first,
        }
    }

    /// Guards a value whose destructor calls the library.
    pub const fn guard<T>(&'static self, value: T) -> Guarded<T> {
        Guarded {
            library: self,
            value: ManuallyDrop::new(value),
        }
    }
}

impl Drop for Inside {
    /// Exit handlers run in reverse order, and a library registers some of its own when it is first used. So ours is
    /// registered again after many of the first visits to a library, and after fewer and fewer later on.
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
        let mut occupancy = lock(&OCCUPANCY);
        occupancy.threads -= 1;
        if occupancy.is_ending {
            LEFT.notify_all();
        }
    }
}

/// A value whose destructor runs inside its library.
pub struct Guarded<T> {
    library: &'static Library,
    value: ManuallyDrop<T>,
}

impl<T> Deref for Guarded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        let _inside = self.library.enter();
        // SAFETY: dropped once, here, and not used again.
        unsafe { ManuallyDrop::drop(&mut self.value) };
    }
}

/// What is left to do once all threads have left, before the destructors run.
static LAST: Mutex<Vec<fn()>> = Mutex::new(Vec::new());

/// Lets `work` be done when the process ends, unless it ends without destructors. It may enter libraries.
pub fn before_destructors(work: fn()) {
    lock(&LAST).push(work);
}

/// Lets no more threads in, interrupts what runs, and waits for the threads inside. Returns whether all have left.
#[cfg(unix)]
fn shut() -> bool {
    let is_empty = close_doors();
    if is_empty {
        let last = std::mem::take(&mut *lock(&LAST));
        // Nobody else is inside, nor will be.
        IS_INSIDE.set(true);
        for work in last {
            work();
        }
    }
    is_empty
}

#[cfg(unix)]
fn close_doors() -> bool {
    if std::mem::replace(&mut lock(&OCCUPANCY).is_ending, true) {
        return true;
    }
    ENDING.request();
    let occupancy = lock(&OCCUPANCY);
    let is_occupied = |occupancy: &mut Occupancy| occupancy.threads > 0;
    let occupancy = match GRACE_PERIOD {
        Some(period) => {
            LEFT.wait_timeout_while(occupancy, period, is_occupied)
                .unwrap_or_else(PoisonError::into_inner)
                .0
        }
        None => LEFT
            .wait_while(occupancy, is_occupied)
            .unwrap_or_else(PoisonError::into_inner),
    };
    occupancy.threads == 0
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
        // What still matters of what `exit` would do: libuv restores a terminal's mode, and C's streams are flushed.
        // SAFETY: the name ends with a zero; the symbol, if there is one, is libuv's function, which takes no arguments
        // and may be called at any time. Neither `fflush` of all streams nor `_exit` has preconditions.
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
    // SAFETY: the handler neither panics nor uses anything but statics without destructors, and is never unloaded.
    unsafe { on_exit(handler, std::ptr::null_mut()) };
}

/// Keeps the library that holds `address` in the process. Node.js unloads an addon with the last worker thread that has
/// loaded it, but the addon's threads may go on for a moment, and unlike `atexit`, `on_exit` does not know which library a
/// handler belongs to.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn stay_loaded(address: *const std::ffi::c_void) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
        // SAFETY: `dladdr` fills in `info` if it does not return 0; the name in it is a C string of the loader's. Opening a
        // library that is open already runs nothing.
        unsafe {
            if libc::dladdr(address, info.as_mut_ptr()) != 0 {
                let name = info.assume_init().dli_fname;
                let flags = libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
                libc::dlopen(name, flags);
            }
        }
    });
}

/// Where the exit code is not known, the process waits for an operator however long it takes.
#[cfg(all(unix, not(all(target_os = "linux", target_env = "gnu"))))]
fn at_exit() {
    extern "C" fn handler() {
        shut();
    }
    // SAFETY: the handler neither panics nor uses anything but statics without destructors.
    unsafe { libc::atexit(handler) };
}

/// On Windows the other threads are gone by the time that libraries are notified.
#[cfg(not(unix))]
fn at_exit() {}
