//! MLX on Linux: the registry crates `mlx-rs` and `mlx-sys`, unmodified, against the official MLX wheel.
//!
//! `mlx-sys`'s build script is written for macOS: it fetches MLX and links Apple frameworks. Because the crate declares
//! `links = "mlx"`, a cargo configuration can replace that script by its results. These are the steps that make them:
//!
//! 1. [`mlx_sys`]: where cargo keeps the crate, and which MLX it pins;
//! 2. [`wheel`]: that MLX from its wheel, checked by hash;
//! 3. [`native`]: mlx-c, whose sources the crate carries, and the shim, compiled against the wheel's headers;
//! 4. [`bindings`]: `bindings.rs` from mlx-c's headers;
//! 5. [`cargo_config`]: the configuration that names all of it.
//!
//! A step's folder carries a hash of everything that went into it ([`cache`]): a step that is done is found, not repeated.

mod bindings;
mod cache;
mod cargo_config;
mod mlx_sys;
mod native;
mod tools;
mod wheel;

use std::env::consts::ARCH;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use cache::Cache;
use mlx_sys::MlxSys;
pub use tools::MissingTools;

/// The MLX whose wheels `requirements-*.txt` pin. `mlx-sys` must pin the same one: the headers it was written against
/// and the library that is loaded must agree.
const MLX_VERSION: &str = "0.32.2";

/// Which of MLX's Linux builds.
#[derive(Clone, Copy)]
pub enum Variant {
    /// Reference kernels on the CPU: for tests.
    Cpu,
    /// NVIDIA GPUs through CUDA 13.
    Cuda,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// What to prepare.
pub struct Request {
    /// CPU or CUDA.
    pub variant: Variant,
    /// A BLAS to put in the place of the wheel's.
    pub blas: Option<PathBuf>,
}

/// What a build needs to know.
pub struct Prepared {
    /// To be passed as `cargo --config <file>`.
    pub cargo_config: PathBuf,
    /// Folder of `libmlx.so`, which finds its own libraries relative to itself.
    pub library_dir: PathBuf,
}

/// Does every step that is not done yet.
///
/// # Errors
/// [`MissingTools`] when something has to be installed first; otherwise what step failed and the tool's own words.
pub fn prepare(request: &Request) -> Result<Prepared> {
    ensure!(
        cfg!(all(
            target_os = "linux",
            target_env = "gnu",
            any(target_arch = "x86_64", target_arch = "aarch64")
        )),
        "there is no MLX wheel for {}: `mlx` is for Linux with glibc on x86_64 or aarch64 (on Apple silicon MLX is part of \
         the ordinary build)",
        format_args!("{ARCH} {}", std::env::consts::OS),
    );
    let mlx_sys = mlx_sys::find()?;
    ensure!(
        mlx_sys.mlx_version == MLX_VERSION,
        "mlx-sys {} pins MLX {}, but the pinned wheels are MLX {MLX_VERSION}: \
         bring xtask/src/mlx (MLX_VERSION, requirements-*.txt) and Cargo.lock to the same MLX",
        mlx_sys.version,
        mlx_sys.mlx_version,
    );
    let tools = tools::find()?;
    let cache = Cache::open(&format!(
        "{MLX_VERSION}-{}-{ARCH}-mlx-sys-{}",
        request.variant.name(),
        mlx_sys.version
    ))?;
    let wheel = wheel::install(&cache, &tools, request)?;
    let native = native::build(&cache, &tools, &mlx_sys, &wheel)?;
    let bindings = bindings::generate(&cache, &mlx_sys)?;
    let library_dir = wheel::library_dir(&wheel);
    let cargo_config = cargo_config::write(&cache, &native, &bindings, &library_dir)?;
    Ok(Prepared {
        cargo_config,
        library_dir,
    })
}

/// Rust's name of this Linux target.
fn target_triple() -> String {
    format!("{ARCH}-unknown-linux-gnu")
}

/// Runs `command` silently.
///
/// # Errors
/// Its output, if it fails.
fn run(command: &mut Command, what: &str) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("{what}: cannot start {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{what} failed ({}): {command:?}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    Ok(())
}
