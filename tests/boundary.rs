//! Nothing in the sources is called by others, or runs on a thread of its own, without `src/guard.rs` around it. Read as
//! text, which rustfmt keeps regular: a test that calls everything would not find what is added tomorrow.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

/// Sources without their tests, by path.
fn sources() -> Vec<(PathBuf, String)> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                let (code, _) = text
                    .split_once("#[cfg(test)]\nmod tests")
                    .unwrap_or((&text, ""));
                sources.push((path, code.to_owned()));
            }
        }
    }
    sources
}

/// Functions behind an attribute `#[napi…]`: their names, and the lines of their bodies.
fn exported_functions(source: &str) -> Vec<(&str, Vec<&str>)> {
    let lines: Vec<&str> = source.lines().collect();
    let mut functions = Vec::new();
    let attributes = (0..lines.len()).filter(|&line| lines[line].trim().starts_with("#[napi"));
    for attribute in attributes {
        let item = attribute
            + lines[attribute..]
                .iter()
                .position(|line| {
                    ["pub ", "fn ", "impl "]
                        .iter()
                        .any(|item| line.trim().starts_with(item))
                })
                .unwrap();
        let public = lines[item].trim();
        let public = public.strip_prefix("pub ").unwrap_or(public);
        let Some(signature) = public.strip_prefix("fn ") else {
            continue;
        };
        let name = signature.split(['(', '<']).next().unwrap();
        let indent = lines[item].len() - lines[item].trim_start().len();
        let closing = format!("{}}}", " ".repeat(indent));
        let start = item
            + lines[item..]
                .iter()
                .position(|line| line.ends_with('{'))
                .unwrap();
        let end = start
            + lines[start..]
                .iter()
                .position(|line| *line == closing)
                .unwrap();
        functions.push((name, lines[start + 1..end].to_vec()));
    }
    functions
}

/// Whether a body is one call of `guarded` and nothing else.
fn is_guarded(body: &[&str]) -> bool {
    let indent = |line: &str| line.len() - line.trim_start().len();
    match body {
        [only] => only.trim().starts_with("guarded(|| ") && only.ends_with(')'),
        [first, inner @ .., last] => {
            let (start, end) = (first.trim(), last.trim());
            // What is called without being able to throw drops the error.
            [("guarded(|| {", "})"), ("let _ = guarded(|| {", "});")].contains(&(start, end))
                && inner
                    .iter()
                    .all(|line| line.is_empty() || indent(line) > indent(first))
        }
        [] => false,
    }
}

#[test]
fn every_function_that_javascript_calls_is_guarded() {
    let mut names = Vec::new();
    for (path, source) in sources() {
        for (name, body) in exported_functions(&source) {
            let path = path.display();
            assert!(
                is_guarded(&body),
                "{path}: {name}: expected `guarded(|| …)` and nothing else, found {body:#?}"
            );
            names.push(name.to_owned());
        }
    }
    for expected in [
        "on_load",
        "new",
        "push",
        "progress",
        "load",
        "embed",
        "close",
        "init",
        "is_gpu",
        "export_onnx",
    ] {
        assert!(
            names.iter().any(|name| name == expected),
            "{expected} is not among {names:?}"
        );
    }
}

#[test]
fn the_test_above_finds_what_is_not_guarded() {
    let source = "#[napi]\npub fn plain() -> u32 {\n    7\n}\n\n#[napi]\nimpl Model {\n    #[napi(getter)]\n    #[must_use]\n    \
                  pub fn late(&self) -> napi::Result<u32, Code> {\n        let value = self.read();\n        guarded(|| Ok(value))\n    }\n\n    \
                  #[napi]\n    pub fn early(&self) -> napi::Result<u32, Code> {\n        guarded(|| {\n            Ok(1)\n        })\n        \
                  .map(|_| self.read())\n    }\n\n    #[napi]\n    pub fn good(&self) -> napi::Result<u32, Code> {\n        \
                  guarded(|| Ok(1))\n    }\n}\n";
    let functions = exported_functions(source);
    let guarded: Vec<_> = functions
        .iter()
        .map(|(name, body)| (*name, is_guarded(body)))
        .collect();
    assert_eq!(
        guarded,
        [
            ("plain", false),
            ("late", false),
            ("early", false),
            ("good", true)
        ]
    );
}

/// What Node.js is handed to be called later.
#[test]
fn every_callback_of_javascript_is_guarded() {
    let is_boundary = |path: &Path| {
        path.ends_with("node.rs") || path.parent().is_some_and(|folder| folder.ends_with("node"))
    };
    let sources = sources().into_iter().filter(|(path, _)| is_boundary(path));
    let mut callbacks = 0;
    for (path, source) in sources {
        for (handed, guard) in [
            (".resolve(", "settlement("),
            (".add_env_cleanup_hook(", "guard::catch("),
        ] {
            let count = source.matches(handed).count();
            assert_eq!(
                count,
                source.matches(guard).count(),
                "{}: {handed}",
                path.display()
            );
            callbacks += count;
        }
        assert!(
            !source.contains("threadsafe_function"),
            "{}",
            path.display()
        );
    }
    assert!(callbacks > 2);
}

#[test]
fn every_thread_is_guarded() {
    for (path, code) in sources() {
        if path.ends_with("guard.rs") {
            continue;
        }
        for unguarded in [
            "thread::spawn",
            "scope.spawn",
            " Builder::new()",
            "thread::Builder",
            "catch_unwind",
            "set_hook",
        ] {
            // ONNX Runtime's and MLX's builders are called by other names.
            assert!(!code.contains(unguarded), "{}: {unguarded}", path.display());
        }
    }
}
