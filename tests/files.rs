//! Files of a model that change while it is loaded or used, and files that are none.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use semantic_search_native::checkpoint::{Checkpoint, TensorSlice, WeightType};
use semantic_search_native::graph::Op;
use semantic_search_native::model_dir::ModelDir;
use semantic_search_native::options::{Backend, Dtype, Options};
use semantic_search_native::{Error, Model, runtime};
use serde_json::{Value, json};

fn options(dtype: Dtype) -> Options {
    Options {
        dtype,
        threads: Some(2),
        backend: Backend::Auto,
        ..setup::options()
    }
}

fn copy(fixture: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    setup::copy(&setup::fixture(fixture), folder.path());
    folder
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

/// Writes into the file as it is, without a new one in its place.
fn overwrite(file: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(file).unwrap();
    file.write_all(bytes).unwrap();
}

fn shorten(file: &Path) {
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(0).unwrap();
}

fn texts() -> Vec<String> {
    ["", "a", "fn area(r: f64) -> f64 { 3.14 * r * r }"]
        .map(str::to_owned)
        .to_vec()
}

fn embed(model: &Model) -> Vec<f32> {
    model.embed(texts(), false).unwrap().vectors
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() <= 1e-5,
            "{what}: {found} is not {expected}"
        );
    }
}

/// Overwritten with other weights, then shortened to nothing, as `cp` and synchronised folders do it.
#[test]
fn a_loaded_model_does_not_depend_on_its_files() {
    for fixture in setup::ENCODERS.iter() {
        for dtype in [Dtype::F32, Dtype::Int8] {
            let what = format!("{fixture}, {dtype:?}");
            let folder = copy(fixture);
            let model = Model::load(folder.path(), &options(dtype)).unwrap();
            let expected = embed(&model);
            let all = files(folder.path());
            for file in &all {
                let length = file.metadata().unwrap().len() as usize;
                overwrite(file, &vec![0; length]);
            }
            assert_near(&embed(&model), &expected, &what);
            for file in &all {
                shorten(file);
            }
            assert_near(&embed(&model), &expected, &what);
            assert!(Model::load(folder.path(), &options(dtype)).is_err());
        }
    }
}

/// Two versions of the weights take turns in one file while the model is loaded again and again. What was read may be
/// neither, but then it is not called by the name of either.
#[test]
fn a_fingerprint_never_stands_for_other_weights() {
    let folder = copy("nomic_cls");
    let file = folder.path().join("model.safetensors");
    let first = std::fs::read(&file).unwrap();
    let mut second = first.clone();
    // The last tensors, some numbers each: still numbers.
    for position in (first.len() - 40_000..first.len()).step_by(64) {
        second[position] ^= 0x40;
    }
    for dtype in [Dtype::F32, Dtype::Int8] {
        let load = || Model::load(folder.path(), &options(dtype));
        let known = [&first, &second].map(|bytes| {
            overwrite(&file, bytes);
            let model = load().unwrap();
            (model.fingerprint().to_owned(), embed(&model))
        });
        assert_ne!(known[0].0, known[1].0);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    overwrite(&file, &first);
                    overwrite(&file, &second);
                    shorten(&file);
                }
            });
            for _ in 0..30 {
                match load() {
                    Ok(model) => {
                        let named = known.iter().find(|(name, _)| name == model.fingerprint());
                        if let Some((_, expected)) = named {
                            assert_near(&embed(&model), expected, "vectors of the name");
                        }
                    }
                    Err(error) => assert_eq!(error.code(), "MODEL_INVALID", "{error}"),
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
        overwrite(&file, &first);
    }
}

/// The matrices that workers are made from are gone afterwards, where kernels pack them, and no worker misses them.
#[test]
fn packed_weights_are_given_back() {
    for fixture in setup::ENCODERS.iter() {
        for dtype in [Dtype::F32, Dtype::Int8] {
            let what = format!("{fixture}, {dtype:?}");
            let options = options(dtype);
            let dir = ModelDir::read(&setup::fixture(fixture), &options).unwrap();
            let checkpoint = Checkpoint::open(&dir.path, &dir.weights).unwrap();
            let graph = dir.encoder.record(&checkpoint).unwrap();
            let graph = graph.pooled(&dir.pooling);
            let words = graph.nodes().iter().find_map(|node| match &node.op {
                Op::Embed(tables) => Some(tables.words.clone()),
                _ => None,
            });
            let matrices = graph.nodes().iter().filter_map(|node| match &node.op {
                Op::Linear { layer, .. } => Some(layer.weight.clone()),
                Op::Experts { layer, .. } => Some(layer.down.clone()),
                _ => None,
            });
            let matrix = matrices.max_by_key(TensorSlice::len).unwrap();
            let words = words.unwrap();
            if dtype == Dtype::Int8 && words.dtype != WeightType::F32 {
                // The matrices of these fixtures are smaller than a page.
                continue;
            }
            // For ONNX Runtime, all of a checkpoint in half precision was converted, and nothing of it is read.
            let is_onnx = dtype == Dtype::F32;
            let words_are_read = !is_onnx || words.dtype == WeightType::F32;
            let matrix = if words_are_read {
                matrix
            } else {
                words.clone()
            };
            // Read as addresses: who holds the checkpoint keeps it.
            let [matrix, words] = [matrix, words].map(|tensor| {
                let bytes = checkpoint.bytes(&tensor);
                let page = 4096;
                let start = (bytes.as_ptr() as usize).next_multiple_of(page);
                assert!(
                    start + page <= bytes.as_ptr_range().end as usize,
                    "{what}: too small"
                );
                start
            });
            let is_empty = |start: usize| {
                // SAFETY: the workers keep the pages, whatever is in them.
                let page = unsafe { std::slice::from_raw_parts(start as *const u8, 4096) };
                page.iter().all(|byte| *byte == 0)
            };
            let checkpoint = Arc::new(checkpoint);
            let (runtime, _) = runtime::load(&graph, &checkpoint, &options, 2).unwrap();
            drop(checkpoint);
            let batch = [&[2_u32, 7, 11, 5, 9][..], &[2, 3]].map(Into::into);
            let mut makers = runtime.workers;
            makers.push(runtime.urgent_worker);
            let mut workers = vec![makers.remove(0)().unwrap()];
            let expected = workers[0].forward(&batch, &Arc::default()).unwrap();
            if is_onnx {
                assert!(
                    !is_empty(matrix) && !is_empty(words),
                    "{what}: needed until all are made"
                );
            }
            workers.extend(makers.into_iter().map(|make| make().unwrap()));
            if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
                assert!(is_empty(matrix), "{what}: the matrix is given back");
                assert_eq!(
                    is_empty(words),
                    !words_are_read,
                    "{what}: what is read stays"
                );
            }
            assert_eq!(workers.len(), 3);
            for worker in &mut workers {
                assert_near(
                    &worker.forward(&batch, &Arc::default()).unwrap(),
                    &expected,
                    &what,
                );
            }
        }
    }
}

/// What a file is replaced by, and what the message says about it.
type Replacement = (&'static str, fn(&Path), &'static str);

fn replacements() -> Vec<Replacement> {
    vec![
        ("a folder", |file| std::fs::create_dir(file).unwrap(), ""),
        #[cfg(unix)]
        (
            "a named pipe",
            |file| setup::make_pipe(file),
            "regular file",
        ),
        #[cfg(unix)]
        (
            "a device",
            |file| std::os::unix::fs::symlink("/dev/zero", file).unwrap(),
            "regular file",
        ),
        #[cfg(target_os = "linux")]
        (
            "a terabyte",
            |file| {
                let file = std::fs::File::create(file).unwrap();
                file.set_len(1 << 40).unwrap();
            },
            "",
        ),
    ]
}

/// Loads on a thread of its own, so that a wait without an end is a failure.
fn load_in_time(folder: &Path, options: Options, what: &str) -> Result<Model, Error> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        // Nobody receives it where the time was up.
        let _ = sender.send(Model::load(&folder, &options));
    });
    let limit = std::time::Duration::from_mins(2);
    let loaded = receiver.recv_timeout(limit);
    loaded.unwrap_or_else(|_| panic!("{what}: loading does not end"))
}

#[test]
fn what_is_no_regular_file_is_refused() {
    for fixture in ["bert_mean", "bert_cls_f16"] {
        for file in files(&setup::fixture(fixture)) {
            let name = file.strip_prefix(setup::fixture(fixture)).unwrap();
            for (kind, replace, said) in replacements() {
                let what = format!("{kind} as {}", name.display());
                let folder = copy(fixture);
                let file = folder.path().join(name);
                std::fs::remove_file(&file).unwrap();
                replace(&file);
                let error = load_in_time(folder.path(), setup::options(), &what)
                    .err()
                    .unwrap_or_else(|| panic!("{what}: loaded"));
                let message = error.to_string();
                assert_eq!(error.code(), "MODEL_INVALID", "{what}: {message}");
                assert!(
                    message.contains(&*name.to_string_lossy()),
                    "{what}: {message}"
                );
                assert!(message.contains(said), "{what}: {message}");
            }
        }
    }
}

/// Links of the user's own lead anywhere: the Hub's cache consists of them.
#[cfg(unix)]
#[test]
fn linked_files_are_files() {
    let blobs = copy("bert_mean");
    let folder = tempfile::tempdir().unwrap();
    for file in files(blobs.path()) {
        let link = folder.path().join(file.strip_prefix(blobs.path()).unwrap());
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(file, link).unwrap();
    }
    Model::load(folder.path(), &setup::options()).unwrap();
}

#[test]
fn names_in_files_stay_inside_the_folder() {
    for outside in [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/../../x.safetensors",
    ] {
        let folder = copy("bert_cls_f16");
        let index = json!({"weight_map": {"a": outside}});
        let file = folder.path().join("model.safetensors.index.json");
        std::fs::write(file, index.to_string()).unwrap();
        let error = Model::load(folder.path(), &setup::options()).err().unwrap();
        let message = error.to_string();
        assert_eq!(error.code(), "MODEL_INVALID", "{message}");
        assert!(message.contains("inside the model folder") && message.contains(outside));
    }
}

#[test]
fn absurd_settings_are_refused_before_memory_is_taken() {
    let numbers = [
        json!(0),
        json!(-1),
        json!(0.5),
        json!(1e18),
        json!(u64::MAX),
        json!(u32::MAX),
        json!(1_000_000_000),
    ];
    let counts = [
        ("bert_mean", "hidden_size"),
        ("bert_mean", "num_hidden_layers"),
        ("bert_mean", "num_attention_heads"),
        ("bert_mean", "intermediate_size"),
        ("bert_mean", "vocab_size"),
        ("bert_mean", "max_position_embeddings"),
        ("bert_mean", "type_vocab_size"),
        ("nomic_cls", "n_embd"),
        ("nomic_cls", "n_layer"),
        ("nomic_cls", "n_head"),
        ("nomic_cls", "n_inner"),
        ("nomic_cls", "vocab_size"),
        ("nomic_cls", "type_vocab_size"),
    ];
    let load_with = |fixture: &str, key: &str, value: &str| {
        let folder = copy(fixture);
        let file = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        config[key] = json!("here");
        let text = config.to_string().replace("\"here\"", value);
        std::fs::write(file, text).unwrap();
        Model::load(folder.path(), &setup::options()).err()
    };
    for (fixture, key) in counts {
        for number in &numbers {
            let error = load_with(fixture, key, &number.to_string())
                .unwrap_or_else(|| panic!("{fixture} with {key} = {number} was loaded"));
            assert_eq!(error.code(), "MODEL_INVALID", "{key} = {number}: {error}");
        }
    }
    // A table of rotations is not needed: any number of positions is a limit that nobody reaches.
    let unlimited = load_with("nomic_cls", "n_positions", "4294967295");
    assert!(unlimited.is_none(), "{unlimited:?}");
    let nested = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    let error = load_with("bert_mean", "hidden_size", &nested).unwrap();
    assert_eq!(error.code(), "MODEL_INVALID");
    assert!(error.to_string().contains("recursion limit"), "{error}");
}
