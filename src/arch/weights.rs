//! The weights of a checkpoint as layers, found by the names that an architecture gives them.

use crate::checkpoint::{Checkpoint, TensorSlice};
use crate::error::Result;
use crate::graph::{EmbeddingTables, Linear, Norm, NormKind, Numbering, Positions, TokenTypes};

/// A checkpoint whose names may all have a prefix, such as `bert.`, that the architecture does not know of.
pub struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    prefix: String,
}

impl<'a> Weights<'a> {
    /// `anchor` is a tensor that every checkpoint of the architecture has; what precedes it is the prefix.
    ///
    /// # Errors
    /// No tensor's name ends with `anchor`.
    pub fn of(checkpoint: &'a Checkpoint, anchor: &str) -> Result<Self> {
        let prefix = checkpoint.prefix_of(anchor)?.to_owned();
        Ok(Self { checkpoint, prefix })
    }

    /// The layer `name`, wherever it lies.
    ///
    /// # Errors
    /// There is no such layer.
    pub fn ending(checkpoint: &'a Checkpoint, name: &str) -> Result<Self> {
        Self::of(checkpoint, &format!("{name}.weight"))
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.has(&self.full_name(name))
    }

    /// The tensor `name`, which must have exactly this shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorSlice> {
        self.checkpoint.tensor(&self.full_name(name), shape)
    }

    /// `<name>.weight` of shape `[outputs, inputs]` and, if `bias`, `<name>.bias`.
    pub fn linear(&self, name: &str, outputs: usize, inputs: usize, bias: bool) -> Result<Linear> {
        let bias_name = format!("{name}.bias");
        Ok(Linear {
            weight: self.tensor(&format!("{name}.weight"), &[outputs, inputs])?,
            bias: bias
                .then(|| self.tensor(&bias_name, &[outputs]))
                .transpose()?,
        })
    }

    /// A layer norm with `<name>.{weight,bias}`, or the `{gamma,beta}` of checkpoints converted from TensorFlow.
    pub fn norm(&self, name: &str, width: usize, epsilon: f32) -> Result<Norm> {
        let (scale, shift) = if self.has(&format!("{name}.gamma")) {
            ("gamma", "beta")
        } else {
            ("weight", "bias")
        };
        Ok(Norm {
            bias: Some(self.tensor(&format!("{name}.{shift}"), &[width])?),
            ..self.scale(NormKind::Layer, &format!("{name}.{scale}"), width, epsilon)?
        })
    }

    /// [`Self::norm`], or a layer norm with `<name>.weight` alone.
    pub fn layer_norm(&self, name: &str, width: usize, epsilon: f32, bias: bool) -> Result<Norm> {
        if bias {
            return self.norm(name, width, epsilon);
        }
        self.scale(NormKind::Layer, &format!("{name}.weight"), width, epsilon)
    }

    /// A normalization without shift, whose scale is the tensor `name`.
    pub fn scale(&self, kind: NormKind, name: &str, width: usize, epsilon: f32) -> Result<Norm> {
        Ok(Norm {
            kind,
            weight: self.tensor(name, &[width])?,
            bias: None,
            epsilon,
        })
    }

    /// The tables of `embeddings.<name>.weight`: words, and perhaps positions and token types, with their numbers of rows.
    pub fn embeddings(
        &self,
        width: usize,
        vocabulary: usize,
        positions: Option<(usize, Numbering)>,
        token_types: Option<usize>,
    ) -> Result<EmbeddingTables> {
        let table =
            |name: &str, rows| self.tensor(&format!("embeddings.{name}.weight"), &[rows, width]);
        let positions = positions.map(|(rows, numbering)| {
            let table = table("position_embeddings", rows);
            table.map(|table| Positions { table, numbering })
        });
        let token_types = token_types.map(|rows| {
            let table = table("token_type_embeddings", rows);
            table.map(|table| TokenTypes { table, vary: false })
        });
        Ok(EmbeddingTables {
            positions: positions.transpose()?,
            token_types: token_types.transpose()?,
            ..EmbeddingTables::of(table("word_embeddings", vocabulary)?)
        })
    }
}
