//! Where quantized weights are kept between processes.
//!
//! Several processes may load the same model at once, so a file appears complete, by renaming. Its reader detects damage, see
//! [`super::Int8Weights::load`].
//!
//! The digest in a file reveals damage, but not forgery: whoever can write to the folder can compute it, too. So folder and
//! files are accessible to their user only, and are used only if nobody but that user, or root, can have written them. On
//! Windows that is left to the access rights of the user's profile.

use std::fs::{DirBuilder, Metadata, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::file;
use crate::pages::Pages;

/// The file for weights with this digest.
#[must_use]
pub fn file(folder: &Path, source_digest: &str) -> PathBuf {
    let version = super::scheme::VERSION;
    folder.join(format!(
        "quantized/int8-v{version}-{source_digest}.safetensors"
    ))
}

/// The extension of a file that is being written, and the age at which it is considered abandoned.
const PARTIAL: &str = "part";
const ABANDONED: Duration = Duration::from_hours(1);

/// The bytes of the file, if it exists, has at most `most` bytes and can be trusted. A folder that cannot be trusted is an
/// error, worded for the user: nothing is stored there either.
pub(super) fn read(path: &Path, most: u64) -> Result<Option<Pages>, String> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let Ok(metadata) = folder.metadata() else {
        return Ok(None);
    };
    if let Err(problem) = check_private(&metadata) {
        let folder = folder.display();
        return Err(format!(
            "the int8 weights kept in {folder} are not used: {problem}; `chmod go-w` it, remove it, or name another cache \
             folder with the environment variable SEMANTIC_SEARCH_CACHE"
        ));
    }
    let read = || {
        let (file, length) = file::open(path).ok()?;
        check_private(&file.metadata().ok()?).ok()?;
        let length = usize::try_from(length).ok().filter(|_| length <= most)?;
        let mut pages = Pages::zeroed(length, "int8 weights").ok()?;
        pages.fill(file).ok()?;
        Some(pages)
    };
    Ok(read())
}

/// Checks that only its user or root can have written it; otherwise says who else can.
#[cfg(unix)]
fn check_private(metadata: &Metadata) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    const WRITTEN_BY_OTHERS: u32 = 0o022;
    // SAFETY: has no preconditions.
    let user = unsafe { libc::geteuid() };
    if metadata.uid() != user && metadata.uid() != 0 {
        let owner = metadata.uid();
        return Err(format!("it belongs to another user ({owner}, not {user})"));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & WRITTEN_BY_OTHERS != 0 {
        return Err(format!(
            "others than its owner may write there (mode {mode:o})"
        ));
    }
    Ok(())
}

#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps, reason = "the signature of every system")]
fn check_private(_: &Metadata) -> Result<(), String> {
    Ok(())
}

/// Writes the file, if the folder allows that.
pub(super) fn store(path: &Path, bytes: &[u8]) {
    /// Distinguishes the threads of this process that write the same file.
    static WRITERS: AtomicU32 = AtomicU32::new(0);
    let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
    let partial = path.with_extension(format!("{}-{writer}.{PARTIAL}", std::process::id()));
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut for_folder = DirBuilder::new();
    for_folder.recursive(true);
    let mut for_file = OpenOptions::new();
    for_file.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        for_folder.mode(0o700);
        for_file.mode(0o600);
    }
    let written = || -> std::io::Result<()> {
        for_folder.create(folder)?;
        remove_abandoned(folder)?;
        let mut file = for_file.open(&partial)?;
        file.write_all(bytes)?;
        // After a crash of the machine the file must be complete or absent, or readers would find it damaged.
        file.sync_all()?;
        drop(file);
        std::fs::rename(&partial, path)
    };
    if written().is_err() {
        let _ = std::fs::remove_file(&partial);
    }
}

/// Removes what killed writers have left behind.
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
