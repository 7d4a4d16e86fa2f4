//! Feed-forwards of experts: each row is computed by the experts that its router chooses; on the CPU, by no others.
//!
//! `MoE` of `com.microsoft` is no alternative: it takes `down` with its dimensions swapped, and swapping them in the graph would
//! read the weights from the file while a session is made.

use super::builder::GraphBuilder;
use super::nodes::{int, string};
use super::packing::Matrix;
use crate::graph::Experts;

impl GraphBuilder {
    /// Of flat rows, float32 in every precision: a rounding in the router may choose other experts.
    pub(super) fn experts(&mut self, x: &str, layer: &Experts) -> String {
        let shares = self.shares(x, layer);
        let sum = if self.is_padded() {
            self.every_expert(x, &shares, layer)
        } else {
            self.chosen_experts(x, &shares, layer)
        };
        let bias = self.weight(&layer.bias);
        self.op("Add", &[&sum, &bias], vec![])
    }

    /// Each expert computes the rows that it was chosen for.
    fn chosen_experts(&mut self, x: &str, shares: &str, layer: &Experts) -> String {
        let mut sum = self.zeros_like(x);
        let flat = self.ints("flat", &[-1]);
        for index in 0..layer.count() {
            let number = self.int_scalar(&format!("expert_{index}"), index as i64);
            let share = self.op("Gather", &[shares, &number], vec![int("axis", 1)]);
            // The places of the rows that this expert is given; there may be none.
            let places = self.op("NonZero", &[&share], vec![]);
            let places = self.op("Reshape", &[&places, &flat], vec![]);
            let rows = self.op("Gather", &[x, &places], vec![]);
            let made = self.expert(&rows, layer, index);
            let places = self.flatten(&places, 1);
            let share = self.op("Gather", &[&share, &places], vec![]);
            let made = self.op("Mul", &[&made, &share], vec![]);
            // In the order of the experts, whichever rows are in the batch.
            let inputs = [sum.as_str(), &places, &made];
            sum = self.op("ScatterND", &inputs, vec![string("reduction", "add")]);
        }
        sum
    }

    /// Each expert computes every row, and its share is 0 where it was not chosen: a GPU would have to tell the CPU which
    /// rows were, once per expert and layer.
    fn every_expert(&mut self, x: &str, shares: &str, layer: &Experts) -> String {
        let mut sum: Option<String> = None;
        for index in 0..layer.count() {
            let number = self.ints(&format!("expert_{index}_1d"), &[index as i64]);
            let share = self.op("Gather", &[shares, &number], vec![int("axis", 1)]);
            let made = self.expert(x, layer, index);
            let made = self.op("Mul", &[&made, &share], vec![]);
            sum = Some(match sum {
                Some(sum) => self.op("Add", &[&sum, &made], vec![]),
                None => made,
            });
        }
        sum.unwrap_or_default()
    }

    /// What an expert makes of rows.
    fn expert(&mut self, rows: &str, layer: &Experts, index: usize) -> String {
        let up = layer.up.part(index, layer.count());
        let wide = self.float_product(rows, &up, Matrix::Float);
        let wide = self.activate(&wide, layer.activation);
        let down = layer.down.part(index, layer.count());
        self.float_product(&wide, &down, Matrix::Transposed)
    }

    /// What each expert's result is multiplied by, `[rows, experts]`: 0 of those that are not chosen.
    fn shares(&mut self, x: &str, layer: &Experts) -> String {
        let router = self.weight(&layer.router);
        let scores = self.op("Gemm", &[x, &router], vec![int("transB", 1)]);
        let shares = self.op("Softmax", &[&scores], vec![int("axis", -1)]);
        let chosen = layer.chosen;
        let count = self.ints(&format!("chosen_{chosen}"), &[chosen as i64]);
        let largest = self.op("TopK", &[&shares, &count], vec![int("axis", -1)]);
        let experts = self.further("indices");
        let zeros = self.zeros_like(&shares);
        let inputs = [zeros.as_str(), &experts, &largest];
        self.op("ScatterElements", &inputs, vec![int("axis", 1)])
    }

    fn zeros_like(&mut self, x: &str) -> String {
        if self.is_padded() {
            // All operators that only fill are on the CPU.
            return self.op("Sub", &[x, x], vec![]);
        }
        let shape = self.op("Shape", &[x], vec![]);
        self.op("ConstantOfShape", &[&shape], vec![])
    }
}
