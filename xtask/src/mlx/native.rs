//! `libmlxc.a`: mlx-c and the shim, compiled against the wheel's headers.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};

use super::cache::Cache;
use super::tools::Tools;
use super::{MLX_VERSION, MlxSys, run, wheel};

/// The `CMake` project; its comments say what each file is for.
const PROJECT: [(&str, &str); 4] = [
    ("CMakeLists.txt", include_str!("../../shim/CMakeLists.txt")),
    (
        "MLXConfig.cmake",
        include_str!("../../shim/MLXConfig.cmake"),
    ),
    ("mlx_shim.cpp", include_str!("../../shim/mlx_shim.cpp")),
    ("std_format.h", include_str!("../../shim/std_format.h")),
];

const ARCHIVE: &str = "libmlxc.a";

/// Builds it.
pub fn build(cache: &Cache, tools: &Tools, mlx_sys: &MlxSys, wheel: &Path) -> Result<PathBuf> {
    let inputs = (
        // Of the wheel only the headers matter, and they are those of its version.
        MLX_VERSION,
        PROJECT,
        include_str!("native.rs"),
        &tools.cxx,
        &tools.cxx_version,
        tools.std_format_from_fmt,
    );
    cache.step("native", &inputs, |folder| {
        eprintln!(
            "compiling mlx-c of mlx-sys {} (about a minute)",
            mlx_sys.version
        );
        let build = folder.join("build");
        for (name, content) in PROJECT {
            let path = folder.join(name);
            fs::write(&path, content)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }

        let mut configure = Command::new("cmake");
        configure.arg("-S").arg(folder).arg("-B").arg(&build).args([
            "-DCMAKE_BUILD_TYPE=Release".to_owned(),
            format!("-DCMAKE_CXX_COMPILER={}", tools.cxx),
            format!("-DMLX_C_SOURCE={}", mlx_sys.mlx_c.display()),
            format!("-DMLX_INCLUDE={}", wheel::include_dir(wheel).display()),
            format!(
                "-DSTD_FORMAT_FROM_FMT={}",
                u8::from(tools.std_format_from_fmt)
            ),
        ]);
        run(&mut configure, "configuring mlx-c")?;

        let mut compile = Command::new("cmake");
        compile.arg("--build").arg(&build);
        // CMake reads this variable itself, but an explicit number would win over it.
        if env::var_os("CMAKE_BUILD_PARALLEL_LEVEL").is_none() {
            let jobs = thread::available_parallelism().map_or(1, usize::from);
            compile.arg("--parallel").arg(jobs.to_string());
        }
        run(&mut compile, "compiling mlx-c")?;

        fs::rename(build.join("mlx-c").join(ARCHIVE), folder.join(ARCHIVE))
            .and_then(|()| fs::remove_dir_all(&build))
            .with_context(|| format!("cannot keep {ARCHIVE}"))
    })
}
