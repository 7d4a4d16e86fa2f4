//! Developer chores of semantic-search-native that need Rust. The one chore, `mlx`, makes Linux ready to build the feature
//! `mlx`: see [`mlx`]. `npm run build:native -- --mlx=cpu` runs it.

mod mlx;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};

use mlx::{MissingTools, Request, Variant};

const USAGE: &str = "\
usage: cargo run --release --manifest-path xtask/Cargo.toml -- mlx [options]

Prepares building with MLX on Linux. Prints `config=<cargo configuration to build with>` and
`library=<folder of libmlx.so>`.

  --variant=cpu|cuda   the build of MLX (default: cpu)
  --blas=<file>        use this library (libopenblas.so.0) in place of the reference BLAS in the wheel: on a CPU,
                       multiplies float32 matrices some 25 times faster

The cache is $SEMANTIC_SEARCH_CACHE; `npm run build:native -- --mlx=…` sets it.";

/// Exit status when tools are missing, so that a caller can tell it from a failed build.
const MISSING_TOOLS: u8 = 2;

fn main() -> ExitCode {
    match run(env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.downcast_ref::<MissingTools>() {
                Some(_) => ExitCode::from(MISSING_TOOLS),
                None => ExitCode::FAILURE,
            }
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "what callers read; progress goes to stderr"
)]
fn run(mut args: impl Iterator<Item = String>) -> Result<()> {
    let chore = args.next();
    ensure!(
        chore.as_deref() == Some("mlx"),
        "expected the chore `mlx`\n\n{USAGE}"
    );
    let mut request = Request {
        variant: Variant::Cpu,
        blas: None,
    };
    for arg in args {
        match arg.split_once('=') {
            Some(("--variant", "cpu")) => request.variant = Variant::Cpu,
            Some(("--variant", "cuda")) => request.variant = Variant::Cuda,
            Some(("--blas", file)) => request.blas = Some(PathBuf::from(file)),
            _ => bail!("unknown option `{arg}`\n\n{USAGE}"),
        }
    }
    let prepared = mlx::prepare(&request)?;
    println!("config={}", prepared.cargo_config.display());
    println!("library={}", prepared.library_dir.display());
    Ok(())
}
