//! Vectors against those of `transformers` and `sentence-transformers`; see `tests/fixtures/README.md`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::collections::HashMap;

use semantic_search_native::Model;
use semantic_search_native::graph::Pooling;
use semantic_search_native::options::{Backend, Options};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Golden {
    max_tokens: usize,
    prompts: HashMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    name: String,
    text: setup::Text,
    kind: String,
    pooling: Option<serde_json::Value>,
    max_tokens: Option<usize>,
    ids: Option<Vec<u32>>,
    token_count: usize,
    truncated: bool,
    vector: Vec<f32>,
}

fn check_on(backend: Backend, fixture: &str) {
    let path = setup::fixture("golden").join(format!("{fixture}.json"));
    let golden: Golden = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    // One model for each set of options that the cases ask for.
    let mut models: HashMap<(Option<&str>, usize), Model> = HashMap::new();
    for case in &golden.cases {
        let pooling = match &case.pooling {
            // Several poolings cannot be asked for by option; the fixture nomic_partial has them in its folder.
            Some(serde_json::Value::Array(_)) => continue,
            Some(name) => name.as_str(),
            None => None,
        };
        let max_tokens = case.max_tokens.unwrap_or(golden.max_tokens);
        let model = models.entry((pooling, max_tokens)).or_insert_with(|| {
            let options = Options {
                pooling: pooling.map(|name| Pooling::from_name(name).unwrap()),
                max_tokens: Some(max_tokens),
                threads: Some(1),
                ..setup::options_for(backend)
            };
            Model::load(&setup::fixture(fixture), &options).unwrap()
        });
        assert_eq!(model.dir().query_prompt, golden.prompts["query"]);
        assert_eq!(model.dir().document_prompt, golden.prompts["document"]);

        let what = format!("{backend:?} {fixture}/{}", case.name);
        let text = case.text.build();
        let is_query = case.kind == "query";
        let tokenized = model.tokenize(&text, is_query).unwrap();
        assert_eq!(
            tokenized.ids.len(),
            case.token_count,
            "{what}: number of tokens"
        );
        assert_eq!(tokenized.truncated, case.truncated, "{what}: truncated");
        if let Some(ids) = &case.ids {
            assert_eq!(&tokenized.ids, ids, "{what}: token ids");
        }
        let embeddings = model.embed(vec![text], is_query).unwrap();
        assert_eq!(
            embeddings.truncated,
            if case.truncated { vec![0] } else { vec![] }
        );
        setup::assert_equal(&what, &embeddings.vectors, &case.vector);
    }
}

/// On all fixtures but those that the environment names, separated by commas.
fn check_all_on(backend: Backend) {
    let without = std::env::var("SEMANTIC_SEARCH_TEST_WITHOUT").unwrap_or_default();
    let is_without = |name: &str| without.split(',').any(|other| other == name);
    for fixture in setup::FIXTURES.iter().filter(|name| !is_without(name)) {
        check_on(backend, fixture);
    }
}

// A test for each backend: `npm test` runs that of the backend cpu on emulated processors too.

#[test]
fn vectors_of_onnx_are_those_of_the_reference() {
    check_all_on(Backend::Onnx);
}

#[test]
fn vectors_of_cpu_are_those_of_the_reference() {
    check_all_on(Backend::Cpu);
}

/// Where `npm test` has a GPU for it, or one in software.
#[test]
fn vectors_of_webgpu_are_those_of_the_reference() {
    if setup::on_webgpu() {
        check_all_on(Backend::WebGpu);
    }
}

#[cfg(mlx)]
#[test]
fn vectors_of_mlx_are_those_of_the_reference() {
    check_all_on(Backend::Mlx);
}
