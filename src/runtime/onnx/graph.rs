//! An encoder recorded as an ONNX graph.
//!
//! Hidden states are kept flat, `[batch · length, width]`, which is what `Gemm` takes; attention reshapes them to
//! `[batch, length, width]` without a copy. `Gemm` with `transB` uses weights in the checkpoint's own
//! `[out, in]` layout, so that initializers can point into the safetensors file as it was read. Operators of the domain
//! `com.microsoft` are ONNX Runtime's fused kernels.
//!
//! With int8 the rows of a linear layer's input are quantized one by one, each symmetrically around 128 with a scale of
//! its own, multiplied by int8 weights in integers, and scaled back. A row's numbers are thus its own whatever else is in
//! the batch, and a large value in one token costs no other token precision. Layers that read the same rows share the
//! quantized ones.
//!
//! Texts of a batch have equal lengths: the graph has one input, `input_ids` of shape `[batch, length]`, and no mask.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use prost::Message;

use super::Precision;
use super::proto::{
    AttributeProto, AttributeType, DataLocation, DataType, Dimension, DimensionValue, GraphProto,
    ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use super::weights::GraphWeight;
use crate::arch::{
    Activation, Attention, Embeddings, LayerNorm, Linear, Ops, Pooling, Projections, Rotary, Tokens,
};
use crate::checkpoint::{Checkpoint, TensorSlice, WeightType};
use crate::error::Result;
use crate::int8::{self, Int8Weights};

/// The graph's input: token ids, int64 `[batch, length]`.
pub const INPUT: &str = "input_ids";
/// Output of a pooled graph: float `[batch, dimension]`.
pub const EMBEDDING: &str = "sentence_embedding";
/// Output of an exported graph: float `[batch, length, width]`.
pub const HIDDEN_STATE: &str = "last_hidden_state";

/// Property of an exported graph: SHA-256 of the checkpoint's files, comma-separated, in the order of their names.
/// Offsets into other files would read nonsense, so whoever loads the graph compares.
const WEIGHTS_DIGEST: &str = "weights_sha256";
/// Property of an exported int8 graph: the names of those files, comma-separated. Its external data need not name them all.
const WEIGHTS_FILES: &str = "weights_files";

const MICROSOFT: &str = "com.microsoft";

/// The byte that stands for 0 in quantized rows.
const ZERO_POINT: u8 = 128;

/// A value of the graph: hidden states, flat over batch and tokens.
#[derive(Clone)]
pub struct Value {
    name: String,
    /// Which tokens the rows stand for.
    tokens: Tokens,
}

/// Rows as unsigned bytes: row `i` is `(bytes[i] − 128) · scale[i]`.
#[derive(Clone)]
struct QuantizedRows {
    bytes: String,
    /// `[rows, 1]`
    scale: String,
}

/// Records [`Ops`] as nodes.
pub struct GraphBuilder {
    precision: Precision,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    /// Weights that stay float.
    weights: Vec<GraphWeight>,
    /// Weights to be given in int8.
    quantized: Vec<TensorSlice>,
    quantized_rows: HashMap<String, QuantizedRows>,
    defined: HashSet<String>,
}

impl GraphBuilder {
    pub fn new(precision: Precision) -> Self {
        Self {
            precision,
            nodes: Vec::new(),
            constants: Vec::new(),
            weights: Vec::new(),
            quantized: Vec::new(),
            quantized_rows: HashMap::new(),
            defined: HashSet::new(),
        }
    }

    /// The weights that the graph wants in int8 when it is finished.
    pub fn quantized(&self) -> &[TensorSlice] {
        &self.quantized
    }

    /// Puts the values of weights of a single number into the graph itself. ONNX Runtime's optimizers read those while a
    /// session is made, where they lie according to the graph, and not where the session is told that they are.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn hold_single_numbers(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let weights = std::mem::take(&mut self.weights);
        let (single, others) = weights
            .into_iter()
            .partition(|weight| weight.tensor.len() == 1);
        self.weights = others;
        for GraphWeight { tensor: weight, .. } in single {
            // Of what is defined already, `constant` would think that it is there.
            self.defined.remove(&weight.name);
            let numbers = checkpoint.floats(&weight)?;
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
            self.constant(
                &weight.name,
                DataType::Float,
                &weight.shape,
                bytes.collect(),
            );
        }
        Ok(())
    }

    /// The finished graph of a pooled encoder, and the weights that a session must be given by name as float32.
    /// In the graph they, and the int8 weights, are external data in `file`, which has to exist but is not read.
    pub fn finish_pooled(
        mut self,
        output: &Value,
        dimension: usize,
        file: &Path,
        layers: &[int8::Layer],
    ) -> (Vec<u8>, Vec<GraphWeight>) {
        self.rename(&output.name, EMBEDDING);
        let weights = std::mem::take(&mut self.weights);
        let mut placeholders: Vec<TensorProto> = weights
            .iter()
            .map(|weight| external(&weight.tensor, DataType::Float, file))
            .collect();
        for layer in layers {
            let bytes = 0..layer.values.len();
            let placeholder = external_at(layer.name, &layer.shape, DataType::Int8, file, bytes);
            placeholders.push(placeholder);
            self.scales(layer);
        }
        let output = tensor_info(
            EMBEDDING,
            DataType::Float,
            &["batch".into(), dimension.into()],
        );
        (self.encode(placeholders, output, vec![]), weights)
    }

    /// The finished graph of all token states, as a file for the folder of the model: initializers name the
    /// checkpoint's files, and weights of half precision are cast when the graph is loaded. Int8 weights lie in the file.
    pub fn finish_exported(
        mut self,
        output: &Value,
        width: usize,
        checkpoint: &Checkpoint,
        int8: Option<&Int8Weights>,
    ) -> Vec<u8> {
        let shape = self.shape_of(Tokens::All);
        let output = self.op("Reshape", &[&output.name, &shape], vec![]);
        self.rename(&output, HIDDEN_STATE);
        let mut casts = Vec::new();
        let initializers = std::mem::take(&mut self.weights)
            .into_iter()
            .map(
                |GraphWeight {
                     tensor: mut weight, ..
                 }| {
                    let stored = match weight.dtype {
                        WeightType::F32 => DataType::Float,
                        WeightType::F16 => DataType::Float16,
                        WeightType::BF16 => DataType::Bfloat16,
                    };
                    if stored != DataType::Float {
                        let name = format!("{}.stored", weight.name);
                        let cast = node(
                            "Cast",
                            "",
                            &[&name],
                            &weight.name,
                            vec![int("to", DataType::Float as i64)],
                        );
                        casts.push(cast);
                        weight.name = name;
                    }
                    let file = &checkpoint.files()[weight.file].path;
                    external(
                        &weight,
                        stored,
                        Path::new(file.file_name().unwrap_or_default()),
                    )
                },
            )
            .collect();
        self.nodes.splice(0..0, casts);
        let dims = ["batch".into(), "length".into(), width.into()];
        let output = tensor_info(HIDDEN_STATE, DataType::Float, &dims);
        let mut properties = vec![entry(WEIGHTS_DIGEST, checkpoint.digests().join(","))];
        if let Some(int8) = int8 {
            for layer in int8.layers() {
                self.constant(
                    layer.name,
                    DataType::Int8,
                    &layer.shape,
                    layer.values.to_vec(),
                );
                self.scales(&layer);
            }
            let names: Vec<_> = checkpoint
                .files()
                .iter()
                .map(|file| file.path.file_name().unwrap_or_default().to_string_lossy())
                .collect();
            properties.push(entry(WEIGHTS_FILES, names.join(",")));
        }
        self.encode(initializers, output, properties)
    }

    fn scales(&mut self, layer: &int8::Layer) {
        let name = int8::scales_name(layer.name);
        self.constant(
            &name,
            DataType::Float,
            &layer.shape[1..],
            layer.scales.to_vec(),
        );
    }

    fn encode(
        self,
        mut initializer: Vec<TensorProto>,
        output: ValueInfoProto,
        metadata_props: Vec<StringStringEntryProto>,
    ) -> Vec<u8> {
        initializer.extend(self.constants);
        let opset = |domain: &str, version| OperatorSetIdProto {
            domain: domain.to_owned(),
            version,
        };
        ModelProto {
            ir_version: 9,
            producer_name: env!("CARGO_PKG_NAME").to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(GraphProto {
                node: self.nodes,
                name: "encoder".to_owned(),
                initializer,
                input: vec![tensor_info(
                    INPUT,
                    DataType::Int64,
                    &["batch".into(), "length".into()],
                )],
                output: vec![output],
            }),
            opset_import: vec![opset("", 20), opset(MICROSOFT, 1)],
            metadata_props,
        }
        .encode_to_vec()
    }

    /// Gives the last definition of `from` the name of the graph's output.
    fn rename(&mut self, from: &str, to: &str) {
        for node in &mut self.nodes {
            for name in node.input.iter_mut().chain(&mut node.output) {
                if name == from {
                    to.clone_into(name);
                }
            }
        }
    }

    fn op(&mut self, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.op_of("", op_type, inputs, attributes)
    }

    fn op_of(
        &mut self,
        domain: &str,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> String {
        let output = format!("{op_type}_{}", self.nodes.len());
        self.nodes
            .push(node(op_type, domain, inputs, &output, attributes));
        output
    }

    /// An operator whose result is the same wherever it is used, recorded once under `name`.
    fn shared(
        &mut self,
        name: &str,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> String {
        if self.defined.insert(name.to_owned()) {
            self.nodes.push(node(op_type, "", inputs, name, attributes));
        }
        name.to_owned()
    }

    fn weight(&mut self, tensor: &TensorSlice) -> String {
        self.weight_of(tensor, false)
    }

    fn weight_of(&mut self, tensor: &TensorSlice, is_matrix: bool) -> String {
        if self.defined.insert(tensor.name.clone()) {
            self.weights.push(GraphWeight {
                tensor: tensor.clone(),
                is_matrix,
            });
        } else if let Some(known) = (self.weights.iter_mut()).find(|known| known.tensor == *tensor)
        {
            known.is_matrix &= is_matrix;
        }
        tensor.name.clone()
    }

    fn constant(
        &mut self,
        name: &str,
        data_type: DataType,
        dims: &[usize],
        raw_data: Vec<u8>,
    ) -> String {
        if self.defined.insert(name.to_owned()) {
            self.constants.push(TensorProto {
                dims: dims.iter().map(|&size| size as i64).collect(),
                data_type: data_type as i32,
                name: name.to_owned(),
                raw_data: Some(raw_data),
                ..TensorProto::default()
            });
        }
        name.to_owned()
    }

    fn ints(&mut self, name: &str, values: &[i64]) -> String {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.constant(name, DataType::Int64, &[values.len()], bytes)
    }

    fn int_scalar(&mut self, name: &str, value: i64) -> String {
        self.constant(name, DataType::Int64, &[], value.to_le_bytes().to_vec())
    }

    fn floats(
        &mut self,
        name: &str,
        dims: &[usize],
        values: impl IntoIterator<Item = f64>,
    ) -> String {
        let bytes = values
            .into_iter()
            .flat_map(|value| (value as f32).to_le_bytes())
            .collect();
        self.constant(name, DataType::Float, dims, bytes)
    }

    /// `[batch, length, -1]` or `[batch, 1, -1]`.
    fn shape_of(&mut self, tokens: Tokens) -> String {
        let batch_length = self.shared("batch_length", "Shape", &[INPUT], vec![]);
        match tokens {
            Tokens::All => {
                let rest = self.ints("any_width", &[-1]);
                self.shared(
                    "shape_all",
                    "Concat",
                    &[&batch_length, &rest],
                    vec![int("axis", 0)],
                )
            }
            Tokens::First => {
                let batch = self.shared("batch", "Shape", &[INPUT], vec![int("end", 1)]);
                let rest = self.ints("one_any_width", &[1, -1]);
                self.shared(
                    "shape_first",
                    "Concat",
                    &[&batch, &rest],
                    vec![int("axis", 0)],
                )
            }
        }
    }

    /// The number of tokens of each text, an int64 scalar.
    fn length(&mut self) -> String {
        let batch_length = self.shared("batch_length", "Shape", &[INPUT], vec![]);
        let one = self.int_scalar("one", 1);
        self.shared("length", "Gather", &[&batch_length, &one], vec![])
    }

    fn length_float(&mut self) -> String {
        let length = self.length();
        let to_float = vec![int("to", DataType::Float as i64)];
        self.shared("length_float", "Cast", &[&length], to_float)
    }

    /// Float positions counted from `first`, as a column `[length, 1]`.
    fn positions(&mut self, first: i64) -> String {
        let length = self.length();
        let start = self.int_scalar(&format!("first_position_{first}"), first);
        let one = self.int_scalar("one", 1);
        let end = self.shared(
            &format!("end_position_{first}"),
            "Add",
            &[&length, &start],
            vec![],
        );
        let inputs = [start.as_str(), &end, &one];
        let range = self.shared(&format!("range_{first}"), "Range", &inputs, vec![]);
        let to_float = vec![int("to", DataType::Float as i64)];
        let floats = self.shared(&format!("range_float_{first}"), "Cast", &[&range], to_float);
        let axis = self.ints("axis_1", &[1]);
        self.shared(
            &format!("positions_{first}"),
            "Unsqueeze",
            &[&floats, &axis],
            vec![],
        )
    }

    /// `[batch · tokens, width]` → `[batch, tokens, width]`.
    fn unflatten(&mut self, flat: &str, tokens: Tokens) -> String {
        let shape = self.shape_of(tokens);
        self.op("Reshape", &[flat, &shape], vec![])
    }

    /// `[batch, tokens, width]` → `[batch · tokens, width]`.
    fn flatten(&mut self, x: &str, width: usize) -> String {
        let shape = self.ints(&format!("flat_{width}"), &[-1, width as i64]);
        self.op("Reshape", &[x, &shape], vec![])
    }

    /// `x · weightᵀ + bias`, in the precision of the graph.
    fn product(&mut self, x: &Value, linear: &Linear) -> String {
        match self.precision {
            Precision::Float => {
                let weight = self.weight_of(&linear.weight, true);
                let bias = linear.bias.as_ref().map(|bias| self.weight(bias));
                let inputs = [x.name.as_str(), &weight].into_iter();
                let inputs: Vec<&str> = inputs.chain(bias.as_deref()).collect();
                self.op("Gemm", &inputs, vec![int("transB", 1)])
            }
            Precision::Int8 => {
                let product = self.int8_product(x, &linear.weight);
                match &linear.bias {
                    Some(bias) => {
                        let bias = self.weight(bias);
                        self.op("Add", &[&product, &bias], vec![])
                    }
                    None => product,
                }
            }
        }
    }

    /// A layer whose input, one row of each text, are the ids themselves.
    pub fn layer_of_ids(&mut self, linear: &Linear) -> Value {
        let row = Value {
            name: self.op("Cast", &[INPUT], vec![int("to", DataType::Float as i64)]),
            tokens: Tokens::First,
        };
        Value {
            name: self.product(&row, linear),
            tokens: Tokens::First,
        }
    }

    fn int8_product(&mut self, x: &Value, weight: &TensorSlice) -> String {
        let rows = self.quantize_rows(x);
        if !self.quantized.contains(weight) {
            self.quantized.push(weight.clone());
        }
        let scales = int8::scales_name(&weight.name);
        // One scale for all rows is what the operator takes; the rows' own follow.
        let one = self.floats("one_float", &[], [1.0]);
        let zero_point = self.constant("zero_point", DataType::Uint8, &[], vec![ZERO_POINT]);
        let inputs = [
            rows.bytes.as_str(),
            &weight.name,
            &one,
            &scales,
            &zero_point,
        ];
        let product = self.op_of(MICROSOFT, "MatMulIntegerToFloat", &inputs, vec![]);
        self.op("Mul", &[&product, &rows.scale], vec![])
    }

    /// A row of zeros gets the scale 0, by which whatever its bytes become is multiplied.
    fn quantize_rows(&mut self, x: &Value) -> QuantizedRows {
        if let Some(rows) = self.quantized_rows.get(&x.name) {
            return rows.clone();
        }
        let last_axis = self.ints("axis_last", &[-1]);
        let magnitudes = self.op("Abs", &[&x.name], vec![]);
        let largest = self.op("ReduceMax", &[&magnitudes, &last_axis], vec![]);
        let step = self.floats("int8_step", &[], [1.0 / 127.0]);
        let scale = self.op("Mul", &[&largest, &step], vec![]);
        let flat = self.ints("flat", &[-1]);
        let scale_per_row = self.op("Reshape", &[&scale, &flat], vec![]);
        let zero_point = self.constant("zero_point_1d", DataType::Uint8, &[1], vec![ZERO_POINT]);
        let (name, count) = match x.tokens {
            Tokens::All => {
                let tokens = self.shared("tokens", "Size", &[INPUT], vec![]);
                let axis = self.ints("axis_0", &[0]);
                let count = self.shared("tokens_1d", "Unsqueeze", &[&tokens, &axis], vec![]);
                ("zero_points_all", count)
            }
            Tokens::First => {
                let count = self.shared("batch", "Shape", &[INPUT], vec![int("end", 1)]);
                ("zero_points_first", count)
            }
        };
        let zero_points = self.shared(name, "Expand", &[&zero_point, &count], vec![]);
        let inputs = [x.name.as_str(), &scale_per_row, &zero_points];
        let bytes = self.op("QuantizeLinear", &inputs, vec![int("axis", 0)]);
        let rows = QuantizedRows { bytes, scale };
        self.quantized_rows.insert(x.name.clone(), rows.clone());
        rows
    }

    /// Cosines and sines of the rotation angles, each `[length, dimensions / 2]`.
    fn rotation(&mut self, rotary: &Rotary) -> (String, String) {
        let half = rotary.dimensions / 2;
        let step = |i: usize| 2.0 * i as f64 / rotary.dimensions as f64;
        let frequencies = (0..half).map(|i| rotary.base.powf(-step(i)));
        let mut frequency = self.floats("rotary_frequencies", &[1, half], frequencies);
        if let Some(scaling) = rotary.scaling {
            // base' = base · stretch^(d/(d−2)), so that frequency' = frequency · stretch^(−2i/(d−2)).
            let slope = scaling.factor / scaling.trained_positions as f64;
            let slope = self.floats("rotary_slope", &[], [slope]);
            let offset = self.floats("rotary_offset", &[], [scaling.factor - 1.0]);
            let one = self.floats("one_float", &[], [1.0]);
            let divisor = rotary.dimensions as f64 - 2.0;
            let exponents = (0..half).map(|i| -2.0 * i as f64 / divisor);
            let exponents = self.floats("rotary_exponents", &[1, half], exponents);
            let length = self.length_float();
            let scaled = self.shared("rotary_scaled_length", "Mul", &[&length, &slope], vec![]);
            let stretch = self.shared("rotary_raw_stretch", "Sub", &[&scaled, &offset], vec![]);
            let stretch = self.shared("rotary_stretch", "Max", &[&stretch, &one], vec![]);
            let correction =
                self.shared("rotary_correction", "Pow", &[&stretch, &exponents], vec![]);
            let inputs = [frequency.as_str(), &correction];
            frequency = self.shared("rotary_stretched", "Mul", &inputs, vec![]);
        }
        let positions = self.positions(0);
        let angles = self.shared("rotary_angles", "Mul", &[&positions, &frequency], vec![]);
        (
            self.shared("rotary_cos", "Cos", &[&angles], vec![]),
            self.shared("rotary_sin", "Sin", &[&angles], vec![]),
        )
    }

    /// Rotates `[batch, length, width]`.
    fn rotate(&mut self, x: &str, rotary: &Rotary, attention: &Attention) -> String {
        let (cos, sin) = self.rotation(rotary);
        let start = self.ints("rotary_start", &[0]);
        let mut attributes = vec![int("num_heads", attention.heads as i64)];
        if rotary.dimensions != attention.head_dim {
            attributes.push(int("rotary_embedding_dim", rotary.dimensions as i64));
        }
        self.op_of(
            MICROSOFT,
            "RotaryEmbedding",
            &[x, &start, &cos, &sin],
            attributes,
        )
    }

    fn pool_one(&mut self, x: &str, pooling: Pooling) -> String {
        let tokens_axis = self.ints("axis_1", &[1]);
        let no_keepdims = || vec![int("keepdims", 0)];
        match pooling {
            Pooling::Cls => {
                let first = self.int_scalar("first_token", 0);
                self.op("Gather", &[x, &first], vec![int("axis", 1)])
            }
            Pooling::LastToken => {
                let last = self.int_scalar("last_token", -1);
                self.op("Gather", &[x, &last], vec![int("axis", 1)])
            }
            Pooling::Max => self.op("ReduceMax", &[x, &tokens_axis], no_keepdims()),
            Pooling::Mean => self.op("ReduceMean", &[x, &tokens_axis], no_keepdims()),
            Pooling::MeanSqrtLength => {
                let sum = self.op("ReduceSum", &[x, &tokens_axis], no_keepdims());
                let length = self.length_float();
                let root = self.op("Sqrt", &[&length], vec![]);
                self.op("Div", &[&sum, &root], vec![])
            }
            Pooling::WeightedMean => {
                let weights = self.positions(1);
                let weighted = self.op("Mul", &[x, &weights], vec![]);
                let sum = self.op("ReduceSum", &[&weighted, &tokens_axis], no_keepdims());
                let total = self.op("ReduceSum", &[&weights], no_keepdims());
                self.op("Div", &[&sum, &total], vec![])
            }
        }
    }
}

impl Ops for GraphBuilder {
    type Tensor = Value;

    fn embed(&mut self, embeddings: &Embeddings) -> Result<Value> {
        let words = self.weight(&embeddings.words);
        let mut x = self.op("Gather", &[&words, INPUT], vec![]);
        if let Some(positions) = &embeddings.positions {
            let table = self.weight(positions);
            let length = self.length();
            let axis = self.ints("axis_0", &[0]);
            let end = self.shared("length_1d", "Unsqueeze", &[&length, &axis], vec![]);
            let start = self.ints("slice_start", &[0]);
            let rows = self.op("Slice", &[&table, &start, &end], vec![]);
            x = self.op("Add", &[&x, &rows], vec![]);
        }
        if let Some(token_type) = &embeddings.token_type {
            let row = self.weight(token_type);
            x = self.op("Add", &[&x, &row], vec![]);
        }
        let width = embeddings.words.shape[1];
        Ok(Value {
            name: self.flatten(&x, width),
            tokens: Tokens::All,
        })
    }

    fn linear(&mut self, x: &Value, linear: &Linear) -> Result<Value> {
        Ok(Value {
            name: self.product(x, linear),
            tokens: x.tokens,
        })
    }

    fn layer_norm(&mut self, x: &Value, norm: &LayerNorm) -> Result<Value> {
        let (weight, bias) = (self.weight(&norm.weight), self.weight(&norm.bias));
        let attributes = vec![int("axis", -1), float("epsilon", norm.epsilon)];
        Ok(Value {
            name: self.op("LayerNormalization", &[&x.name, &weight, &bias], attributes),
            tokens: x.tokens,
        })
    }

    /// Two operators: the fused one, `SkipLayerNormalization`, takes seven times as long as both (ONNX Runtime 1.30, x86).
    fn add_norm(&mut self, x: &Value, residual: &Value, norm: &LayerNorm) -> Result<Value> {
        let sum = Value {
            name: self.op("Add", &[&x.name, &residual.name], vec![]),
            tokens: x.tokens,
        };
        self.layer_norm(&sum, norm)
    }

    fn activate(&mut self, x: &Value, activation: Activation) -> Result<Value> {
        let inputs = [x.name.as_str()];
        let name = match activation {
            Activation::Gelu => self.op("Gelu", &inputs, vec![]),
            Activation::GeluTanh => self.op("Gelu", &inputs, vec![string("approximate", "tanh")]),
            Activation::Relu => self.op("Relu", &inputs, vec![]),
            // x · sigmoid(alpha · x)
            Activation::Silu => {
                self.op_of(MICROSOFT, "QuickGelu", &inputs, vec![float("alpha", 1.0)])
            }
        };
        Ok(Value {
            name,
            tokens: x.tokens,
        })
    }

    fn gate(&mut self, x: &Value, gate: &Value, activation: Activation) -> Result<Value> {
        let gate = self.activate(gate, activation)?;
        Ok(Value {
            name: self.op("Mul", &[&x.name, &gate.name], vec![]),
            tokens: x.tokens,
        })
    }

    fn attention(
        &mut self,
        x: &Value,
        projections: &Projections,
        attention: &Attention,
        tokens: Tokens,
    ) -> Result<Value> {
        let rows = match tokens {
            Tokens::All => x.clone(),
            Tokens::First => self.first_token(x)?,
        };
        let mut project = |from: &Value, linear| {
            let flat = self.product(from, linear);
            self.unflatten(&flat, from.tokens)
        };
        let mut query = project(&rows, &projections.query);
        let mut key = project(x, &projections.key);
        let value = project(x, &projections.value);
        if let Some(rotary) = &attention.rotary {
            // A first token is at position 0, where the rotation is the identity.
            if tokens == Tokens::All {
                query = self.rotate(&query, rotary, attention);
            }
            key = self.rotate(&key, rotary, attention);
        }
        let heads = vec![int("num_heads", attention.heads as i64)];
        let mixed = self.op_of(
            MICROSOFT,
            "MultiHeadAttention",
            &[&query, &key, &value],
            heads,
        );
        Ok(Value {
            name: self.flatten(&mixed, attention.heads * attention.head_dim),
            tokens,
        })
    }

    fn first_token(&mut self, x: &Value) -> Result<Value> {
        let rows = self.unflatten(&x.name, x.tokens);
        Ok(Value {
            name: self.pool_one(&rows, Pooling::Cls),
            tokens: Tokens::First,
        })
    }

    fn pool(&mut self, x: &Value, pooling: &[Pooling]) -> Result<Value> {
        if x.tokens == Tokens::First {
            return Ok(x.clone());
        }
        let rows = self.unflatten(&x.name, x.tokens);
        let parts: Vec<String> = pooling
            .iter()
            .map(|&one| self.pool_one(&rows, one))
            .collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let name = match parts[..] {
            [single] => single.to_owned(),
            _ => self.op("Concat", &parts, vec![int("axis", 1)]),
        };
        Ok(Value {
            name,
            tokens: Tokens::First,
        })
    }
}

fn node(
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

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        i: Some(value),
        r#type: AttributeType::Int as i32,
        ..AttributeProto::default()
    }
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        f: Some(value),
        r#type: AttributeType::Float as i32,
        ..AttributeProto::default()
    }
}

fn string(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        s: Some(value.as_bytes().to_vec()),
        r#type: AttributeType::String as i32,
        ..AttributeProto::default()
    }
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto {
        key: key.to_owned(),
        value,
    }
}

/// An initializer whose bytes lie in `file`.
fn external(weight: &TensorSlice, data_type: DataType, file: &Path) -> TensorProto {
    let length = weight.len() * weight.dtype.size();
    external_at(
        &weight.name,
        &weight.shape,
        data_type,
        file,
        weight.offset..weight.offset + length,
    )
}

fn external_at(
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

fn tensor_info(name: &str, elem_type: DataType, dims: &[DimensionValue]) -> ValueInfoProto {
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
