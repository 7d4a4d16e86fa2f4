//! Results outside the source tree, each in a folder named by a hash of its inputs.
//!
//! A folder appears by rename when it is complete: what exists can be used, an interrupted run leaves nothing that counts.
//! Because a changed input means a changed path, cargo notices too: it does not look into registry crates' libraries.

use std::env;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Ending of what is not complete yet.
const PARTIAL: &str = "partial";

/// The cache folder of one MLX build, locked against a second run.
pub struct Cache {
    folder: PathBuf,
    /// Released by the operating system when the process ends, however it ends.
    _lock: File,
}

impl Cache {
    /// Opens the cache of a build, whose name says what cannot be mixed; waits while another run holds it.
    pub fn open(build: &str) -> Result<Self> {
        let folder = root()?.join("mlx").join(build);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create the cache folder {}", folder.display()))?;
        let path = folder.join(".lock");
        let lock = File::create(&path)
            .and_then(|lock| lock.lock().map(|()| lock))
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    /// The folder that `fill` makes from `inputs`, its own source code among them; `fill` runs only if that has not been
    /// done, and gets an empty folder.
    pub fn step(
        &self,
        name: &str,
        inputs: &impl Hash,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        inputs.hash(&mut hasher);
        let done = self.folder.join(format!("{name}-{:016x}", hasher.finish()));
        if done.is_dir() {
            return Ok(done);
        }
        let partial = self.folder.join(format!("{name}.{PARTIAL}"));
        if partial.exists() {
            fs::remove_dir_all(&partial)
                .with_context(|| format!("cannot remove {}", partial.display()))?;
        }
        fs::create_dir(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
        fill(&partial)?;
        fs::rename(&partial, &done).with_context(|| {
            format!("cannot rename {} to {}", partial.display(), done.display())
        })?;
        Ok(done)
    }

    /// Puts a file of this content in place, whole or not at all; leaves an equal one alone.
    pub fn write_file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        if !fs::read_to_string(&path).is_ok_and(|existing| existing == content) {
            let partial = path.with_extension(PARTIAL);
            fs::write(&partial, content)
                .and_then(|()| fs::rename(&partial, &path))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(path)
    }
}

fn root() -> Result<PathBuf> {
    let root = env::var_os("SEMANTIC_SEARCH_CACHE")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .context("no cache folder: set SEMANTIC_SEARCH_CACHE, as `npm run build:native` does")?;
    // The paths end up in a configuration that is read from other folders.
    std::path::absolute(&root).with_context(|| format!("cannot resolve {}", root.display()))
}
