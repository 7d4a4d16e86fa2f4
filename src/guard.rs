//! Keeps panics from leaving this crate, and from being printed to the host's standard error.
//!
//! A panic that reaches a caller in another language ends the process. So everything that other code calls goes through
//! [`catch`], and every thread is started by [`spawn`] or [`side_by_side`]; `tests/boundary.rs` looks for exceptions.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::path::Path;
use std::sync::Once;
use std::thread::{Builder, JoinHandle};

use crate::error::{Error, Result};

/// A caught panic: its message and its place.
#[derive(Debug)]
pub(crate) struct Panic(String);

thread_local! {
    /// How many calls of [`catch`] the thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// Where the thread's last panic was.
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `work`; a panic is returned instead of being printed to standard error.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    install_hook();
    DEPTH.set(DEPTH.get() + 1);
    // Unwind safe: whoever gets the panic drops what `work` was about.
    let outcome = catch_unwind(AssertUnwindSafe(work));
    DEPTH.set(DEPTH.get() - 1);
    outcome.map_err(|payload| Panic::new(&*payload))
}

/// [`catch`] for work that may fail.
///
/// # Errors
/// Those of `work`; a panic becomes an internal error.
pub(crate) fn run<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch(work).map_err(Error::from).flatten()
}

/// [`run`] for work that reads a file of a model: some libraries panic on unexpected contents.
///
/// # Errors
/// Those of `work`; a panic becomes an error that says that the file cannot be read.
pub(crate) fn read<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let invalid = |panic| {
        Error::invalid_from(
            path,
            "cannot be read, the library that reads it panicked",
            panic,
        )
    };
    catch(work).map_err(invalid).flatten()
}

/// Starts a thread. It ends silently if `work` panics.
///
/// # Errors
/// The operating system refuses the thread.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let life = move || {
        let _ = catch(work);
    };
    let thread = Builder::new().name(name.to_owned());
    thread.spawn(life).map_err(|error| Error::no_thread(&error))
}

/// Does two things at once, the first of them on a thread of its own. Waits for both.
///
/// # Errors
/// Those of [`run`], or the operating system refuses the thread.
pub(crate) fn side_by_side<A: Send, B>(
    name: &str,
    on_thread: impl FnOnce() -> Result<A> + Send,
    here: impl FnOnce() -> Result<B>,
) -> Result<(A, B)> {
    std::thread::scope(|scope| {
        let thread = Builder::new().name(name.to_owned());
        let thread = thread.spawn_scoped(scope, || run(on_thread));
        let thread = thread.map_err(|error| Error::no_thread(&error))?;
        let here = here();
        let on_thread = thread.join();
        // [`run`] catches panics, so that the thread itself is not expected to have one.
        let on_thread = on_thread.unwrap_or_else(|payload| Err(Panic::new(&*payload).into()));
        Ok((on_thread?, here?))
    })
}

/// Silences panics that [`catch`] catches. All others are reported as before.
fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // A thread that is ending has no thread-locals any more, but then it is not inside of `catch` either.
            if DEPTH.try_with(Cell::get).unwrap_or(0) == 0 {
                previous(panic);
            } else {
                let _ = LOCATION.try_with(|location| location.replace(place(panic)));
            }
        }));
    });
}

/// File and line; the path starts at the crate's folder, since the rest belongs to the machine that built it.
fn place(panic: &PanicHookInfo) -> Option<String> {
    let location = panic.location()?;
    let parts: Vec<&str> = location.file().split(['/', '\\']).collect();
    let sources = parts.iter().rposition(|&part| part == "src").unwrap_or(0);
    let file = parts[sources.saturating_sub(1)..].join("/");
    Some(format!("{file}:{}", location.line()))
}

impl Panic {
    fn new(payload: &(dyn Any + Send)) -> Self {
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("a panic without a message");
        Self(match LOCATION.take() {
            Some(location) => format!("{message} ({location})"),
            None => message.to_owned(),
        })
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Panic {}

impl From<Panic> for Error {
    fn from(panic: Panic) -> Self {
        Self::inference(format!("internal error, please report it: {panic}"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_panic_says_what_and_where() {
        let panic = catch(|| panic!("number {}", 7)).unwrap_err().to_string();
        let line = line!() - 1;
        assert!(panic.ends_with(&format!("src/guard.rs:{line})")), "{panic}");
        assert!(panic.starts_with("number 7 ("), "{panic}");
        assert!(!panic.contains(env!("CARGO_MANIFEST_DIR")), "{panic}");
        let panic = catch(|| std::panic::panic_any(7)).unwrap_err().to_string();
        assert!(panic.starts_with("a panic without a message"), "{panic}");
        let error = run::<()>(|| panic!("on purpose")).unwrap_err();
        assert_eq!(error.code(), "INFERENCE_FAILED");
        let error = read::<()>(Path::new("some/file"), || panic!("on purpose")).unwrap_err();
        assert_eq!(error.code(), "MODEL_INVALID");
        assert!(error.to_string().starts_with("some/file: "), "{error}");
    }

    /// In a process of its own, which has the hook that a host would have.
    #[test]
    fn only_panics_that_are_caught_here_are_silent() {
        const IS_CHILD: &str = "SEMANTIC_SEARCH_TEST_IS_CHILD";
        static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
        if std::env::var_os(IS_CHILD).is_none() {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            let name = "guard::tests::only_panics_that_are_caught_here_are_silent";
            let output = child.args(["--exact", name]).env(IS_CHILD, "1").output();
            let output = output.unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && text.contains("1 passed"),
                "{text}"
            );
            return;
        }
        std::panic::set_hook(Box::new(|panic| {
            let message = panic.payload_as_str().unwrap_or_default().to_owned();
            SEEN.lock().unwrap().push(message);
        }));
        let host = |message: &'static str| {
            let thread = std::thread::spawn(move || panic!("{message}"));
            assert!(thread.join().is_err());
        };
        assert!(catch(|| panic!("ours")).is_err());
        host("the host's");
        assert!(spawn("test", || panic!("ours")).unwrap().join().is_ok());
        let nested: Result<(), Panic> = catch(|| {
            assert!(catch(|| panic!("ours")).is_err());
            // While a thread of ours is inside, others are not.
            host("the host's meanwhile");
            panic!("ours after that")
        });
        let nested = nested.unwrap_err();
        assert!(nested.to_string().contains("ours after that"), "{nested}");
        let outside = std::panic::catch_unwind(|| panic!("the host's on this thread"));
        assert!(outside.is_err());
        let seen = SEEN.lock().unwrap();
        let expected = [
            "the host's",
            "the host's meanwhile",
            "the host's on this thread",
        ];
        assert_eq!(*seen, expected);
    }
}
