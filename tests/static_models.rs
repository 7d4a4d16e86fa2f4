//! Static models: texts without tokens, limits, and what their folders may be. Their golden vectors are in `golden.rs`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use semantic_search_native::options::{Backend, Dtype as Format, Options};
use semantic_search_native::{Error, Model};
use serde_json::{Value, json};
use setup::assert_error;

const FIXTURES: [&str; 3] = ["static_embedding", "static_mapped", "static_model2vec"];

fn load_changed(
    fixture: &str,
    options: &Options,
    change: impl FnOnce(&Path),
) -> Result<Model, Error> {
    setup::load_changed(&setup::fixture(fixture), options, change)
}

fn load_for(backend: Backend, fixture: &str, options: &Options) -> Model {
    let options = Options {
        backend,
        dtype: Format::F32,
        ..options.clone()
    };
    Model::load(&setup::fixture(fixture), &options).unwrap()
}

fn embed(model: &Model, texts: &[&str]) -> Vec<Vec<f32>> {
    let texts = texts.iter().map(|&text| text.to_owned()).collect();
    let embeddings = model.embed::<String>(texts, false).unwrap();
    let rows = embeddings.vectors.chunks_exact(model.dir().dimension());
    rows.map(<[f32]>::to_vec).collect()
}

/// Writes the file again with some tensors replaced, removed or added.
fn set_tensors(folder: &Path, changes: &[(&str, Option<TensorView>)]) {
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    for (name, tensor) in changes {
        tensors.retain(|(other, _)| other != name);
        tensors.extend(tensor.clone().map(|tensor| ((*name).to_owned(), tensor)));
    }
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

fn set_config(folder: &Path, key: &str, value: Value) {
    let path = folder.join("config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(path, json.to_string()).unwrap();
}

/// As in both libraries, for which the mean of nothing is zeros.
#[test]
fn a_text_without_tokens_has_a_vector_of_zeros() {
    // A snowman is unknown to the vocabularies, and Model2Vec leaves unknown tokens out.
    let without = [
        ("static_embedding", " "),
        ("static_mapped", ""),
        ("static_model2vec", "☃ ☃"),
    ];
    for &backend in *setup::BACKENDS {
        for (fixture, text) in without {
            let options = Options {
                document_prompt: Some(String::new()),
                ..setup::options()
            };
            let model = load_for(backend, fixture, &options);
            let zeros = vec![0.0; 24];
            assert!(
                model.tokenize(text, false).unwrap().ids.is_empty(),
                "{fixture}"
            );
            assert_eq!(embed(&model, &[text])[0], zeros);
            let vectors = embed(&model, &["time", text, "the time of day", "", "time"]);
            assert_eq!([&vectors[1], &vectors[3]], [&zeros, &zeros]);
            setup::assert_equal("beside it", &vectors[0], &embed(&model, &["time"])[0]);
            assert_eq!(vectors[4], vectors[0]);
            let length: f32 = vectors[2].iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5);
        }
    }
}

/// Special tokens are not added, whatever `tokenizer.json` says; the unknown one counts for one library only.
#[test]
fn tokens_are_those_of_the_text() {
    let tokens = |fixture| {
        let options = Options {
            document_prompt: Some(String::new()),
            ..setup::options()
        };
        let model = load_for(Backend::Onnx, fixture, &options);
        model.tokenize("time ☃ the", false).unwrap().ids.len()
    };
    assert_eq!(["static_embedding", "static_model2vec"].map(tokens), [3, 2]);
}

/// The limit counts unknown tokens, which are left out afterwards.
#[test]
fn unknown_tokens_count_for_the_limit() {
    let options = Options {
        max_tokens: Some(3),
        ..setup::options()
    };
    let model = load_for(Backend::Onnx, "static_model2vec", &options);
    let tokenized = model.tokenize("☃ time ☃ the of", false).unwrap();
    assert!(tokenized.truncated && tokenized.ids.len() == 1);
}

#[test]
fn the_limit_is_that_of_the_options_and_of_model2vec() {
    let limit = |fixture, max_tokens, value: Value| {
        let options = Options {
            max_tokens,
            ..setup::options()
        };
        let change = |folder: &Path| {
            if !value.is_null() {
                set_config(folder, "max_length", value);
            }
        };
        load_changed(fixture, &options, change)
            .unwrap()
            .dir()
            .max_tokens
    };
    assert_eq!(limit("static_embedding", None, Value::Null), 512);
    assert_eq!(
        limit("static_embedding", Some(100_000), Value::Null),
        100_000
    );
    assert_eq!(limit("static_model2vec", None, Value::Null), 64);
    assert_eq!(limit("static_model2vec", None, json!(7)), 7);
    let wrong = |folder: &Path| set_config(folder, "max_length", json!("7"));
    let result = load_changed("static_model2vec", &setup::options(), wrong);
    assert_error(result, "MODEL_INVALID", &["config.json", "max_length"]);
}

/// `Model2Vec`'s folder is known by its `config.json`; without one it is a `StaticEmbedding`, which knows the same tensors.
#[test]
fn folders_of_either_kind_are_read() {
    let options = &setup::options();
    let original = load_changed("static_mapped", options, |_| {}).unwrap();
    let remove = |file| move |folder: &Path| std::fs::remove_file(folder.join(file)).unwrap();
    let bare = load_changed("static_mapped", options, remove("modules.json")).unwrap();
    let texts = &["the time", "time ☃ the"];
    assert_eq!(embed(&bare, texts), embed(&original, texts));
    assert_eq!(bare.fingerprint(), original.fingerprint());
    let sentence = load_changed("static_mapped", options, remove("config.json")).unwrap();
    assert_ne!(sentence.fingerprint(), original.fingerprint());
    let count = |model: &Model| model.tokenize(texts[1], false).unwrap().ids.len();
    assert_eq!(count(&sentence), count(&original) + 1);
    setup::assert_equal(
        "known tokens",
        &embed(&sentence, texts)[0],
        &embed(&original, texts)[0],
    );
    // `embedding.weight` is looked for first.
    let table: Vec<u8> = (0..702 * 8)
        .flat_map(|i| (i as f32).to_le_bytes())
        .collect();
    let table = TensorView::new(Dtype::F32, vec![702, 8], &table).unwrap();
    let both = load_changed("static_mapped", options, |folder| {
        set_tensors(folder, &[("embedding.weight", Some(table))]);
    });
    assert_eq!(both.unwrap().dir().dimension(), 8);
    // In a folder of its own, as some authors arrange it.
    let nested = load_changed("static_embedding", options, |folder| {
        std::fs::create_dir(folder.join("0_StaticEmbedding")).unwrap();
        for file in ["model.safetensors", "tokenizer.json"] {
            std::fs::rename(
                folder.join(file),
                folder.join("0_StaticEmbedding").join(file),
            )
            .unwrap();
        }
        let modules = json!([
            {"path": "0_StaticEmbedding", "type": "sentence_transformers.models.StaticEmbedding"},
            {"path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]);
        std::fs::write(folder.join("modules.json"), modules.to_string()).unwrap();
    });
    let original = load_changed("static_embedding", options, |_| {}).unwrap();
    assert_eq!(nested.unwrap().fingerprint(), original.fingerprint());
}

#[test]
fn mappings_of_32_bits_and_weights_of_other_formats_are_read() {
    let bytes = std::fs::read(setup::fixture("static_mapped").join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let longs = |name: &str| tensors.tensor(name).unwrap().data().as_chunks().0.to_vec();
    let mapping: Vec<u8> = longs("mapping")
        .iter()
        .flat_map(|long| (i64::from_le_bytes(*long) as i32).to_le_bytes())
        .collect();
    let weights: Vec<u8> = longs("weights")
        .iter()
        .flat_map(|long| (f64::from_le_bytes(*long) as f32).to_le_bytes())
        .collect();
    let shape = || vec![mapping.len() / 4];
    let mapping = TensorView::new(Dtype::I32, shape(), &mapping).unwrap();
    let weights = TensorView::new(Dtype::F32, shape(), &weights).unwrap();
    let narrow = load_changed("static_mapped", &setup::options(), |folder| {
        set_tensors(
            folder,
            &[("mapping", Some(mapping)), ("weights", Some(weights))],
        );
    });
    let original = load_changed("static_mapped", &setup::options(), |_| {}).unwrap();
    assert_eq!(
        embed(&narrow.unwrap(), &["the time"]),
        embed(&original, &["the time"])
    );
}

/// A tensor in place of another, and what the error finds.
type Replaced<'a> = (&'a str, Dtype, Vec<usize>, &'a [u8], &'a str);

#[test]
fn tables_must_fit() {
    let zeros = vec![0; 200 * 24 * 8];
    let numbers = |number: fn(i64) -> i64| -> Vec<u8> {
        (0..702).flat_map(|id| number(id).to_le_bytes()).collect()
    };
    let (beyond, negative) = (numbers(|id| 200 * (id % 2)), numbers(|id| -id));
    let cases: [Replaced; 8] = [
        ("embeddings", Dtype::F64, vec![200, 24], &zeros, "dtype F64"),
        (
            "embeddings",
            Dtype::I8,
            vec![200, 24],
            &zeros[..4800],
            "dtype I8",
        ),
        ("weights", Dtype::F64, vec![3], &zeros[..24], "shape [3]"),
        ("weights", Dtype::F64, vec![702], &[255; 702 * 8], "NaN"),
        ("mapping", Dtype::U8, vec![702], &zeros[..702], "dtype U8"),
        (
            "mapping",
            Dtype::I64,
            vec![351, 2],
            &zeros[..5616],
            "shape [702]",
        ),
        ("mapping", Dtype::I64, vec![702], &beyond, "from 0 to 199"),
        ("mapping", Dtype::I64, vec![702], &negative, "from 0 to 199"),
    ];
    for (tensor, dtype, shape, bytes, found) in cases {
        let view = TensorView::new(dtype, shape, bytes).unwrap();
        let result = load_changed("static_mapped", &setup::options(), |folder| {
            set_tensors(folder, &[(tensor, Some(view))]);
        });
        let named = &["model.safetensors", tensor, found];
        assert_error(result, "MODEL_INVALID", named);
    }
    // The tokenizer has more tokens.
    let few = TensorView::new(Dtype::I64, vec![10], &zeros[..80]).unwrap();
    let result = load_changed("static_mapped", &setup::options(), |folder| {
        set_tensors(folder, &[("mapping", Some(few)), ("weights", None)]);
    });
    assert_error(result, "MODEL_INVALID", &["tokenizer.json", "below 10"]);
}

#[test]
fn tables_must_be_there() {
    let load = |change: &dyn Fn(&Path)| load_changed("static_embedding", &setup::options(), change);
    let zeros = [0; 24 * 4];
    let row = TensorView::new(Dtype::F32, vec![24], &zeros).unwrap();
    for (replaced, named) in [
        (None, ["embeddings", "no such tensor"]),
        (Some(row), ["embedding.weight", "shape [24]"]),
    ] {
        let change = |folder: &Path| set_tensors(folder, &[("embedding.weight", replaced.clone())]);
        assert_error(load(&change), "MODEL_INVALID", &named);
    }
    for file in ["model.safetensors", "tokenizer.json"] {
        let change = |folder: &Path| std::fs::remove_file(folder.join(file)).unwrap();
        assert_error(load(&change), "MODEL_NOT_FOUND", &[file]);
    }
}

/// Others would be given the zeros of texts without tokens.
#[test]
fn only_a_normalize_follows_a_table() {
    for chain in [
        &["StaticEmbedding", "Dense"][..],
        &["StaticEmbedding", "Pooling"],
        &["StaticEmbedding", "Normalize", "Normalize"],
    ] {
        let modules = chain.iter().map(
            |class| json!({"path": "", "type": format!("sentence_transformers.models.{class}")}),
        );
        let modules = modules.collect::<Value>().to_string();
        let result = load_changed("static_embedding", &setup::options(), |folder| {
            std::fs::write(folder.join("modules.json"), modules).unwrap();
        });
        assert_error(result, "MODEL_UNSUPPORTED", &["modules.json", "module 1"]);
    }
}

/// Nothing of it is quantized, but it is not refused.
#[test]
fn int8_changes_nothing() {
    for fixture in FIXTURES {
        let vectors = [Format::F32, Format::Int8].map(|dtype| {
            let options = Options {
                dtype,
                ..setup::options_for(Backend::Cpu)
            };
            let model = Model::load(&setup::fixture(fixture), &options).unwrap();
            embed(&model, &["the time of day"])
        });
        assert_eq!(vectors[0], vectors[1]);
    }
}
