//! int8: vectors that depend on their text alone, near those of float32, from weights that are quantized once.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::path::{Path, PathBuf};

use semantic_search_native::model::{EXPORTED_INT8_GRAPH, export_onnx};
use semantic_search_native::options::{Backend, Dtype, Options};
use semantic_search_native::{Error, Model};

fn options(cache: &Path) -> Options {
    Options {
        dtype: Dtype::Int8,
        cache_folder: Some(cache.to_owned()),
        ..setup::options()
    }
}

fn load(name: &str, options: &Options) -> Model {
    Model::load(&setup::fixture(name), options).unwrap()
}

/// 50 texts of many lengths, some of them equal, some of equal length.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = (0..44)
        .map(|i| {
            format!(
                "fn f{i}(x) {{ {} }}",
                "return value of it ".repeat(i * i % 37)
            )
        })
        .collect();
    texts.extend(["", "one", "two", "three words here", "one", "fn f7(x) {}"].map(str::to_owned));
    texts
}

fn embed(model: &Model, texts: &[String]) -> Vec<Vec<f32>> {
    let embeddings = model.embed(texts.to_vec(), false).unwrap();
    let rows = embeddings.vectors.chunks_exact(model.dir().dimension());
    rows.map(<[f32]>::to_vec).collect()
}

fn bits(vector: &[f32]) -> Vec<u32> {
    vector.iter().map(|value| value.to_bits()).collect()
}

/// The texts one by one, all together, and in reverse, on workers and on the session with all threads.
fn assert_bitwise_equal(folder: &Path, options: &Options) {
    let texts = texts();
    let mut expected: Option<Vec<Vec<f32>>> = None;
    for threads in [1, 2, 4] {
        let model = Model::load(
            folder,
            &Options {
                threads: Some(threads),
                ..options.clone()
            },
        )
        .unwrap();
        let together = embed(&model, &texts);
        let expected = expected.get_or_insert_with(|| together.clone());
        let reversed: Vec<String> = texts.iter().rev().cloned().collect();
        let backwards = embed(&model, &reversed);
        for (index, text) in texts.iter().enumerate() {
            let alone = embed(&model, std::slice::from_ref(text));
            for vector in [
                &together[index],
                &backwards[texts.len() - 1 - index],
                &alone[0],
            ] {
                assert_eq!(
                    bits(vector),
                    bits(&expected[index]),
                    "{threads} threads, {text:?}"
                );
            }
        }
    }
}

#[test]
fn a_vector_is_bitwise_the_same_in_every_call() {
    let cache = tempfile::tempdir().unwrap();
    for name in setup::ENCODERS.iter() {
        assert_bitwise_equal(&setup::fixture(name), &options(cache.path()));
    }
}

/// Wide enough for ONNX Runtime to split products among threads.
#[test]
fn a_vector_of_the_real_model_is_bitwise_the_same_in_every_call() {
    let cache = tempfile::tempdir().unwrap();
    assert_bitwise_equal(&setup::starter_model(), &options(cache.path()));
}

/// Random weights lose more than trained ones, and few wide rows more than many: the real model's bound is 0.98.
#[test]
fn vectors_are_near_those_of_float32() {
    let cache = tempfile::tempdir().unwrap();
    let compare = |folder: &Path, least: f64| {
        let float = Model::load(folder, &setup::options()).unwrap();
        let int8 = Model::load(folder, &options(cache.path())).unwrap();
        assert_ne!(
            int8.fingerprint(),
            float.fingerprint(),
            "an index tells them apart"
        );
        let texts = texts();
        let pairs = embed(&int8, &texts).into_iter().zip(embed(&float, &texts));
        for ((a, b), text) in pairs.zip(&texts) {
            let cosine = setup::cosine(&a, &b);
            assert!(cosine >= least, "{folder:?}, {text:?}: {cosine}");
            assert!(cosine < 1.0 - 1e-9, "{folder:?} was not quantized");
        }
    };
    compare(&setup::starter_model(), 0.98);
    for name in setup::ENCODERS.iter() {
        compare(&setup::fixture(name), 0.95);
    }
}

fn cache_files(cache: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cache.join("quantized")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn modified(file: &Path) -> std::time::SystemTime {
    std::fs::metadata(file).unwrap().modified().unwrap()
}

#[test]
fn weights_are_quantized_once() {
    let cache = tempfile::tempdir().unwrap();
    let first = embed(&load("nomic_cls", &options(cache.path())), &texts());
    let files = cache_files(cache.path());
    assert_eq!(files.len(), 1, "{files:?}");
    let written = modified(&files[0]);
    let second = embed(&load("nomic_cls", &options(cache.path())), &texts());
    assert_eq!(second, first);
    assert_eq!(
        modified(&files[0]),
        written,
        "the file is used, not rewritten"
    );
    load("bert_mean", &options(cache.path()));
    assert_eq!(cache_files(cache.path()).len(), 2, "one for each model");
}

#[test]
fn a_damaged_file_is_replaced() {
    let cache = tempfile::tempdir().unwrap();
    let texts = texts();
    let expected = embed(&load("nomic_cls", &options(cache.path())), &texts);
    let file = cache_files(cache.path()).remove(0);
    let good = std::fs::read(&file).unwrap();
    load("bert_mean", &options(cache.path()));
    let other = cache_files(cache.path())
        .into_iter()
        .find(|other| *other != file);
    let foreign = std::fs::read(other.unwrap()).unwrap();
    let flipped = |position: usize| {
        let mut bytes = good.clone();
        bytes[position] ^= 1;
        bytes
    };
    let header_length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let data = 8 + header_length;
    let spoiled = [
        ("a weight", flipped(good.len() - 1)),
        ("a scale", flipped(data + 1)),
        ("the header", flipped(40)),
        ("its length", flipped(0)),
        ("truncated", good[..good.len() - 100].to_vec()),
        ("empty", vec![]),
        ("another model's", foreign),
    ];
    for (what, bytes) in spoiled {
        std::fs::write(&file, bytes).unwrap();
        let model = load("nomic_cls", &options(cache.path()));
        assert_eq!(embed(&model, &texts), expected, "{what}");
        assert!(std::fs::read(&file).unwrap() == good, "{what}: repaired");
    }
    assert_eq!(cache_files(cache.path()).len(), 2, "nothing is left behind");
}

#[test]
fn a_cache_that_cannot_be_written_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let expected = embed(
        &load("nomic_cls", &options(&folder.path().join("good"))),
        &texts(),
    );
    // A file where the folder should be: refused to every user, root included.
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for cache in [&*file, &file.join("below")] {
        let model = load("nomic_cls", &options(cache));
        assert_eq!(embed(&model, &texts()), expected);
    }
    // A folder where the file should be.
    let occupied = folder.path().join("occupied");
    let name = cache_files(&folder.path().join("good")).remove(0);
    let place = occupied.join("quantized").join(name.file_name().unwrap());
    std::fs::create_dir_all(&place).unwrap();
    let model = load("nomic_cls", &options(&occupied));
    assert_eq!(embed(&model, &texts()), expected);
    assert_eq!(cache_files(&occupied), [place], "nothing is left behind");
}

#[test]
fn several_may_quantize_at_once() {
    let cache = tempfile::tempdir().unwrap();
    let texts = texts();
    let vectors: Vec<_> = std::thread::scope(|scope| {
        let run = || embed(&load("nomic_partial", &options(cache.path())), &texts);
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(vectors.iter().all(|other| *other == vectors[0]));
    assert_eq!(cache_files(cache.path()).len(), 1);
    let again = embed(&load("nomic_partial", &options(cache.path())), &texts);
    assert_eq!(again, vectors[0], "what was written is whole");
}

#[test]
fn what_killed_writers_left_is_removed() {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("quantized");
    std::fs::create_dir(&folder).unwrap();
    let [old, new] = ["int8-v1-old.1-0.part", "int8-v1-new.2-0.part"].map(|name| folder.join(name));
    for (file, hours) in [(&old, 2), (&new, 0)] {
        let written = std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
        std::fs::File::create(file)
            .unwrap()
            .set_modified(written)
            .unwrap();
    }
    load("bert_mean", &options(cache.path()));
    assert!(!old.exists());
    assert!(new.exists(), "another process may be writing it");
}

#[test]
fn int8_is_for_the_onnx_backend() {
    let cache = tempfile::tempdir().unwrap();
    let with = |backend| Options {
        backend,
        ..options(cache.path())
    };
    let auto = load("bert_mean", &with(Backend::Auto));
    assert_eq!((auto.backend(), auto.fallback_reason()), ("onnx", None));
    let refused = Model::load(&setup::fixture("bert_mean"), &with(Backend::Mlx));
    assert!(
        matches!(refused.err(), Some(Error::InvalidArgument { argument: "dtype", found, .. }) if found == "int8")
    );
}

#[test]
fn the_exported_graph_holds_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let from = setup::fixture("nomic_cls").join(name);
        std::fs::copy(from, folder.path().join(name)).unwrap();
    }
    let with = |dtype| Options {
        dtype,
        pooling: Some(semantic_search_native::graph::Pooling::Cls),
        ..options(folder.path())
    };
    let int8 = export_onnx(folder.path(), &with(Dtype::Int8)).unwrap();
    assert_eq!(int8, folder.path().join(EXPORTED_INT8_GRAPH));
    let float = export_onnx(folder.path(), &with(Dtype::F32)).unwrap();
    let size = |file: &Path| std::fs::metadata(file).unwrap().len();
    let quantized = size(&cache_files(folder.path())[0]);
    assert!(size(&int8) > quantized && size(&float) < size(&int8));
    let refused = export_onnx(folder.path(), &with(Dtype::F16));
    assert!(matches!(
        refused,
        Err(Error::InvalidArgument {
            argument: "dtype",
            ..
        })
    ));
}
