//! Attention within texts that are padded to one length. Padding is not seen, and a query that is padding sees the text like
//! any other.

use super::builder::{GraphBuilder, INPUT};
use super::nodes::{int, ints};
use super::padding::{PaddedInput, UNSEEN};
use crate::graph::{Attention, Mask, Rows};

impl GraphBuilder {
    /// Values mixed by the softmax of the scores: `[batch, queries, heads · head_dim]`.
    pub(super) fn mix_padded(
        &mut self,
        query_key_value: [&str; 3],
        attention: &Attention,
        rows: Rows,
    ) -> String {
        let bias = match &attention.mask {
            // Padding comes after every token that counts.
            Mask::Causal if self.fuses_attention() => {
                return self.mix_causal(query_key_value, attention);
            }
            Mask::Causal => self.causal_bias(),
            Mask::None => self.padding_bias(rows),
            Mask::Window(reach) => self.window_bias(*reach, rows),
            Mask::Relative(bias) => {
                let bias = self.relative_bias(bias, rows);
                self.without_padding(&bias)
            }
            Mask::Alibi => {
                let bias = self.alibi(attention.heads, rows);
                self.without_padding(&bias)
            }
        };
        if self.fuses_attention() {
            self.mix(query_key_value, attention, Some(&bias))
        } else {
            self.mix_step_by_step(query_key_value, attention, &bias)
        }
    }

    /// The same with an operator for each step, which keeps all scores.
    fn mix_step_by_step(
        &mut self,
        [query, key, value]: [&str; 3],
        attention: &Attention,
        bias: &str,
    ) -> String {
        let Attention {
            heads, head_dim, ..
        } = *attention;
        let [heads_apart, together] = [
            // 0 is the size that there is.
            vec![0, 0, heads as i64, head_dim as i64],
            vec![0, 0, (heads * head_dim) as i64],
        ]
        .map(|shape| {
            let name = shape.iter().map(i64::to_string).collect::<Vec<_>>();
            self.ints(&format!("shape_{}", name.join("_")), &shape)
        });
        let mut to_heads = |x: &str, order: [i64; 4]| {
            let apart = self.op("Reshape", &[x, &heads_apart], vec![]);
            self.op("Transpose", &[&apart], vec![ints("perm", &order)])
        };
        let query = to_heads(query, [0, 2, 1, 3]);
        let key = to_heads(key, [0, 2, 3, 1]);
        let value = to_heads(value, [0, 2, 1, 3]);
        let scale = format!("scale_{}", attention.scale);
        let scale = self.floats(&scale, &[], [attention.scale.into()]);
        let query = self.op("Mul", &[&query, &scale], vec![]);
        let scores = self.op("MatMul", &[&query, &key], vec![]);
        let scores = self.op("Add", &[&scores, bias], vec![]);
        let shares = self.op("Softmax", &[&scores], vec![int("axis", -1)]);
        let mixed = self.op("MatMul", &[&shares, &value], vec![]);
        let mixed = self.op("Transpose", &[&mixed], vec![ints("perm", &[0, 2, 1, 3])]);
        self.op("Reshape", &[&mixed, &together], vec![])
    }

    /// What is added to the scores where nothing else is: `[batch, 1, queries or 1, length]`. The fused operator takes no bias
    /// that has fewer queries.
    fn padding_bias(&mut self, rows: Rows) -> String {
        let bias = self.padded_input(PaddedInput::KeyBias);
        if rows != Rows::All || !self.fuses_attention() {
            return bias;
        }
        let batch = self.shared("batch", "Shape", &[INPUT], vec![int("end", 1)]);
        let length = self.length_1d();
        let one = self.ints("one_1d", &[1]);
        let inputs = [batch.as_str(), &one, &length, &length];
        let shape = self.shared("pairs_shape", "Concat", &inputs, vec![int("axis", 0)]);
        self.shared("padding_bias", "Expand", &[&bias, &shape], vec![])
    }

    /// A bias of pairs of tokens, and that of padding.
    fn without_padding(&mut self, bias: &str) -> String {
        let padding = self.padded_input(PaddedInput::KeyBias);
        let name = format!("{bias}.padded");
        self.shared(&name, "Add", &[bias, &padding], vec![])
    }

    /// What hides the tokens behind the query, `[length, length]`, and with them all padding.
    fn causal_bias(&mut self) -> String {
        let (keys, queries) = self.padded_places();
        let behind = self.shared("places_behind", "Sub", &[&keys, &queries], vec![]);
        self.unseen_if_positive("causal", &behind)
    }

    /// What hides the tokens that are farther away than `reach`.
    fn window_bias(&mut self, reach: usize, rows: Rows) -> String {
        let which = if rows == Rows::All { "all" } else { "first" };
        let named = |what: &str| format!("window_{reach}_{what}_{which}");
        let distances = self.padded_distances(rows);
        let reach = self.floats(&named("reach"), &[], [reach as f64]);
        let beyond = self.shared(&named("beyond"), "Sub", &[&distances, &reach], vec![]);
        let bias = self.unseen_if_positive(&named("bias"), &beyond);
        self.without_padding(&bias)
    }

    /// [`UNSEEN`] where a whole number is positive, otherwise 0.
    fn unseen_if_positive(&mut self, name: &str, x: &str) -> String {
        let [zero, one] = [("zero_float", 0.0), ("one_float", 1.0)]
            .map(|(name, number)| self.floats(name, &[], [number]));
        let unseen = self.floats("unseen", &[], [UNSEEN]);
        let is_positive = format!("{name}.is_positive");
        let is_positive = self.shared(&is_positive, "Clip", &[x, &zero, &one], vec![]);
        self.shared(name, "Mul", &[&is_positive, &unseen], vec![])
    }

    /// How far the tokens are apart, float `[length, length]`; from the first one, `[1, length]`.
    pub(super) fn padded_distances(&mut self, rows: Rows) -> String {
        let (keys, queries) = self.padded_places();
        if rows != Rows::All {
            return keys;
        }
        let apart = self.shared("padded_apart", "Sub", &[&queries, &keys], vec![]);
        self.shared("padded_distances", "Abs", &[&apart], vec![])
    }

    /// The places of keys and of queries, float `[1, length]` and `[length, 1]`.
    fn padded_places(&mut self) -> (String, String) {
        let places = self.padded_input(PaddedInput::Places);
        let [axis_0, axis_1] = [0, 1].map(|axis| self.ints(&format!("axis_{axis}"), &[axis]));
        let keys = self.shared("keys_row", "Unsqueeze", &[&places, &axis_0], vec![]);
        let queries = self.shared("queries_column", "Unsqueeze", &[&places, &axis_1], vec![]);
        (keys, queries)
    }
}
