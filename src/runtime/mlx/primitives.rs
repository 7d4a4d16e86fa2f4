//! A bound on the work that a layer hands to MLX: its primitives, counted in a graph that is not evaluated.

use std::ffi::CStr;
use std::path::Path;
use std::sync::Arc;

use mlx_rs::fast::{self, ScaledDotProductAttentionMask};
use mlx_rs::{Array, Dtype};

use super::forward::{PaddedBatch, Pass};
use super::parameters::Parameters;
use super::thread;
use crate::arch;
use crate::checkpoint::Checkpoint;
use crate::graph::Pooling;
use crate::runtime::stop::Stop;

const BATCH: i32 = 2;
const LENGTH: i32 = 8;

/// Primitives in the graph of `output`, as MLX prints it: one a line, its name first.
fn count(output: &Array) -> usize {
    let mut text = std::ptr::null_mut();
    let mut size = 0;
    // SAFETY: the stream is closed, which completes `text`, before it is read and freed; every handle is freed once.
    let printed = unsafe {
        let stream = libc::open_memstream(&raw mut text, &raw mut size);
        assert!(!stream.is_null());
        let outputs = mlx_sys::mlx_vector_array_new();
        mlx_sys::mlx_vector_array_append_value(outputs, output.as_ptr());
        let namer = mlx_sys::mlx_node_namer_new();
        let status = mlx_sys::mlx_print_graph(stream.cast(), namer, outputs);
        mlx_sys::mlx_node_namer_free(namer);
        mlx_sys::mlx_vector_array_free(outputs);
        libc::fclose(stream);
        assert_eq!(status, 0);
        let printed = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast());
        printed
    };
    let names = printed
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    names.filter(|name| !name.ends_with(':')).count()
}

/// Primitives of a whole pass through the fixture with so many of its layers.
fn count_pass(fixture: &str, layers_key: &'static str, layers: usize, is_padded: bool) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(fixture);
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config[layers_key] = layers.into();
    let encoder = arch::read(&folder, &config).unwrap();
    let checkpoint = Checkpoint::open(&folder, &[folder.join("model.safetensors")]).unwrap();
    let graph = encoder
        .record(&checkpoint)
        .unwrap()
        .pooled(&[Pooling::Mean]);
    let checkpoint = Arc::new(checkpoint);
    thread::run(move |state| {
        let parameters = Parameters::load(&graph, &checkpoint, Dtype::Float32, state.is_gpu)?;
        let ids = [7; LENGTH as usize];
        let second = if is_padded { &ids[..5] } else { &ids };
        let batch = PaddedBatch::new(&[ids[..].into(), second.into()], None, false)?;
        let stop = Stop::new();
        let mut pass = Pass::new(&parameters, &mut state.kernels, &batch, &stop)?;
        Ok(count(&pass.run(&graph)?))
    })
    .unwrap()
}

/// What MLX makes of its fused functions here: one primitive each on a GPU, their parts on a CPU.
struct Fused {
    layer_norm: usize,
    rope: usize,
    attention: usize,
}

fn count_fused(heads: i32, is_padded: bool) -> Fused {
    thread::run(move |_| {
        let zeros = |shape: &[i32]| {
            Array::from_slice(
                &vec![0.0_f32; shape.iter().product::<i32>() as usize],
                shape,
            )
        };
        let width = zeros(&[16]);
        let states = zeros(&[BATCH * LENGTH, 16]);
        let query = zeros(&[BATCH, heads, LENGTH, 16]);
        let mask = Array::from_slice(&[true; (BATCH * LENGTH) as usize], &[BATCH, 1, 1, LENGTH]);
        let mask = is_padded.then(|| ScaledDotProductAttentionMask::from(&mask));
        let attention = fast::scaled_dot_product_attention(&query, &query, &query, 1.0, mask, None);
        Ok(Fused {
            layer_norm: count(&fast::layer_norm(&states, &width, &width, 1e-12).unwrap()),
            rope: count(&fast::rope(&query, 16, false, None, 1.0, 0, &zeros(&[8])).unwrap()),
            attention: count(&attention.unwrap()),
        })
    })
    .unwrap()
}

/// 5 matrix products, 2 splits, rotation, attention, 2 residuals, 2 norms, 4 views in and out of heads, 3 for the gate
/// (one where it is compiled).
#[test]
fn a_nomic_bert_layer_is_twenty_primitives() {
    for is_padded in [false, true] {
        let layer = count_pass("nomic_cls", "n_layer", 2, is_padded)
            - count_pass("nomic_cls", "n_layer", 1, is_padded);
        let fused = count_fused(2, is_padded);
        let expanded = 2 * fused.layer_norm + fused.rope + fused.attention;
        assert_eq!(layer - expanded + 4, 20, "padded: {is_padded}");
    }
}

/// 4 matrix products with the broadcasts of their biases, a split, attention, 2 residuals, 2 norms, 4 views in and out of
/// heads, and 8 for GELU, 3 of them broadcasts of constants (one where it is compiled).
#[test]
fn a_bert_layer_is_twenty_six_primitives() {
    let layers = |count| count_pass("bert_mean", "num_hidden_layers", count, false);
    let layer = layers(2) - layers(1);
    let fused = count_fused(3, false);
    let expanded = 2 * fused.layer_norm + fused.attention;
    assert_eq!(layer - expanded + 3, 26);
}
