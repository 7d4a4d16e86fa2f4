//! From the recorded encoder to ONNX's operators.
//!
//! Hidden states are kept flat, `[batch · length, width]`, which is what `Gemm` takes; attention reshapes them to
//! `[batch, length, width]` without a copy. `Gemm` with `transB` uses weights in the checkpoint's own
//! `[out, in]` layout, so that initializers can point into the safetensors file as it was read. Operators of the domain
//! `com.microsoft` are ONNX Runtime's fused kernels.
//!
//! With int8 the rows of a linear layer's input are quantized one by one, each symmetrically around 128 with a scale of its
//! own, multiplied by int8 weights in integers, and scaled back. So a row's numbers do not depend on the rest of the batch,
//! and a large value in one token costs the others no precision. Layers that read the same rows share the quantized rows.
//! Layers behind the pooling stay in float32.
//!
//! Texts of a batch have equal lengths: the graph's input is `input_ids` of shape `[batch, length]`, and there is no mask. If
//! tokens have types, `token_type_ids` of the same shape is a second input. For a GPU, texts are padded, and the graph has
//! the inputs of [`padding`](super::padding) as well.

use super::Precision;
use super::builder::{GraphBuilder, INPUT, MICROSOFT, QuantizedRows, States, TOKEN_TYPES};
use super::nodes::{float, int, string};
use super::packing::Matrix;
use super::padding::PaddedInput;
use super::proto::DataType;
use crate::checkpoint::TensorSlice;
use crate::graph::{
    Activation, EmbeddingTables, Graph, Linear, Node, Norm, NormKind, Numbering, Op, Pooling,
    Positions, Rows,
};
use crate::int8;

/// The byte that stands for 0 in quantized rows.
const ZERO_POINT: u8 = 128;

impl GraphBuilder {
    /// Writes the operations of an encoder; returns its result.
    pub fn write(&mut self, graph: &Graph) -> States {
        let mut values: Vec<States> = Vec::with_capacity(graph.nodes().len());
        for (index, node) in graph.nodes().iter().enumerate() {
            if index == graph.encoder().len() {
                // Behind the pooling, where layers are few and small, their inputs are not quantized.
                self.precision = Precision::Float;
            }
            let name = self.operation(node, &values);
            values.push(States {
                name,
                rows: node.rows,
            });
        }
        values.swap_remove(graph.result().index())
    }

    fn operation(&mut self, node: &Node, values: &[States]) -> String {
        match &node.op {
            Op::Embed(embeddings) => self.embed(embeddings, node.width),
            Op::Add(a, b) | Op::Subtract(a, b) => {
                let inputs = [a, b].map(|value| values[value.index()].name.as_str());
                let is_sum = matches!(node.op, Op::Add(..));
                self.op(if is_sum { "Add" } else { "Sub" }, &inputs, vec![])
            }
            Op::Linear { x, layer } => self.product(&values[x.index()], layer),
            Op::Norm { x, layer } => self.norm(&values[x.index()].name, layer),
            Op::Activate { x, activation } => self.activate(&values[x.index()].name, *activation),
            Op::Gate {
                x,
                gate,
                activation,
            } => {
                let gate = self.activate(&values[gate.index()].name, *activation);
                self.op("Mul", &[&values[x.index()].name, &gate], vec![])
            }
            Op::Experts { x, layer } => self.experts(&values[x.index()].name, layer),
            Op::Attend {
                x,
                projections,
                attention,
            } => self.attend(&values[x.index()], projections, attention, node.rows),
            Op::Select { x, rows } => self.select(&values[x.index()], *rows),
            Op::Pool { x, poolings } => self.pool(&values[x.index()], poolings),
        }
    }

    fn embed(&mut self, embeddings: &EmbeddingTables, width: usize) -> String {
        let words = self.weight(&embeddings.words);
        let rows = embeddings.rows.as_deref().map(|rows| {
            let rows: Vec<i64> = rows.iter().map(|&row| row.into()).collect();
            let rows = self.ints("word_rows", &rows);
            self.op("Gather", &[&rows, INPUT], vec![])
        });
        let mut x = self.op(
            "Gather",
            &[&words, rows.as_deref().unwrap_or(INPUT)],
            vec![],
        );
        if let Some(scale) = embeddings.word_scale {
            let scale = self.floats("word_scale", &[], [f64::from(scale)]);
            x = self.op("Mul", &[&x, &scale], vec![]);
        }
        if let Some(factors) = &embeddings.factors {
            let numbers = factors.iter().map(|&factor| factor.into());
            let factors = self.floats("word_factors", &[factors.len(), 1], numbers);
            let factors = self.op("Gather", &[&factors, INPUT], vec![]);
            x = self.op("Mul", &[&x, &factors], vec![]);
        }
        if let Some(positions) = &embeddings.positions {
            let rows = self.position_rows(positions);
            x = self.op("Add", &[&x, &rows], vec![]);
        }
        if let Some(types) = &embeddings.token_types {
            let rows = if types.vary {
                self.takes_token_types = true;
                let table = self.weight(&types.table);
                self.op("Gather", &[&table, TOKEN_TYPES], vec![])
            } else {
                self.weight(&types.first_row())
            };
            x = self.op("Add", &[&x, &rows], vec![]);
        }
        self.flatten(&x, width)
    }

    /// Rows of the table, `[length, width]` or `[batch, length, width]`.
    fn position_rows(&mut self, positions: &Positions) -> String {
        let table = self.weight(&positions.table);
        match positions.numbering {
            Numbering::Index => {
                let end = self.length_1d();
                let start = self.ints("slice_start", &[0]);
                self.op("Slice", &[&table, &start, &end], vec![])
            }
            Numbering::NotPadding { padding } if self.is_padded() => {
                let rows = self.padded_input(PaddedInput::PositionRows { padding });
                self.op("Gather", &[&table, &rows], vec![])
            }
            Numbering::NotPadding { padding } => {
                let padding = self.int_scalar("padding", padding as i64);
                let is_padding = self.op("Equal", &[INPUT, &padding], vec![]);
                let counts = self.op("Not", &[&is_padding], vec![]);
                let to_int = vec![int("to", DataType::Int64 as i64)];
                let counts = self.op("Cast", &[&counts], to_int);
                let tokens_axis = self.int_scalar("one", 1);
                let numbers = self.op("CumSum", &[&counts, &tokens_axis], vec![]);
                let numbers = self.op("Mul", &[&numbers, &counts], vec![]);
                let rows = self.op("Add", &[&numbers, &padding], vec![]);
                self.op("Gather", &[&table, &rows], vec![])
            }
        }
    }

    /// Not fused with the sum before it: `SkipLayerNormalization` takes seven times as long as both (ONNX Runtime 1.30,
    /// x86).
    fn norm(&mut self, x: &str, norm: &Norm) -> String {
        let weight = self.weight(&norm.weight);
        let attributes = vec![int("axis", -1), float("epsilon", norm.epsilon)];
        match norm.kind {
            NormKind::Layer => {
                let bias = norm.bias.as_ref().map(|bias| self.weight(bias));
                let inputs = [x, &weight].into_iter();
                let inputs: Vec<&str> = inputs.chain(bias.as_deref()).collect();
                self.op("LayerNormalization", &inputs, attributes)
            }
            NormKind::RootMeanSquare { one_more: false } => {
                self.op("SimplifiedLayerNormalization", &[x, &weight], attributes)
            }
            NormKind::RootMeanSquare { one_more: true } => {
                // A sum of the weight and 1 would be computed while a session is made, from what the file holds.
                let width = norm.width();
                let ones = std::iter::repeat_n(1.0, width);
                let ones = self.floats(&format!("ones_{width}"), &[width], ones);
                let plain = self.op("SimplifiedLayerNormalization", &[x, &ones], attributes);
                let scaled = self.op("Mul", &[&plain, &weight], vec![]);
                self.op("Add", &[&scaled, &plain], vec![])
            }
        }
    }

    /// Normalizes flat rows of `width` numbers, or the heads that they consist of.
    pub(super) fn norm_of_heads(&mut self, flat: &str, width: usize, norm: &Norm) -> String {
        if norm.width() == width {
            return self.norm(flat, norm);
        }
        let heads = self.flatten(flat, norm.width());
        let normed = self.norm(&heads, norm);
        self.flatten(&normed, width)
    }

    pub(super) fn activate(&mut self, x: &str, activation: Activation) -> String {
        match activation {
            Activation::Gelu => self.op("Gelu", &[x], vec![]),
            Activation::GeluTanh => self.op("Gelu", &[x], vec![string("approximate", "tanh")]),
            Activation::Relu => self.op("Relu", &[x], vec![]),
            Activation::Tanh => self.op("Tanh", &[x], vec![]),
            // x · sigmoid(alpha · x)
            Activation::Silu => self.op_of(MICROSOFT, "QuickGelu", &[x], vec![float("alpha", 1.0)]),
        }
    }

    pub(super) fn select(&mut self, x: &States, rows: Rows) -> String {
        let pooling = match rows {
            Rows::All => return x.name.clone(),
            Rows::First => Pooling::Cls,
            Rows::Last => Pooling::LastToken,
        };
        self.pool(x, &[pooling])
    }

    fn pool(&mut self, x: &States, poolings: &[Pooling]) -> String {
        let states = self.unflatten(&x.name, x.rows);
        let parts = poolings.iter().map(|&one| self.pool_one(&states, one));
        let parts: Vec<String> = parts.collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        match parts[..] {
            [single] => single.to_owned(),
            _ => self.op("Concat", &parts, vec![int("axis", 1)]),
        }
    }

    /// `x · weightᵀ + bias`, in the precision of the graph.
    pub(super) fn product(&mut self, x: &States, linear: &Linear) -> String {
        match self.precision {
            Precision::Float => {
                let weight = self.weight_of(&linear.weight, Some(Matrix::Float));
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

    /// The product of the ids themselves, one row per text, and a matrix.
    pub fn layer_of_ids(&mut self, matrix: &TensorSlice, kind: Matrix) -> States {
        let row = States {
            name: self.op("Cast", &[INPUT], vec![int("to", DataType::Float as i64)]),
            rows: Rows::First,
        };
        States {
            name: self.float_product(&row.name, matrix, kind),
            rows: Rows::First,
        }
    }

    /// The ids themselves, as a convolution with a kernel of a single 1.
    pub fn convolution_of_ids(&mut self) -> States {
        let ids = self.op("Cast", &[INPUT], vec![int("to", DataType::Float as i64)]);
        let axes = self.ints("image_axes", &[0, 1]);
        let image = self.op("Unsqueeze", &[&ids, &axes], vec![]);
        let kernel = self.floats("kernel", &[1, 1, 1, 1], [1.0]);
        let image = self.op("Conv", &[&image, &kernel], vec![]);
        States {
            name: self.op("Squeeze", &[&image, &axes], vec![]),
            rows: Rows::First,
        }
    }

    /// `x · weightᵀ` or, where it is stored transposed, `x · weight`.
    pub(super) fn float_product(&mut self, x: &str, weight: &TensorSlice, kind: Matrix) -> String {
        let weight = self.weight_of(weight, Some(kind));
        let trans_b = i64::from(kind == Matrix::Float);
        self.op("Gemm", &[x, &weight], vec![int("transB", trans_b)])
    }

    fn int8_product(&mut self, x: &States, weight: &TensorSlice) -> String {
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

    /// A row of zeros gets the scale 0, so that its bytes do not matter.
    fn quantize_rows(&mut self, x: &States) -> QuantizedRows {
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
        let (name, count) = match x.rows {
            Rows::All => {
                let tokens = self.shared("tokens", "Size", &[INPUT], vec![]);
                let axis = self.ints("axis_0", &[0]);
                let count = self.shared("tokens_1d", "Unsqueeze", &[&tokens, &axis], vec![]);
                ("zero_points_all", count)
            }
            Rows::First | Rows::Last => {
                let count = self.shared("batch", "Shape", &[INPUT], vec![int("end", 1)]);
                ("zero_points_one", count)
            }
        };
        let zero_points = self.shared(name, "Expand", &[&zero_point, &count], vec![]);
        let inputs = [x.name.as_str(), &scale_per_row, &zero_points];
        let bytes = self.op("QuantizeLinear", &inputs, vec![int("axis", 0)]);
        let rows = QuantizedRows { bytes, scale };
        self.quantized_rows.insert(x.name.clone(), rows.clone());
        rows
    }

    fn pool_one(&mut self, x: &str, pooling: Pooling) -> String {
        let tokens_axis = self.ints("axis_1", &[1]);
        let no_keepdims = || vec![int("keepdims", 0)];
        match pooling {
            Pooling::Cls => {
                let first = self.int_scalar("first_token", 0);
                self.op("Gather", &[x, &first], vec![int("axis", 1)])
            }
            Pooling::Max if self.is_padded() => {
                let bias = self.padded_input(PaddedInput::KeyBias);
                let shape = self.ints("tokens_column", &[0, -1, 1]);
                let bias = self.shared("token_bias", "Reshape", &[&bias, &shape], vec![]);
                let seen = self.op("Add", &[x, &bias], vec![]);
                self.op("ReduceMax", &[&seen, &tokens_axis], no_keepdims())
            }
            _ if self.is_padded() => {
                let weights = self.padded_input(PaddedInput::Weights(pooling));
                let sum = self.op("MatMul", &[&weights, x], vec![]);
                let shape = self.ints("text_rows", &[0, -1]);
                self.op("Reshape", &[&sum, &shape], vec![])
            }
            Pooling::LastToken => {
                let last = self.int_scalar("last_token", -1);
                self.op("Gather", &[x, &last], vec![int("axis", 1)])
            }
            Pooling::Max => self.op("ReduceMax", &[x, &tokens_axis], no_keepdims()),
            Pooling::Mean => {
                let weights = self.ones();
                let length = self.length_float();
                self.weighted_sum(x, &weights, &length)
            }
            Pooling::MeanSqrtLength => {
                let weights = self.ones();
                let length = self.length_float();
                let root = self.op("Sqrt", &[&length], vec![]);
                self.weighted_sum(x, &weights, &root)
            }
            Pooling::WeightedMean => {
                let weights = self.positions(1);
                let total = self.op("ReduceSum", &[&weights], no_keepdims());
                self.weighted_sum(x, &weights, &total)
            }
        }
    }

    /// The tokens' rows, weighted and added, over a divisor. As a product, since ONNX Runtime's reductions add up one text in
    /// another order than several, so that the last bits of its vector would depend on the texts beside it.
    fn weighted_sum(&mut self, x: &str, weights: &str, divisor: &str) -> String {
        let sum = self.op("MatMul", &[weights, x], vec![]);
        self.op("Div", &[&sum, divisor], vec![])
    }
}
