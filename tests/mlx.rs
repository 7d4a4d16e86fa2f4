//! What is particular to MLX: number formats, padding, memory, threads and errors. The goldens, the oracle and the properties
//! run on MLX as on every backend.

#![cfg(mlx)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::sync::Arc;

use proptest::prelude::*;
use semantic_search_native::batch;
use semantic_search_native::checkpoint::Checkpoint;
use semantic_search_native::options::{Backend, Dtype, Options};
use semantic_search_native::runtime::mlx;
use semantic_search_native::{Embeddings, Error, Model};

/// Fixtures of architectures whose numbers exceed float16; see `tests/errors.rs`.
const REFUSE_F16: [&str; 3] = ["gemma3", "qwen2", "qwen3"];

fn load(fixture: &str, backend: Backend, dtype: Dtype) -> Model {
    let options = Options {
        dtype,
        max_tokens: Some(64),
        ..setup::options_for(backend)
    };
    Model::load(&setup::fixture(fixture), &options).unwrap()
}

fn rows<'a>(model: &Model, embeddings: &'a Embeddings) -> Vec<&'a [f32]> {
    embeddings
        .vectors
        .chunks_exact(model.dir().dimension())
        .collect()
}

/// Texts of many lengths.
fn texts(count: usize) -> Vec<String> {
    (0..count)
        .map(|i| format!("text {i} {}", "some words and x = y + 1; ".repeat(i % 9)))
        .collect()
}

#[test]
fn every_fixture_equals_onnx() {
    for fixture in setup::FIXTURES.iter() {
        let onnx = load(fixture, Backend::Onnx, Dtype::F32);
        let mlx = load(fixture, Backend::Mlx, Dtype::F32);
        assert_eq!(mlx.backend(), "mlx");
        assert_eq!(
            mlx.fingerprint(),
            onnx.fingerprint(),
            "the same vectors under the same name"
        );
        let expected = onnx.embed(texts(40), false).unwrap();
        let actual = mlx.embed(texts(40), false).unwrap();
        for (row, other) in rows(&mlx, &actual).iter().zip(rows(&onnx, &expected)) {
            setup::assert_equal(fixture, row, other);
        }
    }
}

#[test]
fn half_precision_stays_close() {
    for fixture in setup::FIXTURES.iter() {
        let exact = load(fixture, Backend::Mlx, Dtype::F32);
        let expected = exact.embed(texts(12), false).unwrap();
        for dtype in [Dtype::F16, Dtype::BF16] {
            if dtype == Dtype::F16 && REFUSE_F16.contains(&fixture.as_str()) {
                continue;
            }
            let half = load(fixture, Backend::Mlx, dtype);
            assert_ne!(half.fingerprint(), exact.fingerprint());
            let actual = half.embed(texts(12), false).unwrap();
            for (row, other) in rows(&half, &actual).iter().zip(rows(&exact, &expected)) {
                let cosine = setup::cosine(row, other);
                // bfloat16 has eight bits, and attention of random weights is peakier than a trained model's.
                let least = if dtype == Dtype::F16 { 0.9995 } else { 0.999 };
                assert!(cosine >= least, "{fixture} {dtype:?}: cosine {cosine}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// The neighbours of a text decide what it is padded to, and nothing else.
    #[test]
    fn padding_changes_nothing(words in prop::collection::vec(0_usize..60, 1..12), fixture in 0..setup::ENCODERS.len()) {
        let model = load(&setup::ENCODERS[fixture], Backend::Mlx, Dtype::F32);
        let texts: Vec<String> = words.iter().map(|&count| "word x1 ".repeat(count)).collect();
        let together = model.embed(texts.clone(), false).unwrap();
        for (text, row) in texts.iter().zip(rows(&model, &together)) {
            let alone = model.embed(vec![text.clone()], false).unwrap();
            setup::assert_equal("batched = single", row, &alone.vectors);
        }
    }
}

/// Texts beyond the trained length in one call: each is rotated by its own length, whatever its neighbours.
#[test]
fn dynamic_scaling_depends_on_a_text_alone() {
    let options = |backend| Options {
        max_tokens: Some(4096),
        ..setup::options_for(backend)
    };
    let path = setup::fixture("nomic_mean_dynamic");
    let mlx = Model::load(&path, &options(Backend::Mlx)).unwrap();
    let onnx = Model::load(&path, &options(Backend::Onnx)).unwrap();
    let texts: Vec<String> = [3, 700, 1020, 1030, 1250, 1250, 1251]
        .iter()
        .map(|&n| "alpha 7 ".repeat(n))
        .collect();
    let actual = mlx.embed(texts.clone(), false).unwrap();
    let expected = onnx.embed(texts, false).unwrap();
    for (row, other) in rows(&mlx, &actual).iter().zip(rows(&onnx, &expected)) {
        setup::assert_equal("scaled", row, other);
    }
}

/// This repository's own code, cut where a block ends at the margin: what batches pad is at most 15 % of it.
#[test]
fn padding_of_real_code_is_small() {
    let model = Model::load(&setup::starter_model(), &setup::options()).unwrap();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut lengths = Vec::new();
    for folder in [
        "src",
        "src/arch",
        "src/graph",
        "src/runtime/onnx",
        "src/runtime/mlx",
        "tests",
    ] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(path).unwrap();
                let blocks = source
                    .split("\n}\n")
                    .map(|block| model.tokenize(block, false).unwrap().ids.len());
                lengths.extend(blocks);
            }
        }
    }
    assert!(lengths.len() > 200);
    let dir = model.dir();
    let checkpoint = Checkpoint::open(&dir.path, &dir.weights).unwrap();
    let graph = dir.encoder.record(&checkpoint).unwrap();
    for is_gpu in [false, true] {
        let limits = mlx::limits(is_gpu, &graph, None);
        let batches = batch::plan(&lengths, limits);
        let padded: usize = batches
            .iter()
            .map(|texts| batch::bucket(lengths[texts[0]]) * texts.len())
            .sum();
        let real: usize = lengths.iter().sum();
        let ratio = padded as f64 / real as f64;
        assert!(
            ratio <= 1.15,
            "{ratio} with {} texts in {} batches",
            lengths.len(),
            batches.len()
        );
        eprintln!(
            "padded / real {ratio:.3}: {} texts in {} batches",
            lengths.len(),
            batches.len()
        );
    }
}

#[test]
fn auto_takes_mlx_on_a_gpu_only() {
    let options = Options {
        backend: Backend::Auto,
        ..setup::options()
    };
    let model = Model::load(&setup::fixture("bert_mean"), &options).unwrap();
    let has_gpu = mlx::has_gpu().unwrap();
    assert_eq!(model.is_gpu(), has_gpu);
    assert_eq!(model.backend(), if has_gpu { "mlx" } else { "onnx" });
    assert_eq!(model.fallback_reason().is_none(), has_gpu);
    if let Some(reason) = model.fallback_reason() {
        assert!(reason.contains("mlx") && reason.contains("GPU"), "{reason}");
    }
}

#[test]
fn loading_and_dropping_many_times_keeps_memory_bounded() {
    let cycle = || {
        let model = load("nomic_cls", Backend::Mlx, Dtype::F32);
        model.embed(texts(4), false).unwrap();
        model.close();
        mlx::memory().unwrap()
    };
    let first = cycle();
    for _ in 0..199 {
        let now = cycle();
        assert!(
            now.active_bytes <= first.active_bytes + 4096,
            "{now:?} after {first:?}"
        );
    }
}

#[test]
fn a_dropped_model_returns_its_memory() {
    let before = mlx::memory().unwrap().active_bytes;
    let model = load("bert_mean", Backend::Mlx, Dtype::F32);
    assert!(mlx::memory().unwrap().active_bytes > before + 200_000);
    drop(model);
    // Threads of a dropped model end by themselves.
    for _ in 0..500 {
        if mlx::memory().unwrap().active_bytes <= before {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!(
        "memory is still in use: {:?}, {before} before",
        mlx::memory()
    );
}

#[test]
fn thousands_of_shapes_leave_a_bounded_cache() {
    let model = load("nomic_cls", Backend::Mlx, Dtype::F32);
    let mut random = 1_u32;
    let mut next = |bound: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 16) % bound
    };
    for _ in 0..2000 {
        let texts = (0..=next(3))
            .map(|i| format!("{i} {}", "w ".repeat(next(60) as usize)))
            .collect();
        model.embed(texts, false).unwrap();
    }
    let memory = mlx::memory().unwrap();
    assert!(memory.cache_bytes <= (1 << 30) + (1 << 20), "{memory:?}");
    assert!(memory.active_bytes < 64 << 20, "{memory:?}");
}

#[test]
fn several_models_and_backends_from_many_threads() {
    let models: Vec<Arc<Model>> = [
        load("nomic_cls", Backend::Mlx, Dtype::F32),
        load("bert_mean", Backend::Mlx, Dtype::F32),
        load("bert_mean", Backend::Onnx, Dtype::F32),
    ]
    .into_iter()
    .map(Arc::new)
    .collect();
    let expected: Vec<Embeddings> = models
        .iter()
        .map(|model| model.embed(texts(20), false).unwrap())
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (models, expected) = (&models, &expected);
            scope.spawn(move || {
                for round in 0..10 {
                    let which = (thread + round) % models.len();
                    let actual = models[which].embed(texts(20), false).unwrap();
                    for (row, other) in rows(&models[which], &actual)
                        .iter()
                        .zip(rows(&models[which], &expected[which]))
                    {
                        setup::assert_equal("threads", row, other);
                    }
                }
            });
        }
    });
}

#[test]
fn a_memory_limit_is_an_error_and_the_next_call_works() {
    let model = load("bert_mean", Backend::Mlx, Dtype::F32);
    let limit = mlx::set_memory_limit(mlx::memory().unwrap().active_bytes + 1000).unwrap();
    let refused = model.embed(texts(30), false);
    let options = setup::options_for(Backend::Mlx);
    let not_loaded = Model::load(&setup::fixture("nomic_cls"), &options);
    mlx::set_memory_limit(limit).unwrap();

    let error = refused.unwrap_err();
    assert_eq!(error.code(), "RESOURCE_EXHAUSTED");
    assert!(error.to_string().contains("maxTokens"), "{error}");
    let error = not_loaded.err().unwrap();
    assert!(
        matches!(error, Error::BackendUnavailable { backend: "mlx", .. }),
        "{error}"
    );
    assert_eq!(
        rows(&model, &model.embed(texts(30), false).unwrap()).len(),
        30
    );
}

/// The limit is the process's, so a process of its own has it.
#[cfg(target_os = "linux")]
#[test]
fn a_thread_that_was_refused_once_is_not_refused_for_ever() {
    const IS_CHILD: &str = "SEMANTIC_SEARCH_TEST_IS_CHILD";
    const STACK: usize = 1 << 30;
    if std::env::var_os(IS_CHILD).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "a_thread_that_was_refused_once_is_not_refused_for_ever",
        ]);
        child.env(IS_CHILD, "1");
        child.env("RUST_MIN_STACK", STACK.to_string());
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
        return;
    }
    let mut before = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `before` is valid for the call.
    let status = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut before) };
    assert_eq!(status, 0);
    let limit_to = |most: libc::rlim_t| {
        let limit = libc::rlimit {
            rlim_cur: most,
            ..before
        };
        // SAFETY: the limit is valid for the call.
        let status = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
        assert_eq!(status, 0);
    };
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').next().unwrap().parse().unwrap();
    // SAFETY: has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    limit_to((pages * page + STACK / 2) as libc::rlim_t);
    let error = mlx::memory().unwrap_err();
    assert_eq!(error.code(), "RESOURCE_EXHAUSTED", "{error}");
    limit_to(before.rlim_cur);
    mlx::memory().unwrap();
}
