//! bfloat16 and int8 on the CPU: vectors that depend on their text alone, near those of float32.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::path::Path;

use semantic_search_native::model::{EXPORTED_INT8_GRAPH, export_onnx};
use semantic_search_native::options::{Backend, Dtype, Options};
use semantic_search_native::runtime::cpu;
use semantic_search_native::{Error, Model};

fn options(dtype: Dtype) -> Options {
    Options {
        dtype,
        ..setup::options_for(Backend::Cpu)
    }
}

/// Those that this processor has instructions for.
fn dtypes() -> Vec<Dtype> {
    let has_bf16 = cpu::kernel_names().unwrap().bf16.is_some();
    let bf16 = has_bf16.then_some(Dtype::BF16);
    bf16.into_iter().chain([Dtype::Int8]).collect()
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
    for threads in [1, 3] {
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
    for dtype in dtypes() {
        for name in setup::ENCODERS.iter() {
            assert_bitwise_equal(&setup::fixture(name), &options(dtype));
        }
    }
}

/// Wide enough for products to be shared by several threads.
#[test]
fn a_vector_of_the_real_model_is_bitwise_the_same_in_every_call() {
    for dtype in dtypes() {
        assert_bitwise_equal(&setup::starter_model(), &options(dtype));
    }
}

/// Random weights lose more than trained ones, and few wide rows more than many: the real model's bounds are higher.
#[test]
fn vectors_are_near_those_of_float32() {
    let compare = |folder: &Path, dtype: Dtype, least: f64| {
        let float = Model::load(folder, &setup::options()).unwrap();
        let reduced = Model::load(folder, &options(dtype)).unwrap();
        assert_ne!(
            reduced.fingerprint(),
            float.fingerprint(),
            "an index tells them apart"
        );
        let texts = texts();
        let pairs = embed(&reduced, &texts)
            .into_iter()
            .zip(embed(&float, &texts));
        for ((a, b), text) in pairs.zip(&texts) {
            let cosine = setup::cosine(&a, &b);
            assert!(cosine >= least, "{dtype:?} {folder:?}, {text:?}: {cosine}");
            assert!(cosine < 1.0 - 1e-9, "{dtype:?} {folder:?} was not rounded");
        }
    };
    for dtype in dtypes() {
        let (trained, random) = if dtype == Dtype::BF16 {
            (0.9995, 0.998)
        } else {
            (0.98, 0.95)
        };
        compare(&setup::starter_model(), dtype, trained);
        for name in setup::ENCODERS.iter() {
            compare(&setup::fixture(name), dtype, random);
        }
    }
}

#[test]
fn the_backend_is_that_which_computes_the_format() {
    let load = |backend, dtype| {
        let options = Options {
            backend,
            ..options(dtype)
        };
        Model::load(&setup::fixture("bert_mean"), &options)
    };
    let auto = load(Backend::Auto, Dtype::Int8).unwrap();
    assert_eq!((auto.backend(), auto.fallback_reason()), ("cpu", None));
    if dtypes().contains(&Dtype::BF16) {
        let auto = load(Backend::Auto, Dtype::BF16).unwrap();
        assert_eq!(auto.backend(), "cpu");
    }
    for (backend, dtype) in [
        (Backend::Mlx, Dtype::Int8),
        (Backend::Onnx, Dtype::Int8),
        (Backend::Onnx, Dtype::BF16),
        (Backend::Cpu, Dtype::F16),
    ] {
        let refused = load(backend, dtype).err();
        assert!(
            matches!(
                refused,
                Some(Error::InvalidArgument {
                    argument: "dtype",
                    ..
                })
            ),
            "{backend:?} {dtype:?}"
        );
    }
}

#[test]
fn the_exported_graph_holds_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let from = setup::fixture("nomic_cls").join(name);
        std::fs::copy(from, folder.path().join(name)).unwrap();
    }
    let with = |dtype| Options {
        pooling: Some(semantic_search_native::graph::Pooling::Cls),
        ..options(dtype)
    };
    let int8 = export_onnx(folder.path(), &with(Dtype::Int8)).unwrap();
    assert_eq!(int8, folder.path().join(EXPORTED_INT8_GRAPH));
    let float = export_onnx(folder.path(), &with(Dtype::F32)).unwrap();
    let size = |file: &Path| std::fs::metadata(file).unwrap().len();
    // Twice two layers of 64 x 32 and more.
    assert!(size(&int8) > size(&float) + 4 * 64 * 32);
    for dtype in [Dtype::F16, Dtype::BF16] {
        let refused = export_onnx(folder.path(), &with(dtype)).err();
        assert!(matches!(
            refused,
            Some(Error::InvalidArgument {
                argument: "dtype",
                ..
            })
        ));
    }
}
