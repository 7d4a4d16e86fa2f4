//! What every test needs: where the fixtures lie, ONNX Runtime's library, and how vectors are compared.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use safetensors::SafeTensors;
use semantic_search_native::engine::Request;
use semantic_search_native::options::{Backend, Dtype, Options};
use semantic_search_native::{Error, Input, Model};
use serde::Deserialize;
use serde_json::Value;

/// The backends of this build, MLX among them with the feature `mlx`; on a machine with a GPU for WebGPU, or one in software,
/// WebGPU alone if `SEMANTIC_SEARCH_TEST_WEBGPU` is set, which the step `webgpu` of `npm test` does.
pub static BACKENDS: LazyLock<&[Backend]> = LazyLock::new(|| {
    if on_webgpu() {
        &[Backend::WebGpu]
    } else if cfg!(mlx) {
        &[Backend::Onnx, Backend::Cpu, Backend::Mlx]
    } else {
        &[Backend::Onnx, Backend::Cpu]
    }
});

/// Whether tests are to run on WebGPU.
pub fn on_webgpu() -> bool {
    std::env::var_os("SEMANTIC_SEARCH_TEST_WEBGPU").is_some()
}

/// The repository: the folder of this package, or the one above, where the fuzz targets have a package of their own.
fn repository() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = package.ancestors();
    folders
        .find(|folder| folder.join("tests/fixtures").is_dir())
        .unwrap_or(package)
}

/// A model folder of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures").join(name)
}

/// A model in `folder` that takes two minutes for a text of 8192 tokens: the fixture with its first layer a hundred times
/// more, and many heads. An operator of it takes a second or two.
pub fn write_deep_model(folder: &Path) {
    const LAYERS: usize = 100;
    let fixture = fixture("nomic_cls");
    for file in std::fs::read_dir(&fixture).unwrap().map(Result::unwrap) {
        if file.file_type().unwrap().is_file() {
            std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
    }
    std::fs::create_dir(folder.join("1_Pooling")).unwrap();
    let pooling = "1_Pooling/config.json";
    std::fs::copy(fixture.join(pooling), folder.join(pooling)).unwrap();
    let config = std::fs::read(fixture.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["n_layer"] = LAYERS.into();
    config["n_head"] = 16.into();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();

    let bytes = std::fs::read(fixture.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut all = tensors.tensors();
    for (name, tensor) in tensors.tensors() {
        if let Some(rest) = name.strip_prefix("encoder.layers.0.") {
            let copies = (2..LAYERS).map(|layer| format!("encoder.layers.{layer}.{rest}"));
            all.extend(copies.map(|name| (name, tensor.clone())));
        }
    }
    let deep = safetensors::serialize(all, None).unwrap();
    std::fs::write(folder.join("model.safetensors"), deep).unwrap();
}

/// A call of texts, or of their token ids.
pub fn request<T: Into<Input>>(texts: Vec<T>, is_query: bool) -> Request {
    Request {
        texts: texts.into_iter().map(Into::into).collect(),
        is_query,
        ..Request::default()
    }
}

/// The model folders of `tests/fixtures`, by name: those with a file of golden vectors.
pub static FIXTURES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let goldens = std::fs::read_dir(fixture("golden")).unwrap();
    let names = goldens.map(|file| file.unwrap().path().file_stem().unwrap().to_owned());
    let mut names: Vec<String> = names
        .map(|name| name.into_string().unwrap())
        .filter(|name| fixture(name).is_dir())
        .collect();
    names.sort();
    names
});

/// Those whose tokens see each other: with linear layers, and vectors of length 1 for every text.
pub static ENCODERS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let names = FIXTURES.iter().filter(|name| !name.starts_with("static_"));
    names.cloned().collect()
});

/// Options for a backend, computing in float32 also where it has a GPU.
pub fn options_for(backend: Backend) -> Options {
    /// A model that stays, and with it WebGPU's device and the kernels that it has compiled, which takes seconds.
    static STAYS: LazyLock<Model> =
        LazyLock::new(|| Model::load(&fixture("bert_mean"), &options_of(Backend::WebGpu)).unwrap());
    if backend == Backend::WebGpu {
        LazyLock::force(&STAYS);
    }
    options_of(backend)
}

fn options_of(backend: Backend) -> Options {
    Options {
        cache_folder: option_env!("CARGO_TARGET_TMPDIR").map(PathBuf::from),
        backend,
        dtype: Dtype::F32,
        onnx_runtime_library: matches!(backend, Backend::Onnx | Backend::WebGpu)
            .then(onnx_runtime_library),
        ..Options::default()
    }
}

/// Options that find the ONNX Runtime of the npm package `onnxruntime-node`, unless `ORT_DYLIB_PATH` is set.
pub fn options() -> Options {
    Options {
        backend: Backend::Onnx,
        onnx_runtime_library: Some(onnx_runtime_library()),
        ..Options::default()
    }
}

pub fn onnx_runtime_library() -> PathBuf {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH") {
        return path.into();
    }
    let (platform, pattern) = match std::env::consts::OS {
        "macos" => ("darwin", "libonnxruntime."),
        "windows" => ("win32", "onnxruntime.dll"),
        other => (other, "libonnxruntime.so"),
    };
    let arch = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "x64",
    };
    let folder = repository()
        .join("node_modules/onnxruntime-node/bin/napi-v6")
        .join(platform)
        .join(arch);
    std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}; run `npm ci` first", folder.display()))
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(pattern)
        })
        .expect("onnxruntime-node holds its library")
}

/// Where the starter model lies, if `npm test` or `npm run demo` brought it.
pub fn starter_model() -> PathBuf {
    std::env::var_os("SEMANTIC_SEARCH_STARTER_MODEL").map_or_else(
        || {
            let output = std::process::Command::new("node")
                .current_dir(repository())
                .args([
                    "--input-type=module",
                    "--eval",
                    "import { packageCacheFolder } from './lib/cache_folder.js'; \
                     console.log(packageCacheFolder())",
                ])
                .output()
                .expect("Node.js says where the cache folder is");
            let cache = String::from_utf8(output.stdout).unwrap();
            PathBuf::from(cache.trim_end()).join("models/all-MiniLM-L6-v2")
        },
        PathBuf::from,
    )
}

/// Largest difference of two vectors' elements.
pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of different length");
    a.iter()
        .zip(b)
        .map(|(x, y)| (x - y).abs())
        .fold(0.0, f32::max)
}

/// Cosine of two vectors, in double precision.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum()
    };
    dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())
}

/// The project's meaning of "equal" for unit vectors in float32.
pub fn assert_equal(what: &str, actual: &[f32], expected: &[f32]) {
    let difference = max_difference(actual, expected);
    let cosine = cosine(actual, expected);
    assert!(
        difference <= 1e-5 && cosine >= 0.99999,
        "{what}: largest difference {difference:e}, cosine {cosine}"
    );
}

/// Holds an error against its code and what its message must contain.
#[track_caller]
pub fn assert_error<T>(result: Result<T, Error>, code: &str, named: &[&str]) {
    let error = result.err().expect("an error");
    let message = error.to_string();
    assert_eq!(error.code(), code, "{message}");
    for part in named {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// Loads a copy of a folder after `change` was applied to it.
pub fn load_changed(
    original: &Path,
    options: &Options,
    change: impl FnOnce(&Path),
) -> Result<Model, Error> {
    let folder = tempfile::tempdir().unwrap();
    copy(original, folder.path());
    change(folder.path());
    Model::load(folder.path(), options)
}

/// Changes one key of a JSON file.
pub fn set(file: &Path, key: &str, value: Value) {
    let mut json: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(file, json.to_string()).unwrap();
}

/// A text of a golden case.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Text {
    Whole(String),
    Repeated { repeat: String, times: usize },
}

impl Text {
    pub fn build(&self) -> String {
        match self {
            Self::Whole(text) => text.clone(),
            Self::Repeated { repeat, times } => repeat.repeat(*times),
        }
    }
}

/// Copies a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Makes a named pipe.
#[cfg(unix)]
pub fn make_pipe(path: &Path) {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a terminated string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}
