//! The weights of a model folder: safetensors files, read once into private memory, with tensors found by name. A
//! [`TensorSlice`] says where the bytes lie, and runtimes point there.
//!
//! # Why not mapped
//!
//! A mapped file can still change. If it is shortened in place (`cp`, `truncate`, a synchronised folder), the process ends
//! with SIGBUS; if it is overwritten in place, the vectors of a loaded model change while its fingerprint still names the
//! old weights. `MAP_PRIVATE` does not help, since pages that were not written to still come from the file. Comparing the
//! file's identity before a run does not cover the run itself, and file times can be set; a handler for SIGBUS would affect
//! the whole host. So the bytes are copied, and the copy is hashed, checked, packed and computed with.
//!
//! The copy does not last: MLX has arrays of its own after loading, and the pages of what kernels on the CPU have packed
//! are returned to the system ([`Checkpoint::keep_only`]). What stays would have stayed in use with a mapping, too.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, OnceLock};

use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::error::{Cause, Error, Result};
use crate::pages::Pages;
use crate::{file, memory};

/// The format's limit on the header of a safetensors file, in bytes.
const MOST_HEADER: u64 = 100_000_000;

/// The name of a checkpoint's file, if it has only one.
pub const SINGLE_FILE: &str = "model.safetensors";

/// For errors: what a missing file should be.
pub(crate) const WEIGHTS_EXPECTED: &str =
    "expected weights as safetensors (pytorch_model.bin is not read)";

/// For errors: what memory is allocated for.
const FLOATS: &str = "weights in float32";

/// Number format of stored weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single-precision number.
    BF16,
}

impl WeightType {
    /// Bytes per value.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// Where one weight tensor, or a range of its rows, lies in the checkpoint. Row-major.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorSlice {
    /// The checkpoint's name of the tensor, with the row range appended for a part: `…Wqkv.weight[0..64]`.
    pub name: String,
    /// Index into [`Checkpoint::files`].
    pub file: usize,
    /// Number format in the file.
    pub dtype: WeightType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub offset: usize,
}

impl TensorSlice {
    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor holds no value at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part `index` of `parts` equal parts along the first dimension, as in a fused q|k|v projection.
    #[must_use]
    pub fn part(&self, index: usize, parts: usize) -> Self {
        let rows = self.shape[0] / parts;
        let row_bytes = self.len() / self.shape[0] * self.dtype.size();
        let mut shape = self.shape.clone();
        shape[0] = rows;
        Self {
            name: format!("{}[{}..{}]", self.name, index * rows, (index + 1) * rows),
            file: self.file,
            dtype: self.dtype,
            shape,
            offset: self.offset + index * rows * row_bytes,
        }
    }
}

/// One file of weights.
pub struct WeightFile {
    /// Where it lies on disk.
    pub path: PathBuf,
    /// Put in front of its tensors' names; empty in the encoder's own files.
    pub prefix: String,
    pub(crate) bytes: Pages,
}

/// A tensor in a number format that weights do not have.
struct OtherTensor {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// The weights of a model.
pub struct Checkpoint {
    files: Vec<WeightFile>,
    tensors: HashMap<String, TensorSlice>,
    others: HashMap<String, OtherTensor>,
    folder: PathBuf,
    digests: OnceLock<Vec<String>>,
}

impl Checkpoint {
    /// Reads the files.
    ///
    /// # Errors
    /// A file is missing, not a regular file, truncated, larger than memory, or its header contradicts its contents.
    pub fn open(folder: &Path, paths: &[PathBuf]) -> Result<Self> {
        let mut checkpoint = Self {
            files: Vec::new(),
            tensors: HashMap::new(),
            others: HashMap::new(),
            folder: folder.to_owned(),
            digests: OnceLock::new(),
        };
        for path in paths {
            checkpoint.read(path, "")?;
        }
        Ok(checkpoint)
    }

    /// Reads another file, that of a module with names of its own: `prefix` is put in front of them.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn read(&mut self, path: &Path, prefix: &str) -> Result<()> {
        let bytes = read_weights(path)?;
        self.read_header(path, prefix, &bytes)?;
        self.files.push(WeightFile {
            path: path.to_owned(),
            prefix: prefix.to_owned(),
            bytes,
        });
        self.digests = OnceLock::new();
        Ok(())
    }

    /// Reads the header of the next file.
    fn read_header(&mut self, path: &Path, prefix: &str, bytes: &[u8]) -> Result<()> {
        let parsed = SafeTensors::deserialize(bytes).map_err(|error| incomplete(path, error))?;
        let file = self.files.len();
        for (name, view) in parsed.iter() {
            let name = format!("{prefix}{name}");
            if self.has(&name) || self.others.contains_key(&name) {
                let problem = format!("tensor `{name}` is in two files of the checkpoint");
                return Err(Error::invalid(path, problem));
            }
            let shape = view.shape().to_vec();
            let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            let dtype = match view.dtype() {
                Dtype::F32 => WeightType::F32,
                Dtype::F16 => WeightType::F16,
                Dtype::BF16 => WeightType::BF16,
                dtype => {
                    let bytes = offset..offset + view.data().len();
                    let other = OtherTensor {
                        file,
                        dtype,
                        shape,
                        bytes,
                    };
                    self.others.insert(name, other);
                    continue;
                }
            };
            let tensor = TensorSlice {
                name: name.clone(),
                file,
                dtype,
                shape,
                offset,
            };
            self.tensors.insert(name, tensor);
        }
        Ok(())
    }

    /// What precedes `anchor` in the names of this checkpoint: `bert.`, `model.`, or nothing.
    ///
    /// # Errors
    /// No tensor's name ends with `anchor`.
    pub fn prefix_of(&self, anchor: &str) -> Result<&str> {
        // Whatever its number format, which is checked once it is used.
        let names = self.tensors.keys().chain(self.others.keys());
        let prefixes = names.filter_map(|name| name.strip_suffix(anchor));
        let prefix = prefixes
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
            .min_by_key(|prefix| prefix.len());
        prefix.ok_or_else(|| {
            let expected = "a tensor of this name, with or without a prefix";
            let found = format!("{} tensors of other names", self.tensors.len());
            Error::tensor(&self.folder, anchor, expected, found)
        })
    }

    /// Whether the checkpoint has the tensor.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor `name`, which must have exactly this shape.
    ///
    /// # Errors
    /// The tensor is missing, or its shape differs.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorSlice> {
        let expected = || format!("shape {shape:?}");
        let Some(tensor) = self.tensors.get(name) else {
            if let Some(other) = self.others.get(name) {
                let path = &self.files[other.file].path;
                let found = format!("dtype {:?}", other.dtype);
                return Err(Error::tensor(path, name, "dtype F32, F16 or BF16", found));
            }
            let of_module =
                |file: &&WeightFile| !file.prefix.is_empty() && name.starts_with(&file.prefix);
            let file = self.files.iter().find(of_module);
            return Err(Error::tensor(
                file.map_or(&self.folder, |file| &file.path),
                name,
                expected(),
                "no such tensor",
            ));
        };
        if tensor.shape != shape {
            let path = &self.files[tensor.file].path;
            let found = format!("shape {:?}", tensor.shape);
            return Err(Error::tensor(path, name, expected(), found));
        }
        Ok(tensor.clone())
    }

    /// The numbers of a tensor of one dimension that is no weight, of a float format or of 32- or 64-bit integers.
    ///
    /// # Errors
    /// The tensor is missing, has another length or format, or a number is not finite.
    pub fn column(&self, name: &str, length: usize) -> Result<Vec<f64>> {
        fn read<const N: usize>(bytes: &[u8], from: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            let (values, _) = bytes.as_chunks::<N>();
            values.iter().map(|bytes| from(*bytes)).collect()
        }
        let (file, numbers) = if let Some(other) = self.others.get(name) {
            let path = &self.files[other.file].path;
            if other.shape != [length] {
                let (expected, found) = (format!("shape [{length}]"), &other.shape);
                return Err(Error::tensor(
                    path,
                    name,
                    expected,
                    format!("shape {found:?}"),
                ));
            }
            let bytes = &self.files[other.file].bytes[other.bytes.clone()];
            let numbers = match other.dtype {
                Dtype::F64 => read(bytes, f64::from_le_bytes),
                Dtype::I32 => read(bytes, |bytes| i32::from_le_bytes(bytes).into()),
                Dtype::I64 => read(bytes, |bytes| i64::from_le_bytes(bytes) as f64),
                dtype => {
                    let expected = "dtype F64, F32, F16, BF16, I32 or I64";
                    let found = format!("dtype {dtype:?}");
                    return Err(Error::tensor(path, name, expected, found));
                }
            };
            (other.file, numbers)
        } else {
            let tensor = self.tensor(name, &[length])?;
            let numbers = self.floats(&tensor)?;
            (
                tensor.file,
                numbers.iter().copied().map(f64::from).collect(),
            )
        };
        if numbers.iter().all(|number| number.is_finite()) {
            return Ok(numbers);
        }
        let (expected, found) = ("finite numbers", "NaN or infinity");
        Err(Error::tensor(&self.files[file].path, name, expected, found))
    }

    /// Number of values in all float tensors.
    #[must_use]
    pub fn values(&self) -> usize {
        self.tensors.values().map(TensorSlice::len).sum()
    }

    /// The files, in the order of [`TensorSlice::file`].
    #[must_use]
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// The raw bytes of a tensor.
    #[must_use]
    pub fn bytes(&self, tensor: &TensorSlice) -> &[u8] {
        let length = tensor.len() * tensor.dtype.size();
        &self.files[tensor.file].bytes[tensor.offset..tensor.offset + length]
    }

    /// The values of a tensor: in place if they are stored as float32, otherwise converted.
    ///
    /// # Errors
    /// There is no memory for the converted values.
    pub fn floats(&self, tensor: &TensorSlice) -> Result<Cow<'_, [f32]>> {
        let bytes = self.bytes(tensor);
        if let Some(values) = in_place(tensor.dtype, bytes) {
            return Ok(Cow::Borrowed(values));
        }
        let mut values = memory::filled(tensor.len(), 0.0, FLOATS)?;
        to_f32(tensor.dtype, bytes, &mut values);
        Ok(Cow::Owned(values))
    }

    /// [`Pages::keep_only`] of all files, unless the checkpoint has another owner, who may read all of it.
    ///
    /// # Safety
    /// Its owner reads nothing outside of the ranges any more.
    pub(crate) unsafe fn keep_only(this: &Arc<Self>, kept: &[Range<usize>]) {
        if Arc::strong_count(this) > 1 {
            return;
        }
        fence(Ordering::Acquire);
        for file in &this.files {
            // SAFETY: the only owner does not read what is not kept.
            unsafe { file.bytes.keep_only(kept) };
        }
    }

    /// One row of a tensor of two dimensions.
    pub(crate) fn row(&self, tensor: &TensorSlice, index: usize, row: &mut [f32]) {
        let bytes = row.len() * tensor.dtype.size();
        to_f32(
            tensor.dtype,
            &self.bytes(tensor)[index * bytes..][..bytes],
            row,
        );
    }

    /// The values of a tensor that [`Self::floats`] has to convert, in pages of their own; `None` if they are stored as
    /// float32.
    pub(crate) fn converted(&self, tensor: &TensorSlice) -> Result<Option<Pages>> {
        let bytes = self.bytes(tensor);
        if in_place(tensor.dtype, bytes).is_some() {
            return Ok(None);
        }
        let mut pages = Pages::zeroed(tensor.len() * size_of::<f32>(), FLOATS)?;
        // SAFETY: every bit pattern is a float32, and pages are aligned to more than that.
        let (_, values, _) = unsafe { pages.align_to_mut::<f32>() };
        to_f32(tensor.dtype, bytes, values);
        Ok(Some(pages))
    }

    /// SHA-256 of each file, as lower-case hexadecimal. The first call reads every byte.
    #[must_use]
    pub fn digests(&self) -> &[String] {
        let digest = |file: &WeightFile| sha256_hex(&file.bytes);
        self.digests
            .get_or_init(|| self.files.iter().map(digest).collect())
    }

    /// Refuses weights that are not finite numbers.
    ///
    /// # Errors
    /// Names a tensor that holds a NaN or an infinity.
    pub fn check_finite(&self) -> Result<()> {
        for tensor in self.tensors.values() {
            let bytes = self.bytes(tensor);
            let is_special = |bits: u32, exponent: u32| bits & exponent == exponent;
            let half =
                |exponent| move |value| is_special(u16::from_le_bytes(value).into(), exponent);
            let finite = match tensor.dtype {
                WeightType::F32 => is_finite(bytes, |value| {
                    is_special(u32::from_le_bytes(value), 0x7f80_0000)
                }),
                WeightType::F16 => is_finite(bytes, half(0x7c00)),
                WeightType::BF16 => is_finite(bytes, half(0x7f80)),
            };
            if !finite {
                let path = &self.files[tensor.file].path;
                let (expected, found) = ("finite numbers", "NaN or infinity");
                return Err(Error::tensor(path, &tensor.name, expected, found));
            }
        }
        Ok(())
    }
}

/// SHA-256 as lower-case hexadecimal.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let text = String::with_capacity(2 * bytes.len());
    bytes.iter().fold(text, |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes as float32, if they are aligned and little-endian.
fn in_place(dtype: WeightType, bytes: &[u8]) -> Option<&[f32]> {
    if dtype != WeightType::F32 || cfg!(target_endian = "big") {
        return None;
    }
    // SAFETY: every bit pattern is a float32.
    let (before, values, after) = unsafe { bytes.align_to::<f32>() };
    (before.is_empty() && after.is_empty()).then_some(values)
}

fn to_f32(dtype: WeightType, bytes: &[u8], values: &mut [f32]) {
    fn convert<const N: usize>(bytes: &[u8], values: &mut [f32], from: impl Fn([u8; N]) -> f32) {
        for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *value = from(*bytes);
        }
    }
    match dtype {
        WeightType::F32 => convert(bytes, values, f32::from_le_bytes),
        WeightType::F16 => convert(bytes, values, |half| {
            half::f16::from_le_bytes(half).to_f32()
        }),
        WeightType::BF16 => convert(bytes, values, |half| {
            half::bf16::from_le_bytes(half).to_f32()
        }),
    }
}

/// The shapes of a file's tensors, by name. Reads only its header.
///
/// # Errors
/// As [`Checkpoint::open`].
pub fn shapes(path: &Path) -> Result<HashMap<String, Vec<usize>>> {
    if !path.exists() {
        return Err(Error::not_found(path, WEIGHTS_EXPECTED));
    }
    let (_, _, header) = open_weights(path)?;
    let tensors = header.tensors().into_iter();
    Ok(tensors
        .map(|(name, info)| (name, info.shape.clone()))
        .collect())
}

/// A file, the bytes in front of its tensors, and what these say. The file's length is what its header describes.
fn open_weights(path: &Path) -> Result<(File, Vec<u8>, Metadata)> {
    let failed = |error| Error::invalid_from(path, "cannot be read", error);
    let (mut file, length) = file::open(path).map_err(failed)?;
    let mut start = Vec::new();
    let mut prefix = file.by_ref().take(8);
    prefix.read_to_end(&mut start).map_err(failed)?;
    let header_length = start
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let mut header = file.by_ref().take(header_length.min(MOST_HEADER));
    header.read_to_end(&mut start).map_err(failed)?;
    let header: Metadata = serde_json::from_slice(start.get(8..).unwrap_or_default())
        .map_err(|error| incomplete(path, error))?;
    let expected = (start.len() as u64).saturating_add(header.data_len() as u64);
    if expected != length {
        let reason = format!("its header describes {expected} bytes, but it has {length}");
        return Err(incomplete(path, reason));
    }
    Ok((file, start, header))
}

/// The bytes of one file. Its length is compared with its header before memory is allocated.
fn read_weights(path: &Path) -> Result<Pages> {
    let (file, start, header) = open_weights(path)?;
    let mut pages = Pages::zeroed(start.len() + header.data_len(), "the weights")?;
    pages
        .fill(start.chain(file))
        .map_err(|error| Error::invalid_from(path, "cannot be read", error))?;
    Ok(pages)
}

fn incomplete(path: &Path, reason: impl Into<Cause>) -> Error {
    let problem = "is not a complete safetensors file, download it again";
    Error::invalid_from(path, problem, reason)
}

/// Whether no number in `bytes` is `special` (has all exponent bits set). Blocks are scanned without an early exit, so that
/// the loop is vectorized.
fn is_finite<const N: usize>(bytes: &[u8], special: impl Fn([u8; N]) -> bool) -> bool {
    bytes.chunks(1 << 16).all(|block| {
        let (values, _) = block.as_chunks::<N>();
        !values
            .iter()
            .fold(false, |any, value| any | special(*value))
    })
}
