//! Feed-forwards of experts: each row is computed by the experts that its router chooses, and by no others.
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
        let mut sum = self.zeros_like(x);
        let flat = self.ints("flat", &[-1]);
        for index in 0..layer.count() {
            let number = self.int_scalar(&format!("expert_{index}"), index as i64);
            let share = self.op("Gather", &[&shares, &number], vec![int("axis", 1)]);
            // The places of the rows that this expert is given; there may be none.
            let places = self.op("NonZero", &[&share], vec![]);
            let places = self.op("Reshape", &[&places, &flat], vec![]);
            let rows = self.op("Gather", &[x, &places], vec![]);
            let up = layer.up.part(index, layer.count());
            let wide = self.float_product(&rows, &up, Matrix::Float);
            let wide = self.activate(&wide, layer.activation);
            let down = layer.down.part(index, layer.count());
            let made = self.float_product(&wide, &down, Matrix::Transposed);
            let places = self.flatten(&places, 1);
            let share = self.op("Gather", &[&share, &places], vec![]);
            let made = self.op("Mul", &[&made, &share], vec![]);
            // In the order of the experts, whichever rows are in the batch.
            let inputs = [sum.as_str(), &places, &made];
            sum = self.op("ScatterND", &inputs, vec![string("reduction", "add")]);
        }
        let bias = self.weight(&layer.bias);
        self.op("Add", &[&sum, &bias], vec![])
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
        let shape = self.op("Shape", &[x], vec![]);
        self.op("ConstantOfShape", &[&shape], vec![])
    }
}
