//! An ONNX graph while it is written: names, weights and constants, each defined once, and the finished file.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use prost::Message;
use serde::Serialize;

use super::Precision;
use super::nodes::{entry, external, int, node, tensor_info};
use super::packing::Matrix;
use super::padding::{PaddedInput, padded_name};
use super::proto::{
    AttributeProto, DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, ValueInfoProto,
};
use super::weights::GraphWeight;
use crate::arch::Facts;
use crate::checkpoint::{Checkpoint, TensorSlice, WeightType};
use crate::error::Result;
use crate::graph::{Rotary, Rows};
use crate::int8::{self, Int8Weights};

/// The graph's input: token ids, int64 `[batch, length]`.
pub const INPUT: &str = "input_ids";
/// The second input of a graph whose tokens have types: int64 `[batch, length]`.
pub const TOKEN_TYPES: &str = "token_type_ids";
/// Output of a pooled graph: float `[batch, dimension]`.
pub const EMBEDDING: &str = "sentence_embedding";
/// Output of an exported encoder: float `[batch, length, width]`.
pub const HIDDEN_STATE: &str = "last_hidden_state";
/// Output of an exported reranker: float `[batch, 1]`.
pub const LOGITS: &str = "logits";

/// Property of an exported graph: SHA-256 of the checkpoint's files, comma-separated, in the order of their names.
/// Offsets into other files would read garbage, so the digests are compared when the graph is loaded.
const WEIGHTS_DIGEST: &str = "weights_sha256";
/// Property of an exported int8 graph: the names of these files, comma-separated. Its external data may not name all of them.
const WEIGHTS_FILES: &str = "weights_files";
/// Property of an exported graph: what is known of its encoder, as JSON.
const ENCODER: &str = "encoder";

/// What readers of an exported graph have to know of its encoder.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportedEncoder<'a> {
    #[serde(flatten)]
    /// What it can be given.
    pub facts: Facts,
    /// SHA-256 of the `config.json` that it was made from: with another one it would be another encoder.
    pub config_sha256: &'a str,
}

/// The domain of ONNX Runtime's fused kernels.
pub const MICROSOFT: &str = "com.microsoft";

/// Rows of a value, flat over batch and tokens.
#[derive(Clone)]
pub struct States {
    pub name: String,
    /// Which tokens the rows stand for.
    pub rows: Rows,
}

/// Rows as unsigned bytes: row `i` is `(bytes[i] − 128) · scale[i]`.
#[derive(Clone)]
pub struct QuantizedRows {
    pub bytes: String,
    /// `[rows, 1]`
    pub scale: String,
}

/// How a graph for padded texts is written.
pub(super) struct Padded {
    /// What it is told about a batch.
    inputs: Vec<PaddedInput>,
    fuses_attention: bool,
}

/// A graph that is being written.
pub struct GraphBuilder {
    pub(super) precision: Precision,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    /// Weights that stay float.
    weights: Vec<GraphWeight>,
    /// Weights that are int8 in an exported graph.
    pub(super) quantized: Vec<TensorSlice>,
    /// By the name of the rows that were quantized.
    pub(super) quantized_rows: HashMap<String, QuantizedRows>,
    /// The rotations so far.
    pub(super) rotaries: Vec<Rotary>,
    /// Whether [`TOKEN_TYPES`] is an input.
    pub(super) takes_token_types: bool,
    /// Where the texts of a batch are padded; `None` if they have equal lengths.
    pub(super) padded: Option<Padded>,
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
            rotaries: Vec::new(),
            takes_token_types: false,
            padded: None,
            defined: HashSet::new(),
        }
    }

    /// For batches of texts that are padded to one length, in float32; with attention as one operator or step by step.
    pub fn padded(fuses_attention: bool) -> Self {
        Self {
            padded: Some(Padded {
                inputs: Vec::new(),
                fuses_attention,
            }),
            ..Self::new(Precision::Float)
        }
    }

    /// What a batch has to come with, beside ids and types; known once the graph is written.
    pub fn padded_inputs(&self) -> Vec<PaddedInput> {
        (self.padded.as_ref()).map_or_else(Vec::new, |padded| padded.inputs.clone())
    }

    pub(super) const fn is_padded(&self) -> bool {
        self.padded.is_some()
    }

    pub(super) fn fuses_attention(&self) -> bool {
        (self.padded.as_ref()).is_none_or(|padded| padded.fuses_attention)
    }

    /// The name of an input of a padded graph.
    pub(super) fn padded_input(&mut self, input: PaddedInput) -> String {
        let padded = self.padded.as_mut();
        let inputs = &mut padded.expect("only padded graphs ask for it").inputs;
        let known = inputs.iter().position(|known| *known == input);
        let number = known.unwrap_or(inputs.len());
        if known.is_none() {
            inputs.push(input);
        }
        padded_name(number)
    }

    /// The weights that are int8 in the finished graph.
    pub fn quantized(&self) -> &[TensorSlice] {
        &self.quantized
    }

    /// Embeds weights of a single number in the graph. While a session is made, ONNX Runtime's optimizers read those from
    /// where the graph says they lie, and not from the pointers that the session was given.
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

    /// The finished graph of a pooled encoder, and the float32 weights that a session has to be given by name. In the graph
    /// these are external data in `file`, which has to exist but is not read.
    pub fn finish_pooled(
        mut self,
        output: &States,
        dimension: usize,
        file: &Path,
    ) -> (Vec<u8>, Vec<GraphWeight>) {
        self.rename(&output.name, EMBEDDING);
        let weights = std::mem::take(&mut self.weights);
        let placeholders = weights
            .iter()
            .map(|weight| external(&weight.tensor, DataType::Float, file))
            .collect();
        let output = tensor_info(
            EMBEDDING,
            DataType::Float,
            &["batch".into(), dimension.into()],
        );
        (self.encode(placeholders, output, vec![]), weights)
    }

    /// The finished graph of all token states, or of scores, as a file for the model's folder: initializers name the checkpoint's files,
    /// and weights of half precision are cast when the graph is loaded. The file contains the int8 weights.
    pub fn finish_exported(
        mut self,
        output: &States,
        encoder: &ExportedEncoder,
        checkpoint: &Checkpoint,
        int8: Option<&Int8Weights>,
    ) -> Vec<u8> {
        let output = if output.rows == Rows::All {
            let shape = self.shape_of(Rows::All);
            let states = self.op("Reshape", &[&output.name, &shape], vec![]);
            self.rename(&states, HIDDEN_STATE);
            let dims = ["batch".into(), "length".into(), encoder.facts.width.into()];
            tensor_info(HIDDEN_STATE, DataType::Float, &dims)
        } else {
            self.rename(&output.name, LOGITS);
            tensor_info(LOGITS, DataType::Float, &["batch".into(), 1.into()])
        };
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
        let encoder =
            serde_json::to_string(encoder).expect("numbers, booleans and strings always serialize");
        // The graph ends in front of the pooling, and so has no weights of what follows.
        let files = checkpoint.files().iter().zip(checkpoint.digests());
        let files = files.filter(|(file, _)| file.prefix.is_empty());
        let digests: Vec<&str> = files.clone().map(|(_, digest)| digest.as_str()).collect();
        let mut properties = vec![
            entry(WEIGHTS_DIGEST, digests.join(",")),
            entry(ENCODER, encoder),
        ];
        if let Some(int8) = int8 {
            for layer in int8.layers() {
                self.constant(
                    layer.name,
                    DataType::Int8,
                    &layer.shape,
                    layer.values.to_vec(),
                );
                let scales = layer.scales.iter().flat_map(|scale| scale.to_le_bytes());
                self.constant(
                    &int8::scales_name(layer.name),
                    DataType::Float,
                    &layer.shape[1..],
                    scales.collect(),
                );
            }
            let names: Vec<_> = files
                .map(|(file, _)| file.path.file_name().unwrap_or_default().to_string_lossy())
                .collect();
            properties.push(entry(WEIGHTS_FILES, names.join(",")));
        }
        self.encode(initializers, output, properties)
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
        let inputs = [INPUT, TOKEN_TYPES].into_iter();
        let inputs = inputs.take(if self.takes_token_types { 2 } else { 1 });
        let dims = ["batch".into(), "length".into()];
        let input = inputs.map(|name| tensor_info(name, DataType::Int64, &dims));
        let padded = self.padded.iter().flat_map(|padded| &padded.inputs);
        let padded = padded.enumerate();
        let padded = padded.map(|(number, input)| input.info(&padded_name(number)));
        let input = input.chain(padded);
        ModelProto {
            ir_version: 9,
            producer_name: env!("CARGO_PKG_NAME").to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(GraphProto {
                node: self.nodes,
                name: "encoder".to_owned(),
                initializer,
                input: input.collect(),
                output: vec![output],
            }),
            opset_import: vec![opset("", 20), opset(MICROSOFT, 1)],
            metadata_props,
        }
        .encode_to_vec()
    }

    /// Renames the last definition of `from` to the graph's output.
    fn rename(&mut self, from: &str, to: &str) {
        for node in &mut self.nodes {
            for name in node.input.iter_mut().chain(&mut node.output) {
                if name == from {
                    to.clone_into(name);
                }
            }
        }
    }

    pub(super) fn op(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> String {
        self.op_of("", op_type, inputs, attributes)
    }

    pub(super) fn op_of(
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

    /// Asks the operator that was recorded last for a further result; returns its name.
    pub(super) fn further(&mut self, what: &str) -> String {
        let node = (self.nodes.last_mut()).expect("an operator was recorded before");
        let name = format!("{}_{what}", node.name);
        node.output.push(name.clone());
        name
    }

    /// An operator whose result is the same wherever it is used, recorded once under `name`.
    pub(super) fn shared(
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

    pub(super) fn weight(&mut self, tensor: &TensorSlice) -> String {
        self.weight_of(tensor, None)
    }

    pub(super) fn weight_of(&mut self, tensor: &TensorSlice, matrix: Option<Matrix>) -> String {
        if self.defined.insert(tensor.name.clone()) {
            self.weights.push(GraphWeight {
                tensor: tensor.clone(),
                matrix,
            });
        } else if let Some(known) = (self.weights.iter_mut()).find(|known| known.tensor == *tensor)
            && known.matrix != matrix
        {
            known.matrix = None;
        }
        tensor.name.clone()
    }

    pub(super) fn constant(
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

    pub(super) fn ints(&mut self, name: &str, values: &[i64]) -> String {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.constant(name, DataType::Int64, &[values.len()], bytes)
    }

    pub(super) fn int_scalar(&mut self, name: &str, value: i64) -> String {
        self.constant(name, DataType::Int64, &[], value.to_le_bytes().to_vec())
    }

    pub(super) fn floats(
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
    pub(super) fn shape_of(&mut self, rows: Rows) -> String {
        let batch_length = self.shared("batch_length", "Shape", &[INPUT], vec![]);
        match rows {
            Rows::All => {
                let rest = self.ints("any_width", &[-1]);
                self.shared(
                    "shape_all",
                    "Concat",
                    &[&batch_length, &rest],
                    vec![int("axis", 0)],
                )
            }
            Rows::First | Rows::Last => {
                let batch = self.shared("batch", "Shape", &[INPUT], vec![int("end", 1)]);
                let rest = self.ints("one_any_width", &[1, -1]);
                self.shared(
                    "shape_one",
                    "Concat",
                    &[&batch, &rest],
                    vec![int("axis", 0)],
                )
            }
        }
    }

    /// The number of tokens of each text, an int64 scalar.
    pub(super) fn length(&mut self) -> String {
        let batch_length = self.shared("batch_length", "Shape", &[INPUT], vec![]);
        let one = self.int_scalar("one", 1);
        self.shared("length", "Gather", &[&batch_length, &one], vec![])
    }

    pub(super) fn length_float(&mut self) -> String {
        let length = self.length();
        let to_float = vec![int("to", DataType::Float as i64)];
        self.shared("length_float", "Cast", &[&length], to_float)
    }

    /// Int64 positions counted from `first`, `[length]`.
    pub(super) fn places(&mut self, first: i64) -> String {
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
        self.shared(&format!("range_{first}"), "Range", &inputs, vec![])
    }

    /// The same as numbers, `[length]`.
    pub(super) fn positions(&mut self, first: i64) -> String {
        let range = self.places(first);
        let to_float = vec![int("to", DataType::Float as i64)];
        self.shared(&format!("positions_{first}"), "Cast", &[&range], to_float)
    }

    /// A one for each token, `[length]`.
    pub(super) fn ones(&mut self) -> String {
        let one = self.floats("one_float", &[], [1.0]);
        let length = self.length_1d();
        self.shared("ones", "Expand", &[&one, &length], vec![])
    }

    /// The number of tokens of each text, int64 `[1]`.
    pub(super) fn length_1d(&mut self) -> String {
        let length = self.length();
        let axis = self.ints("axis_0", &[0]);
        self.shared("length_1d", "Unsqueeze", &[&length, &axis], vec![])
    }

    /// `[batch · tokens, width]` → `[batch, tokens, width]`.
    pub(super) fn unflatten(&mut self, flat: &str, rows: Rows) -> String {
        let shape = self.shape_of(rows);
        self.op("Reshape", &[flat, &shape], vec![])
    }

    /// `[batch, tokens, width]` → `[batch · tokens, width]`.
    pub(super) fn flatten(&mut self, x: &str, width: usize) -> String {
        let shape = self.ints(&format!("flat_{width}"), &[-1, width as i64]);
        self.op("Reshape", &[x, &shape], vec![])
    }
}
