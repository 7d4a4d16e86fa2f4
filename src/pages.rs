//! Private memory in whole pages. Nobody else can change what is loaded into it, and parts that are no longer read can be
//! returned to the system while the rest stays in place.

use std::io::{ErrorKind, Read};
use std::ops::{Deref, DerefMut, Range};

use memmap2::MmapMut;

use crate::error::{Error, Result};

/// A block of memory, aligned to a page.
pub struct Pages {
    map: MmapMut,
}

impl Pages {
    /// Zeros, which take memory only when they are accessed.
    ///
    /// # Errors
    /// There is no memory for them; the message says `what` it was needed for.
    pub fn zeroed(length: usize, what: &str) -> Result<Self> {
        match MmapMut::map_anon(length) {
            Ok(map) => Ok(Self { map }),
            Err(_) => Err(Error::no_memory(length, what)),
        }
    }

    /// Fills all of it from a reader.
    pub fn fill(&mut self, mut reader: impl Read) -> std::io::Result<()> {
        reader
            .read_exact(&mut self.map)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => {
                    let problem = "it became shorter while it was read";
                    std::io::Error::new(ErrorKind::UnexpectedEof, problem)
                }
                _ => error,
            })
    }

    /// Returns all whole pages that overlap none of the ranges of addresses to the system. From then on their contents are
    /// undefined. If the system does not take them, they stay.
    ///
    /// # Safety
    /// Nothing outside of the ranges is referred to or read any more, on any thread.
    pub unsafe fn keep_only(&self, kept: &[Range<usize>]) {
        let own = addresses(&self.map);
        let mut kept: Vec<&Range<usize>> = kept
            .iter()
            .filter(|range| own.start <= range.start && range.end <= own.end)
            .collect();
        kept.sort_by_key(|range| range.start);
        let mut from = own.start;
        for range in kept {
            // SAFETY: by the contract of this function nobody reads what lies between the ranges.
            unsafe { give_back(from..range.start) };
            from = from.max(range.end);
        }
        // SAFETY: as above. The mapping itself extends to the end of its last page.
        unsafe { give_back(from..own.end.next_multiple_of(page_size())) };
    }
}

/// Where bytes lie, as addresses.
pub fn addresses(bytes: &[u8]) -> Range<usize> {
    let range = bytes.as_ptr_range();
    range.start as usize..range.end as usize
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }
}

#[cfg(unix)]
fn page_size() -> usize {
    // SAFETY: has no preconditions.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

#[cfg(not(unix))]
fn page_size() -> usize {
    4096
}

/// Returns the whole pages in a range of addresses to the system.
///
/// # Safety
/// They belong to one anonymous mapping, and nobody reads them any more.
#[cfg(unix)]
unsafe fn give_back(range: Range<usize>) {
    // Systems other than Linux take `MADV_DONTNEED` as a hint about what will be read next.
    const ADVICE: libc::c_int = if cfg!(target_os = "linux") {
        libc::MADV_DONTNEED
    } else {
        libc::MADV_FREE
    };
    let start = range.start.next_multiple_of(page_size());
    let end = range.end - range.end % page_size();
    if start < end {
        // SAFETY: whole pages of a mapping of ours, by the contract of this function. A refusal changes nothing.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, ADVICE) };
    }
}

/// Windows backs this memory by its paging file, and moves what nobody reads there.
#[cfg(not(unix))]
unsafe fn give_back(_: Range<usize>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_stays() {
        let page = page_size();
        let mut pages = Pages::zeroed(16 * page + 7, "the test").unwrap();
        pages.fill(std::io::repeat(1)).unwrap();
        let start = pages.as_ptr() as usize;
        let kept = [
            9 * page + 5..9 * page + 6,
            2 * page..4 * page,
            15 * page..16 * page + 7,
        ];
        // Of another block: none of this one's affair.
        let foreign = start + 100 * page..start + 101 * page;
        let addresses: Vec<_> = kept
            .iter()
            .map(|range| start + range.start..start + range.end)
            .chain(std::iter::once(foreign))
            .collect();
        // SAFETY: the test reads zeros where it gave memory back.
        unsafe { pages.keep_only(&addresses) };
        for range in kept {
            assert!(pages[range].iter().all(|byte| *byte == 1));
        }
        if cfg!(target_os = "linux") {
            let given_back = [0..2 * page, 4 * page..9 * page, 10 * page..15 * page];
            for range in given_back {
                assert!(pages[range].iter().all(|byte| *byte == 0));
            }
        }
    }

    #[test]
    fn more_than_there_is_cannot_be_had() {
        let refused = Pages::zeroed(usize::MAX / 4, "the test").err().unwrap();
        assert_eq!(refused.code(), "RESOURCE_EXHAUSTED");
        let mut pages = Pages::zeroed(4, "the test").unwrap();
        let problem = pages.fill(&b"123"[..]).unwrap_err();
        assert!(problem.to_string().contains("shorter"));
    }
}
