//! Short constructors for the parts of an ONNX file.

use std::ops::Range;
use std::path::Path;

use super::proto::{
    AttributeProto, AttributeType, DataLocation, DataType, Dimension, DimensionValue, NodeProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto,
};
use crate::checkpoint::TensorSlice;

pub fn node(
    op_type: &str,
    domain: &str,
    inputs: &[&str],
    output: &str,
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        name: output.to_owned(),
        op_type: op_type.to_owned(),
        attribute,
        domain: domain.to_owned(),
    }
}

pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        i: Some(value),
        r#type: AttributeType::Int as i32,
        ..AttributeProto::default()
    }
}

pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        ints: values.to_vec(),
        r#type: AttributeType::Ints as i32,
        ..AttributeProto::default()
    }
}

pub fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        f: Some(value),
        r#type: AttributeType::Float as i32,
        ..AttributeProto::default()
    }
}

pub fn string(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        s: Some(value.as_bytes().to_vec()),
        r#type: AttributeType::String as i32,
        ..AttributeProto::default()
    }
}

pub fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto {
        key: key.to_owned(),
        value,
    }
}

/// An initializer whose bytes lie in `file`.
pub fn external(weight: &TensorSlice, data_type: DataType, file: &Path) -> TensorProto {
    let length = weight.len() * weight.dtype.size();
    external_at(
        &weight.name,
        &weight.shape,
        data_type,
        file,
        weight.offset..weight.offset + length,
    )
}

pub fn external_at(
    name: &str,
    shape: &[usize],
    data_type: DataType,
    file: &Path,
    bytes: Range<usize>,
) -> TensorProto {
    TensorProto {
        dims: shape.iter().map(|&size| size as i64).collect(),
        data_type: data_type as i32,
        name: name.to_owned(),
        external_data: vec![
            entry("location", file.display().to_string()),
            entry("offset", bytes.start.to_string()),
            entry("length", bytes.len().to_string()),
        ],
        data_location: Some(DataLocation::External as i32),
        ..TensorProto::default()
    }
}

impl From<&str> for DimensionValue {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

impl From<usize> for DimensionValue {
    fn from(size: usize) -> Self {
        Self::Size(size as i64)
    }
}

pub fn tensor_info(name: &str, elem_type: DataType, dims: &[DimensionValue]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|value| Dimension {
            value: Some(value.clone()),
        })
        .collect();
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: elem_type as i32,
                shape: Some(TensorShapeProto { dim }),
            }),
        }),
    }
}
