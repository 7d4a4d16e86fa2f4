//! `bindings.rs`, as mlx-sys's build script would write it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cache::Cache;
use super::{MlxSys, target_triple};

/// mlx-c declares these only where the C compiler has half precision types, mlx-rs needs them everywhere. Declared here on
/// both processors, in the form that bindgen gives them on macOS and mlx-rs is written for.
const HALF_PRECISION: &str = "
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct float16_t(pub u16);
pub type bfloat16_t = u16;
extern \"C\" {
    pub fn mlx_array_item_float16(res: *mut float16_t, arr: mlx_array) -> ::std::os::raw::c_int;
    pub fn mlx_array_item_bfloat16(res: *mut bfloat16_t, arr: mlx_array) -> ::std::os::raw::c_int;
    pub fn mlx_array_data_float16(arr: mlx_array) -> *const float16_t;
    pub fn mlx_array_data_bfloat16(arr: mlx_array) -> *const bfloat16_t;
}";

/// Makes a folder with `bindings.rs`: what mlx-sys takes for its `OUT_DIR`.
pub fn generate(cache: &Cache, mlx_sys: &MlxSys) -> Result<PathBuf> {
    let inputs = (
        include_str!("bindings.rs"),
        // Another libclang may see the headers differently.
        bindgen::clang_version().full,
        &mlx_sys.version,
        &mlx_sys.mlx_c,
    );
    cache.step("bindings", &inputs, |folder| {
        eprintln!("generating bindings for mlx-sys {}", mlx_sys.version);
        let builder = bindgen::builder()
            // From here to the headers as in mlx-sys's src/bindgen_config.rs.
            .rust_target("1.73.0".parse().expect("bindgen knows Rust 1.73"))
            .clang_arg(format!("-I{}", mlx_sys.mlx_c.display()))
            .blocklist_function("malloc")
            .blocklist_function("realloc")
            .clang_arg(format!("--target={}", target_triple()))
            // As if half.h had been read: its types are not known to every libclang, and are declared here anyway.
            .clang_arg("-DMLX_HALF_H")
            .raw_line(HALF_PRECISION);
        let bindings = headers(&mlx_sys.mlx_c)?
            .into_iter()
            .fold(builder, |builder, header| {
                builder.header(header.to_string_lossy())
            })
            .generate()
            .context("bindgen failed on mlx-c's headers")?
            .to_string();
        fs::write(folder.join("bindings.rs"), with_signed_mode(&bindings)?)
            .context("cannot write bindings.rs")
    })
}

/// mlx-rs calls `mlx_pad` with its mode as `*const i8`, which C's `char` is everywhere but on ARM Linux. The calling
/// convention does not care.
fn with_signed_mode(bindings: &str) -> Result<String> {
    const CHAR: &str = "mode: *const ::std::os::raw::c_char";
    let (before, pad) = bindings
        .split_once("pub fn mlx_pad(")
        .filter(|(_, pad)| pad.contains(CHAR))
        .context("mlx-c's mlx_pad has changed")?;
    let pad = pad.replacen(CHAR, "mode: *const i8", 1);
    Ok(format!("{before}pub fn mlx_pad({pad}"))
}

/// mlx-c's public headers, in a fixed order.
fn headers(mlx_c: &Path) -> Result<Vec<PathBuf>> {
    let folder = mlx_c.join("mlx").join("c");
    let mut headers = fs::read_dir(&folder)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<Vec<_>, _>>()
        })
        .with_context(|| format!("cannot read {}", folder.display()))?;
    headers.retain(|path| path.extension().is_some_and(|extension| extension == "h"));
    headers.sort();
    Ok(headers)
}
