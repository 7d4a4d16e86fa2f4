//! Token ids in place of texts: they are the text's own vector, are counted and cut like one, and wrong ones are refused.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::collections::BTreeMap;
use std::path::Path;

use semantic_search_native::options::{Backend, Options};
use semantic_search_native::{Embeddings, Error, Input, Model};

const TEXTS: [&str; 6] = [
    "return the sum of two numbers",
    "",
    "def parse(value): return int(value)",
    "日本語 🚀 Ångström",
    "a",
    "the search finds every file that was changed after the war",
];

fn load(name: &str, backend: Backend, max_tokens: Option<usize>) -> Model {
    let options = Options {
        max_tokens,
        ..setup::options_for(backend)
    };
    Model::load(&setup::fixture(name), &options).unwrap()
}

fn ids(model: &Model, text: &str, is_query: bool) -> Vec<u32> {
    model.tokenize(text, is_query).unwrap().ids
}

fn texts() -> Vec<String> {
    TEXTS.map(str::to_owned).to_vec()
}

#[track_caller]
fn assert_refused(result: Result<Embeddings, Error>, named: &[&str]) {
    let error = result.expect_err("an error");
    let message = error.to_string();
    assert_eq!(error.code(), "INVALID_ARGUMENT", "{message}");
    for part in named {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// To the last bit: the same ids in the same batches. The kind adds nothing to them.
#[test]
fn the_ids_of_a_text_give_its_vector() {
    for &backend in *setup::BACKENDS {
        for name in ["nomic_cls", "nomic_mean_dynamic", "bert_mean"] {
            let model = load(name, backend, None);
            for is_query in [false, true] {
                let expected = model.embed(texts(), is_query).unwrap();
                let tokens: Vec<Vec<u32>> = TEXTS
                    .iter()
                    .map(|text| ids(&model, text, is_query))
                    .collect();
                for as_query in [false, true] {
                    let actual = model.embed(tokens.clone(), as_query).unwrap();
                    assert_eq!(actual, expected, "{backend:?} {name} {is_query} {as_query}");
                }
                let alone = model.embed(vec![tokens[0].clone()], is_query).unwrap();
                let text = model.embed(vec![TEXTS[0].to_owned()], is_query).unwrap();
                assert_eq!(alone, text, "{backend:?} {name} {is_query}, alone");
            }
        }
    }
}

/// Equal ids are computed once; a text and its ids are two.
#[test]
fn texts_and_ids_keep_their_order_and_are_told_apart() {
    for &backend in *setup::BACKENDS {
        let model = load("bert_mean", backend, None);
        let [first, second] = [TEXTS[0], TEXTS[2]].map(|text| ids(&model, text, false));
        let rows = |embeddings: &Embeddings| -> Vec<Vec<f32>> {
            let rows = embeddings.vectors.chunks_exact(model.dir().dimension());
            rows.map(<[f32]>::to_vec).collect()
        };
        let expected = rows(&model.embed(texts(), false).unwrap());
        let calls: Vec<Input> = vec![
            Input::Tokens(first.clone()),
            Input::Text(TEXTS[2].to_owned()),
            Input::Tokens(second.clone()),
            Input::Text(TEXTS[0].to_owned()),
            Input::Tokens(first.clone()),
            Input::Text(TEXTS[2].to_owned()),
        ];
        let before = model.activity().texts;
        let embeddings = model.embed(calls, false).unwrap();
        assert_eq!(embeddings.tokens, 2 * (first.len() + second.len()));
        assert_eq!(model.activity().texts - before, 4);
        for (row, text) in rows(&embeddings).iter().zip([0, 2, 2, 0, 0, 2]) {
            setup::assert_equal(&format!("{backend:?} {text}"), row, &expected[text]);
        }
    }
}

/// Of Python's `tokenizers`, for each kind of tokenizer; `generate_tokenizers.py` writes them.
#[test]
fn a_text_has_the_ids_that_python_gives() {
    #[derive(serde::Deserialize)]
    struct Golden {
        tokenizers: BTreeMap<String, String>,
        cases: Vec<Case>,
    }
    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        ids: BTreeMap<String, Vec<u32>>,
    }
    let file = std::fs::read(setup::fixture("golden/token_ids.json")).unwrap();
    let golden: Golden = serde_json::from_slice(&file).unwrap();
    for (name, tokenizer) in &golden.tokenizers {
        let folder = tempfile::tempdir().unwrap();
        // Without a prompt for documents, and with more rows than any of the tokenizers has tokens.
        setup::copy(&setup::fixture("nomic_cls"), folder.path());
        let target = folder.path().join("tokenizer.json");
        std::fs::copy(setup::fixture(tokenizer), target).unwrap();
        let options = Options {
            max_tokens: Some(2048),
            ..setup::options()
        };
        let model = Model::load(folder.path(), &options).unwrap();
        for Case {
            text,
            ids: expected,
        } in &golden.cases
        {
            assert_eq!(ids(&model, text, false), expected[name], "{name}: {text:?}");
        }
    }
}

#[test]
fn ids_beyond_the_limit_are_cut_off_on_the_side_that_the_model_says() {
    let left = tempfile::tempdir().unwrap();
    setup::copy(&setup::fixture("bert_mean"), left.path());
    let path = left.path().join("tokenizer_config.json");
    let file = std::fs::read(&path).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&file).unwrap();
    json["truncation_side"] = "left".into();
    std::fs::write(path, json.to_string()).unwrap();
    let right = setup::fixture("bert_mean");
    for &backend in *setup::BACKENDS {
        for (folder, kept) in [(&*right, 0..8), (left.path(), 4..12)] {
            let load = |folder: &Path, max_tokens| {
                let options = Options {
                    max_tokens: Some(max_tokens),
                    ..setup::options_for(backend)
                };
                Model::load(folder, &options).unwrap()
            };
            let tokens: Vec<u32> = (100..112).collect();
            let expected = load(folder, 12)
                .embed(vec![tokens[kept].to_vec()], false)
                .unwrap();
            assert_eq!(expected.truncated, [] as [u32; 0]);
            let model = load(folder, 8);
            let cut = model
                .embed(vec![tokens[..8].to_vec(), tokens.clone()], false)
                .unwrap();
            assert_eq!(cut.truncated, [1]);
            assert_eq!(cut.tokens, 16);
            let row = &cut.vectors[model.dir().dimension()..];
            setup::assert_equal(
                &format!("{backend:?} {}", folder.display()),
                row,
                &expected.vectors,
            );
        }
    }
}

#[test]
fn every_id_of_the_model_is_taken() {
    for &backend in *setup::BACKENDS {
        let model = load("bert_mean", backend, None);
        let rows = model.dir().encoder.facts().vocabulary as u32;
        let embeddings = model.embed(vec![vec![0], vec![rows - 1], vec![0, rows - 1]], false);
        assert!(embeddings.unwrap().vectors.iter().all(|x| x.is_finite()));
    }
}

/// Wherever they stand, also where they would be cut off; alone, among a few, and in a call that is tokenized in steps.
#[test]
fn ids_that_are_none_are_refused_and_harm_nobody() {
    for &backend in *setup::BACKENDS {
        let model = load("bert_mean", backend, Some(8));
        let rows = model.dir().encoder.facts().vocabulary as u32;
        let limit = format!("from 0 to {}", rows - 1);
        let mut beyond_limit = vec![5; 20];
        beyond_limit[17] = rows;
        for (wrong, place, found) in [
            (vec![rows], 0, rows),
            (vec![5, u32::MAX, rows], 1, u32::MAX),
            (beyond_limit, 17, rows),
        ] {
            for before in [0, 3, 200] {
                for is_query in [false, true] {
                    let mut calls: Vec<Input> = (0..before)
                        .map(|i| Input::Text(format!("text {i}")))
                        .collect();
                    calls.push(wrong.clone().into());
                    let named = format!("found {found} at texts[{before}][{place}]");
                    assert_refused(model.embed(calls, is_query), &[&limit, &named]);
                }
            }
        }
        assert_refused(
            model.embed(vec![vec![5], vec![]], false),
            &["at least one token id", "texts[1]"],
        );

        // Calls of one text share a batch, and fail alone.
        let (sender, receiver) = std::sync::mpsc::channel();
        for call in 0..200_u32 {
            let tokens = vec![if call % 10 == 0 { rows } else { call }];
            let sender = sender.clone();
            let reply = move |result: Result<Embeddings<_>, Error>| {
                let result = result.map(Embeddings::floats);
                sender.send((call, result)).unwrap();
            };
            model.submit(setup::request(vec![tokens], false), Box::new(reply));
        }
        for (call, result) in receiver.iter().take(200) {
            if call % 10 == 0 {
                assert_refused(result, &["texts[0][0]"]);
            } else {
                let alone = model.embed(vec![vec![call]], false).unwrap();
                setup::assert_equal(&call.to_string(), &result.unwrap().vectors, &alone.vectors);
            }
        }
        assert_eq!(model.activity().calls, 0);
    }
}
