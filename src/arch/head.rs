//! The layers behind an encoder that make rerankers (cross-encoders): from the state of a pair's first or last token, or the
//! mean of all, to its score.

use super::weights::Weights;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::graph::{Activation, Graph, Pooling};

/// `output(norm(activation(dense(x))))`, as in the models of `transformers` for sequence classification; of decoders,
/// `output(x)`. Names are those of the checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// What is made of the states of a pair's tokens.
    pub pooling: Pooling,
    /// What precedes the last layer, if anything does.
    pub dense: Option<HeadDense>,
    /// Before the last layer.
    pub norm: Option<HeadNorm>,
    /// `[1, width]`
    pub output: &'static str,
    /// Whether it has a bias.
    pub output_bias: bool,
}

/// A hidden layer of a head.
#[derive(Debug, Clone, Copy)]
pub struct HeadDense {
    /// `[width, width]`
    pub name: &'static str,
    /// Whether it has a bias.
    pub bias: bool,
    /// What follows it.
    pub activation: Activation,
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
            dense: Some(HeadDense {
                name: dense,
                bias: true,
                activation,
            }),
            norm: None,
            output,
            output_bias: true,
        }
    }

    /// Of a decoder: a layer without a bias, applied to a pair's last token.
    pub const OF_DECODERS: Self = Self {
        pooling: Pooling::LastToken,
        dense: None,
        norm: None,
        output: "score",
        output_bias: false,
    };

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
        let mut x = pooled;
        if let Some(HeadDense {
            name,
            bias,
            activation,
        }) = self.dense
        {
            let dense = graph.linear(x, linear(name, width, bias)?);
            x = graph.activate(dense, activation);
        }
        if let Some(norm) = &self.norm {
            let weights = Weights::ending(checkpoint, norm.name)?;
            let layer = weights.layer_norm(norm.name, width, norm.epsilon, norm.bias)?;
            x = graph.norm(x, layer);
        }
        graph.linear(x, linear(self.output, 1, self.output_bias)?);
        Ok(graph)
    }
}
