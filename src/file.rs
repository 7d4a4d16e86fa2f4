//! How a model's files are opened: regular files only, each read once, up to a size limit.
//!
//! A named pipe would keep a reader waiting for ever and a device never ends, so neither is read, even through links. The
//! same bytes are hashed, parsed and computed with: a file that changes during or after the read cannot make them differ.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Most bytes of a settings file. The largest in use, the index of a large model's shards, has a few hundred kilobytes.
pub const MOST_SETTINGS: u64 = 16 << 20;

/// Most bytes of a `tokenizer.json`. The largest multilingual vocabularies take 33 MB.
pub const MOST_TOKENIZER: u64 = 256 << 20;

/// Opens a regular file, or a link to one. Also returns its length in bytes.
pub fn open(path: &Path) -> Result<(File, u64)> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        // Otherwise, opening a named pipe waits for its writer. On a regular file the flag has no effect.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    }
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        let found = if metadata.is_dir() {
            "a folder"
        } else {
            "a pipe, a socket or a device"
        };
        let problem = format!("expected a regular file, found {found}");
        return Err(Error::new(ErrorKind::InvalidInput, problem));
    }
    Ok((file, metadata.len()))
}

/// Writes a file that is there as a whole or not at all: under another name beside it, which it is then given.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let partial = path.with_file_name(name);
    std::fs::write(&partial, bytes)
        .and_then(|()| std::fs::rename(&partial, path))
        .inspect_err(|_| {
            let _ = std::fs::remove_file(&partial);
        })
}

/// The bytes of a regular file that has at most `most`.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let (file, length) = open(path)?;
    let mut bytes = Vec::new();
    if length <= most {
        // One more than its length: a file may grow while it is read, and some report no length.
        bytes
            .try_reserve_exact(length as usize + 1)
            .map_err(|_| Error::from(ErrorKind::OutOfMemory))?;
        file.take(most + 1).read_to_end(&mut bytes)?;
    }
    if length.max(bytes.len() as u64) > most {
        let found = length.max(bytes.len() as u64);
        let problem = format!("expected at most {most} bytes, found {found}");
        return Err(Error::new(ErrorKind::InvalidData, problem));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_whatever_the_file_says_about_its_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert_eq!(read(&path, 4).unwrap_err().kind(), ErrorKind::InvalidData);
        // Files of /proc have the length 0 and contents all the same.
        #[cfg(target_os = "linux")]
        {
            let endless = Path::new("/proc/self/maps");
            assert_eq!(endless.metadata().unwrap().len(), 0);
            assert_eq!(read(endless, 9).unwrap_err().kind(), ErrorKind::InvalidData);
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| read(path, MOST_SETTINGS).unwrap_err().to_string();
        assert!(!refused(folder.path()).is_empty());
        #[cfg(unix)]
        {
            let pipe = folder.path().join("pipe");
            make_pipe(&pipe);
            let zero = folder.path().join("zero");
            std::os::unix::fs::symlink("/dev/zero", &zero).unwrap();
            for path in [&pipe, &zero] {
                assert!(refused(path).contains("expected a regular file"));
            }
        }
    }

    #[cfg(unix)]
    fn make_pipe(path: &Path) {
        let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a terminated string.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    }
}
