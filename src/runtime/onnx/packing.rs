//! Whether a linear layer's kernel still reads its matrix after the session is made, or has packed all of it.
//!
//! ONNX Runtime has no function that tells. It depends on its version, the processor and the matrix's shape, but not on the
//! numbers. So a session with a single layer of that shape is run, and run again after its matrix was overwritten.

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;

use ort::value::TensorRef;

use super::builder::{EMBEDDING, GraphBuilder, INPUT};
use super::weights::Initializers;
use super::{Precision, Sessions};
use crate::checkpoint::{TensorSlice, WeightType};
use crate::error::{Error, Result};
use crate::pages::Pages;
use crate::sync::{Mutex, lock};

/// How a kernel takes a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Matrix {
    /// float32 `[outputs, inputs]`.
    Float,
    /// float32 `[inputs, outputs]`.
    Transposed,
}

/// Whether the kernels pack all these matrices, given with their shapes. `file` lies in the folder of
/// `sessions`; see [`GraphBuilder::finish_pooled`].
pub fn is_complete(
    sessions: &Sessions,
    file: &Path,
    matrices: impl IntoIterator<Item = (Matrix, Vec<usize>)>,
) -> bool {
    type Known = HashMap<(Matrix, Vec<usize>), bool>;
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
    let mut known = lock(&KNOWN);
    matrices.into_iter().all(|(kind, shape)| {
        let key = (kind, shape.clone());
        *known.entry(key).or_insert_with(|| {
            // If it cannot be tested, the matrix is kept in memory.
            ignores_its_matrix(sessions, file, kind, &shape).unwrap_or(false)
        })
    })
}

fn ignores_its_matrix(
    sessions: &Sessions,
    file: &Path,
    kind: Matrix,
    shape: &[usize],
) -> Result<bool> {
    /// As float32 0.19 and 0.75.
    const BYTES: [u8; 2] = [0x3e, 0x3f];
    let matrix = TensorSlice {
        name: "matrix".to_owned(),
        file: 0,
        dtype: WeightType::F32,
        shape: shape.to_vec(),
        offset: 0,
    };
    let &[rows, columns] = shape else {
        return Ok(false);
    };
    let (outputs, inputs) = match kind {
        Matrix::Float => (rows, columns),
        Matrix::Transposed => (columns, rows),
    };
    let mut builder = GraphBuilder::new(Precision::Float);
    let output = builder.layer_of_ids(&matrix, kind);
    let bytes = matrix.len() * size_of::<f32>();
    let mut pages = Pages::zeroed(bytes, "a trial layer")?;
    pages[..].fill(BYTES[0]);
    let (graph, _) = builder.finish_pooled(&output, outputs, file);
    let mut initializers = Initializers::new();
    // SAFETY: the pages outlive the initializers and the session, which are declared later. They change between two runs,
    // when the session does not read.
    unsafe { initializers.add_floats(&matrix.name, shape, &pages)? };
    let mut run = {
        let mut session = sessions
            .make(&graph, &initializers, 1)
            .map_err(Error::inference)?;
        move || -> Result<Vec<f32>, ort::Error> {
            let ids = vec![1_i64; inputs];
            let input = TensorRef::from_array_view(([1, inputs], &*ids))?;
            let outputs = session.run(ort::inputs![INPUT => input])?;
            let (_, product) = outputs[EMBEDDING].try_extract_tensor::<f32>()?;
            Ok(product.to_vec())
        }
    };
    let before = run().map_err(Error::inference)?;
    pages[..].fill(BYTES[1]);
    let after = run().map_err(Error::inference)?;
    Ok(before == after && before.iter().all(|number| *number > 0.0))
}
