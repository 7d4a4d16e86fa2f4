//! Feed-forwards of experts: products with the matrices of those that are chosen.

use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::take_along_axis;
use mlx_rs::{Array, Dtype, ops};

use super::forward::Pass;
use super::parameters::ExpertWeights;
use crate::graph::Experts;

impl Pass<'_> {
    /// Of flat rows. In half precision the router's softmax is float32.
    pub(super) fn experts(
        &mut self,
        x: &Array,
        layer: &Experts,
        weights: &ExpertWeights,
    ) -> Result<Array, Exception> {
        let x = &x.as_dtype(weights.up.dtype())?;
        let scores = ops::matmul(x, &weights.router)?.as_dtype(Dtype::Float32)?;
        let shares = ops::softmax_axis(scores, -1, true)?;
        let chosen = layer.chosen as i32;
        let order = ops::argpartition_axis(shares.negative()?, chosen - 1, -1)?;
        let experts = order.take_axis(ops::arange::<i32, i32>(0, chosen, 1)?, 1)?;
        let shares = take_along_axis(&shares, &experts, -1)?.as_dtype(x.dtype())?;
        let [rows, width] = [x.dim(0), x.dim(1)];
        // `[rows, 1, 1, width]` → `[rows, chosen, 1, inner]` → `[rows, chosen, 1, width]`
        let each = x.reshape(&[rows, 1, 1, width])?;
        let wide = ops::gather_mm(&each, &weights.up, None, &experts, None)?;
        let wide = self.activate(&wide, layer.activation)?;
        let made = ops::gather_mm(&wide, &weights.down, None, &experts, None)?;
        let made = made.reshape(&[rows, chosen, width])?;
        let sum = ops::matmul(shares.reshape(&[rows, 1, chosen])?, made)?;
        let sum = ops::add(sum.reshape(&[rows, width])?, &weights.bias)?;
        self.narrow(sum)
    }
}
