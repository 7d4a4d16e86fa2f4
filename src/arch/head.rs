//! The layers behind an encoder that make rerankers (cross-encoders): from the state of a pair's first token to its score.

use super::Encoder;
use super::weights::Weights;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::graph::{Activation, Graph};

/// `output(activation(dense(x)))`, as in the models of `transformers` for sequence classification. Names are those of the
/// checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// `[width, width]`
    pub dense: &'static str,
    /// Between both layers.
    pub activation: Activation,
    /// `[1, width]`
    pub output: &'static str,
}

impl Head {
    /// Records the encoder for pairs of texts, and the head on top: a number for each token, of which that of the first is
    /// the score.
    ///
    /// # Errors
    /// A tensor is missing or has another shape than the settings imply.
    pub fn record(&self, encoder: &dyn Encoder, checkpoint: &Checkpoint) -> Result<Graph> {
        let mut graph = encoder.record(checkpoint)?.of_pairs();
        let (states, width) = (graph.result(), graph.width());
        let linear =
            |name, outputs| Weights::ending(checkpoint, name)?.linear(name, outputs, width, true);
        let dense = graph.linear(states, linear(self.dense, width)?);
        let active = graph.activate(dense, self.activation);
        graph.linear(active, linear(self.output, 1)?);
        Ok(graph)
    }
}
