//! What holds for every model and every text, and the real model against sentence-transformers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::sync::OnceLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use proptest::prelude::*;
use semantic_search_native::Model;
use semantic_search_native::graph::Pooling;
use semantic_search_native::options::{Backend, Options};

/// A fixture on a backend.
struct Fixture {
    name: &'static str,
    backend: Backend,
    model: Model,
}

impl Fixture {
    /// That vectors are equal: bit by bit where nothing is padded.
    fn assert_equal(&self, what: &str, actual: &[f32], expected: &[f32]) {
        let what = format!("{:?} {}: {what}", self.backend, self.name);
        if !matches!(self.backend, Backend::Mlx | Backend::WebGpu) {
            assert_eq!(actual, expected, "{what}");
        } else if actual != expected {
            setup::assert_equal(&what, actual, expected);
        }
    }

    /// Static models may leave all tokens of a text out.
    fn is_static(&self) -> bool {
        self.name.starts_with("static_")
    }
}

/// Every fixture on every backend, loaded once, with a limit that makes some texts too long.
fn models() -> &'static [Fixture] {
    static MODELS: OnceLock<Vec<Fixture>> = OnceLock::new();
    MODELS.get_or_init(|| {
        let load = |(&backend, name): (&Backend, &'static String)| {
            let options = Options {
                max_tokens: Some(40),
                threads: Some(2),
                ..setup::options_for(backend)
            };
            let model = Model::load(&setup::fixture(name), &options).unwrap();
            Fixture {
                name,
                backend,
                model,
            }
        };
        let of_backend = |backend| setup::FIXTURES.iter().map(move |name| (backend, name));
        setup::BACKENDS
            .iter()
            .flat_map(of_backend)
            .map(load)
            .collect()
    })
}

/// Anything that can be in a string, and words that the vocabulary knows.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["\\PC{0,60}", any::<String>(), "([a-z]{1,8} ){0,60}"]
}

fn embed(model: &Model, texts: &[String]) -> Vec<Vec<f32>> {
    let embeddings = model.embed(texts.to_vec(), false).unwrap();
    let rows = embeddings.vectors.chunks_exact(model.dir().dimension());
    rows.map(<[f32]>::to_vec).collect()
}

/// Texts of one length are computed in one batch, and texts of other lengths beside it.
#[test]
fn on_the_cpu_no_bit_depends_on_the_texts_beside() {
    let words = ["time", "the", "of", "and", "to", "in"];
    for backend in [Backend::Onnx, Backend::Cpu] {
        for fixture in setup::FIXTURES.iter() {
            for pooling in Pooling::ALL {
                let options = Options {
                    pooling: Some(pooling),
                    threads: Some(2),
                    ..setup::options_for(backend)
                };
                let model = Model::load(&setup::fixture(fixture), &options).unwrap();
                let text = |count: usize, from: usize| {
                    let words = words.iter().cycle().skip(from).take(count);
                    words.copied().collect::<Vec<_>>().join(" ")
                };
                let lengths = [0, 1, 2, 3, 5, 6, 7, 8, 11, 14, 17, 30, 31];
                let texts = lengths.map(|count| [0, 1, 2].map(|from| text(count, from)));
                let texts = texts.concat();
                for (text, row) in texts.iter().zip(embed(&model, &texts)) {
                    let alone = embed(&model, std::slice::from_ref(text)).remove(0);
                    let pooling = pooling.name();
                    assert_eq!(row, alone, "{backend:?} {fixture}, {pooling}, {text:?}");
                }
            }
        }
    }
}

proptest! {
    // A GPU in software takes its time.
    #![proptest_config(ProptestConfig { cases: if setup::on_webgpu() { 2 } else { 24 }, ..ProptestConfig::default() })]

    #[test]
    fn a_vector_depends_on_its_text_alone(texts in prop::collection::vec(text(), 1..20)) {
        for fixture in models() {
            let model = &fixture.model;
            let together = embed(model, &texts);
            for (text, row) in texts.iter().zip(&together) {
                let alone = embed(model, std::slice::from_ref(text));
                fixture.assert_equal("batched = single", row, &alone[0]);
                let length: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                let is_zero = fixture.is_static() && length == 0.0;
                prop_assert!(is_zero || (length - 1.0).abs() < 1e-6, "{}: length {length}", fixture.name);
            }
            let mut reversed: Vec<String> = texts.clone();
            reversed.reverse();
            for (row, other) in together.iter().zip(embed(model, &reversed).iter().rev()) {
                fixture.assert_equal("order", row, other);
            }
        }
    }

    #[test]
    fn equal_texts_have_equal_vectors_and_count_once(text in text(), other in text(), copies in 2..6_usize) {
        for Fixture { name, model, .. } in models() {
            let mut texts = vec![text.clone(); copies];
            texts.insert(1, other.clone());
            let embeddings = model.embed(texts, false).unwrap();
            let rows: Vec<&[f32]> = embeddings.vectors.chunks_exact(model.dir().dimension()).collect();
            for index in (2..=copies).chain([0]) {
                prop_assert_eq!(rows[index], rows[0], "{}", name);
            }
            let count = |text: &str| model.tokenize(text, false).unwrap().ids.len();
            let expected = count(&text) + if other == text { 0 } else { count(&other) };
            prop_assert_eq!(embeddings.tokens, expected, "{}", name);
        }
    }

    #[test]
    fn tokens_stay_within_the_limit_and_truncation_is_told(text in text()) {
        for fixture in models() {
            let model = &fixture.model;
            let limit = model.dir().max_tokens;
            let tokenized = model.tokenize(&text, false).unwrap();
            prop_assert!(tokenized.ids.len() <= limit);
            // Of static models, unknown tokens are left out after the limit.
            let is_full = fixture.is_static() || tokenized.ids.len() == limit;
            prop_assert!(!tokenized.truncated || is_full, "{}", fixture.name);
            let embeddings = model.embed(vec![text.clone()], false).unwrap();
            prop_assert_eq!(!embeddings.truncated.is_empty(), tokenized.truncated);
        }
    }
}

/// Cutting a long text before it is tokenized must not show, wherever the cut falls.
#[test]
fn the_tokens_of_a_long_text_are_those_of_the_whole() {
    let model = Model::load(
        &setup::fixture("nomic_cls"),
        &Options {
            max_tokens: Some(20),
            ..setup::options()
        },
    )
    .unwrap();
    let whole = Model::load(
        &setup::fixture("nomic_cls"),
        &Options {
            max_tokens: Some(8192),
            ..setup::options()
        },
    )
    .unwrap();
    let unknown_word = "x".repeat(1000);
    for text in [
        "return value ".repeat(300),
        format!("{unknown_word} ").repeat(5),
        format!("{unknown_word} short {unknown_word}\n\t\u{a0}tail of the text"),
        "é ü ß 漢字 [MASK] ".repeat(40),
        " ".repeat(5000) + "late",
        "no-whitespace-at-all".repeat(200),
    ] {
        let limited = model.tokenize(&text, false).unwrap();
        let all = whole.tokenize(&text, false).unwrap().ids;
        assert_eq!(limited.truncated, all.len() > 20, "{text:.40}");
        let kept = limited.ids.len() - 1;
        assert_eq!(limited.ids[..kept], all[..kept], "{text:.40}");
        assert_eq!(
            limited.ids.last(),
            all.last(),
            "the special token at the end stays"
        );
    }
}

/// The real all-MiniLM-L6-v2 on 50 real texts. `npm test` brings the model.
#[test]
fn the_real_model_equals_sentence_transformers() {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Golden {
        texts: Vec<String>,
        token_counts: Vec<usize>,
        truncated: Vec<bool>,
        vectors: String,
    }
    let path = setup::fixture("golden").join("all-MiniLM-L6-v2.json");
    let golden: Golden = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for &backend in *setup::BACKENDS {
        let model = Model::load(&setup::starter_model(), &setup::options_for(backend)).unwrap();
        let embeddings = model.embed(golden.texts.clone(), false).unwrap();

        let expected_truncated: Vec<u32> = (0..)
            .zip(&golden.truncated)
            .filter(|(_, cut)| **cut)
            .map(|(i, _)| i)
            .collect();
        assert_eq!(embeddings.truncated, expected_truncated);
        for (text, count) in golden.texts.iter().zip(&golden.token_counts) {
            assert_eq!(model.tokenize(text, false).unwrap().ids.len(), *count);
        }
        let bytes = BASE64.decode(&golden.vectors).unwrap();
        let expected: Vec<f32> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|word| f32::from_le_bytes(*word))
            .collect();
        for (index, (row, other)) in embeddings
            .vectors
            .chunks_exact(384)
            .zip(expected.chunks_exact(384))
            .enumerate()
        {
            setup::assert_equal(&format!("{backend:?}, text {index}"), row, other);
        }
    }
}
