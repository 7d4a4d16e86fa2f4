//! Texts of any length are tokenized in little memory. A test binary of its own, since it counts what is allocated.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use semantic_search_native::model_dir::ModelDir;
use semantic_search_native::tokenizer::{TokenizedText, Tokenizer};

/// Bytes that are allocated, and the most that were at a time.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: leaves everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let allocated = ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(allocated, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above; `pointer` came from there.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const TEXT_BYTES: usize = 20_000_000;
const MOST_BYTES: usize = 4_000_000;

#[test]
fn memory_does_not_grow_with_the_text() {
    for truncate_left in [false, true] {
        let mut model = ModelDir::read(&setup::fixture("bert_mean"), &setup::options()).unwrap();
        model.truncate_left = truncate_left;
        model.lower_case = true;
        let tokenizer = Tokenizer::load(&model).unwrap();
        let empty = tokenizer.tokenize("", false).unwrap().ids.len();
        for (unit, tokens_of_text) in [
            ("!", usize::MAX),
            ("[", usize::MAX),
            ("]", usize::MAX),
            ("\u{6f22}", usize::MAX),
            ("the time ", usize::MAX),
            (" \u{200b}the", usize::MAX),
            ("a", 1),
            ("\u{1100}\u{1161}", 1),
            ("a\u{301}\u{300}", 1),
            (" ", 0),
            ("\u{200b}", 0),
            ("\u{301}", 0),
            ("\0\u{fffd} \u{301}", 0),
        ] {
            let text = unit.repeat(TEXT_BYTES / unit.len());
            let before = ALLOCATED.load(Ordering::Relaxed);
            PEAK.store(before, Ordering::Relaxed);
            let TokenizedText { ids, truncated, .. } = tokenizer.tokenize(&text, false).unwrap();
            let taken = PEAK.load(Ordering::Relaxed) - before;
            let what = format!("20 MB of {unit:?}, truncate_left: {truncate_left}");
            assert!(taken < MOST_BYTES, "{what}: {taken} bytes");
            assert_eq!(truncated, tokens_of_text == usize::MAX, "{what}");
            let expected = model.max_tokens.min(empty.saturating_add(tokens_of_text));
            assert_eq!(ids.len(), expected, "{what}");
        }
    }
}
