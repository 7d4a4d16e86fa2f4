//! Attention: projections, rotation, masks and windows.
//!
//! Scores and their softmax are ONNX Runtime's `MultiHeadAttention`, which keeps only a tile of the scores where nothing is
//! added to them, and `GroupQueryAttention`, which does so with a causal mask.

use super::builder::{GraphBuilder, INPUT, MICROSOFT, States};
use super::nodes::{float, int};
use super::padding::{PaddedInput, UNSEEN};
use super::proto::DataType;
use crate::graph::{
    Attention, Linear, Mask, Norm, Projections, RelativeBias, Rotary, Rows, alibi_slope,
};

/// Names of what cuts texts into blocks for attention to a window.
struct Blocks {
    /// Places in the text, `[blocks, block]`.
    queries: String,
    /// How many queries a block has, `[1]`.
    block: String,
    /// Places in the text, `[blocks, keys]`.
    keys: String,
    /// How many keys a block has, `[1]`.
    block_keys: String,
    /// What is added to the scores, `[batch · blocks, 1, block, keys]`.
    bias: String,
}

impl GraphBuilder {
    /// These rows of an attention to `x`, which has all rows: `[batch · tokens, heads · head_dim]`.
    pub(super) fn attend(
        &mut self,
        x: &States,
        projections: &Projections,
        attention: &Attention,
        rows: Rows,
    ) -> String {
        let asking = match rows {
            Rows::All => x.clone(),
            Rows::First | Rows::Last => States {
                name: self.select(x, rows),
                rows,
            },
        };
        let norms = projections.norms.as_ref();
        let mut project = |from: &States, linear: &Linear, norm: Option<&Norm>| {
            let mut flat = self.product(from, linear);
            if let Some(norm) = norm {
                flat = self.norm_of_heads(&flat, linear.outputs(), norm);
            }
            self.unflatten(&flat, from.rows)
        };
        let mut query = project(&asking, &projections.query, norms.map(|[query, _]| query));
        let mut key = project(x, &projections.key, norms.map(|[_, key]| key));
        let value = project(x, &projections.value, None);
        let Attention {
            heads,
            kv_heads,
            head_dim,
            ..
        } = *attention;
        if let Some(rotary) = &attention.rotary {
            // A first token is at position 0, where the rotation is the identity.
            if rows == Rows::All {
                query = self.rotate(&query, rotary, heads, head_dim);
            }
            key = self.rotate(&key, rotary, kv_heads, head_dim);
        }
        let key = self.repeat_heads(&key, attention);
        let value = self.repeat_heads(&value, attention);
        let mixed = match &attention.mask {
            _ if self.is_padded() => self.mix_padded([&query, &key, &value], attention, rows),
            Mask::Window(reach) => {
                self.mix_in_window([&query, &key, &value], attention, *reach, rows)
            }
            Mask::None => self.mix([&query, &key, &value], attention, None),
            Mask::Causal => self.mix_causal([&query, &key, &value], attention),
            Mask::Relative(bias) => {
                let bias = self.relative_bias(bias, rows);
                self.mix([&query, &key, &value], attention, Some(&bias))
            }
            Mask::Alibi => {
                let bias = self.alibi(heads, rows);
                self.mix([&query, &key, &value], attention, Some(&bias))
            }
        };
        self.flatten(&mixed, heads * head_dim)
    }

    /// Values mixed by the softmax of the scores plus `bias`: `[batch, queries, heads · head_dim]`.
    pub(super) fn mix(
        &mut self,
        query_key_value: [&str; 3],
        attention: &Attention,
        bias: Option<&str>,
    ) -> String {
        let attributes = vec![
            int("num_heads", attention.heads as i64),
            float("scale", attention.scale),
        ];
        let mut inputs = query_key_value.to_vec();
        if let Some(bias) = bias {
            // Behind two optional inputs.
            inputs.extend(["", "", bias]);
        }
        self.op_of(MICROSOFT, "MultiHeadAttention", &inputs, attributes)
    }

    /// [`Self::mix`] of every token with those before it, with `kv_heads` of keys and values.
    pub(super) fn mix_causal(
        &mut self,
        query_key_value: [&str; 3],
        attention: &Attention,
    ) -> String {
        let to_int32 = || vec![int("to", DataType::Int32 as i64)];
        let length = self.length();
        let one = self.int_scalar("one", 1);
        let last = self.shared("last_place", "Sub", &[&length, &one], vec![]);
        let last = self.shared("last_place_int32", "Cast", &[&last], to_int32());
        let batch = self.shared("batch", "Shape", &[INPUT], vec![int("end", 1)]);
        let lasts = self.shared("last_places", "Expand", &[&last, &batch], vec![]);
        let length = self.shared("length_int32", "Cast", &[&length], to_int32());
        let mut inputs = query_key_value.to_vec();
        // There are no keys and values of earlier runs.
        inputs.extend(["", "", &lasts, &length]);
        let attributes = vec![
            int("num_heads", attention.heads as i64),
            int("kv_num_heads", attention.kv_heads as i64),
            float("scale", attention.scale),
        ];
        let mixed = self.op_of(MICROSOFT, "GroupQueryAttention", &inputs, attributes);
        // Nothing takes these, but without them it keeps all scores (ONNX Runtime 1.30, x86).
        for unused in ["keys", "values"] {
            self.further(unused);
        }
        mixed
    }

    /// `[batch, length, kv_heads · head_dim]` → `[batch, length, heads · head_dim]`, unless [`Self::mix_causal`] follows.
    fn repeat_heads(&mut self, x: &str, attention: &Attention) -> String {
        let Attention {
            heads,
            kv_heads,
            head_dim,
            ..
        } = *attention;
        if heads == kv_heads || (matches!(attention.mask, Mask::Causal) && self.fuses_attention()) {
            return x.to_owned();
        }
        let [apart, times, together] = [
            // 0 is the size that there is.
            vec![0, 0, kv_heads, 1, head_dim],
            vec![1, 1, 1, heads / kv_heads, 1],
            vec![0, 0, heads * head_dim],
        ]
        .map(|shape| {
            let shape: Vec<i64> = shape.into_iter().map(|size| size as i64).collect();
            let name = shape.iter().map(i64::to_string).collect::<Vec<_>>();
            self.ints(&format!("shape_{}", name.join("_")), &shape)
        });
        let apart = self.op("Reshape", &[x, &apart], vec![]);
        let repeated = self.op("Expand", &[&apart, &times], vec![]);
        self.op("Reshape", &[&repeated, &together], vec![])
    }

    /// [`Self::mix`] with tokens at most `reach` away, in blocks of as many queries. Each sees the keys of its own block and
    /// of its neighbours, so that the cost is proportional to the length. A short text is one block without neighbours.
    fn mix_in_window(
        &mut self,
        query_key_value: [&str; 3],
        attention: &Attention,
        reach: usize,
        rows: Rows,
    ) -> String {
        let [query, key, value] = query_key_value;
        let width = attention.heads * attention.head_dim;
        let start = self.ints("slice_start", &[0]);
        let tokens_axis = self.ints("axis_1", &[1]);
        if rows == Rows::First {
            let end = self.ints(&format!("window_{reach}_end"), &[reach as i64 + 1]);
            let mut near = |x: &str| self.op("Slice", &[x, &start, &end, &tokens_axis], vec![]);
            let (key, value) = (near(key), near(value));
            return self.mix([query, &key, &value], attention, None);
        }
        let blocks = self.blocks(reach);
        let mut cut = |x: &str, places: &str, size: &str| {
            let taken = self.op("Gather", &[x, places], vec![int("axis", 1)]);
            let any = self.ints("any_size", &[-1]);
            let width_1d = self.ints(&format!("size_{width}"), &[width as i64]);
            let shape = format!("{size}_of_{width}");
            let inputs = [any.as_str(), size, &width_1d];
            let shape = self.shared(&shape, "Concat", &inputs, vec![int("axis", 0)]);
            self.op("Reshape", &[&taken, &shape], vec![])
        };
        let query = cut(query, &blocks.queries, &blocks.block);
        let key = cut(key, &blocks.keys, &blocks.block_keys);
        let value = cut(value, &blocks.keys, &blocks.block_keys);
        let mixed = self.mix([&query, &key, &value], attention, Some(&blocks.bias));
        let batch = self.shared("batch", "Shape", &[INPUT], vec![int("end", 1)]);
        let rest = self.ints(&format!("any_tokens_{width}"), &[-1, width as i64]);
        let (shape, inputs) = (format!("blocks_of_{width}"), [batch.as_str(), &rest]);
        let shape = self.shared(&shape, "Concat", &inputs, vec![int("axis", 0)]);
        let joined = self.op("Reshape", &[&mixed, &shape], vec![]);
        let end = self.length_1d();
        self.op("Slice", &[&joined, &start, &end, &tokens_axis], vec![])
    }

    /// How texts are cut into blocks.
    fn blocks(&mut self, reach: usize) -> Blocks {
        let named = |what: &str| format!("window_{reach}_{what}");
        let length = self.length();
        let [zero, one, far, twice] = [0, 1, reach as i64, 2 * reach as i64]
            .map(|number| self.int_scalar(&format!("integer_{number}"), number));
        let [axis_0, axis_1, axis_2] =
            [0, 1, 2].map(|axis| self.ints(&format!("axis_{axis}"), &[axis]));
        // Finite, so that a query beyond the text, which sees nothing, gives no NaN.
        let [seen, unseen] = [("seen", 0.0), ("unseen", UNSEEN)]
            .map(|(name, number)| self.floats(name, &[], [number]));
        let batch = self.shared("batch", "Shape", &[INPUT], vec![int("end", 1)]);
        let ones = self.ints("three_ones", &[1, 1, 1]);
        let axis = vec![int("axis", 0)];
        let times = self.shared("batch_times", "Concat", &[&batch, &ones], axis);
        let mut op = |what: &str, op_type: &str, inputs: &[&str]| {
            self.shared(&named(what), op_type, inputs, vec![])
        };

        let is_long = op("is_long", "Greater", &[&length, &twice]);
        let block = op("block", "Where", &[&is_long, &far, &length]);
        let margin = op("margin", "Where", &[&is_long, &far, &zero]);
        let margins = op("margins", "Add", &[&margin, &margin]);
        let block_keys = op("block_keys", "Add", &[&block, &margins]);
        let starts = op("starts", "Range", &[&zero, &length, &block]);
        let starts = op("starts_column", "Unsqueeze", &[&starts, &axis_1]);
        let offsets = op("query_offsets", "Range", &[&zero, &block, &one]);
        let key_offsets = op("key_offsets", "Range", &[&zero, &block_keys, &one]);
        // Some lie before or behind the text.
        let queries = op("all_queries", "Add", &[&starts, &offsets]);
        let key_starts = op("key_starts", "Sub", &[&starts, &margin]);
        let keys = op("all_keys", "Add", &[&key_starts, &key_offsets]);
        let last = op("last", "Sub", &[&length, &one]);
        let inside_queries = op("queries", "Clip", &[&queries, &zero, &last]);
        let inside_keys = op("keys", "Clip", &[&keys, &zero, &last]);

        let query_column = op("query_column", "Unsqueeze", &[&queries, &axis_2]);
        let key_row = op("key_row", "Unsqueeze", &[&keys, &axis_1]);
        let inside_row = op("inside_row", "Unsqueeze", &[&inside_keys, &axis_1]);
        let distance = op("distance", "Sub", &[&query_column, &key_row]);
        let distance = op("distance_abs", "Abs", &[&distance]);
        let is_near = op("is_near", "LessOrEqual", &[&distance, &far]);
        let is_inside = op("is_inside", "Equal", &[&key_row, &inside_row]);
        let is_seen = op("is_seen", "And", &[&is_near, &is_inside]);
        let bias = op("pairs", "Where", &[&is_seen, &seen, &unseen]);
        let bias = op("heads", "Unsqueeze", &[&bias, &axis_1]);
        Blocks {
            queries: inside_queries,
            block: op("block_1d", "Unsqueeze", &[&block, &axis_0]),
            keys: inside_keys,
            block_keys: op("block_keys_1d", "Unsqueeze", &[&block_keys, &axis_0]),
            bias: op("bias", "Tile", &[&bias, &times]),
        }
    }

    /// How many tokens each key comes after each query, int64 `[keys, queries]`; after first tokens `[keys, 1]`.
    fn distances(&mut self, rows: Rows) -> String {
        let axis = self.ints("axis_1", &[1]);
        let queries = self.places(0);
        let keys = self.shared("places_column", "Unsqueeze", &[&queries, &axis], vec![]);
        match rows {
            Rows::All => self.shared("distances", "Sub", &[&keys, &queries], vec![]),
            Rows::First | Rows::Last => keys,
        }
    }

    /// What a bias by distance adds: `[1, heads, length, length]`, of first tokens `[1, heads, 1, length]`.
    pub(super) fn relative_bias(&mut self, bias: &RelativeBias, rows: Rows) -> String {
        let which = if rows == Rows::All { "all" } else { "first" };
        let named = |what: &str| format!("{}.{what}_{which}", bias.table.name);
        let table = self.weight(&bias.table);
        // A row for each key: `Transpose` turns the order of all dimensions round.
        let buckets = if self.is_padded() {
            self.padded_input(PaddedInput::Buckets {
                rows: bias.table.shape[0],
                most_distance: bias.most_distance,
                is_first: rows != Rows::All,
            })
        } else {
            self.buckets(bias, rows, &named)
        };
        let biases = self.shared(&named("pairs"), "Gather", &[&table, &buckets], vec![]);
        let biases = self.shared(&named("heads"), "Transpose", &[&biases], vec![]);
        let axis = self.ints("axis_0", &[0]);
        self.shared(&named("bias"), "Unsqueeze", &[&biases, &axis], vec![])
    }

    /// The row of a bias for each key and query: `[keys, queries]`.
    fn buckets(
        &mut self,
        bias: &RelativeBias,
        rows: Rows,
        named: &impl Fn(&str) -> String,
    ) -> String {
        // From the farthest distance at which something changes in front of a token to that behind it.
        let most = bias.most_distance as i64;
        let buckets = (-most..=most).map(|distance| bias.bucket(distance) as i64);
        let all = format!("{}.buckets", bias.table.name);
        let buckets = self.ints(&all, &buckets.collect::<Vec<_>>());
        let distances = self.distances(rows);
        let [least, most] =
            [-most, most].map(|limit| self.int_scalar(&format!("distance_{limit}"), limit));
        let inputs = [distances.as_str(), &least, &most];
        let near = self.shared(&named("near"), "Clip", &inputs, vec![]);
        let index = self.shared(&named("index"), "Add", &[&near, &most], vec![]);
        // The table comes last. Rows of a constant choice would be taken while a session is made, and be read where they lie
        // according to the graph, not where the session is told that they are.
        self.shared(&named("bucket"), "Gather", &[&buckets, &index], vec![])
    }

    /// What `ALiBi` adds: `[1, heads, length, length]`, of first tokens `[1, heads, 1, length]`.
    pub(super) fn alibi(&mut self, heads: usize, rows: Rows) -> String {
        let which = if rows == Rows::All { "all" } else { "first" };
        let named = |what: &str| format!("alibi_{heads}_{what}_{which}");
        let slopes = (0..heads).map(|head| -alibi_slope(head, heads));
        let slopes = self.floats(&format!("alibi_{heads}_slopes"), &[1, heads, 1, 1], slopes);
        let distances = if self.is_padded() {
            self.padded_distances(rows)
        } else {
            let distances = self.distances(rows);
            let distances = self.shared(&named("keys"), "Transpose", &[&distances], vec![]);
            let distances = self.shared(&named("distances"), "Abs", &[&distances], vec![]);
            let to_float = vec![int("to", DataType::Float as i64)];
            self.shared(&named("numbers"), "Cast", &[&distances], to_float)
        };
        self.shared(&named("bias"), "Mul", &[&slopes, &distances], vec![])
    }

    /// Cosines and sines of the rotation angles, each `[length, dimensions / 2]`.
    fn rotation(&mut self, rotary: &Rotary) -> (String, String) {
        if self.is_padded() {
            let cosines = self.padded_input(PaddedInput::Cosines(*rotary));
            let sines = self.padded_input(PaddedInput::Sines(*rotary));
            return (cosines, sines);
        }
        let known = self.rotaries.iter().position(|known| known == rotary);
        let number = known.unwrap_or(self.rotaries.len());
        if known.is_none() {
            self.rotaries.push(*rotary);
        }
        let named = |what: &str| format!("rotary_{number}_{what}");
        let half = rotary.dimensions / 2;
        let step = |i: usize| 2.0 * i as f64 / rotary.dimensions as f64;
        let frequencies = (0..half).map(|i| rotary.base.powf(-step(i)) / rotary.position_divisor);
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

    /// Rotates `[batch, length, heads · head_dim]`.
    fn rotate(&mut self, x: &str, rotary: &Rotary, heads: usize, head_dim: usize) -> String {
        let (cos, sin) = self.rotation(rotary);
        let start = self.ints("rotary_start", &[0]);
        let mut attributes = vec![int("num_heads", heads as i64)];
        if rotary.dimensions != head_dim {
            attributes.push(int("rotary_embedding_dim", rotary.dimensions as i64));
        }
        self.op_of(
            MICROSOFT,
            "RotaryEmbedding",
            &[x, &start, &cos, &sin],
            attributes,
        )
    }
}
