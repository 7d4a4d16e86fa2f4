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

const RERANKERS: [&str; 6] = [
    "bert",
    "distilbert",
    "modernbert",
    "qwen3",
    "qwen3_classifier",
    "xlm_roberta",
];
/// Those with a chat template.
const OF_CHATS: [&str; 2] = ["qwen3", "qwen3_classifier"];

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
    for &backend in *setup::BACKENDS {
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
    for &backend in *setup::BACKENDS {
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
            ..options_for(Backend::Cpu)
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
    let result = load_changed(
        "qwen3",
        "config.json",
        &json!({ "model_type": "gemma3_text", "use_bidirectional_attention": true }),
    );
    assert!(result.is_err());
}

#[test]
fn a_prompt_precedes_the_query() {
    let ids = |model: &Model, query: &str| model.tokenize_pair(query, "a text").unwrap().ids;
    let expected = ids(&load("bert"), "find: a query");
    let file = "config_sentence_transformers.json";
    let mut prompts = json!({ "prompts": { "query": "find: " } });
    // Without `default_prompt_name` nothing uses it.
    let model = load_changed("bert", file, &prompts).unwrap();
    assert_eq!(ids(&model, "a query"), ids(&load("bert"), "a query"));
    prompts["default_prompt_name"] = "query".into();
    let model = load_changed("bert", file, &prompts).unwrap();
    assert_eq!(ids(&model, "a query"), expected);
    let options = Options {
        query_prompt: Some("find: ".to_owned()),
        ..options_for(Backend::Onnx)
    };
    let model = Model::load(&folder("bert"), &options).unwrap();
    assert_eq!(ids(&model, "a query"), expected);
}

#[test]
fn a_prompt_replaces_the_instruction_of_a_chat_template() {
    let load = |name: &str, prompt: &str| {
        let options = Options {
            query_prompt: Some(prompt.to_owned()),
            ..options_for(Backend::Onnx)
        };
        Model::load(&folder(name), &options).unwrap()
    };
    let ids = |name: &str, prompt: &str| {
        let pair = load(name, prompt).tokenize_pair("a query", "a text");
        pair.unwrap().ids
    };
    let own = "Given a web search query, retrieve relevant passages that answer the query";
    let code = "Given a question, find the function of the code that answers it";
    // Both have the same tokenizer; an empty prompt is none.
    for (prompt, same) in [("", own), (own, own), (code, code)] {
        assert_eq!(ids("qwen3", prompt), ids("qwen3_classifier", same));
    }
    assert_ne!(ids("qwen3", own), ids("qwen3", code));
    let fingerprint = |prompt| load("qwen3", prompt).fingerprint().to_owned();
    assert_eq!(fingerprint(""), fingerprint(own));
    assert_ne!(fingerprint(""), fingerprint(code));
}

#[test]
fn a_score_is_the_difference_of_two_logits() {
    let file = "1_LogitScore/config.json";
    let json: Value =
        serde_json::from_slice(&std::fs::read(folder("qwen3").join(file)).unwrap()).unwrap();
    let score = |changes: Value| {
        let model = load_changed("qwen3", file, &changes).unwrap();
        let scores = model.score("a query", vec!["a text".to_owned()]);
        (scores.unwrap().vectors[0], model.fingerprint().to_owned())
    };
    let (both, fingerprint) = score(json!({}));
    let (relevant, other) = score(json!({ "false_token_id": null }));
    assert_ne!(fingerprint, other);
    let only_irrelevant =
        json!({ "true_token_id": json["false_token_id"], "false_token_id": null });
    let (irrelevant, _) = score(only_irrelevant);
    assert!((both - (relevant - irrelevant)).abs() <= TOLERANCE);
    assert!(relevant.abs() > 0.1 && irrelevant.abs() > 0.1);
    for (changes, code, named) in [
        (
            json!({ "true_token_id": null }),
            "MODEL_INVALID",
            "`true_token_id` is missing",
        ),
        (
            json!({ "true_token_id": 705 }),
            "MODEL_INVALID",
            "below 705",
        ),
        (
            json!({ "false_token_id": "no" }),
            "MODEL_INVALID",
            "`false_token_id`",
        ),
        (
            json!({ "module_input_name": "logits" }),
            "MODEL_UNSUPPORTED",
            "module_input_name",
        ),
    ] {
        assert_error(
            load_changed("qwen3", file, &changes),
            code,
            &["1_LogitScore", named],
        );
    }
    // An untied table is another tensor, which the checkpoint lacks.
    let result = load_changed(
        "qwen3",
        "config.json",
        &json!({ "tie_word_embeddings": false }),
    );
    assert_error(result, "MODEL_INVALID", &["lm_head.weight"]);
}

#[test]
fn other_chat_templates_are_refused_by_name() {
    for name in OF_CHATS {
        let known = std::fs::read_to_string(folder(name).join("chat_template.jinja")).unwrap();
        let load = |template: Option<&str>, config: Option<&str>, message: bool| {
            setup::load_changed(&folder(name), &options_for(Backend::Onnx), |copy| {
                let file = copy.join("chat_template.jinja");
                match template {
                    Some(template) => std::fs::write(file, template).unwrap(),
                    None => std::fs::remove_file(file).unwrap(),
                }
                let config = config.map_or(Value::Null, Into::into);
                setup::set(&copy.join("tokenizer_config.json"), "chat_template", config);
                if !message {
                    let text = json!({ "text": { "method": "forward" } });
                    setup::set(
                        &copy.join("sentence_bert_config.json"),
                        "modality_config",
                        text,
                    );
                }
            })
        };
        let ids = |model: Model| model.tokenize_pair("a query", "a text").unwrap().ids;
        let expected = ids(load(Some(&known), None, true).unwrap());
        // The older place, which the file overrides.
        assert_eq!(ids(load(None, Some(&known), true).unwrap()), expected);
        assert_eq!(
            ids(load(Some(&known), Some("{{ other }}"), true).unwrap()),
            expected
        );
        let other_words = known.replace("Judge whether", "Say whether");
        assert_ne!(ids(load(Some(&other_words), None, true).unwrap()), expected);
        for other in [
            "{% for message in messages %}{{ message.content }}{% endfor %}".to_owned(),
            known.replace(
                "<Query>: {{ query_text }}",
                "<Query>: {{ query_text | upper }}",
            ),
            known.replace("<Query>", "{{ query_text }}"),
            known.replace("passages that", "\\u0070assages that"),
            known.replace("<think>", "{% if thinks %}<think>{% endif %}"),
            known.replace("\"system\"", "\"user\""),
            String::new(),
        ] {
            let result = load(Some(&other), None, true);
            assert_error(
                result,
                "MODEL_UNSUPPORTED",
                &["chat_template.jinja", "Qwen3-Reranker"],
            );
        }
        assert_error(
            load(None, None, true),
            "MODEL_UNSUPPORTED",
            &["tokenizer_config.json", "chat template"],
        );
        assert_error(
            load(Some(&known), None, false),
            "MODEL_UNSUPPORTED",
            &["without a chat template"],
        );
        // Nothing would keep the words behind a text apart from it.
        let without_end = known.replace("<|im_end|>\n<|im_start|>assistant", "\nassistant");
        assert_error(
            load(Some(&without_end), None, true),
            "MODEL_UNSUPPORTED",
            &["added_tokens"],
        );
    }
    for (file, changes, named) in [
        (
            "tokenizer_config.json",
            json!({ "truncation_side": "left" }),
            "truncation_side",
        ),
        (
            "sentence_bert_config.json",
            json!({ "processing_kwargs": { "text": { "max_length": 9 } } }),
            "processing_kwargs",
        ),
        (
            "sentence_bert_config.json",
            json!({ "modality_config": { "message": { "format": "structured" } } }),
            "structured",
        ),
    ] {
        assert_error(
            load_changed("qwen3", file, &changes),
            "MODEL_UNSUPPORTED",
            &[file, named],
        );
    }
    let generated =
        json!({ "processing_kwargs": { "chat_template": { "add_generation_prompt": true } } });
    assert!(load_changed("qwen3", "sentence_bert_config.json", &generated).is_ok());
}

#[test]
fn a_limit_has_room_for_the_chat_template() {
    let shortest = load("qwen3").tokenize_pair("a", "a").unwrap().ids.len();
    let load = |limit| {
        let options = Options {
            max_tokens: Some(limit),
            ..options_for(Backend::Onnx)
        };
        Model::load(&folder("qwen3"), &options)
    };
    for limit in [1, 20, shortest - 1] {
        assert_error(
            load(limit),
            "INVALID_ARGUMENT",
            &["maxTokens", "chat template"],
        );
    }
    let model = load(shortest).unwrap();
    let pair = model.tokenize_pair("a", "a a a").unwrap();
    assert!(pair.truncated);
    assert_eq!(pair.ids.len(), shortest);
    let result = model.tokenize_pair("a a", "");
    assert_error(result, "INVALID_ARGUMENT", &["query", "at most 1 tokens"]);
}

#[test]
fn a_language_model_without_its_module_is_refused() {
    let result = setup::load_changed(&folder("qwen3"), &options_for(Backend::Onnx), |copy| {
        std::fs::remove_file(copy.join("modules.json")).unwrap();
    });
    assert_error(
        result,
        "MODEL_UNSUPPORTED",
        &["LogitScore", "newest revision"],
    );
}

#[test]
fn a_classifier_that_was_saved_without_modules_reads_its_chat_template() {
    let model = setup::load_changed(
        &folder("qwen3_classifier"),
        &options_for(Backend::Onnx),
        |copy| {
            for file in ["modules.json", "sentence_bert_config.json"] {
                std::fs::remove_file(copy.join(file)).unwrap();
            }
        },
    );
    let model = model.unwrap();
    for case in golden("qwen3_classifier").cases {
        let pair = model.tokenize_pair(&case.query, &case.text.build());
        assert_eq!(pair.unwrap().ids, case.ids, "{}", case.name);
    }
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
