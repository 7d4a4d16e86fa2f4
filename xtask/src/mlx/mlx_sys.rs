//! The `mlx-sys` crate as cargo resolved it for the addon.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::target_triple;

/// The addon's manifest.
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");

/// What the other steps need of the crate.
pub struct MlxSys {
    /// The crate's version.
    pub version: String,
    /// mlx-c's source tree inside the crate.
    pub mlx_c: PathBuf,
    /// The MLX that mlx-c would fetch by itself.
    pub mlx_version: String,
}

/// Asks cargo.
pub fn find() -> Result<MlxSys> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version=1",
            "--all-features",
            "--manifest-path",
            MANIFEST,
        ])
        .args(["--filter-platform", &target_triple()])
        .output()
        .context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed for {MANIFEST}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata answered no JSON")?;
    let mut packages = metadata["packages"].as_array().into_iter().flatten();
    let package = packages
        .find(|package| package["name"] == "mlx-sys")
        .with_context(|| {
            format!(
                "{MANIFEST} does not depend on mlx-sys for {}",
                target_triple()
            )
        })?;
    let text = |key: &str| {
        package[key]
            .as_str()
            .with_context(|| format!("cargo metadata names no {key} of mlx-sys"))
    };
    let mlx_c = Path::new(text("manifest_path")?)
        .with_file_name("src")
        .join("mlx-c");
    Ok(MlxSys {
        version: text("version")?.to_owned(),
        mlx_version: pinned_mlx(&mlx_c)?,
        mlx_c,
    })
}

/// The version is stated once, as the git tag that mlx-c's `CMake` would fetch; mlx-sys's own build script reads it there.
fn pinned_mlx(mlx_c: &Path) -> Result<String> {
    let path = mlx_c.join("CMakeLists.txt");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines()
        .find_map(|line| line.trim().strip_prefix("GIT_TAG v"))
        .map(|tag| tag.trim_end_matches(')').trim().to_owned())
        .with_context(|| {
            format!(
                "{} has no line `GIT_TAG v<version>`: mlx-sys states its MLX differently now",
                path.display()
            )
        })
}
