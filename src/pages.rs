//! Memory of this process alone, in whole pages: what is loaded into it nobody else can change, and parts that are not
//! read any more can be given back while the rest stays where it is.

use std::io::{ErrorKind, Read, Result};
use std::ops::{Deref, DerefMut, Range};

use memmap2::MmapMut;

use crate::file;

/// A block of memory, aligned to a page.
pub struct Pages {
    map: MmapMut,
}

impl Pages {
    /// Zeros, which take memory once they are written or read.
    pub fn zeroed(length: usize) -> Result<Self> {
        let map = MmapMut::map_anon(length).map_err(|_| file::no_memory(length as u64))?;
        Ok(Self { map })
    }

    /// The next `length` bytes of a reader.
    pub fn read(reader: &mut impl Read, length: usize) -> Result<Self> {
        let mut pages = Self::zeroed(length)?;
        pages.fill(reader)?;
        Ok(pages)
    }

    /// A copy.
    pub fn copy(bytes: &[u8]) -> Result<Self> {
        let mut pages = Self::zeroed(bytes.len())?;
        pages.copy_from_slice(bytes);
        Ok(pages)
    }

    fn fill(&mut self, reader: &mut impl Read) -> Result<()> {
        reader.read_exact(self).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => {
                let problem = "it became shorter while it was read";
                std::io::Error::new(ErrorKind::UnexpectedEof, problem)
            }
            _ => error,
        })
    }

    /// Gives the system back whatever lies in none of the ranges of addresses, as far as that is whole pages. It reads as
    /// anything from now on. Where the system does not take it, it stays.
    ///
    /// # Safety
    /// What lies outside of the ranges is neither referred to nor read any more, on any thread.
    pub unsafe fn keep_only(&self, kept: &[Range<usize>]) {
        let own = self.map.as_ptr_range();
        let own = own.start as usize..own.end as usize;
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
        // SAFETY: as above. The mapping itself goes on to the end of its last page.
        unsafe { give_back(from..own.end.next_multiple_of(page_size())) };
    }
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

/// Gives back the whole pages of a range of addresses.
///
/// # Safety
/// They belong to one anonymous mapping, and nobody reads them any more.
#[cfg(unix)]
unsafe fn give_back(range: Range<usize>) {
    // Others than Linux take `MADV_DONTNEED` for a hint about what will be read next.
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

/// Windows backs this memory by its paging file, to which it moves what nobody reads.
#[cfg(not(unix))]
unsafe fn give_back(_: Range<usize>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_stays() {
        let page = page_size();
        let mut pages = Pages::zeroed(16 * page + 7).unwrap();
        pages.fill(&mut std::io::repeat(1)).unwrap();
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
        assert!(Pages::zeroed(usize::MAX / 4).is_err());
        let problem = Pages::read(&mut &b"123"[..], 4).err().unwrap();
        assert!(problem.to_string().contains("shorter"));
    }
}
