//! Where quantized weights are kept between processes.
//!
//! Several processes may load the same model at once. A file therefore appears by rename, whole; whoever has the one
//! before mapped keeps it. What is wrong with a file is for its reader to find, see [`super::Int8Weights::load`].

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use memmap2::Mmap;

/// The file for weights with this digest.
#[must_use]
pub fn file(folder: &Path, source_digest: &str) -> PathBuf {
    let version = super::scheme::VERSION;
    folder.join(format!(
        "quantized/int8-v{version}-{source_digest}.safetensors"
    ))
}

/// The ending of a file that is being written, and the time after which it will not be finished any more.
const PARTIAL: &str = "part";
const ABANDONED: Duration = Duration::from_hours(1);

/// This package's cache folder: `SEMANTIC_SEARCH_CACHE`, else a folder where the system wants caches. `None` where the
/// environment does not even name a home.
#[must_use]
pub fn default_folder() -> Option<PathBuf> {
    let set = |name: &str| {
        let value: OsString = std::env::var_os(name)?;
        (!value.is_empty()).then(|| PathBuf::from(value))
    };
    set("SEMANTIC_SEARCH_CACHE").or_else(|| {
        let base = if cfg!(windows) {
            set("LOCALAPPDATA")
        } else {
            let in_home = if cfg!(target_os = "macos") {
                "Library/Caches"
            } else {
                ".cache"
            };
            set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(in_home)))
        };
        Some(base?.join("semantic-search-native"))
    })
}

/// The file mapped into memory, if there is one.
pub(super) fn open(path: &Path) -> Option<Mmap> {
    let file = File::open(path).ok()?;
    // SAFETY: the mapping is read-only, and files of this folder are replaced by rename, never rewritten in place.
    unsafe { Mmap::map(&file) }.ok()
}

/// Writes the file and maps it; `None` where the folder does not allow that.
pub(super) fn store(path: &Path, bytes: &[u8]) -> Option<Mmap> {
    /// Tells apart the threads of this process that write the same file.
    static WRITERS: AtomicU32 = AtomicU32::new(0);
    let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
    let partial = path.with_extension(format!("{}-{writer}.{PARTIAL}", std::process::id()));
    let folder = path.parent().unwrap_or(Path::new("."));
    let written = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        remove_abandoned(folder)?;
        let mut file = File::create_new(&partial)?;
        file.write_all(bytes)?;
        // A file that is there after a crash of the machine must be whole, or readers would find it damaged.
        file.sync_all()?;
        drop(file);
        std::fs::rename(&partial, path)
    };
    if written().is_err() {
        let _ = std::fs::remove_file(&partial);
        return None;
    }
    open(path)
}

/// Removes what writers left that were killed.
fn remove_abandoned(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_abandoned = || -> std::io::Result<bool> {
            let age = path.metadata()?.modified()?.elapsed();
            Ok(age.is_ok_and(|age| age > ABANDONED))
        };
        if path.extension().is_some_and(|ending| ending == PARTIAL)
            && is_abandoned().unwrap_or(false)
        {
            let _ = std::fs::remove_file(path);
        }
    }
    Ok(())
}
