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
//!
//! Texts of a batch have equal lengths: the graph's input is `input_ids` of shape `[batch, length]`, and there is no mask. If
//! tokens have types, `token_type_ids` of the same shape is a second input.

use super::Precision;
use super::builder::{GraphBuilder, INPUT, MICROSOFT, QuantizedRows, States, TOKEN_TYPES};
use super::nodes::{float, int, string};
use super::proto::DataType;
use crate::checkpoint::TensorSlice;
use crate::graph::{
    Activation, Attention, EmbeddingTables, Graph, LayerNorm, Linear, Node, Numbering, Op, Pooling,
    Positions, Projections, RelativeBias, Rotary, Rows,
};
use crate::int8;

/// The byte that stands for 0 in quantized rows.
const ZERO_POINT: u8 = 128;

impl GraphBuilder {
    /// Writes the operations of an encoder; returns its result.
    pub fn write(&mut self, graph: &Graph) -> States {
        let mut values: Vec<States> = Vec::with_capacity(graph.nodes().len());
        for node in graph.nodes() {
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
            Op::Add(a, b) => {
                let inputs = [a, b].map(|value| values[value.index()].name.as_str());
                self.op("Add", &inputs, vec![])
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
            Op::Attend {
                x,
                projections,
                attention,
                bias,
            } => {
                let bias = bias.as_deref();
                let bias = bias.map(|bias| self.relative_bias(bias, node.rows));
                let x = &values[x.index()];
                self.attend(x, projections, attention, bias.as_deref(), node.rows)
            }
            Op::Select { x, rows } => self.select(&values[x.index()], *rows),
            Op::Pool { x, poolings } => self.pool(&values[x.index()], poolings),
        }
    }

    fn embed(&mut self, embeddings: &EmbeddingTables, width: usize) -> String {
        let words = self.weight(&embeddings.words);
        let mut x = self.op("Gather", &[&words, INPUT], vec![]);
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
    fn norm(&mut self, x: &str, norm: &LayerNorm) -> String {
        let (weight, bias) = (self.weight(&norm.weight), self.weight(&norm.bias));
        let attributes = vec![int("axis", -1), float("epsilon", norm.epsilon)];
        self.op("LayerNormalization", &[x, &weight, &bias], attributes)
    }

    fn activate(&mut self, x: &str, activation: Activation) -> String {
        match activation {
            Activation::Gelu => self.op("Gelu", &[x], vec![]),
            Activation::GeluTanh => self.op("Gelu", &[x], vec![string("approximate", "tanh")]),
            Activation::Relu => self.op("Relu", &[x], vec![]),
            Activation::Tanh => self.op("Tanh", &[x], vec![]),
            // x · sigmoid(alpha · x)
            Activation::Silu => self.op_of(MICROSOFT, "QuickGelu", &[x], vec![float("alpha", 1.0)]),
        }
    }

    /// These rows of `x`, which has all rows.
    fn attend(
        &mut self,
        x: &States,
        projections: &Projections,
        attention: &Attention,
        bias: Option<&str>,
        rows: Rows,
    ) -> String {
        let asking = match rows {
            Rows::All => x.clone(),
            Rows::First | Rows::Last => States {
                name: self.select(x, rows),
                rows,
            },
        };
        let mut project = |from: &States, linear| {
            let flat = self.product(from, linear);
            self.unflatten(&flat, from.rows)
        };
        let mut query = project(&asking, &projections.query);
        let mut key = project(x, &projections.key);
        let value = project(x, &projections.value);
        if let Some(rotary) = &attention.rotary {
            // A first token is at position 0, where the rotation is the identity.
            if rows == Rows::All {
                query = self.rotate(&query, rotary, attention);
            }
            key = self.rotate(&key, rotary, attention);
        }
        let heads = vec![int("num_heads", attention.heads as i64)];
        let mut inputs = vec![query.as_str(), &key, &value];
        if let Some(bias) = bias {
            // Behind two optional inputs.
            inputs.extend(["", "", bias]);
        }
        let mixed = self.op_of(MICROSOFT, "MultiHeadAttention", &inputs, heads);
        self.flatten(&mixed, attention.heads * attention.head_dim)
    }

    /// What is added to the scores: `[1, heads, length, length]`, of first tokens `[1, heads, 1, length]`.
    fn relative_bias(&mut self, bias: &RelativeBias, rows: Rows) -> String {
        let named = |what: &str| format!("{}.{what}", bias.table.name);
        // From the farthest distance at which something changes in front of a token to that behind it.
        let most = bias.most_distance as i64;
        let buckets = (-most..=most).map(|distance| bias.bucket(distance) as i64);
        let buckets = self.ints(&named("buckets"), &buckets.collect::<Vec<_>>());
        let table = self.weight(&bias.table);
        let axis = self.ints("axis_1", &[1]);
        let queries = self.places(0);
        let keys = self.shared("places_column", "Unsqueeze", &[&queries, &axis], vec![]);
        // A row for each key: `Transpose` turns the order of all dimensions round.
        let (distances, which) = match rows {
            Rows::All => {
                let inputs = [keys.as_str(), &queries];
                (self.shared("distances", "Sub", &inputs, vec![]), "all")
            }
            Rows::First | Rows::Last => (keys, "first"),
        };
        let named = |what: &str| named(&format!("{what}_{which}"));
        let [least, most] =
            [-most, most].map(|limit| self.int_scalar(&format!("distance_{limit}"), limit));
        let inputs = [distances.as_str(), &least, &most];
        let near = self.shared(&named("near"), "Clip", &inputs, vec![]);
        let index = self.shared(&named("index"), "Add", &[&near, &most], vec![]);
        // The table comes last. Rows of a constant choice would be taken while a session is made, and be read where they lie
        // according to the graph, not where the session is told that they are.
        let buckets = self.shared(&named("bucket"), "Gather", &[&buckets, &index], vec![]);
        let biases = self.shared(&named("pairs"), "Gather", &[&table, &buckets], vec![]);
        let biases = self.shared(&named("heads"), "Transpose", &[&biases], vec![]);
        let axis = self.ints("axis_0", &[0]);
        self.shared(&named("bias"), "Unsqueeze", &[&biases, &axis], vec![])
    }

    fn select(&mut self, x: &States, rows: Rows) -> String {
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
    fn product(&mut self, x: &States, linear: &Linear) -> String {
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

    /// A layer whose input is the ids themselves, one row per text.
    pub fn layer_of_ids(&mut self, linear: &Linear) -> States {
        let row = States {
            name: self.op("Cast", &[INPUT], vec![int("to", DataType::Float as i64)]),
            rows: Rows::First,
        };
        States {
            name: self.product(&row, linear),
            rows: Rows::First,
        }
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

    /// Cosines and sines of the rotation angles, each `[length, dimensions / 2]`.
    fn rotation(&mut self, rotary: &Rotary) -> (String, String) {
        let known = self.rotaries.iter().position(|known| known == rotary);
        let number = known.unwrap_or(self.rotaries.len());
        if known.is_none() {
            self.rotaries.push(*rotary);
        }
        let named = |what: &str| format!("rotary_{number}_{what}");
        let half = rotary.dimensions / 2;
        let step = |i: usize| 2.0 * i as f64 / rotary.dimensions as f64;
        let frequencies = (0..half).map(|i| rotary.base.powf(-step(i)));
        let mut frequency = self.floats(&named("frequencies"), &[1, half], frequencies);
        if let Some(scaling) = rotary.scaling {
            // base' = base · growth^(d/(d−2)), so that frequency' = frequency · growth^(−2i/(d−2)).
            let slope = scaling.factor / scaling.trained_positions as f64;
            let slope = self.floats(&named("slope"), &[], [slope]);
            let offset = self.floats(&named("offset"), &[], [scaling.factor - 1.0]);
            let one = self.floats("one_float", &[], [1.0]);
            let divisor = rotary.dimensions as f64 - 2.0;
            let exponents = (0..half).map(|i| -2.0 * i as f64 / divisor);
            let exponents = self.floats(&named("exponents"), &[1, half], exponents);
            let length = self.length_float();
            let scaled = self.shared(&named("scaled_length"), "Mul", &[&length, &slope], vec![]);
            let growth = self.shared(&named("raw_growth"), "Sub", &[&scaled, &offset], vec![]);
            let growth = self.shared(&named("growth"), "Max", &[&growth, &one], vec![]);
            let inputs = [growth.as_str(), &exponents];
            let correction = self.shared(&named("correction"), "Pow", &inputs, vec![]);
            let inputs = [frequency.as_str(), &correction];
            frequency = self.shared(&named("scaled_frequencies"), "Mul", &inputs, vec![]);
        }
        let positions = self.positions(0);
        let axis = self.ints("axis_1", &[1]);
        let inputs = [positions.as_str(), &axis];
        let positions = self.shared("positions_column", "Unsqueeze", &inputs, vec![]);
        let angles = self.shared(&named("angles"), "Mul", &[&positions, &frequency], vec![]);
        (
            self.shared(&named("cos"), "Cos", &[&angles], vec![]),
            self.shared(&named("sin"), "Sin", &[&angles], vec![]),
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
