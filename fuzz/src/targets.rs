//! What is fuzzed: functions of bytes that return whatever the bytes are, and panic where a promise of the crate is broken.
//!
//! Loading may fail, but only with an error that blames the input. A panic inside of the crate comes back as an error as
//! well, of a kind that `accepted` does not let pass.

use std::collections::HashSet;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::Dtype as StoredType;
use safetensors::tensor::TensorView;
use semantic_search_native::batch::{self, Limits, Padding};
use semantic_search_native::checkpoint::Checkpoint;
use semantic_search_native::graph::Pooling;
use semantic_search_native::model_dir::ModelDir;
use semantic_search_native::options::{Backend, Dtype, Options};
use semantic_search_native::runtime::onnx::proto::{GraphProto, ModelProto};
use semantic_search_native::runtime::onnx::{self, ExportedEncoder, Precision};
use semantic_search_native::{Error, Model, Result, export_onnx};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::mutation::{Format, SEPARATOR, split};
use crate::setup;

/// Something to fuzz.
pub struct Target {
    pub name: &'static str,
    pub format: Format,
    /// Inputs that get far; mutations start from them.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Panics where a promise is broken. Tells whether the input was accepted.
    pub check: fn(&[u8]) -> bool,
}

pub const TARGETS: [Target; 5] = [
    Target {
        name: "batch",
        format: Format::Bytes,
        seeds: random_seeds,
        check: batch,
    },
    Target {
        name: "checkpoint",
        format: Format::Safetensors,
        seeds: checkpoint_seeds,
        check: checkpoint,
    },
    Target {
        name: "encoder",
        format: Format::Bytes,
        seeds: random_seeds,
        check: encoder,
    },
    Target {
        name: "model_folder",
        format: Format::Sections,
        seeds: model_folder_seeds,
        check: model_folder,
    },
    Target {
        name: "tokenizer",
        format: Format::Sections,
        seeds: tokenizer_seeds,
        check: tokenizer,
    },
];

/// The target of this name.
pub fn named(name: &str) -> &'static Target {
    let target = TARGETS.iter().find(|target| target.name == name);
    target.expect("every target is in the table")
}

/// The model whose files are mutated.
const FIXTURE: &str = "nomic_cls";
/// Rows of the fixtures' tokenizer.
const VOCABULARY: usize = 1411;

const TEXTS: [&str; 4] = [
    "return the sum of two numbers",
    "",
    "[CLS] İstanbul \u{301}\u{200b} 漢字 [MASK]\u{0}\r\n",
    "fn f(x: u32) -> u32 { x + 1 } // twenty and more tokens, so that truncation to a small limit happens here",
];

/// A plan holds every text once and keeps its limits.
fn batch(data: &[u8]) -> bool {
    let mut bytes = Bytes(data);
    let limits = Limits {
        budget_tokens: bytes.size(0..=1 << 20),
        padding: {
            let ratio = 1.0 + bytes.size(0..=64) as f64 / 32.0;
            bytes.one_of([
                Padding::Flat,
                Padding::ToLongest(ratio),
                Padding::ToBucket(ratio),
            ])
        },
        budget_bytes: bytes.size(0..=1 << 40),
        token_bytes: bytes.size(0..=1 << 20),
        score_bytes: bytes.size(0..=64),
    };
    let length_bits = bytes.size(1..=24);
    let mut lengths = Vec::new();
    while !bytes.0.is_empty() {
        lengths.push(bytes.size(1..=1 << length_bits));
    }
    let padded = |text: usize| match limits.padding {
        Padding::ToBucket(_) => batch::bucket(lengths[text]),
        Padding::Flat | Padding::ToLongest(_) => lengths[text],
    };
    let mut seen = vec![false; lengths.len()];
    for batch in batch::plan(&lengths, limits) {
        for &text in &batch {
            assert!(
                !std::mem::replace(&mut seen[text], true),
                "text {text} is in two batches"
            );
        }
        let longest = batch
            .iter()
            .map(|&text| padded(text))
            .max()
            .expect("no batch is empty");
        let shortest = batch
            .iter()
            .map(|&text| padded(text))
            .min()
            .expect("no batch is empty");
        let real: usize = batch.iter().map(|&text| lengths[text]).sum();
        let (tokens, bytes, most) = match limits.padding {
            Padding::Flat => (real, limits.bytes(1, real), 1.0),
            Padding::ToLongest(ratio) | Padding::ToBucket(ratio) => {
                let texts = batch.len();
                (longest * texts, limits.bytes(texts, longest), ratio)
            }
        };
        if batch.len() > 1 {
            assert!(tokens <= limits.budget_tokens);
            assert!(bytes <= limits.budget_bytes);
            assert!(tokens as f64 <= real as f64 * most || longest == shortest);
        }
    }
    assert!(seen.into_iter().all(|seen| seen), "a text is in no batch");
    true
}

/// A safetensors file: every tensor that the encoder takes lies inside of it.
fn checkpoint(data: &[u8]) -> bool {
    thread_local! {
        static FOLDER: TempDir = folder();
        static MODEL: ModelDir =
            ModelDir::read(&setup::fixture(FIXTURE), &options()).expect("the fixture can be read");
    }
    let folder = FOLDER.with(|folder| folder.path().to_owned());
    let encoder = MODEL.with(|model| Arc::clone(&model.encoder));
    let path = folder.join("model.safetensors");
    write(&path, data);
    let Some(checkpoint) = accepted(Checkpoint::open(&folder, &[path])) else {
        return false;
    };
    let graph = encoder.record(&checkpoint);
    accepted(checkpoint.check_finite());
    let Some(graph) = accepted(graph) else {
        return false;
    };
    let encoder = ExportedEncoder {
        facts: encoder.facts(),
        config_sha256: "",
    };
    let graph = onnx::export(&graph, &encoder, &checkpoint, Precision::Float);
    check_graph(
        &graph.expect("an encoder with all its weights can be recorded"),
        &folder,
    );
    true
}

/// Settings and weights made up from the bytes: whatever is accepted gives a graph that ONNX Runtime takes.
fn encoder(data: &[u8]) -> bool {
    thread_local!(static FOLDER: TempDir = copied_fixture(FIXTURE));
    let folder = &FOLDER.with(|folder| folder.path().to_owned());
    let mut bytes = Bytes(data);
    let epsilon = bytes.one_of([1e-12, 1e-5, 0.0, 1.0, -1.0, 1e300]);
    let largest = bytes.one_of([0.5_f32, 0.5, 0.5, 0.0, 1e-30, 1e4, 3e38]);
    let (config, tensors) = if bytes.flag() {
        bert(&mut bytes, epsilon)
    } else {
        nomic_bert(&mut bytes, epsilon)
    };
    write(&folder.join("config.json"), config.to_string().as_bytes());
    let modes: Vec<&str> = (0..bytes.size(1..=3))
        .map(|_| bytes.one_of(Pooling::ALL).name())
        .collect();
    let pooling = json!({ "pooling_mode": modes });
    write(
        &folder.join("1_Pooling/config.json"),
        pooling.to_string().as_bytes(),
    );
    write(
        &folder.join("model.safetensors"),
        &weights(&tensors, largest, &mut bytes),
    );
    let is_tame = largest < 1.0 && epsilon > 1e-9 && epsilon <= 1.0;
    let _ = fs::remove_file(folder.join("sentence_bert_config.json"));
    let (backend, dtype) = bytes.one_of([
        (Backend::Onnx, Dtype::Auto),
        (Backend::Cpu, Dtype::Auto),
        (Backend::Cpu, Dtype::Int8),
    ]);
    let options = Options {
        backend,
        dtype,
        max_tokens: Some(bytes.size(1..=40)),
        dimensions: bytes.flag().then(|| bytes.size(1..=40)),
        layer_norm: Some(bytes.flag()),
        normalize: Some(bytes.flag()),
        memory_budget: Some(bytes.size(0..=1 << 24)),
        ..options()
    };
    // Matrices of a few columns are multiplied by another kernel where they have one row, and norms without an epsilon
    // make much of the last bit.
    let tolerance = if is_tame { 1e-4 } else { f32::INFINITY };
    let is_accepted = use_model(folder, &options, tolerance);
    if let Some(path) = accepted(export_onnx(folder, &options)) {
        check_graph(&fs::read(path).expect("it was just written"), folder);
    }
    is_accepted
}

/// The files of [`SETTINGS`], in their order; an empty section is a file that is not there.
fn model_folder(data: &[u8]) -> bool {
    thread_local!(static FOLDERS: Vec<TempDir> = FOLDER_SEEDS.map(|(_, name)| copied_fixture(name)).into());
    let sections = split(data);
    let config = String::from_utf8_lossy(&sections[0]);
    let family = FOLDER_SEEDS
        .iter()
        .position(|(mark, _)| config.contains(mark));
    let family = family.expect("the last mark is in every text");
    let folder = &FOLDERS.with(|folders| folders[family].path().to_owned());
    for (index, name) in SETTINGS.iter().enumerate() {
        let path = folder.join(name);
        match sections.get(index) {
            Some(section) if !section.is_empty() => write(&path, section),
            _ => drop(fs::remove_file(path)),
        }
    }
    use_model(folder, &options(), 0.0)
}

/// A folder of each architecture. Whose weights lie beside the settings is decided by what `config.json` contains: the first
/// mark that it has.
const FOLDER_SEEDS: [(&str, &str); 14] = [
    ("num_experts", "nomic_moe"),
    ("nomic_bert", FIXTURE),
    ("alibi", "jina_bert"),
    ("distilbert", "distilbert"),
    ("gemma3", "gemma3"),
    ("modernbert", "modernbert"),
    ("mpnet", "mpnet"),
    ("\"new\"", "gte_new"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("model2vec", "static_model2vec"),
    ("xlm-roberta", "xlm_roberta"),
    ("roberta", "roberta"),
    ("", "bert_mean"),
];

const SETTINGS: [&str; 6] = [
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "config_sentence_transformers.json",
];

/// `tokenizer.json` and a text.
fn tokenizer(data: &[u8]) -> bool {
    thread_local!(static FOLDER: TempDir = copied_fixture(FIXTURE));
    let folder = &FOLDER.with(|folder| folder.path().to_owned());
    let sections = split(data);
    write(&folder.join("tokenizer.json"), &sections[0]);
    let options = Options {
        max_tokens: Some(24),
        ..options()
    };
    let Some(model) = accepted(Model::load(folder, &options)) else {
        return false;
    };
    let text = sections
        .get(1)
        .map(|text| String::from_utf8_lossy(text).into_owned());
    for text in text.iter().map(String::as_str).chain(TEXTS) {
        check_tokens(&model, text);
    }
    check_vectors(&model, 0.0);
    true
}

/// Loads the model of the folder and embeds with it, if it can be loaded.
fn use_model(folder: &Path, options: &Options, tolerance: f32) -> bool {
    let Some(model) = accepted(Model::load(folder, options)) else {
        return false;
    };
    for text in TEXTS {
        check_tokens(&model, text);
    }
    check_vectors(&model, tolerance);
    true
}

fn check_tokens(model: &Model, text: &str) {
    // Which has none of a text that it does not know.
    let is_static = model.dir().encoder.static_tokens().is_some();
    for is_query in [false, true] {
        let Some(tokenized) = accepted(model.tokenize(text, is_query)) else {
            continue;
        };
        assert!(
            (is_static || !tokenized.ids.is_empty())
                && tokenized.ids.len() <= model.dir().max_tokens
        );
        let rows = model.dir().encoder.facts().vocabulary;
        assert!(
            tokenized.ids.iter().all(|&id| (id as usize) < rows),
            "{:?}",
            tokenized.ids
        );
    }
}

/// A text's vector is finite, of the model's dimension, and alone the same as among others, up to this part of its largest
/// number.
fn check_vectors(model: &Model, tolerance: f32) {
    let texts: Vec<String> = TEXTS.map(str::to_owned).to_vec();
    let dimension = model.dir().dimension();
    let Some(together) = accepted(model.embed(texts.clone(), false)) else {
        return;
    };
    assert_eq!(together.vectors.len(), texts.len() * dimension);
    assert!(together.vectors.iter().all(|number| number.is_finite()));
    for (text, row) in texts
        .into_iter()
        .zip(together.vectors.chunks_exact(dimension))
    {
        // Where a sum may overflow in one order and not in another, the one may be refused and the other not.
        let Some(alone) = accepted(model.embed(vec![text], false)) else {
            continue;
        };
        let largest = row.iter().fold(f32::MIN_POSITIVE, |largest, number| {
            largest.max(number.abs())
        });
        for (number, other) in row.iter().zip(&alone.vectors) {
            let difference = (number - other).abs();
            assert!(
                difference <= tolerance * largest,
                "{:?} {row:?}",
                alone.vectors
            );
        }
    }
}

/// A recorded graph: written and read back it is the same, values are defined once and before they are used, and its
/// external data lies inside the files that it names.
fn check_graph(bytes: &[u8], folder: &Path) {
    let model = ModelProto::decode(bytes).expect("it is an ONNX file");
    assert_eq!(model.encode_to_vec(), bytes);
    let GraphProto {
        node,
        initializer,
        input,
        output,
        ..
    } = model.graph.expect("it has a graph");
    let mut defined = HashSet::new();
    for tensor in &initializer {
        assert!(
            defined.insert(tensor.name.clone()),
            "{} is defined twice",
            tensor.name
        );
        let external = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key);
        if let Some(location) = external("location") {
            let number = |key| {
                external(key).map_or(0, |entry| entry.value.parse::<u64>().expect("a number"))
            };
            let file = fs::metadata(folder.join(&location.value)).expect("the file is there");
            assert!(
                number("offset") + number("length") <= file.len(),
                "{} leaves its file",
                tensor.name
            );
        }
    }
    defined.extend(input.into_iter().map(|input| input.name));
    for node in node {
        for name in &node.input {
            assert!(
                name.is_empty() || defined.contains(name),
                "{name} is used before it is defined"
            );
        }
        for name in node.output {
            assert!(defined.insert(name.clone()), "{name} is defined twice");
        }
    }
    assert!(output.iter().all(|output| defined.contains(&output.name)));
}

/// The result, or nothing where it is an error that blames what was passed.
fn accepted<T>(result: Result<T>) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    let message = error.to_string();
    // A panic that the crate caught ends with its place.
    let is_panic = ["internal error", "gave up"]
        .iter()
        .any(|caught| message.contains(caught));
    let is_ours = is_panic && !message.rsplit(" (").next().is_some_and(is_in_dependency);
    let is_bug = message.contains("refused the model's graph")
        || matches!(error, Error::BackendUnavailable { .. });
    assert!(!is_ours && !is_bug, "{error}");
    None
}

/// Whether a place as `src/guard.rs` writes it is in a dependency, whose folder has its version.
fn is_in_dependency(place: &str) -> bool {
    let folder = place.split('/').next().unwrap_or_default();
    let version = folder.rsplit_once('-').map_or("", |(_, version)| version);
    version.starts_with(|first: char| first.is_ascii_digit())
}

/// Settings of a small BERT, and the names and shapes of its tensors.
fn bert(bytes: &mut Bytes, epsilon: f64) -> (Value, Vec<(String, Vec<usize>)>) {
    let heads = bytes.size(1..=4);
    let width = heads * bytes.size(1..=17);
    let inner = bytes.size(1..=40);
    let vocabulary = bytes.size(VOCABULARY..=VOCABULARY + 9);
    let positions = bytes.size(1..=64);
    let types = bytes.size(1..=3);
    let layers = bytes.size(1..=3);
    let config = json!({
        "model_type": "bert",
        "hidden_act": bytes.one_of(["gelu", "gelu_new", "relu", "silu"]),
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": positions,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "type_vocab_size": types,
        "layer_norm_eps": epsilon,
    });
    let mut tensors = vec![
        (
            "embeddings.word_embeddings.weight".to_owned(),
            vec![vocabulary, width],
        ),
        (
            "embeddings.position_embeddings.weight".to_owned(),
            vec![positions, width],
        ),
        (
            "embeddings.token_type_embeddings.weight".to_owned(),
            vec![types, width],
        ),
    ];
    add(&mut tensors, "embeddings.LayerNorm", &[width], Some(width));
    for layer in 0..layers {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        for part in ["query", "key", "value"] {
            add(
                &mut tensors,
                &name(&format!("attention.self.{part}")),
                &[width, width],
                Some(width),
            );
        }
        add(
            &mut tensors,
            &name("attention.output.dense"),
            &[width, width],
            Some(width),
        );
        add(
            &mut tensors,
            &name("attention.output.LayerNorm"),
            &[width],
            Some(width),
        );
        add(
            &mut tensors,
            &name("intermediate.dense"),
            &[inner, width],
            Some(inner),
        );
        add(
            &mut tensors,
            &name("output.dense"),
            &[width, inner],
            Some(width),
        );
        add(
            &mut tensors,
            &name("output.LayerNorm"),
            &[width],
            Some(width),
        );
    }
    (config, tensors)
}

/// The same for NomicBert.
fn nomic_bert(bytes: &mut Bytes, epsilon: f64) -> (Value, Vec<(String, Vec<usize>)>) {
    let heads = bytes.size(1..=4);
    let width = heads * bytes.size(1..=17);
    let inner = bytes.size(1..=40);
    let vocabulary = bytes.size(VOCABULARY..=VOCABULARY + 9);
    let types = bytes.size(1..=3);
    let layers = bytes.size(1..=3);
    let [qkv_bias, fc1_bias, fc2_bias] = [(); 3].map(|()| bytes.flag());
    let config = json!({
        "model_type": "nomic_bert",
        "activation_function": bytes.one_of(["swiglu", "geglu"]),
        "vocab_size": vocabulary,
        "n_embd": width,
        "n_positions": bytes.size(1..=8192),
        "n_layer": layers,
        "n_head": heads,
        "n_inner": inner,
        "type_vocab_size": types,
        "layer_norm_epsilon": epsilon,
        "qkv_proj_bias": qkv_bias,
        "mlp_fc1_bias": fc1_bias,
        "mlp_fc2_bias": fc2_bias,
        "rotary_emb_fraction": bytes.one_of([1.0, 1.0, 0.5, 0.25, 0.001]),
        "rotary_emb_base": bytes.one_of([1000.0, 10_000.0, 1.0, 0.0, -1.0, 1e300]),
        "rotary_scaling_factor": bytes.one_of([None, Some(1.0), Some(2.0), Some(0.0), Some(-3.0), Some(1e300)]),
        "max_trained_positions": bytes.one_of([1, 8, 2048]),
    });
    let mut tensors = vec![
        (
            "embeddings.word_embeddings.weight".to_owned(),
            vec![vocabulary, width],
        ),
        (
            "embeddings.token_type_embeddings.weight".to_owned(),
            vec![types, width],
        ),
    ];
    add(&mut tensors, "emb_ln", &[width], Some(width));
    for layer in 0..layers {
        let name = |part: &str| format!("encoder.layers.{layer}.{part}");
        add(
            &mut tensors,
            &name("attn.Wqkv"),
            &[3 * width, width],
            qkv_bias.then_some(3 * width),
        );
        add(
            &mut tensors,
            &name("attn.out_proj"),
            &[width, width],
            qkv_bias.then_some(width),
        );
        add(&mut tensors, &name("norm1"), &[width], Some(width));
        add(
            &mut tensors,
            &name("mlp.fc11"),
            &[inner, width],
            fc1_bias.then_some(inner),
        );
        add(
            &mut tensors,
            &name("mlp.fc12"),
            &[inner, width],
            fc1_bias.then_some(inner),
        );
        add(
            &mut tensors,
            &name("mlp.fc2"),
            &[width, inner],
            fc2_bias.then_some(width),
        );
        add(&mut tensors, &name("norm2"), &[width], Some(width));
    }
    (config, tensors)
}

fn add(tensors: &mut Vec<(String, Vec<usize>)>, name: &str, shape: &[usize], bias: Option<usize>) {
    tensors.push((format!("{name}.weight"), shape.to_vec()));
    tensors.extend(bias.map(|outputs| (format!("{name}.bias"), vec![outputs])));
}

/// A safetensors file of random weights between `-largest` and `largest`.
fn weights(tensors: &[(String, Vec<usize>)], largest: f32, bytes: &mut Bytes) -> Vec<u8> {
    let stored = bytes.one_of([StoredType::F32, StoredType::F16, StoredType::BF16]);
    let mut random = StdRng::seed_from_u64(bytes.size(0..=255) as u64);
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape)| {
            let number = |_| {
                let number = random.random_range(-1.0..=1.0_f32) * largest;
                match stored {
                    StoredType::F32 => number.to_le_bytes().to_vec(),
                    StoredType::F16 => half::f16::from_f32(number.clamp(-6e4, 6e4))
                        .to_le_bytes()
                        .to_vec(),
                    _ => half::bf16::from_f32(number).to_le_bytes().to_vec(),
                }
            };
            (0..shape.iter().product()).flat_map(number).collect()
        })
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        let view =
            TensorView::new(stored, shape.clone(), data).expect("as many bytes as the shape says");
        (name, view)
    });
    safetensors::serialize(views, None).expect("it fits into memory")
}

/// Bytes read as choices. What is read behind the end is 0.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn flag(&mut self) -> bool {
        self.next() & 1 == 1
    }

    /// A number of the range, as many bytes read as it takes.
    fn size(&mut self, range: RangeInclusive<usize>) -> usize {
        let span = range.end() - range.start();
        let mut number = 0_usize;
        let mut reach = 0_usize;
        while reach < span {
            number = number << 8 | usize::from(self.next());
            reach = reach << 8 | 0xff;
        }
        range.start() + if span == 0 { 0 } else { number % (span + 1) }
    }

    fn one_of<T: Copy, const N: usize>(&mut self, choices: [T; N]) -> T {
        choices[usize::from(self.next()) % N]
    }
}

fn options() -> Options {
    Options {
        threads: Some(1),
        ..setup::options()
    }
}

fn random_seeds() -> Vec<Vec<u8>> {
    let bytes = |seed| StdRng::seed_from_u64(seed).random_iter().take(64).collect();
    (0..16).map(bytes).collect()
}

fn checkpoint_seeds() -> Vec<Vec<u8>> {
    vec![read(&setup::fixture(FIXTURE).join("model.safetensors"))]
}

fn model_folder_seeds() -> Vec<Vec<u8>> {
    let files = |(_, name): (&str, &str)| {
        let folder = setup::fixture(name);
        SETTINGS
            .map(|file| fs::read(folder.join(file)).unwrap_or_default())
            .join(SEPARATOR)
    };
    FOLDER_SEEDS.map(files).to_vec()
}

fn tokenizer_seeds() -> Vec<Vec<u8>> {
    let wordpiece: Value =
        serde_json::from_slice(&read(&setup::fixture(FIXTURE).join("tokenizer.json")))
            .expect("the fixture's tokenizer is JSON");
    let with = |changes: Value| {
        let mut json = wordpiece.clone();
        let changes = changes.as_object().expect("changes are by key").clone();
        json.as_object_mut()
            .expect("a tokenizer is an object")
            .extend(changes);
        json
    };
    let small = json!({ "[UNK]": 0, "a": 1, "b": 2, "ab": 3, "[CLS]": 4, "[SEP]": 5, "Ġ": 6 });
    let scores = json!([
        ["[UNK]", 0.0],
        ["a", -1.0],
        ["b", -2.0],
        ["ab", -1.5],
        ["▁", -3.0]
    ]);
    let tokenizers = [
        wordpiece.clone(),
        with(json!({
            "model": { "type": "BPE", "vocab": small, "merges": [["a", "b"]], "unk_token": "[UNK]", "byte_fallback": true },
            "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "normalizer": { "type": "NFKC" },
        })),
        with(json!({
            "model": { "type": "Unigram", "unk_id": 0, "vocab": scores, "byte_fallback": false },
            "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
            "normalizer": { "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " },
        })),
        with(json!({
            "model": { "type": "WordLevel", "vocab": small, "unk_token": "[UNK]" },
            "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "\\w+|[^\\w\\s]+" }, "behavior": "Isolated", "invert": false },
            "post_processor": { "type": "RobertaProcessing", "sep": ["[SEP]", 5], "cls": ["[CLS]", 4], "trim_offsets": true, "add_prefix_space": true },
        })),
        with(
            json!({ "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] } }),
        ),
    ];
    let text = "ab a  Straße [MASK] 漢字";
    tokenizers
        .map(|json| [json.to_string().as_bytes(), text.as_bytes()].join(SEPARATOR))
        .to_vec()
}

fn folder() -> TempDir {
    // In memory where the system has such a folder: files are written thousands of times.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    folder.expect("a folder for temporary files")
}

/// A fixture, to be changed.
fn copied_fixture(name: &str) -> TempDir {
    let copy = folder();
    fs::create_dir(copy.path().join("1_Pooling")).expect("the folder is new");
    let files = SETTINGS
        .into_iter()
        .chain(["tokenizer.json", "model.safetensors"]);
    for file in files {
        // Not every model has all settings.
        let original = setup::fixture(name).join(file);
        if original.exists() {
            write(&copy.path().join(file), &read(&original));
        }
    }
    copy
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A new file: a model that is being freed may still have the one before mapped.
fn write(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
