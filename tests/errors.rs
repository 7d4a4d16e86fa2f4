//! One test per way in which a model folder or a call can be wrong: the code, and what the message names.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::path::Path;

use semantic_search_native::graph::Pooling;
use semantic_search_native::options::{Backend, Dtype, Options};
use semantic_search_native::{Embeddings, Error, Model};
use serde_json::{Value, json};
use setup::{assert_error, set};

/// Loads a copy of a fixture after `spoil` changed it.
fn load_spoiled(fixture: &str, spoil: impl FnOnce(&Path)) -> Result<Model, Error> {
    load_spoiled_with(fixture, &setup::options(), spoil)
}

fn load_spoiled_with(
    fixture: &str,
    options: &Options,
    spoil: impl FnOnce(&Path),
) -> Result<Model, Error> {
    setup::load_changed(&setup::fixture(fixture), options, spoil)
}

fn set_config(key: &'static str, value: Value) -> impl FnOnce(&Path) {
    move |folder| set(&folder.join("config.json"), key, value)
}

fn remove(file: &'static str) -> impl FnOnce(&Path) {
    move |folder| std::fs::remove_file(folder.join(file)).unwrap()
}

fn write(file: &'static str, text: &'static str) -> impl FnOnce(&Path) {
    move |folder| std::fs::write(folder.join(file), text).unwrap()
}

/// Rewrites `model.safetensors` after `change` was applied to its header (as JSON) and its data.
fn rewrite_weights(folder: &Path, change: impl FnOnce(&mut Value, &mut Vec<u8>)) {
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut data = bytes[8 + length..].to_vec();
    change(&mut header, &mut data);
    let header = header.to_string();
    let parts = [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        &data,
    ];
    std::fs::write(path, parts.concat()).unwrap();
}

/// Overwrites the first number of a tensor.
fn poison(folder: &Path, tensor: &str, number: &[u8]) {
    rewrite_weights(folder, |header, data| {
        let start = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        data[start..start + number.len()].copy_from_slice(number);
    });
}

#[test]
fn missing_files_are_named() {
    let nowhere = Path::new("no/such/folder");
    assert_error(
        Model::load(nowhere, &setup::options()),
        "MODEL_NOT_FOUND",
        &["no/such/folder"],
    );
    for file in [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "1_Pooling/config.json",
    ] {
        assert_error(
            load_spoiled("bert_mean", remove(file)),
            "MODEL_NOT_FOUND",
            &[file],
        );
    }
    let shard = "model-00002-of-00002.safetensors";
    assert_error(
        load_spoiled("bert_cls_f16", remove(shard)),
        "MODEL_NOT_FOUND",
        &[shard],
    );
}

#[test]
fn invalid_json_is_located() {
    for file in [
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "tokenizer_config.json",
    ] {
        let text = if file == "modules.json" {
            "[\n  oops\n]"
        } else {
            "{\n  \"a\": oops\n}"
        };
        let result = load_spoiled("bert_mean", write(file, text));
        assert_error(result, "MODEL_INVALID", &[file, "line 2 column"]);
    }
    let result = load_spoiled("bert_mean", write("tokenizer.json", "{\"version\":"));
    assert_error(result, "MODEL_INVALID", &["tokenizer.json", "line 1"]);
}

#[test]
fn unsupported_architectures_are_refused_by_name() {
    let cases = [
        ("bert_mean", "model_type", json!("gpt2")),
        ("bert_mean", "hidden_act", json!("mish")),
        (
            "bert_mean",
            "position_embedding_type",
            json!("relative_key"),
        ),
        ("bert_mean", "is_decoder", json!(true)),
        ("jina_bert", "is_decoder", json!(true)),
        ("jina_bert", "feed_forward_type", json!("original")),
        ("gte_new", "position_embedding_type", json!("absolute")),
        ("gte_new", "layer_norm_type", json!("rms_norm")),
        ("gte_new", "pack_qkv", json!(false)),
        ("gte_new", "logn_attention_scale", json!(true)),
        ("gte_new", "num_attention_heads", json!(32)),
        (
            "gte_new",
            "rope_scaling",
            json!({"factor": 2, "type": "linear"}),
        ),
        (
            "gte_new",
            "rope_scaling",
            json!({"factor": 0.5, "type": "ntk"}),
        ),
        (
            "gte_new",
            "rope_scaling",
            json!({"factor": 2, "mixed_b": 0.6, "type": "ntk"}),
        ),
        ("nomic_cls", "prenorm", json!(true)),
        ("nomic_cls", "parallel_block", json!(true)),
        ("nomic_cls", "rotary_emb_interleaved", json!(true)),
        ("nomic_cls", "use_rms_norm", json!(true)),
        ("nomic_cls", "causal", json!(true)),
        ("nomic_cls", "rotary_emb_scale_base", json!(512)),
        ("nomic_cls", "moe_every_n_layers", json!(2)),
        ("nomic_cls", "num_experts", json!(8)),
        ("nomic_cls", "activation_function", json!("relu")),
        ("nomic_moe", "moe_normalize_expert_weights", json!(true)),
        ("nomic_moe", "expert_choice_router", json!(true)),
        ("nomic_moe", "num_shared_experts", json!(1)),
        ("nomic_moe", "ffn_div", json!(2)),
        ("nomic_moe", "moe_top_k", json!(9)),
        ("nomic_cls", "rotary_emb_fraction", json!(0.0)),
        ("nomic_cls", "rotary_emb_fraction", json!(0.01)),
        ("qwen3", "is_causal", json!(false)),
        ("qwen3", "use_sliding_window", json!(true)),
        (
            "qwen3",
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
        ),
        ("qwen3", "head_dim", json!(20)),
        ("gemma3", "head_dim", json!(15)),
        ("qwen3", "hidden_act", json!("mish")),
        (
            "qwen3",
            "rope_scaling",
            json!({"factor": 4, "rope_type": "yarn"}),
        ),
        ("gemma3", "use_bidirectional_attention", json!(false)),
        ("gemma3", "use_bidirectional_attention", Value::Null),
        ("gemma3", "attn_logit_softcapping", json!(50)),
        ("gemma3", "final_logit_softcapping", json!(30)),
        ("gemma3", "layer_types", json!(["full_attention"])),
        (
            "gemma3",
            "layer_types",
            json!(["full_attention", "full_attention", "linear_attention"]),
        ),
    ];
    for (fixture, key, value) in cases {
        let shown = value.to_string();
        let result = load_spoiled(fixture, set_config(key, value));
        assert_error(result, "MODEL_UNSUPPORTED", &["config.json", key, &shown]);
    }
}

#[test]
fn a_scaled_rotation_is_refused() {
    let yarn = json!({"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0});
    for (fixture, parameters) in [
        ("qwen3", yarn.clone()),
        ("qwen2", json!({"type": "yarn"})),
        (
            "gemma3",
            json!({"full_attention": yarn, "sliding_attention": {"rope_theta": 1e4}}),
        ),
    ] {
        let result = load_spoiled(fixture, set_config("rope_parameters", parameters));
        let named = ["config.json", "type", "yarn", "default"];
        assert_error(result, "MODEL_UNSUPPORTED", &named);
    }
}

/// As `transformers` wrote them before version 5.
#[test]
fn older_settings_of_a_rotation_mean_the_same() {
    let text = || vec!["def f(x): return x + 1".repeat(3)];
    let bases: [(&str, &[(&str, f64)]); 3] = [
        ("qwen2", &[("rope_theta", 1e6)]),
        ("qwen3", &[("rope_theta", 1e6)]),
        (
            "gemma3",
            &[("rope_theta", 1e6), ("rope_local_base_freq", 1e4)],
        ),
    ];
    for (fixture, bases) in bases {
        let write = |scale: f64| {
            move |folder: &Path| {
                set_config("rope_parameters", Value::Null)(folder);
                set_config("rope_scaling", Value::Null)(folder);
                for &(key, base) in bases {
                    set_config(key, json!(base * scale))(folder);
                }
            }
        };
        let embed = |model: Model| model.embed(text(), false).unwrap().vectors;
        let expected = embed(load_spoiled(fixture, |_| ()).unwrap());
        let older = embed(load_spoiled(fixture, write(1.0)).unwrap());
        assert_eq!(older, expected, "{fixture}");
        let other = embed(load_spoiled(fixture, write(0.5)).unwrap());
        assert_ne!(other, expected, "{fixture}: the base is read");
    }
}

#[test]
fn windows_repeat_by_a_pattern_or_a_list() {
    let pattern = |folder: &Path| {
        set_config("layer_types", Value::Null)(folder);
        set_config("sliding_window_pattern", json!(2))(folder);
    };
    let embed = |model: Model| {
        let text = "def f(x): return x + 1".repeat(3);
        model.embed(vec![text], false).unwrap().vectors
    };
    let expected = embed(load_spoiled("gemma3", |_| ()).unwrap());
    assert_eq!(embed(load_spoiled("gemma3", pattern).unwrap()), expected);
    let full = json!(["full_attention", "full_attention", "full_attention"]);
    let full = load_spoiled("gemma3", set_config("layer_types", full)).unwrap();
    assert_ne!(embed(full), expected, "the list is read");
}

/// Whatever the backend: the others take no float16 at all.
#[test]
fn float16_is_refused_where_numbers_exceed_it() {
    for &backend in *setup::BACKENDS {
        for fixture in ["qwen2", "qwen3", "gemma3"] {
            let options = Options {
                dtype: Dtype::F16,
                ..setup::options_for(backend)
            };
            let result = load_spoiled_with(fixture, &options, |_| ());
            let named = ["dtype", "\"bf16\"", "exceed", "float16"];
            assert_error(result, "INVALID_ARGUMENT", &named);
        }
    }
}

/// It would divide by zero.
#[test]
fn scaling_of_two_rotated_dimensions_is_refused() {
    let two_dimensions = |folder: &Path| {
        set_config("rotary_scaling_factor", json!(2))(folder);
        set_config("max_trained_positions", json!(8))(folder);
        set_config("rotary_emb_fraction", json!(0.125))(folder);
    };
    assert_error(
        load_spoiled("nomic_cls", two_dimensions),
        "MODEL_UNSUPPORTED",
        &["config.json", "rotary_scaling_factor", "2"],
    );
}

#[test]
fn settings_that_are_missing_or_malformed_are_named() {
    for (fixture, key, value, expected) in [
        ("nomic_cls", "rotary_emb_base", Value::Null, "a number"),
        ("nomic_cls", "qkv_proj_bias", json!("no"), "true or false"),
        ("nomic_cls", "n_layer", json!(-1), "a positive integer"),
        ("bert_mean", "layer_norm_eps", json!("tiny"), "a number"),
        ("bert_mean", "hidden_act", json!(7), "a string"),
        ("qwen3", "head_dim", Value::Null, "a positive integer"),
        ("qwen3", "rope_parameters", json!([]), "an object"),
        ("gemma3", "sliding_window", json!(1), "at least 2"),
        (
            "qwen3",
            "num_hidden_layers",
            json!(4_000_000_000_u32),
            "at most 1000 layers",
        ),
        ("distilbert", "n_layers", json!(1001), "at most 1000 layers"),
    ] {
        let result = load_spoiled(fixture, set_config(key, value));
        assert_error(result, "MODEL_INVALID", &["config.json", key, expected]);
    }
    let result = load_spoiled("bert_mean", set_config("num_attention_heads", json!(7)));
    assert_error(result, "MODEL_INVALID", &["7 heads", "48"]);
    let result = load_spoiled("qwen3", set_config("num_key_value_heads", json!(3)));
    assert_error(result, "MODEL_INVALID", &["3 heads", "4 heads"]);
    for (key, named) in [
        ("rope_parameters", "rope_theta"),
        ("attention_bias", "true or false"),
    ] {
        let result = load_spoiled("qwen3", set_config(key, Value::Null));
        assert_error(result, "MODEL_INVALID", &["config.json", named]);
    }
}

#[test]
fn a_text_is_cut_on_the_left_or_on_the_right() {
    let file = "tokenizer_config.json";
    for (side, is_side) in [
        (json!("left"), true),
        (json!("right"), true),
        (Value::Null, true),
        (json!("middle"), false),
        (json!(1), false),
    ] {
        let result = load_spoiled("bert_mean", |folder| {
            set(&folder.join(file), "truncation_side", side.clone());
        });
        if is_side {
            assert_eq!(result.unwrap().dir().truncate_left, side == json!("left"));
        } else {
            let expected = &[file, "`truncation_side`", "\"left\" or \"right\""];
            assert_error(result, "MODEL_INVALID", expected);
        }
    }
}

#[test]
fn modules_outside_the_chain_are_refused() {
    let spoil = |modules: Value| {
        move |folder: &Path| {
            std::fs::write(folder.join("modules.json"), modules.to_string()).unwrap();
        }
    };
    for (chain, refused) in [
        (
            &["Transformer", "Pooling", "Dropout"][..],
            "module 2 of type",
        ),
        (&["Transformer", "Dense", "Pooling"], "module 1 of type"),
        (&["Transformer", "Normalize"], "module 1 of type"),
        (
            &["Transformer", "Pooling", "Normalize", "Dense"],
            "module 2 of type",
        ),
        (
            &["Transformer", "Pooling", "Normalize", "Normalize"],
            "module 2 of type",
        ),
        (&["Pooling", "Transformer"], "module 0 of type"),
    ] {
        let modules = chain.iter().map(
            |class| json!({"path": "", "type": format!("sentence_transformers.models.{class}")}),
        );
        assert_error(
            load_spoiled("bert_mean", spoil(modules.collect())),
            "MODEL_UNSUPPORTED",
            &["modules.json", refused],
        );
    }
    assert_error(
        load_spoiled("bert_mean", spoil(json!([]))),
        "MODEL_INVALID",
        &["modules.json", "Transformer"],
    );
    let outside =
        json!([{"path": "../elsewhere", "type": "sentence_transformers.models.Transformer"}]);
    assert_error(
        load_spoiled("bert_mean", spoil(outside)),
        "MODEL_INVALID",
        &["modules.json", "../elsewhere"],
    );
}

#[test]
fn dense_modules_must_be_known_and_fit() {
    let config = "2_Dense/config.json";
    let weights = "2_Dense/model.safetensors";
    let cases = [
        ("in_features", json!(33), "MODEL_INVALID", "expected 32"),
        ("in_features", Value::Null, "MODEL_INVALID", "missing"),
        ("out_features", json!("48"), "MODEL_INVALID", "whole number"),
        ("bias", json!(1), "MODEL_INVALID", "true or false"),
        (
            "activation_function",
            json!("torch.nn.modules.activation.Sigmoid"),
            "MODEL_UNSUPPORTED",
            "Sigmoid",
        ),
        (
            "activation_function",
            json!("custom.Tanh"),
            "MODEL_UNSUPPORTED",
            "custom.Tanh",
        ),
        (
            "module_input_name",
            json!("token_embeddings"),
            "MODEL_UNSUPPORTED",
            "token_embeddings",
        ),
        ("use_residual", json!(true), "MODEL_UNSUPPORTED", "residual"),
    ];
    for (key, value, code, named) in cases {
        let result = load_spoiled("bert_dense", |folder| set(&folder.join(config), key, value));
        assert_error(result, code, &[config, key, named]);
    }
    for file in [config, weights] {
        let result = load_spoiled("bert_dense", remove(file));
        assert_error(result, "MODEL_NOT_FOUND", &[file]);
    }
    // The second module is given what the first one is said to make, and its weights are of that shape.
    let result = load_spoiled("bert_dense", |folder| {
        set(&folder.join(config), "out_features", json!(40));
    });
    let named = &["3_Dense/config.json", "in_features", "expected 40"];
    assert_error(result, "MODEL_INVALID", named);
    let result = load_spoiled("bert_dense", |folder| {
        set(
            &folder.join("3_Dense/config.json"),
            "out_features",
            json!(7),
        );
    });
    let named = &[
        "3_Dense/model.safetensors",
        "linear.weight",
        "[7, 48]",
        "[24, 48]",
    ];
    assert_error(result, "MODEL_INVALID", named);
    let result = load_spoiled("bert_dense", |folder| {
        set(&folder.join("3_Dense/config.json"), "bias", json!(true));
    });
    let named = &["3_Dense/model.safetensors", "linear.bias", "no such tensor"];
    assert_error(result, "MODEL_INVALID", named);
    let result = load_spoiled("bert_dense", |folder| {
        poison(
            &folder.join("2_Dense"),
            "linear.bias",
            &f32::NAN.to_le_bytes(),
        );
    });
    assert_error(result, "MODEL_INVALID", &[weights, "linear.bias", "NaN"]);
}

/// Whatever decides the vectors is in the fingerprint; `dimensions` counts from the last module's.
#[test]
fn dense_modules_are_part_of_the_fingerprint() {
    let load = |change: &dyn Fn(&Path)| load_spoiled("bert_dense", change).unwrap();
    let original = load(&|_| {});
    assert_eq!(original.dir().dimension(), 24);
    let config = "3_Dense/config.json";
    let activation = json!("torch.nn.Tanh");
    let changes: [&dyn Fn(&Path); 2] = [
        &|folder| {
            set(
                &folder.join(config),
                "activation_function",
                activation.clone(),
            );
        },
        &|folder| {
            poison(
                &folder.join("3_Dense"),
                "linear.weight",
                &1_f32.to_le_bytes(),
            );
        },
    ];
    for change in changes {
        assert_ne!(load(change).fingerprint(), original.fingerprint());
    }
    let options = |dimensions| Options {
        dimensions: Some(dimensions),
        ..setup::options()
    };
    let result = load_spoiled_with("bert_dense", &options(25), |_| {});
    assert_error(result, "INVALID_ARGUMENT", &["dimensions", "1 to 24", "25"]);
    let shorter = load_spoiled_with("bert_dense", &options(5), |_| {}).unwrap();
    let texts = || vec!["some words".to_owned()];
    let full = original.embed(texts(), false).unwrap().vectors;
    let length = full[..5].iter().map(|x| x * x).sum::<f32>().sqrt();
    let expected: Vec<f32> = full[..5].iter().map(|x| x / length).collect();
    let found = shorter.embed(texts(), false).unwrap().vectors;
    setup::assert_equal("5 of 24 dimensions", &found, &expected);
}

#[test]
fn pooling_must_be_known_and_fit() {
    let file = "1_Pooling/config.json";
    let result = load_spoiled("bert_mean", write(file, r#"{"pooling_mode": "median"}"#));
    assert_error(result, "MODEL_UNSUPPORTED", &[file, "median"]);
    let result = load_spoiled(
        "bert_mean",
        write(file, r#"{"pooling_mode_attention": true}"#),
    );
    assert_error(result, "MODEL_UNSUPPORTED", &[file, "attention"]);
    let result = load_spoiled(
        "bert_mean",
        write(file, r#"{"pooling_mode_cls_token": false}"#),
    );
    assert_error(result, "MODEL_INVALID", &[file, "no pooling mode"]);
    for count in [2, 7, 20_000] {
        let modes: Vec<&str> = Pooling::ALL
            .map(Pooling::name)
            .into_iter()
            .cycle()
            .take(count)
            .collect();
        let modes = [&["mean"], &modes[..]].concat();
        let result = load_spoiled("bert_mean", |folder| {
            set(&folder.join(file), "pooling_mode", json!(modes));
        });
        if count == 2 {
            assert_eq!(result.unwrap().dir().pooling.len(), 3);
        } else {
            assert_error(
                result,
                "MODEL_INVALID",
                &[file, "\"mean\"", "more than once"],
            );
        }
    }
    let result = load_spoiled(
        "bert_mean",
        write(
            file,
            r#"{"pooling_mode": "cls", "word_embedding_dimension": 768}"#,
        ),
    );
    assert_error(result, "MODEL_INVALID", &[file, "48", "768"]);
    let result = load_spoiled(
        "nomic_cls",
        write(file, r#"{"pooling_mode": "mean", "include_prompt": false}"#),
    );
    assert_error(result, "MODEL_UNSUPPORTED", &[file, "include_prompt"]);
}

#[test]
fn a_bare_folder_needs_a_known_name_or_the_option() {
    let bare = |name: Value| {
        move |folder: &Path| {
            for file in [
                "modules.json",
                "config_sentence_transformers.json",
                "sentence_bert_config.json",
            ] {
                std::fs::remove_file(folder.join(file)).unwrap();
            }
            std::fs::remove_dir_all(folder.join("1_Pooling")).unwrap();
            set(&folder.join("config.json"), "_name_or_path", name);
        }
    };
    let result = load_spoiled("nomic_cls", bare(json!("somebody/else")));
    assert_error(
        result,
        "MODEL_UNSUPPORTED",
        &["pooling", "`pooling: \"cls\" | \"mean\""],
    );

    let model = load_spoiled("nomic_cls", bare(json!("nomic-ai/CodeRankEmbed"))).unwrap();
    assert_eq!(model.dir().pooling[0].name(), "cls");
    assert_eq!(
        model.dir().query_prompt,
        "Represent this query for searching relevant code: "
    );
    assert_eq!(model.dir().document_prompt, "");
    let model = load_spoiled("nomic_cls", bare(json!("nomic-ai/nomic-embed-text-v1.5"))).unwrap();
    assert_eq!(model.dir().pooling[0].name(), "mean");
    assert_eq!(model.dir().document_prompt, "search_document: ");
    let options = Options {
        pooling: Some("max".parse().unwrap()),
        ..setup::options()
    };
    let model = load_spoiled_with("nomic_cls", &options, bare(Value::Null)).unwrap();
    assert_eq!(model.dir().pooling[0].name(), "max");
}

/// A `nomic_bert` model may be nomic-embed-text-v1.5, whose card asks for a layer norm, and its `config.json` does not tell.
#[test]
fn a_cut_nomic_model_needs_a_known_name_or_the_option() {
    let options = |layer_norm| Options {
        dimensions: Some(8),
        layer_norm,
        ..setup::options()
    };
    let layer_norm = |name: &str, asked| {
        let named = set_config("_name_or_path", json!(name));
        load_spoiled_with("nomic_cls", &options(asked), named)
            .map(|model| model.dir().matryoshka.unwrap().layer_norm)
    };
    assert_error(
        layer_norm("somebody/else", None),
        "MODEL_UNSUPPORTED",
        &["config.json", "dimensions", "`layerNorm: true`"],
    );
    assert!(layer_norm("somebody/else", Some(true)).unwrap());
    assert!(!layer_norm("somebody/else", Some(false)).unwrap());
    assert!(layer_norm("nomic-ai/nomic-embed-text-v1.5", None).unwrap());
    assert!(!layer_norm("nomic-ai/nomic-embed-text-v1.5", Some(false)).unwrap());
    assert!(!layer_norm("nomic-ai/nomic-embed-text-v1", None).unwrap());
    assert!(!layer_norm("nomic-ai/CodeRankEmbed", None).unwrap());
    let bert = Model::load(&setup::fixture("bert_mean"), &options(None)).unwrap();
    assert!(!bert.dir().matryoshka.unwrap().layer_norm);
}

#[test]
fn a_default_prompt_must_exist() {
    let file = "config_sentence_transformers.json";
    let text = r#"{"prompts": {"query": "q: "}, "default_prompt_name": "document"}"#;
    assert_error(
        load_spoiled("bert_mean", write(file, text)),
        "MODEL_INVALID",
        &[file, "document", "query"],
    );
}

#[test]
fn tensors_must_be_there_with_the_right_shape_and_type() {
    let tensor = "encoder.layer.1.output.dense.weight";
    let result = load_spoiled("bert_mean", |folder| {
        rewrite_weights(folder, |header, _| {
            let value = header.as_object_mut().unwrap().remove(tensor).unwrap();
            header["another.name"] = value;
        });
    });
    assert_error(result, "MODEL_INVALID", &[tensor, "no such tensor"]);

    let result = load_spoiled("bert_mean", |folder| {
        rewrite_weights(folder, |header, _| {
            let shape = header[tensor]["shape"]
                .as_array()
                .unwrap()
                .iter()
                .rev()
                .cloned()
                .collect();
            header[tensor]["shape"] = Value::Array(shape);
        });
    });
    assert_error(
        result,
        "MODEL_INVALID",
        &["model.safetensors", tensor, "[48, 64]", "[64, 48]"],
    );

    let result = load_spoiled("bert_mean", |folder| {
        rewrite_weights(folder, |header, _| header[tensor]["dtype"] = json!("I32"));
    });
    assert_error(
        result,
        "MODEL_INVALID",
        &["model.safetensors", tensor, "F32", "I32"],
    );

    let result = load_spoiled("bert_mean", |folder| {
        rewrite_weights(folder, |header, _| {
            let words = "embeddings.word_embeddings.weight";
            let value = header.as_object_mut().unwrap().remove(words).unwrap();
            header["wte.weight"] = value;
        });
    });
    assert_error(
        result,
        "MODEL_INVALID",
        &["embeddings.word_embeddings.weight"],
    );
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let truncated = load_spoiled("bert_mean", |folder| {
        let path = folder.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
    });
    assert_error(
        truncated,
        "MODEL_INVALID",
        &["model.safetensors", "not a complete safetensors file"],
    );
    let empty = load_spoiled("bert_mean", write("model.safetensors", ""));
    assert_error(empty, "MODEL_INVALID", &["model.safetensors"]);
    let lying_length = load_spoiled("bert_mean", |folder| {
        let path = folder.join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        std::fs::write(path, bytes).unwrap();
    });
    assert_error(lying_length, "MODEL_INVALID", &["model.safetensors"]);
    let lying_offsets = load_spoiled("bert_mean", |folder| {
        rewrite_weights(folder, |header, _| {
            header["embeddings.LayerNorm.weight"]["data_offsets"] = json!([0, 1_u64 << 40]);
        });
    });
    assert_error(lying_offsets, "MODEL_INVALID", &["model.safetensors"]);
    let outside = load_spoiled("bert_cls_f16", |folder| {
        let index = r#"{"weight_map": {"a": "../../secret.safetensors"}}"#;
        std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    });
    assert_error(
        outside,
        "MODEL_INVALID",
        &["model.safetensors.index.json", "../../secret"],
    );
}

#[test]
fn weights_that_are_not_numbers_are_refused() {
    let tensor = "encoder.layer.0.intermediate.dense.weight";
    for number in [f32::NAN, f32::INFINITY] {
        let result = load_spoiled("bert_mean", |folder| {
            poison(folder, tensor, &number.to_le_bytes());
        });
        assert_error(result, "MODEL_INVALID", &[tensor, "NaN or infinity"]);
    }
    // The upper half of a float32 NaN is a bfloat16 NaN.
    let result = load_spoiled("bert_cls_bf16", |folder| {
        poison(
            &folder.join("0_Transformer"),
            tensor,
            &f32::NAN.to_le_bytes()[2..],
        );
    });
    assert_error(result, "MODEL_INVALID", &[tensor, "NaN or infinity"]);
}

/// Weights that are numbers, but so large that a product overflows.
#[test]
fn a_vector_that_is_not_a_number_is_never_returned() {
    let model = load_spoiled("bert_mean", |folder| {
        for layer in 0..2 {
            let tensor = format!("encoder.layer.{layer}.attention.self.query.bias");
            poison(folder, &tensor, &f32::MAX.to_le_bytes());
            let tensor = format!("encoder.layer.{layer}.attention.self.key.bias");
            poison(folder, &tensor, &f32::MAX.to_le_bytes());
        }
    })
    .unwrap();
    assert_error(
        model.embed(vec!["a".to_owned(), "b c".to_owned()], false),
        "INFERENCE_FAILED",
        &["NaN"],
    );
    // The model lives on.
    assert_error(
        model.embed(vec!["d".to_owned()], false),
        "INFERENCE_FAILED",
        &["NaN"],
    );
    assert_eq!(
        model.embed(Vec::<String>::new(), false).unwrap().vectors,
        Vec::<f32>::new()
    );
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let result = load_spoiled("bert_mean", |folder| {
        let path = folder.join("tokenizer.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json["model"]["vocab"]["zzz"] = json!(60_000);
        std::fs::write(path, json.to_string()).unwrap();
    });
    assert_error(
        result,
        "MODEL_INVALID",
        &["tokenizer.json", "60000", "vocab_size"],
    );
}

/// Ids that no vocabulary lists: a post-processor writes them itself.
#[test]
fn ids_of_a_post_processor_are_checked_on_every_backend() {
    let rows = 1411;
    for (kind, post_processor) in [
        (
            "BertProcessing",
            json!({ "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", rows] }),
        ),
        (
            "TemplateProcessing",
            json!({
                "type": "TemplateProcessing",
                "single": [{ "SpecialToken": { "id": "far", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
                "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
                "special_tokens": { "far": { "id": "far", "ids": [rows], "tokens": ["[CLS]"] } },
            }),
        ),
    ] {
        for &backend in *setup::BACKENDS {
            let result = load_spoiled_with("bert_mean", &setup::options_for(backend), |folder| {
                set(
                    &folder.join("tokenizer.json"),
                    "post_processor",
                    post_processor.clone(),
                );
            });
            let error = result.err().unwrap_or_else(|| panic!("{kind}: an error"));
            assert_eq!(error.code(), "MODEL_INVALID", "{kind}: {error}");
            for part in ["tokenizer.json", "1411", "vocab_size"] {
                assert!(error.to_string().contains(part), "{kind}: {error}");
            }
        }
    }
}

/// Libraries that give up on a file's contents: the text is neither the host's end nor on its standard error.
#[test]
fn a_tokenizer_that_its_library_gives_up_on_is_refused() {
    let spoil = |folder: &Path| {
        let file = folder.join("tokenizer.json");
        for key in ["normalizer", "pre_tokenizer", "post_processor"] {
            set(&file, key, Value::Null);
        }
        // The library cuts the prefix off the second half, which is shorter.
        let model = json!({
            "type": "BPE",
            "vocab": { "a": 0, "b": 1, "ab": 2 },
            "merges": [["a", "b"]],
            "continuing_subword_prefix": "##",
        });
        set(&file, "model", model);
    };
    assert_error(
        load_spoiled("bert_mean", spoil),
        "MODEL_INVALID",
        &["tokenizer.json", "tokenizers-", ".rs:"],
    );
}

#[test]
fn options_are_checked() {
    let load = |options| Model::load(&setup::fixture("bert_mean"), &options);
    let result = load(Options {
        max_tokens: Some(2),
        ..setup::options()
    });
    assert_error(
        result,
        "INVALID_ARGUMENT",
        &["maxTokens", "2 special tokens"],
    );
    let result = load(Options {
        threads: Some(0),
        ..setup::options()
    });
    assert_error(result, "INVALID_ARGUMENT", &["threads", "0"]);
    for dimensions in [0, 49] {
        let result = load(Options {
            dimensions: Some(dimensions),
            ..setup::options()
        });
        let found = format!("found {dimensions}");
        assert_error(
            result,
            "INVALID_ARGUMENT",
            &["dimensions", "1 to 48", &found],
        );
    }
    assert_error(
        "avg".parse::<Pooling>(),
        "INVALID_ARGUMENT",
        &["pooling", "avg", "mean"],
    );
    assert_error(
        "f64".parse::<Dtype>(),
        "INVALID_ARGUMENT",
        &["dtype", "f64", "f32"],
    );
    assert_error(
        "cuda".parse::<Backend>(),
        "INVALID_ARGUMENT",
        &["backend", "cuda", "onnx"],
    );
    let result = load(Options {
        dtype: Dtype::F16,
        ..setup::options()
    });
    assert_error(result, "INVALID_ARGUMENT", &["dtype", "f16", "onnx"]);
}

#[cfg(not(mlx))]
#[test]
fn a_build_without_mlx_says_so() {
    let options = Options {
        backend: Backend::Mlx,
        ..setup::options()
    };
    let result = Model::load(&setup::fixture("bert_mean"), &options);
    assert_error(result, "BACKEND_UNAVAILABLE", &["mlx", "build:native"]);
}

#[test]
fn a_closed_model_says_so() {
    let model = Model::load(&setup::fixture("bert_mean"), &setup::options()).unwrap();
    model.embed(vec!["works".to_owned()], false).unwrap();
    model.close();
    model.close();
    assert_error(
        model.embed(vec!["late".to_owned()], false),
        "CLOSED",
        &["closed"],
    );
}

/// Closing while calls are in the queue: each is answered, with its vectors or with `CLOSED`.
#[test]
fn closing_answers_every_call() {
    let model = Model::load(&setup::fixture("nomic_cls"), &setup::options()).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    for call in 0..50 {
        let texts: Vec<String> = (0..20)
            .map(|text| format!("call {call} text {text} {}", "word ".repeat(100)))
            .collect();
        let sender = sender.clone();
        model.submit(
            setup::request(texts, false),
            Box::new(move |result| sender.send(result).unwrap()),
        );
    }
    drop(sender);
    model.close();
    let results: Vec<_> = receiver.iter().collect();
    assert_eq!(results.len(), 50);
    for result in results {
        assert!(matches!(result, Ok(_) | Err(Error::Closed)));
    }
}

/// Calls of one text are computed together, and fail alone: here the letter z gives no number, since what is added up for
/// it overflows.
#[test]
fn a_text_that_fails_fails_no_other() {
    let sound = Model::load(&setup::fixture("bert_mean"), &setup::options()).unwrap();
    let letter = sound.tokenize("z", false).unwrap().ids[1] as usize;
    let model = load_spoiled("bert_mean", |folder| {
        rewrite_weights(folder, |header, data| {
            let mut fill = |table: &str, row: usize, number: f32| {
                let table = &header[format!("embeddings.{table}_embeddings.weight")];
                let start = table["data_offsets"][0].as_u64().unwrap() as usize;
                let bytes = table["shape"][1].as_u64().unwrap() as usize * 4;
                for place in data[start + row * bytes..][..bytes].chunks_exact_mut(4) {
                    place.copy_from_slice(&number.to_le_bytes());
                }
            };
            fill("word", letter, 3e38);
            fill("position", 1, 1e38);
        });
    })
    .unwrap();
    let texts: Vec<String> = (0..200)
        .map(|i| char::from(b'a' + (i % 26) as u8).to_string())
        .collect();
    let outcomes: Vec<_> = texts
        .iter()
        .map(|text| {
            let (sender, receiver) = std::sync::mpsc::sync_channel(1);
            let reply = move |result: Result<Embeddings<_>, Error>| {
                sender.send(result.map(Embeddings::floats)).unwrap();
            };
            let request = setup::request(vec![text.clone()], false);
            model.submit(request, Box::new(reply));
            receiver
        })
        .collect();
    for (text, outcome) in texts.iter().zip(outcomes) {
        let result = outcome.recv().unwrap();
        if text == "z" {
            assert_error(result, "INFERENCE_FAILED", &["NaN"]);
        } else {
            let alone = model.embed(vec![text.clone()], false).unwrap();
            setup::assert_equal(text, &result.unwrap().vectors, &alone.vectors);
        }
    }
    assert_eq!(model.activity().calls, 0);
}
