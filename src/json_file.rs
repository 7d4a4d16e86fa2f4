//! Settings files of a model folder. `lib/json_file.ts` accepts and refuses the same.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::file;

/// A file that holds a JSON object. A key whose value is null counts as missing.
pub(crate) struct JsonFile {
    pub(crate) path: PathBuf,
    pub(crate) json: Value,
}

impl JsonFile {
    /// Reads a file that must exist; if it does not, the error says `what` was expected.
    pub(crate) fn read(path: PathBuf, what: &str) -> Result<Self> {
        let bytes = read_bytes(&path, file::MOST_SETTINGS)?
            .ok_or_else(|| Error::not_found(&path, format!("expected {what}")))?;
        Self::parse(path, &bytes)
    }

    /// Reads a file that may be absent; then it counts as an empty object.
    pub(crate) fn read_optional(path: PathBuf) -> Result<Self> {
        let bytes = read_bytes(&path, file::MOST_SETTINGS)?;
        Self::parse(path, bytes.as_deref().unwrap_or(b"{}"))
    }

    /// Parses the bytes of a file.
    pub(crate) fn parse(path: PathBuf, bytes: &[u8]) -> Result<Self> {
        let json = parse(&path, bytes)?;
        let file = Self { path, json };
        if file.json.is_object() {
            return Ok(file);
        }
        Err(file.invalid("expected a JSON object"))
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// A whole number of at least 1.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(
            key,
            "a whole number of at least 1 and below 2^32",
            |value| {
                let count = u32::try_from(value.as_u64()?).ok()?;
                (count > 0).then_some(count as usize)
            },
        )
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// The value as `read` reads it; an error if `read` returns `None`.
    pub(crate) fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.invalid(format!("`{key}`: expected {expected}, found {value}"))),
        }
    }

    pub(crate) fn invalid(&self, problem: impl std::fmt::Display) -> Error {
        Error::invalid(&self.path, problem)
    }

    pub(crate) fn unsupported(&self, feature: String, hint: &str) -> Error {
        Error::unsupported(&self.path, feature, hint)
    }
}

/// The contents of a file, of any type.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    let mut json = serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid_from(path, "is not valid JSON", error))?;
    write_whole_numbers_alike(&mut json);
    Ok(json)
}

/// The bytes of a file; `None` if it does not exist.
pub(crate) fn read_bytes(path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
    match file::read(path, most) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Ok(None),
            _ => Err(Error::invalid_from(path, "cannot be read", error)),
        },
    }
}

/// Writes 384.0 and 3.84e2 as 384: JavaScript, and JSON itself, do not distinguish them.
fn write_whole_numbers_alike(json: &mut Value) {
    const MOST: f64 = (1_u64 << 53) as f64;
    match json {
        Value::Number(number) if number.is_f64() => {
            let whole = number
                .as_f64()
                .filter(|number| number.fract() == 0.0 && number.abs() <= MOST);
            if let Some(whole) = whole {
                *json = Value::from(whole as i64);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(write_whole_numbers_alike),
        Value::Object(values) => values.values_mut().for_each(write_whole_numbers_alike),
        _ => {}
    }
}
