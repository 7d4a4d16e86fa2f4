//! A test on where ONNX Runtime computes the operators of a graph.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};

use ort::AsPointer;
use ort::ep;
use ort::session::Session;

use super::*;
use crate::model_dir::ModelDir;
use crate::options::Task;

/// Shapes and lengths, by their names. ONNX Runtime keeps them on the CPU, where they are needed to start kernels.
const SHAPES: [&str; 10] = [
    "batch",
    "batch_length",
    "last_place",
    "last_place_int32",
    "length",
    "length_1d",
    "length_int32",
    "pairs_shape",
    "shape_all",
    "shape_one",
];

#[test]
fn shapes_alone_are_left_to_the_cpu() {
    if std::env::var_os("SEMANTIC_SEARCH_TEST_WEBGPU").is_none() {
        return;
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folders = std::fs::read_dir(&fixtures).unwrap();
    let rerankers = std::fs::read_dir(fixtures.join("rerankers")).unwrap();
    let folders = folders.chain(rerankers).map(|entry| entry.unwrap().path());
    // A static model is a table, which is nothing for a GPU.
    let is_model = |folder: &PathBuf| {
        folder.join("config.json").exists() && !folder.to_string_lossy().contains("static_")
    };
    let mut models = 0;
    for folder in folders.filter(is_model) {
        for attention in [Attention::Fused, Attention::StepByStep] {
            let on_cpu = operators_on_cpu(&folder, attention);
            assert!(on_cpu.contains("batch_length"), "what is reported");
            let others: Vec<_> = on_cpu
                .iter()
                .filter(|name| !SHAPES.contains(&name.as_str()))
                .collect();
            assert!(others.is_empty(), "{}: {others:?}", folder.display());
        }
        models += 1;
    }
    assert!(models > 15, "{models} models");
}

/// The names of the operators that are not on the GPU.
fn operators_on_cpu(folder: &Path, attention: Attention) -> BTreeSet<String> {
    let options = Options {
        task: ModelDir::task_of(folder).unwrap_or(Task::Embed),
        onnx_runtime_library: Some(library()),
        ..Options::default()
    };
    let dir = ModelDir::read(folder, &options).unwrap();
    let mut checkpoint = Checkpoint::open(&dir.path, &dir.weights).unwrap();
    let [_, graph] = dir.record(&mut checkpoint).unwrap();
    let checkpoint = Arc::new(checkpoint);
    let environment = onnx::environment(options.onnx_runtime_library.as_deref()).unwrap();
    let builder = GraphBuilder::padded(attention == Attention::Fused);
    let written = onnx::write_pooled(builder, &graph, &checkpoint).unwrap();
    let sessions = onnx::Sessions {
        environment,
        folder: written.folder,
    };
    let weights = SharedWeights::new(checkpoint, &written.weights).unwrap();
    turns::take(Turn::Last, |_| {
        let builder = on_gpu(&sessions).unwrap();
        let mut builder = builder
            .with_config_entry("session.record_ep_graph_assignment_info", "1")
            .unwrap();
        weights.initializers.copy_to(&mut builder).unwrap();
        let session = builder.commit_from_memory(&written.graph).unwrap();
        not_on_gpu(&session)
    })
}

fn not_on_gpu(session: &Session) -> BTreeSet<String> {
    let api = ort::api();
    let mut names = BTreeSet::new();
    // SAFETY: the session lives, and what it returns lives as long; arrays have the lengths that come with them.
    unsafe {
        let check = |status| ort::Error::result_from_status(status).unwrap();
        let text = |pointer: *const c_char| CStr::from_ptr(pointer).to_string_lossy().into_owned();
        let (mut parts, mut count) = (std::ptr::null(), 0);
        check((api.Session_GetEpGraphAssignmentInfo)(
            session.ptr(),
            &raw mut parts,
            &raw mut count,
        ));
        for &part in std::slice::from_raw_parts(parts, count) {
            let mut provider = std::ptr::null();
            check((api.EpAssignedSubgraph_GetEpName)(part, &raw mut provider));
            if text(provider) == <ep::WebGPU as ExecutionProvider>::NAME {
                continue;
            }
            let (mut nodes, mut count) = (std::ptr::null(), 0);
            check((api.EpAssignedSubgraph_GetNodes)(
                part,
                &raw mut nodes,
                &raw mut count,
            ));
            for &node in std::slice::from_raw_parts(nodes, count) {
                let mut name = std::ptr::null();
                check((api.EpAssignedNode_GetName)(node, &raw mut name));
                names.insert(text(name));
            }
        }
    }
    names
}

fn library() -> PathBuf {
    std::env::var_os("ORT_DYLIB_PATH").map_or_else(
        || {
            let package = Path::new(env!("CARGO_MANIFEST_DIR"));
            package.join("node_modules/onnxruntime-node/bin/napi-v6/linux/x64/libonnxruntime.so.1")
        },
        PathBuf::from,
    )
}
