//! Link settings: napi's own, the `mlx` switch, and where libmlx is found on Linux.

use std::env;

/// Set by the cargo configuration that `xtask mlx` writes: the folder of libmlx.so on this machine.
const MLX_LIBRARY: &str = "SEMANTIC_SEARCH_MLX_LIB";

fn main() {
    if env::var_os("CARGO_FEATURE_NODE").is_some() {
        napi_build::setup();
    }
    let target = |name: &str| env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    let is_apple_silicon = target("OS") == "macos" && target("ARCH") == "aarch64";
    let has_mlx = is_apple_silicon || env::var_os("CARGO_FEATURE_MLX").is_some();
    println!("cargo::rustc-check-cfg=cfg(mlx)");
    if has_mlx {
        println!("cargo::rustc-cfg=mlx");
    }
    println!("cargo::rerun-if-env-changed={MLX_LIBRARY}");
    if has_mlx && target("OS") == "linux" {
        // Beside the addon first, so that a bundled library wins over the one of the machine that built it.
        println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/mlx/lib");
        if let Ok(folder) = env::var(MLX_LIBRARY) {
            println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
        }
    }
}
