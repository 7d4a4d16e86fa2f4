//! MLX itself: the official wheel, installed into a folder of its own in the layout that `libmlx.so` expects.

use std::env::consts::ARCH;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cache::Cache;
use super::tools::Tools;
use super::{Request, Variant, run};

impl Variant {
    /// Exact versions with the hashes of the wheels of both processors; pip refuses anything else.
    /// CUDA's own libraries are among them: `libmlx.so` looks for them beside itself.
    fn requirements(self) -> &'static str {
        match self {
            Self::Cpu => include_str!("requirements-cpu.txt"),
            Self::Cuda => include_str!("requirements-cuda.txt"),
        }
    }
}

/// Tags of the wheels in use, in addition to their processor. The first is MLX's: glibc 2.35 is what it asks for.
const PLATFORMS: [&str; 6] = [
    "manylinux_2_35",
    "manylinux_2_27",
    "manylinux_2_17",
    "manylinux2014",
    "manylinux2010",
    "manylinux1",
];

/// Any Python that MLX supports: its libraries do not depend on Python, but pip compares.
const PYTHON_VERSION: &str = "3.12";

/// Installs the wheel, and with CUDA the libraries it needs.
pub fn install(cache: &Cache, tools: &Tools, request: &Request) -> Result<PathBuf> {
    let requirements = request.variant.requirements();
    let inputs = (requirements, include_str!("wheel.rs"), &request.blas);
    cache.step("wheel", &inputs, |folder| {
        let package = requirements.lines().next().unwrap_or_default();
        eprintln!("installing {}", package.trim_end_matches(" \\"));
        let file = cache.write_file("requirements.txt", requirements)?;
        let mut pip = Command::new(&tools.python);
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args([
            "--no-deps",
            "--no-compile",
            "--require-hashes",
            "--only-binary=:all:",
        ])
        .args(["--implementation=py", "--python-version", PYTHON_VERSION])
        .args(PLATFORMS.map(|platform| format!("--platform={platform}_{ARCH}")))
        .arg("--target")
        .arg(folder)
        .arg("--requirement")
        .arg(&file)
        .env("PIP_ROOT_USER_ACTION", "ignore");
        run(&mut pip, "pip install of the MLX wheel")?;
        if let Some(blas) = &request.blas {
            replace_blas(folder, blas)?;
        }
        // A wheel of another layout would fail much later, and obscurely.
        let library = library_dir(folder).join("libmlx.so");
        ensure!(
            library.is_file(),
            "the MLX wheel has no {}",
            library.display()
        );
        Ok(())
    })
}

/// `libmlx.so` asks for its BLAS by file name: any library with the CBLAS interface serves under that name.
fn replace_blas(wheel: &Path, blas: &Path) -> Result<()> {
    let blas = blas
        .canonicalize()
        .with_context(|| format!("no BLAS at {}", blas.display()))?;
    // Where auditwheel put the wheel's own libraries.
    let libraries = wheel.join("mlx_cpu.libs");
    let bundled = fs::read_dir(&libraries)
        .with_context(|| {
            format!(
                "--blas is for the CPU build: cannot read {}",
                libraries.display()
            )
        })?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"libblas-"))
        })
        .context("the MLX wheel brings no libblas")?;
    fs::remove_file(&bundled)
        .and_then(|()| symlink(&blas, &bundled))
        .with_context(|| format!("cannot replace {}", bundled.display()))
}

/// Folder of `libmlx.so`.
pub fn library_dir(wheel: &Path) -> PathBuf {
    wheel.join("mlx").join("lib")
}

/// Folder of MLX's C++ headers.
pub fn include_dir(wheel: &Path) -> PathBuf {
    wheel.join("mlx").join("include")
}

#[cfg(test)]
mod tests {
    use super::super::MLX_VERSION;
    use super::Variant;

    #[test]
    fn requirements_pin_the_version_for_both_processors() {
        for (variant, package) in [(Variant::Cpu, "mlx-cpu"), (Variant::Cuda, "mlx-cuda-13")] {
            let requirements = variant.requirements();
            assert!(requirements.starts_with(&format!("{package}=={MLX_VERSION} \\\n")));
            assert_eq!(
                requirements.matches("--hash=sha256:").count(),
                2 * requirements.matches("==").count()
            );
        }
    }
}
