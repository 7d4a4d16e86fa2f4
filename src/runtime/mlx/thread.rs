//! The one thread that owns all of MLX.
//!
//! MLX binds streams and unevaluated arrays to the thread that made them, and every thread that uses MLX costs a stream that
//! is never freed. So a process has a single MLX thread, started on first use; whoever needs MLX sends it a closure and
//! waits for the result. Arrays never leave the thread.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc;

use std::time::Duration;

use mlx_rs::error::Exception;
use mlx_rs::transforms::compile;
use mlx_rs::{Device, memory};

use super::forward::Kernels;
use super::{MlxModel, mlx_error};
use crate::error::{Error, Result};
use crate::guard;
use crate::runtime::{Turn, shutdown};
use crate::sync::{Condvar, Mutex, PoisonError, lock};

/// How long the thread waits for work before it returns MLX's cache of freed buffers to the system.
const IDLE: Duration = Duration::from_secs(2);

/// Freed buffers that MLX may keep for reuse. A batch's activations fit; varied shapes would otherwise pile up.
const CACHE_LIMIT_BYTES: usize = 1 << 30;

/// What lives on the MLX thread.
pub struct State {
    /// Whether a GPU computes. Decided once: MLX has one default device per process.
    pub is_gpu: bool,
    /// Loaded models by number.
    pub models: HashMap<u64, MlxModel>,
    /// Element-wise functions, compiled on a GPU.
    pub kernels: Kernels,
}

type Work = Box<dyn FnOnce(&mut State) + Send>;

/// Runs `work` on the MLX thread and waits for it. MLX's errors, and panics, come back as errors.
///
/// # Errors
/// MLX cannot be started, or `work` failed.
pub fn run<T: Send + 'static>(
    work: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
) -> Result<T> {
    run_at(Turn::Last, work)
}

/// [`run`], with a choice of turn.
///
/// # Errors
/// As for [`run`].
pub fn run_at<T: Send + 'static>(
    turn: Turn,
    work: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let work = move |state: &mut State| {
        let result = guard::run(|| work(state));
        // The receiver waits below.
        let _ = sender.send(result);
    };
    inbox()?.push(turn, Box::new(work));
    receiver
        .recv()
        .unwrap_or_else(|_| Err(Error::inference("the MLX thread has ended")))
}

/// Work that is queued for the thread.
struct Inbox {
    waiting: Mutex<VecDeque<Work>>,
    ready: Condvar,
}

impl Inbox {
    fn push(&self, turn: Turn, work: Work) {
        {
            let mut waiting = lock(&self.waiting);
            match turn {
                Turn::Next => waiting.push_front(work),
                Turn::Last => waiting.push_back(work),
            }
        }
        self.ready.notify_one();
    }

    /// The next work. `on_idle` is called once if there is none for a while.
    fn take(&self, on_idle: impl FnOnce()) -> Work {
        let is_empty = |waiting: &mut VecDeque<Work>| waiting.is_empty();
        let waiting = lock(&self.waiting);
        let (mut waiting, _) = self
            .ready
            .wait_timeout_while(waiting, IDLE, is_empty)
            .unwrap_or_else(PoisonError::into_inner);
        if waiting.is_empty() {
            on_idle();
            waiting = self
                .ready
                .wait_while(waiting, is_empty)
                .unwrap_or_else(PoisonError::into_inner);
        }
        waiting
            .pop_front()
            .expect("waited until there was something")
    }
}

/// The inbox of the thread, which is started on first use. If MLX fails to start, that is final: neither drivers nor GPUs
/// appear in a running process. If the system refuses the thread, the next use tries again.
fn inbox() -> Result<&'static Inbox> {
    static INBOX: Inbox = Inbox {
        waiting: Mutex::new(VecDeque::new()),
        ready: Condvar::new(),
    };
    static STARTED: Mutex<Option<Result<(), String>>> = Mutex::new(None);
    let mut started = lock(&STARTED);
    if started.is_none() {
        let (sender, has_started) = mpsc::sync_channel(1);
        let life = move || {
            let state = {
                let _inside = shutdown::MLX.enter();
                guard::run(|| State::start().map_err(mlx_error))
            };
            let state = state.map_err(|error| error.to_string());
            // The receiver waits below.
            let _ = sender.send(state.as_ref().map(|_| ()).map_err(String::clone));
            let Ok(mut state) = state else { return };
            loop {
                let work = INBOX.take(|| {
                    let _inside = shutdown::MLX.enter();
                    // Failing to free spare memory harms nothing.
                    let _ = guard::catch(memory::clear_cache);
                });
                let _inside = shutdown::MLX.enter();
                work(&mut state);
            }
        };
        guard::spawn("mlx", life)?;
        let outcome = has_started.recv();
        *started = Some(outcome.unwrap_or_else(|error| Err(error.to_string())));
    }
    match &*started {
        Some(Err(reason)) => Err(Error::unavailable("mlx", reason.as_str())),
        _ => Ok(&INBOX),
    }
}

impl State {
    fn start() -> Result<Self, Exception> {
        // First of all a guarded call: it installs the error handler, without which an error in MLX ends the process.
        memory::active_memory()?;
        let is_gpu = gpu_is_available();
        if is_gpu {
            Device::set_default(&Device::gpu());
        } else {
            Device::set_default(&Device::cpu());
            // On a CPU, compiling starts the system's C++ compiler and gains nothing.
            compile::disable_compile();
        }
        memory::set_cache_limit(CACHE_LIMIT_BYTES)?;
        Ok(Self {
            is_gpu,
            models: HashMap::new(),
            kernels: Kernels::new(),
        })
    }
}

/// Whether MLX can compute on a GPU. Of MLX's several ways to ask, the only one that is also right for a CUDA build on
/// a machine without a driver.
fn gpu_is_available() -> bool {
    let mut available = false;
    // SAFETY: the device handle is made and freed here; `available` outlives the call.
    unsafe {
        let gpu = mlx_sys::mlx_device_new_type(mlx_sys::mlx_device_type__MLX_GPU, 0);
        let status = mlx_sys::mlx_device_is_available(&raw mut available, gpu);
        mlx_sys::mlx_device_free(gpu);
        status == 0 && available
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Array, ops};

    use super::*;

    #[test]
    fn errors_and_panics_come_back_and_the_thread_lives_on() {
        let product = |width| {
            run(move |_| {
                let matrix = |rows, columns| {
                    Array::from_slice(&vec![1.0_f32; (rows * columns) as usize], &[rows, columns])
                };
                let product = ops::matmul(matrix(2, 3), matrix(width, 4)).map_err(mlx_error)?;
                product.to_vec_exact::<f32>().map_err(Error::inference)
            })
        };
        let error = product(5).unwrap_err();
        assert_eq!(error.code(), "INFERENCE_FAILED");
        let message = error.to_string();
        assert!(
            message.contains("MLX: [matmul]") && !message.contains(".cpp"),
            "{message}"
        );

        let panic = run::<()>(|_| panic!("on purpose")).unwrap_err();
        assert!(panic.to_string().contains("on purpose"), "{panic}");
        assert_eq!(product(3).unwrap(), [3.0; 8]);
    }

    #[test]
    fn freed_buffers_are_given_back_when_nothing_is_to_do() {
        run(|_| {
            let array = Array::from_slice(&vec![1.0_f32; 1 << 20], &[1 << 20]);
            let sum = ops::add(&array, &array).map_err(mlx_error)?;
            sum.eval().map_err(mlx_error)
        })
        .unwrap();
        let cached = || run(|_| memory::cache_memory().map_err(mlx_error)).unwrap();
        assert!(cached() > 1 << 20);
        std::thread::sleep(IDLE + Duration::from_secs(1));
        assert_eq!(cached(), 0);
    }
}
