//! Causal attention of a long text in little memory. A test binary of its own, since it looks at the whole process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use semantic_search_native::options::Options;
use semantic_search_native::{Input, Model};

const LENGTH: usize = 8192;

/// A line of `/proc/self/status`, in bytes.
fn status(key: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    let kilobytes = line.split_whitespace().nth(1).unwrap();
    kilobytes.parse::<usize>().unwrap() << 10
}

/// All scores of a layer would take 1 GB.
#[test]
fn scores_are_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    setup::copy(&setup::fixture("qwen3"), folder.path());
    for (file, key) in [
        ("config.json", "max_position_embeddings"),
        ("tokenizer_config.json", "model_max_length"),
    ] {
        let path = folder.path().join(file);
        let mut json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json[key] = LENGTH.into();
        std::fs::write(path, json.to_string()).unwrap();
    }
    let options = Options {
        max_tokens: Some(LENGTH),
        threads: Some(2),
        ..setup::options()
    };
    let model = Model::load(folder.path(), &options).unwrap();
    let before = status("VmRSS:");
    let ids: Vec<u32> = (0..LENGTH as u32).map(|place| place * 7 % 600).collect();
    let embedded = model.embed(vec![Input::from(ids)], false).unwrap();
    assert_eq!((embedded.tokens, &*embedded.truncated), (LENGTH, &[][..]));
    let taken = status("VmHWM:") - before;
    assert!(taken < 300 << 20, "{} MB", taken >> 20);
}
