//! The programs and headers that the steps need, looked for before anything is done.

use std::env;
use std::fmt;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

/// Found tools.
pub struct Tools {
    /// C++ compiler.
    pub cxx: String,
    /// First line of its `--version`: part of what the native step depends on.
    pub cxx_version: String,
    /// The compiler's library has no `std::format`; {fmt} stands in.
    pub std_format_from_fmt: bool,
    /// Python with pip.
    pub python: String,
}

/// Tools that have to be installed, all at once.
#[derive(Debug)]
pub struct MissingTools(Vec<Missing>);

#[derive(Debug)]
struct Missing {
    what: &'static str,
    /// Packages that hold it, as an argument of `apt-get install` and of `dnf install`.
    debian: &'static str,
    fedora: &'static str,
}

const CMAKE: Missing = Missing {
    what: "cmake",
    debian: "cmake",
    fedora: "cmake",
};
const COMPILER: Missing = Missing {
    what: "a C++20 compiler (c++, or the one that CXX names), and {fmt} if it is older than GCC 13",
    debian: "g++ libfmt-dev",
    fedora: "gcc-c++ fmt-devel",
};
const FMT: Missing = Missing {
    what: "{fmt}, because this C++ compiler has no std::format (GCC has it from version 13)",
    debian: "libfmt-dev",
    fedora: "fmt-devel",
};
const LIBCLANG: Missing = Missing {
    what: "libclang, which bindgen reads C headers with (LIBCLANG_PATH may name its folder)",
    debian: "libclang-dev",
    fedora: "clang-devel",
};
const PIP: Missing = Missing {
    what: "pip, which installs the MLX wheel (python3 -m pip; PYTHON may name another Python)",
    debian: "python3-pip",
    fedora: "python3-pip",
};

impl fmt::Display for MissingTools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let packages =
            |of: fn(&Missing) -> &str| self.0.iter().map(of).collect::<Vec<_>>().join(" ");
        writeln!(f, "building MLX needs tools that are missing:")?;
        for missing in &self.0 {
            writeln!(f, "  - {}", missing.what)?;
        }
        writeln!(
            f,
            "Debian, Ubuntu: sudo apt-get install {}",
            packages(|missing| missing.debian)
        )?;
        write!(
            f,
            "Fedora:         sudo dnf install {}",
            packages(|missing| missing.fedora)
        )
    }
}

impl std::error::Error for MissingTools {}

/// Looks for all of them.
///
/// # Errors
/// [`MissingTools`] with everything that was not found.
pub fn find() -> Result<Tools, MissingTools> {
    let mut missing = Vec::new();
    let program =
        |variable, default: &str| env::var(variable).unwrap_or_else(|_| default.to_owned());

    if output("cmake", &["--version"]).is_none() {
        missing.push(CMAKE);
    }
    let cxx = program("CXX", "c++");
    let cxx_version = output(&cxx, &["--version"]).map(|output| {
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().next().unwrap_or_default().to_owned()
    });
    let mut std_format_from_fmt = false;
    if cxx_version.is_none() {
        missing.push(COMPILER);
    } else if !preprocesses(
        &cxx,
        "#include <version>\n#ifndef __cpp_lib_format\n#error\n#endif",
    ) {
        std_format_from_fmt = true;
        if !preprocesses(&cxx, "#include <fmt/format.h>") {
            missing.push(FMT);
        }
    }
    if clang_sys::load().is_err() {
        missing.push(LIBCLANG);
    }
    let python = program("PYTHON", "python3");
    // Half a second faster than `python3 -m pip --version`, and this is asked in every run.
    let has_pip = "import importlib.util; assert importlib.util.find_spec('pip')";
    if output(&python, &["-c", has_pip]).is_none() {
        missing.push(PIP);
    }

    match cxx_version {
        Some(cxx_version) if missing.is_empty() => Ok(Tools {
            cxx,
            cxx_version,
            std_format_from_fmt,
            python,
        }),
        _ => Err(MissingTools(missing)),
    }
}

/// What a program that is there and succeeds says.
fn output(program: &str, args: &[&str]) -> Option<Output> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then_some(output)
}

fn preprocesses(cxx: &str, source: &str) -> bool {
    let preprocess = || {
        let mut compiler = Command::new(cxx)
            .args(["-std=c++20", "-E", "-x", "c++", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // Dropping the handle after the write ends the compiler's input.
        if let Some(mut input) = compiler.stdin.take() {
            input.write_all(source.as_bytes())?;
        }
        compiler.wait()
    };
    preprocess().is_ok_and(|status| status.success())
}
