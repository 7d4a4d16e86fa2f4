//! Vectors that are cut and vectors that are encoded, against sentence-transformers, torch and numpy; see
//! `tests/fixtures/generate_output.py`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use proptest::prelude::*;
use semantic_search_native::Model;
use semantic_search_native::options::Options;
use semantic_search_native::vector::{self, Encoding, Matryoshka, Vectors};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    texts: Vec<String>,
    cuts: Vec<CutCase>,
    encodings: Vec<EncodingCase>,
}

#[derive(Deserialize)]
struct CutCase {
    folder: String,
    options: CutOptions,
    vectors: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CutOptions {
    dimensions: usize,
    layer_norm: bool,
    normalize: bool,
}

#[derive(Deserialize)]
struct EncodingCase {
    vector: Vec<f32>,
    int8: Vec<i8>,
    binary: Vec<u8>,
}

fn golden() -> Golden {
    let path = setup::fixture("golden").join("output.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn cut_vectors_are_those_of_sentence_transformers() {
    let golden = golden();
    for &backend in *setup::BACKENDS {
        for CutCase {
            folder,
            options,
            vectors,
        } in &golden.cuts
        {
            let options = Options {
                dimensions: Some(options.dimensions),
                layer_norm: Some(options.layer_norm),
                normalize: Some(options.normalize),
                threads: Some(1),
                ..setup::options_for(backend)
            };
            let model = Model::load(&setup::fixture(folder), &options).unwrap();
            assert_eq!(Some(model.dir().dimension()), options.dimensions);
            // A repeated text and one more: rows must not be mixed up where equal texts are computed once.
            let mut texts = golden.texts.clone();
            texts.insert(0, texts[1].clone());
            let embeddings = model.embed(texts, false).unwrap();
            let rows: Vec<&[f32]> = embeddings
                .vectors
                .chunks_exact(model.dir().dimension())
                .collect();
            assert_eq!(rows.len(), vectors.len() + 1);
            assert_eq!(rows[0], rows[2]);
            for (row, expected) in rows[1..].iter().zip(vectors) {
                let what = format!("{backend:?} {folder} {options:?}");
                setup::assert_equal(&what, row, expected);
            }
        }
    }
}

#[test]
fn encoded_vectors_are_those_of_numpy() {
    for EncodingCase {
        vector,
        int8,
        binary,
    } in golden().encodings
    {
        // Two rows: each begins with a byte of its own.
        let (rows, dimension) = (vector.repeat(2), vector.len());
        let encode = |encoding: &str| {
            let encoding: Encoding = encoding.parse().unwrap();
            encoding.encode(rows.clone(), dimension).unwrap()
        };
        assert_eq!(encode("float32"), Vectors::Float32(rows.clone()));
        assert_eq!(encode("int8"), Vectors::Int8(int8.repeat(2)), "{vector:?}");
        assert_eq!(
            encode("binary"),
            Vectors::Binary(binary.repeat(2)),
            "{vector:?}"
        );
    }
}

#[test]
fn an_unknown_encoding_is_refused() {
    let error = "int4".parse::<Encoding>().unwrap_err();
    assert_eq!(error.code(), "INVALID_ARGUMENT");
    assert_eq!(
        error.to_string(),
        r#"encoding: expected "float32", "int8" or "binary", found "int4""#
    );
}

/// Rows of numbers, none of them all zeros.
fn rows() -> impl Strategy<Value = (usize, Vec<f32>)> {
    (1..40_usize, 1..5_usize).prop_flat_map(|(dimension, count)| {
        let numbers = prop::collection::vec(-1e3..1e3_f32, dimension * count);
        (Just(dimension), numbers)
    })
}

proptest! {
    #[test]
    fn int8_is_off_by_half_a_step_at_most((dimension, mut vectors) in rows()) {
        vector::normalize(&mut vectors, dimension);
        let Vectors::Int8(bytes) = Encoding::Int8.encode(vectors.clone(), dimension).unwrap() else {
            panic!("not int8");
        };
        prop_assert_eq!(bytes.len(), vectors.len());
        for (&byte, &x) in bytes.iter().zip(&vectors) {
            prop_assert!((-127..=127).contains(&byte));
            let error = (f64::from(byte) / 127.0 - f64::from(x)).abs();
            // A component of a unit vector may be rounded to just beyond 1.
            prop_assert!(error <= 0.5 / 127.0 + 1e-7, "{x} became {byte}");
        }
    }

    #[test]
    fn every_bit_is_a_sign_and_the_padding_is_zero((dimension, vectors) in rows()) {
        let Vectors::Binary(bytes) = Encoding::Binary.encode(vectors.clone(), dimension).unwrap() else {
            panic!("not binary");
        };
        let bytes_per_row = dimension.div_ceil(8);
        prop_assert_eq!(bytes.len(), vectors.len() / dimension * bytes_per_row);
        for (bits, row) in bytes.chunks_exact(bytes_per_row).zip(vectors.chunks_exact(dimension)) {
            for index in 0..bytes_per_row * 8 {
                let bit = bits[index / 8] & (128 >> (index % 8)) != 0;
                prop_assert_eq!(bit, row.get(index).is_some_and(|&x| x > 0.0));
            }
        }
    }

    #[test]
    fn a_cut_row_depends_on_its_row_alone((dimension, vectors) in rows(), part in 0.0..1.0_f64, layer_norm: bool) {
        let dimensions = 1 + (part * dimension as f64) as usize;
        let matryoshka = Matryoshka { dimensions: dimensions.min(dimension), layer_norm };
        let mut together = vectors.clone();
        matryoshka.apply(&mut together, dimension);
        let mut alone = Vec::new();
        for row in vectors.chunks_exact(dimension) {
            let mut row = row.to_vec();
            matryoshka.apply(&mut row, dimension);
            prop_assert_eq!(row.len(), matryoshka.dimensions);
            alone.extend(row);
        }
        prop_assert_eq!(&together, &alone);
        if !layer_norm {
            let firsts = vectors.chunks_exact(dimension).flat_map(|row| &row[..matryoshka.dimensions]);
            prop_assert!(firsts.eq(&together));
        }
    }
}
