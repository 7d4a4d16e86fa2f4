//! The layers behind an encoder that make rerankers (cross-encoders): from the state of a pair's first token, or the mean of
//! all, to its score.

use super::weights::Weights;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::graph::{Activation, Graph, Pooling};

/// `output(norm(activation(dense(x))))`, as in the models of `transformers` for sequence classification. Names are those of
/// the checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// What is made of the states of a pair's tokens.
    pub pooling: Pooling,
    /// `[width, width]`
    pub dense: &'static str,
    /// Whether it has a bias.
    pub dense_bias: bool,
    /// What follows it.
    pub activation: Activation,
    /// Before the last layer.
    pub norm: Option<HeadNorm>,
    /// `[1, width]`, with a bias.
    pub output: &'static str,
}

/// A layer norm of a head.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorm {
    /// `[width]`
    pub name: &'static str,
    /// Whether it has a shift.
    pub bias: bool,
    /// Added to the variance.
    pub epsilon: f32,
}

impl Head {
    /// Of a pair's first token, with a bias and no norm.
    #[must_use]
    pub const fn of(dense: &'static str, activation: Activation, output: &'static str) -> Self {
        Self {
            pooling: Pooling::Cls,
            dense,
            dense_bias: true,
            activation,
            norm: None,
            output,
        }
    }

    /// From the states of all tokens to one number for each pair, its score.
    ///
    /// # Errors
    /// A tensor is missing or has another shape than the settings imply.
    pub fn record(&self, states: &Graph, checkpoint: &Checkpoint) -> Result<Graph> {
        let mut graph = states.pooled(&[self.pooling]);
        let (pooled, width) = (graph.result(), graph.width());
        let linear = |name, outputs, bias| {
            Weights::ending(checkpoint, name)?.linear(name, outputs, width, bias)
        };
        let dense = graph.linear(pooled, linear(self.dense, width, self.dense_bias)?);
        let mut x = graph.activate(dense, self.activation);
        if let Some(norm) = &self.norm {
            let weights = Weights::ending(checkpoint, norm.name)?;
            let layer = weights.layer_norm(norm.name, width, norm.epsilon, norm.bias)?;
            x = graph.norm(x, layer);
        }
        graph.linear(x, linear(self.output, 1, true)?);
        Ok(graph)
    }
}
