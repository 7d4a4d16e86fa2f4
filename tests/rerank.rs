//! Scores of rerankers against those of `sentence-transformers`; see `tests/fixtures/rerankers.py`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use semantic_search_native::options::{Backend, Dtype, Options, Task};
use semantic_search_native::{Error, Input, Model};
use serde::Deserialize;
use serde_json::{Value, json};
use setup::assert_error;

const RERANKERS: [&str; 4] = ["bert", "distilbert", "modernbert", "xlm_roberta"];

/// Largest difference between equal scores, which are raw logits.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Golden {
    max_tokens: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    query: String,
    text: setup::Text,
    ids: Vec<u32>,
    truncated: bool,
    logit: f32,
}

fn folder(name: &str) -> PathBuf {
    setup::fixture("rerankers").join(name)
}

fn golden(name: &str) -> Golden {
    let path = folder("golden").join(format!("{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn options_for(backend: Backend) -> Options {
    Options {
        task: Task::Rerank,
        ..setup::options_for(backend)
    }
}

fn load(name: &str) -> Model {
    Model::load(&folder(name), &options_for(Backend::Onnx)).unwrap()
}

#[test]
fn scores_are_those_of_the_reference() {
    for &backend in setup::BACKENDS {
        for name in RERANKERS {
            let golden = golden(name);
            let model = Model::load(&folder(name), &options_for(backend)).unwrap();
            assert_eq!(model.dir().max_tokens, golden.max_tokens);
            for case in &golden.cases {
                let what = format!("{backend:?} {name}/{}", case.name);
                let text = case.text.build();
                let pair = model.tokenize_pair(&case.query, &text).unwrap();
                assert_eq!(pair.ids, case.ids, "{what}: token ids");
                assert_eq!(pair.truncated, case.truncated, "{what}: truncated");
                let scores = model.score(&case.query, vec![text]).unwrap();
                let truncated: &[u32] = if case.truncated { &[0] } else { &[] };
                assert_eq!(scores.truncated, truncated, "{what}");
                assert_eq!(scores.tokens, case.ids.len(), "{what}");
                let difference = setup::max_difference(&scores.vectors, &[case.logit]);
                assert!(difference <= TOLERANCE, "{what}: {difference:e}");
            }
        }
    }
}

#[test]
fn a_score_depends_on_its_own_pair_only() {
    for &backend in setup::BACKENDS {
        for name in RERANKERS {
            let model = Model::load(&folder(name), &options_for(backend)).unwrap();
            // Several of each length, repetitions among them.
            let texts: Vec<String> = (0..60)
                .map(|index| {
                    ["time", "of", "return"][index % 3].to_owned() + &" the".repeat(index % 7)
                })
                .collect();
            let query = "where is a number read from a string?";
            let together = model.score(query, texts.clone()).unwrap();
            assert_eq!(together.vectors.len(), texts.len());
            let mut backwards = texts.clone();
            backwards.reverse();
            let mut backwards = model.score(query, backwards).unwrap().vectors;
            backwards.reverse();
            for (index, text) in texts.into_iter().enumerate() {
                let alone = model.score(query, vec![text]).unwrap().vectors[0];
                for score in [together.vectors[index], backwards[index]] {
                    if backend == Backend::Onnx {
                        assert_eq!(score.to_bits(), alone.to_bits(), "{name} {index}");
                    }
                    assert!((score - alone).abs() <= TOLERANCE, "{name} {index}");
                }
            }
        }
    }
}

#[test]
fn int8_scores_keep_close() {
    for name in RERANKERS {
        let golden = golden(name);
        let options = Options {
            dtype: Dtype::Int8,
            ..options_for(Backend::Onnx)
        };
        let model = Model::load(&folder(name), &options).unwrap();
        let scores: Vec<(f32, f32)> = golden
            .cases
            .iter()
            .map(|case| {
                let scores = model.score(&case.query, vec![case.text.build()]).unwrap();
                (scores.vectors[0], case.logit)
            })
            .collect();
        let logits = scores.iter().map(|(_, logit)| *logit);
        let spread = logits.clone().fold(f32::MIN, f32::max) - logits.fold(f32::MAX, f32::min);
        for ((score, logit), case) in scores.iter().zip(&golden.cases) {
            let difference = (score - logit).abs() / spread;
            assert!(difference <= 0.1, "{name}/{}: {difference}", case.name);
        }
    }
}

/// Loads a copy of a reranker after some keys of a JSON file were set.
fn load_changed(name: &str, file: &str, changes: &Value) -> Result<Model, Error> {
    setup::load_changed(&folder(name), &options_for(Backend::Onnx), |copy| {
        for (key, value) in changes.as_object().unwrap() {
            setup::set(&copy.join(file), key, value.clone());
        }
    })
}

#[test]
fn a_query_that_leaves_no_room_is_refused() {
    for name in RERANKERS {
        let model = load(name);
        let limit = golden(name).max_tokens;
        for words in [limit - 3, limit + 6, 100_000] {
            let result = model.score(&"time ".repeat(words), vec!["of".to_owned()]);
            let expected = format!("maxTokens, {limit}");
            assert_error(result, "INVALID_ARGUMENT", &["query", &expected]);
        }
    }
}

#[test]
fn an_embedder_is_no_reranker_and_the_reverse() {
    let options = options_for(Backend::Onnx);
    for embedder in ["bert_mean", "nomic_cls", "xlm_roberta"] {
        let result = Model::load(&setup::fixture(embedder), &options);
        assert_error(result, "MODEL_UNSUPPORTED", &[embedder, "`Embedder.load`"]);
    }
    for name in RERANKERS {
        let result = Model::load(&folder(name), &setup::options());
        assert_error(result, "MODEL_UNSUPPORTED", &[name, "`Reranker.load`"]);
    }
    let query: Arc<str> = "a query".into();
    let embedder = Model::load(&setup::fixture("bert_mean"), &setup::options()).unwrap();
    let result = embedder.embed(vec![Input::from((&query, "a text".to_owned()))], false);
    assert_error(result, "INVALID_ARGUMENT", &["texts", "embedder"]);
    for input in [Input::from("a text".to_owned()), Input::from(vec![1])] {
        let result = load("bert").embed(vec![input], false);
        assert_error(result, "INVALID_ARGUMENT", &["texts", "reranker"]);
    }
}

#[test]
fn classifiers_and_unknown_heads_are_refused_by_name() {
    let labels = json!({ "id2label": { "0": "no", "1": "yes" } });
    let result = load_changed("bert", "config.json", &labels);
    assert_error(
        result,
        "MODEL_UNSUPPORTED",
        &["config.json", "num_labels = 2"],
    );
    let result = load_changed("bert", "config.json", &json!({ "id2label": null }));
    assert_error(result, "MODEL_UNSUPPORTED", &["num_labels = 2"]);
    let result = load_changed(
        "xlm_roberta",
        "config.json",
        &json!({ "model_type": "mpnet", "relative_attention_num_buckets": 32 }),
    );
    assert_error(
        result,
        "MODEL_UNSUPPORTED",
        &["model_type \"mpnet\"", "distilbert"],
    );
    let prompts = json!({ "prompts": { "query": "find: " }, "default_prompt_name": "query" });
    let result = load_changed("bert", "config_sentence_transformers.json", &prompts);
    assert_error(result, "MODEL_UNSUPPORTED", &["prompt"]);
    // Without `default_prompt_name` nothing uses them.
    let prompts = json!({ "prompts": { "query": "find: " } });
    assert!(load_changed("bert", "config_sentence_transformers.json", &prompts).is_ok());
}

#[test]
fn a_checkpoint_without_its_head_is_refused() {
    let copy = tempfile::tempdir().unwrap();
    setup::copy(&folder("bert"), copy.path());
    let encoder = setup::fixture("bert_mean").join("model.safetensors");
    std::fs::copy(encoder, copy.path().join("model.safetensors")).unwrap();
    let result = Model::load(copy.path(), &options_for(Backend::Onnx));
    assert_error(result, "MODEL_INVALID", &["tensor"]);
}

#[test]
fn fingerprints_tell_rerankers_apart() {
    let fingerprint = |path: &Path, options: &Options| {
        let model = Model::load(path, options).unwrap();
        model.fingerprint().to_owned()
    };
    let options = options_for(Backend::Onnx);
    let first = fingerprint(&folder("bert"), &options);
    assert_eq!(first, fingerprint(&folder("bert"), &options));
    let shorter = Options {
        max_tokens: Some(32),
        ..options
    };
    assert_ne!(first, fingerprint(&folder("bert"), &shorter));
}
