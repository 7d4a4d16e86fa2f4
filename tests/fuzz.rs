//! The fuzz targets without libFuzzer: what once broke them, and a fixed number of mutations with fixed seeds.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../fuzz/src/mutation.rs"]
mod mutation;
mod setup;
#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use targets::Target;

/// Far more than any input takes, also on a busy machine or below valgrind.
const LONGEST: Duration = Duration::from_mins(5);

/// Checks the corpus, the seeds and so many mutations of each of both. An input that ends the process, or never
/// ends, is found in the file that a failure names.
fn fuzz(name: &'static str, mutations: u64) {
    let mutations = mutations * times();
    let target = targets::named(name);
    let tried = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
    let shown = tried.clone();
    let (progress, watched) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut accepted = 0;
        let mut check = |input: &[u8]| {
            std::fs::write(&tried, input).unwrap();
            accepted += u64::from((target.check)(input));
            progress.send(()).unwrap();
        };
        let seeds = [corpus(target), (target.seeds)()].concat();
        for seed in &seeds {
            check(seed);
        }
        for number in 0..mutations {
            let seed = &seeds[number as usize % seeds.len()];
            check(&mutation::mutate(target.format, seed, number));
        }
        accepted
    });
    let accepted = loop {
        match watched.recv_timeout(LONGEST) {
            Ok(()) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break thread.join().ok(),
            Err(mpsc::RecvTimeoutError::Timeout) => break None,
        }
    };
    let Some(accepted) = accepted else {
        panic!(
            "{} failed or hung: cargo fuzz run {name} {0}",
            shown.display()
        );
    };
    assert!(
        accepted >= mutations / 100,
        "only {accepted} inputs get past the first checks"
    );
}

/// How many times more than usual is tried: the environment variable `FUZZ_TIMES`.
fn times() -> u64 {
    std::env::var("FUZZ_TIMES").map_or(1, |times| times.parse().unwrap())
}

/// Inputs that once broke the target.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(target.name);
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

#[test]
fn batch() {
    fuzz("batch", 3000);
}

#[test]
fn checkpoint() {
    fuzz("checkpoint", 500);
}

#[test]
fn encoder() {
    fuzz("encoder", 200);
}

#[test]
fn model_folder() {
    fuzz("model_folder", 500);
}

#[test]
fn tokenizer() {
    fuzz("tokenizer", 300);
}
