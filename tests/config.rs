//! Every setting of a `config.json` counts, or is refused, or is known to change no vector. Nothing is silently ignored.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::collections::BTreeMap;
use std::path::Path;

use semantic_search_native::{Error, arch};
use serde_json::{Map, Value, json};

/// Settings of training, text generation, tokenizers, and heads that are not computed.
const WITHOUT_EFFECT: &[&str] = &[
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "bos_token_id",
    "classifier_activation",
    "classifier_bias",
    "classifier_dropout",
    "classifier_pooling",
    "cls_token_id",
    "decoder_bias",
    "dense_seq_output",
    "deterministic_flash_attn",
    "dropout",
    "dtype",
    "embd_pdrop",
    "embedding_dropout",
    "eos_token_id",
    "fused_bias_fc",
    "fused_dropout_add_ln",
    "hidden_dropout_prob",
    "initializer_cutoff_factor",
    "initializer_range",
    "mlp_dropout",
    "pad_vocab_size_multiple",
    "qa_dropout",
    "resid_pdrop",
    "sep_token_id",
    "seq_classif_dropout",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "use_flash_attn",
    "use_xentropy",
    // The implementation of NomicBert has these settings and does not read them.
    "parallel_block_tied_norm",
    "reorder_and_upcast_attn",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
    // The table of positions is in the checkpoint, however it was made.
    "sinusoidal_pos_embds",
];

/// Families in which a setting counts for nothing that it counts for in another.
const WITHOUT_EFFECT_IN: &[(&str, &str)] = &[
    // Of `tests/fixtures/remote_code.py`; the tensors tell.
    ("bert", "has_qk_norms"),
    // Only RoBERTa numbers positions by it.
    ("bert", "pad_token_id"),
    ("distilbert", "pad_token_id"),
    // The tensors have a format of their own, and `mapping` says what is shared. Vectors are normalized as the caller asks.
    ("model2vec", "embedding_dtype"),
    ("model2vec", "normalize"),
    ("model2vec", "vocabulary_quantization"),
    ("gemma3_text", "pad_token_id"),
    ("modernbert", "pad_token_id"),
    ("mpnet", "pad_token_id"),
    ("qwen2", "pad_token_id"),
    ("qwen3", "pad_token_id"),
    // Only rerankers of Qwen have logits of words.
    ("bert", "tie_word_embeddings"),
    ("distilbert", "tie_word_embeddings"),
    ("gemma3_text", "tie_word_embeddings"),
    ("modernbert", "tie_word_embeddings"),
    ("mpnet", "tie_word_embeddings"),
    ("roberta", "tie_word_embeddings"),
    ("xlm-roberta", "tie_word_embeddings"),
    // `layer_types` says the same.
    ("gemma3_text", "_sliding_window_pattern"),
    // They count with `use_sliding_window`, which is refused.
    ("qwen2", "max_window_layers"),
    ("qwen2", "sliding_window"),
    ("qwen3", "max_window_layers"),
    ("qwen3", "sliding_window"),
];

/// Settings of a family that its fixtures were saved without, and their defaults.
fn defaults(family: &str) -> Map<String, Value> {
    let defaults = match family {
        "bert" => json!({"add_cross_attention": false, "is_decoder": false}),
        _ => json!({}),
    };
    defaults.as_object().unwrap().clone()
}

/// Other values of the same kind, wherever there is one inside `value`.
fn altered(value: &Value) -> Vec<Value> {
    match value {
        Value::Null => vec![json!(3), json!(true), json!("another")],
        Value::Bool(flag) => vec![json!(!flag)],
        Value::Number(number) => match number.as_i64() {
            Some(number) => vec![json!(number + 1), json!(2 * number + 2)],
            None => vec![json!(number.as_f64().unwrap() * 0.5 + 0.1)],
        },
        Value::String(_) => vec![json!("another")],
        Value::Array(items) => {
            let mut arrays = vec![];
            for (index, item) in items.iter().enumerate() {
                for other in altered(item) {
                    let mut array = items.clone();
                    array[index] = other;
                    arrays.push(Value::Array(array));
                }
            }
            arrays
        }
        Value::Object(fields) => {
            let mut objects = vec![];
            for (key, field) in fields {
                for other in altered(field) {
                    let mut object = fields.clone();
                    object.insert(key.clone(), other);
                    objects.push(Value::Object(object));
                }
            }
            objects
        }
    }
}

#[test]
fn no_setting_is_silently_ignored() {
    // In all files of a family.
    let mut without_effect: BTreeMap<(String, String), bool> = BTreeMap::new();
    for fixture in setup::FIXTURES.iter() {
        let folder = setup::fixture(fixture);
        let places = ["config.json", "0_Transformer/config.json"];
        let mut files = places.iter().map(|name| folder.join(name));
        // Not every static model has one.
        let Some(path) = files.find(|file| file.exists()) else {
            continue;
        };
        let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let family = json["model_type"].as_str().unwrap().to_owned();
        let mut settings = defaults(&family);
        settings.extend(json.as_object().unwrap().clone());
        let original = format!("{:?}", arch::read(&path, &json).unwrap());
        for (key, value) in &settings {
            let read = altered(value).into_iter().map(|other| {
                let mut config = settings.clone();
                config.insert(key.clone(), other);
                arch::read(&path, &Value::Object(config))
            });
            let (read, errors): (Vec<_>, Vec<_>) = read.partition(Result::is_ok);
            let is_read = (read.iter().flatten()).any(|one| format!("{one:?}") != original);
            let errors: Vec<_> = errors.into_iter().filter_map(Result::err).collect();
            let is_named = |error: &Error| {
                error.code() == "MODEL_INVALID" || error.to_string().contains(key.as_str())
            };
            let is_refused = errors.iter().any(is_named);
            assert!(
                is_read || is_refused || errors.is_empty(),
                "{fixture}: {key}: {errors:?}"
            );
            let ignored = !(is_read || is_refused);
            *without_effect
                .entry((family.clone(), key.clone()))
                .or_insert(true) &= ignored;
        }
    }
    let wrong: Vec<_> = (without_effect.iter())
        .filter(|((family, key), ignored)| {
            let may_be_ignored = WITHOUT_EFFECT.contains(&key.as_str())
                || WITHOUT_EFFECT_IN.contains(&(family.as_str(), key.as_str()));
            **ignored != may_be_ignored
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // What no file has is not to be listed.
    for listed in WITHOUT_EFFECT {
        assert!(
            without_effect.keys().any(|(_, key)| key == listed),
            "{listed} occurs nowhere"
        );
    }
}

/// Before version 5, `transformers` said by numbers which layers are global, and which base each kind rotates with.
#[test]
fn an_older_config_of_modernbert_says_the_same() {
    let path = Path::new("config.json");
    let file = setup::fixture("modernbert").join("config.json");
    let json: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let mut older = json.as_object().unwrap().clone();
    older.remove("layer_types");
    let bases = older.remove("rope_parameters").unwrap();
    older.insert("global_attn_every_n_layers".into(), json!(3));
    for (key, kind) in [
        ("global_rope_theta", "full_attention"),
        ("local_rope_theta", "sliding_attention"),
    ] {
        older.insert(key.into(), bases[kind]["rope_theta"].clone());
    }
    let read = |json: &Value| format!("{:?}", arch::read(path, json).unwrap());
    assert_eq!(read(&older.clone().into()), read(&json));
    older.insert("global_rope_theta".into(), json!(1e4));
    assert_ne!(read(&older.into()), read(&json));
}
