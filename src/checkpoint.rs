//! The weights of a model folder: memory-mapped safetensors files, tensors found by name.
//!
//! Nothing is copied: a [`TensorSlice`] says where the bytes lie, and runtimes point there.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::memory;

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

/// One mapped file of weights.
pub struct WeightFile {
    /// Where it lies on disk.
    pub path: PathBuf,
    map: Mmap,
}

/// The opened weights of a model.
pub struct Checkpoint {
    files: Vec<Arc<WeightFile>>,
    tensors: HashMap<String, TensorSlice>,
    /// What precedes the architecture's own names in this checkpoint, such as `bert.`.
    prefix: String,
    folder: PathBuf,
    digests: OnceLock<Vec<String>>,
}

impl Checkpoint {
    /// Maps the files and reads their headers.
    ///
    /// # Errors
    /// A file that is missing, truncated, or whose header lies about its contents.
    pub fn open(folder: &Path, paths: &[PathBuf]) -> Result<Self> {
        let mut files = Vec::new();
        let mut tensors = HashMap::new();
        for path in paths {
            let file = File::open(path).map_err(|error| Error::ModelInvalid {
                path: path.clone(),
                problem: format!("cannot be opened: {error}"),
                source: Some(error.into()),
            })?;
            // SAFETY: the mapping is read-only. A file that another process shortens while it is mapped would
            // fault, as with every memory-mapped model loader; model files are replaced by rename, not rewritten.
            let map = unsafe { Mmap::map(&file) }.map_err(|error| Error::ModelInvalid {
                path: path.clone(),
                problem: format!("cannot be mapped into memory: {error}"),
                source: Some(error.into()),
            })?;
            read_header(path, &map, files.len(), &mut tensors)?;
            files.push(Arc::new(WeightFile {
                path: path.clone(),
                map,
            }));
        }
        Ok(Self {
            files,
            tensors,
            prefix: String::new(),
            folder: folder.to_owned(),
            digests: OnceLock::new(),
        })
    }

    /// Declares that names are to be looked up behind whatever precedes `anchor` in this checkpoint
    /// (`bert.`, `model.`, nothing).
    ///
    /// # Errors
    /// No tensor's name ends with `anchor`.
    pub fn anchor_names(&mut self, anchor: &str) -> Result<()> {
        let prefix = self
            .tensors
            .keys()
            .filter_map(|name| name.strip_suffix(anchor))
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
            .min_by_key(|prefix| prefix.len())
            .map(str::to_owned);
        self.prefix = prefix.ok_or_else(|| Error::TensorInvalid {
            path: self.folder.clone(),
            tensor: anchor.to_owned(),
            expected: "a tensor of this name, with or without a prefix".to_owned(),
            found: format!("{} tensors of other names", self.tensors.len()),
        })?;
        Ok(())
    }

    /// Whether the checkpoint has the tensor.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(&self.full_name(name))
    }

    /// The tensor `name`, which must have exactly this shape.
    ///
    /// # Errors
    /// The tensor is missing, or its shape differs.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorSlice> {
        let full = self.full_name(name);
        let Some(tensor) = self.tensors.get(&full) else {
            return Err(Error::TensorInvalid {
                path: self.folder.clone(),
                tensor: full,
                expected: format!("shape {shape:?}"),
                found: "no such tensor".to_owned(),
            });
        };
        if tensor.shape != shape {
            return Err(Error::TensorInvalid {
                path: self.files[tensor.file].path.clone(),
                tensor: full,
                expected: format!("shape {shape:?}"),
                found: format!("shape {:?}", tensor.shape),
            });
        }
        Ok(tensor.clone())
    }

    /// Number of values in all float tensors.
    #[must_use]
    pub fn values(&self) -> usize {
        self.tensors.values().map(TensorSlice::len).sum()
    }

    /// The mapped files, in the order of [`TensorSlice::file`].
    #[must_use]
    pub fn files(&self) -> &[Arc<WeightFile>] {
        &self.files
    }

    /// The raw bytes of a tensor.
    #[must_use]
    pub fn bytes(&self, tensor: &TensorSlice) -> &[u8] {
        let length = tensor.len() * tensor.dtype.size();
        &self.files[tensor.file].map[tensor.offset..tensor.offset + length]
    }

    /// The values of a tensor: in place where they are stored as float32, else converted.
    ///
    /// # Errors
    /// There is no memory for the converted ones.
    pub fn floats(&self, tensor: &TensorSlice) -> Result<Cow<'_, [f32]>> {
        let bytes = self.bytes(tensor);
        match in_place(tensor.dtype, bytes) {
            Some(values) => Ok(Cow::Borrowed(values)),
            None => to_f32(tensor.dtype, bytes).map(Cow::Owned),
        }
    }

    /// SHA-256 of each file, as lower-case hexadecimal. The first call reads every byte.
    #[must_use]
    pub fn digests(&self) -> &[String] {
        let digest = |file: &Arc<WeightFile>| sha256_hex(&file.map);
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
            let finite = match tensor.dtype {
                WeightType::F32 => is_finite(bytes, |value| {
                    u32::from_le_bytes(value) & 0x7f80_0000 == 0x7f80_0000
                }),
                WeightType::F16 => {
                    is_finite(bytes, |value| u16::from_le_bytes(value) & 0x7c00 == 0x7c00)
                }
                WeightType::BF16 => {
                    is_finite(bytes, |value| u16::from_le_bytes(value) & 0x7f80 == 0x7f80)
                }
            };
            if !finite {
                return Err(Error::TensorInvalid {
                    path: self.files[tensor.file].path.clone(),
                    tensor: tensor.name.clone(),
                    expected: "finite numbers".to_owned(),
                    found: "NaN or infinity".to_owned(),
                });
            }
        }
        Ok(())
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
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

/// The bytes as they are, where they are aligned little-endian float32.
fn in_place(dtype: WeightType, bytes: &[u8]) -> Option<&[f32]> {
    if dtype != WeightType::F32 || cfg!(target_endian = "big") {
        return None;
    }
    // SAFETY: every bit pattern is a float32.
    let (before, values, after) = unsafe { bytes.align_to::<f32>() };
    (before.is_empty() && after.is_empty()).then_some(values)
}

fn to_f32(dtype: WeightType, bytes: &[u8]) -> Result<Vec<f32>> {
    const WHAT: &str = "weights in float32";
    let halves = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        WeightType::F32 => {
            let words = bytes.as_chunks::<4>().0.iter();
            memory::collected(words.map(|word| f32::from_le_bytes(*word)), WHAT)
        }
        WeightType::F16 => {
            let values = halves().map(|half| half::f16::from_le_bytes(*half).to_f32());
            memory::collected(values, WHAT)
        }
        WeightType::BF16 => {
            let values = halves().map(|half| half::bf16::from_le_bytes(*half).to_f32());
            memory::collected(values, WHAT)
        }
    }
}

/// Reads one file's header into `tensors`.
fn read_header(
    path: &Path,
    bytes: &[u8],
    file: usize,
    tensors: &mut HashMap<String, TensorSlice>,
) -> Result<()> {
    let invalid = |problem: String, source: Option<crate::error::Cause>| Error::ModelInvalid {
        path: path.to_owned(),
        problem,
        source,
    };
    let parsed = SafeTensors::deserialize(bytes).map_err(|error| {
        invalid(
            format!("is not a complete safetensors file ({error}); download it again"),
            Some(error.into()),
        )
    })?;
    for (name, view) in parsed.iter() {
        let dtype = match view.dtype() {
            Dtype::F32 => WeightType::F32,
            Dtype::F16 => WeightType::F16,
            Dtype::BF16 => WeightType::BF16,
            // A buffer of old checkpoints that every implementation recomputes.
            _ if name.ends_with("position_ids") => continue,
            other => {
                return Err(Error::TensorInvalid {
                    path: path.to_owned(),
                    tensor: name.to_owned(),
                    expected: "dtype F32, F16 or BF16".to_owned(),
                    found: format!("dtype {other:?}"),
                });
            }
        };
        let slice = TensorSlice {
            name: name.to_owned(),
            file,
            dtype,
            shape: view.shape().to_vec(),
            offset: view.data().as_ptr() as usize - bytes.as_ptr() as usize,
        };
        if tensors.insert(name.to_owned(), slice).is_some() {
            return Err(invalid(
                format!("tensor `{name}` is in two files of the checkpoint"),
                None,
            ));
        }
    }
    Ok(())
}

/// Whether no number in `bytes` is `special` (has all exponent bits set). Blocks are scanned without an early exit,
/// so that the loop compiles to vector code.
fn is_finite<const N: usize>(bytes: &[u8], special: impl Fn([u8; N]) -> bool) -> bool {
    bytes.chunks(1 << 16).all(|block| {
        let (values, _) = block.as_chunks::<N>();
        !values
            .iter()
            .fold(false, |any, value| any | special(*value))
    })
}
