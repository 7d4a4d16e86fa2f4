//! Threads that share the work of one batch.

use rayon::ThreadPool;
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use crate::error::{Error, Result};

/// Rows that are given to a thread together.
const ROWS: usize = 16;

/// The threads of a worker: its own, or a pool of several.
pub struct Team(Option<ThreadPool>);

impl Team {
    /// The thread that calls.
    pub const ALONE: Self = Self(None);

    /// # Errors
    /// The operating system refuses a thread.
    pub fn of(threads: usize, name: &'static str) -> Result<Self> {
        if threads == 1 {
            return Ok(Self(None));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(move |index| format!("{name}-{index}"));
        let pool = pool
            .build()
            .map_err(|error| Error::no_thread(&std::io::Error::other(error)))?;
        Ok(Self(Some(pool)))
    }

    /// Does `work` on one of the threads, from where the others are reached fastest.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.0 {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Does `work` for each number below `count`, in any order.
    pub fn each(&self, count: usize, work: impl Fn(usize) + Sync) {
        match &self.0 {
            Some(pool) if count > 1 => pool.install(|| (0..count).into_par_iter().for_each(&work)),
            _ => (0..count).for_each(&work),
        }
    }

    /// The same with work that may fail.
    pub fn try_each(&self, count: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
        match &self.0 {
            Some(pool) if count > 1 => {
                pool.install(|| (0..count).into_par_iter().try_for_each(&work))
            }
            _ => (0..count).try_for_each(&work),
        }
    }

    /// [`Self::each`] in runs of neighbours, for work that is short.
    pub fn each_row(&self, count: usize, work: impl Fn(usize) + Sync) {
        let run = |index: usize| {
            (index * ROWS..count.min((index + 1) * ROWS)).for_each(&work);
        };
        self.each(count.div_ceil(ROWS), run);
    }
}
