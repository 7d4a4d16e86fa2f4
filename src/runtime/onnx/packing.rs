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
use crate::int8::QuantizedLinear;
use crate::pages::Pages;
use crate::sync::{Mutex, lock};

/// How a kernel takes a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Matrix {
    /// float32 `[outputs, inputs]`.
    Float,
    /// float32 `[inputs, outputs]`.
    Transposed,
    /// int8, quantized from `[outputs, inputs]`.
    Int8,
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
    /// As float32 0.19, as int8 62; and 0.75 or 63.
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
    let (outputs, inputs, precision) = match kind {
        Matrix::Float => (rows, columns, Precision::Float),
        Matrix::Transposed => (columns, rows, Precision::Float),
        Matrix::Int8 => (rows, columns, Precision::Int8),
    };
    let mut builder = GraphBuilder::new(precision);
    let output = builder.layer_of_ids(&matrix, kind);
    let bytes = matrix.len() * precision.matrix_bytes();
    let mut pages = Pages::zeroed(bytes, "a trial layer")?;
    pages[..].fill(BYTES[0]);
    let scales = 1.0_f32.to_le_bytes().repeat(outputs);
    let layer = QuantizedLinear {
        name: &matrix.name,
        shape: [inputs, outputs],
        values: &pages,
        scales: &scales,
    };
    let layers = match precision {
        Precision::Float => vec![],
        Precision::Int8 => vec![layer],
    };
    let (graph, _) = builder.finish_pooled(&output, outputs, file, &layers);
    let mut initializers = Initializers::new();
    // SAFETY: the pages outlive the initializers and the session, which are declared later. They change between two runs,
    // when the session does not read.
    unsafe {
        match precision {
            Precision::Float => initializers.add_floats(&matrix.name, shape, &pages)?,
            Precision::Int8 => initializers.add_int8(&matrix.name, &[inputs, outputs], &pages)?,
        }
    }
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
