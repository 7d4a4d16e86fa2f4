//! What an encoder computes, recorded once as plain data. Architectures write graphs, runtimes read them.
//!
//! A [`Graph`] is a list of operations, each after those whose results it takes; the last one is the result of the whole.
//! Whatever a runtime, an estimate or a test needs to know about an encoder is read from this list.
//!
//! Shapes: every value has rows of `width` numbers, one row for each token of each text of a batch, or one for each text
//! (see [`Rows`]). Each text has its own positions, starting at 0.

mod layers;
mod prune;

pub use self::layers::{
    Activation, Attention, EmbeddingTables, Experts, Linear, Mask, Norm, NormKind, NtkScaling,
    Numbering, Pooling, Positions, Projections, RelativeBias, Rotary, TokenTypes, alibi_slope,
};

/// The result of an operation, given by its place in the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Value(usize);

impl Value {
    /// The place of the operation, counted from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

/// Which tokens the rows of a value stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Every token of each text.
    All,
    /// The first token of each text.
    First,
    /// The last token of each text.
    Last,
}

/// An operation.
#[derive(Debug, Clone)]
pub enum Op {
    /// The sum of the embeddings of the batch's tokens.
    Embed(EmbeddingTables),
    /// Element by element.
    Add(Value, Value),
    /// The first minus the second, element by element.
    Subtract(Value, Value),
    /// `x · weightᵀ + bias` of every row.
    Linear {
        /// What it is applied to.
        x: Value,
        /// The layer.
        layer: Linear,
    },
    /// Normalization of every row.
    Norm {
        /// What it is applied to.
        x: Value,
        /// The layer.
        layer: Norm,
    },
    /// The activation of every number.
    Activate {
        /// What it is applied to.
        x: Value,
        /// The function.
        activation: Activation,
    },
    /// `x · activation(gate)`, element by element.
    Gate {
        /// What is scaled.
        x: Value,
        /// What decides by how much.
        gate: Value,
        /// The function.
        activation: Activation,
    },
    /// A feed-forward of experts, of every row.
    Experts {
        /// What it is applied to.
        x: Value,
        /// The layer.
        layer: Box<Experts>,
    },
    /// Multi-head self-attention within each text: keys and values come from every token, queries from those of the
    /// result. The projections are part of it, so that a runtime may fuse them.
    Attend {
        /// What is projected; all tokens.
        x: Value,
        /// From states to queries, keys and values.
        projections: Box<Projections>,
        /// Everything else.
        attention: Box<Attention>,
    },
    /// The rows of some tokens of `x`, which has those of all.
    Select {
        /// Where they are taken from.
        x: Value,
        /// Which rows.
        rows: Rows,
    },
    /// One row for each text, the poolings concatenated.
    Pool {
        /// The states of all tokens.
        x: Value,
        /// At least one.
        poolings: Vec<Pooling>,
    },
}

impl Op {
    /// The values that it takes.
    pub fn operands(&self) -> impl Iterator<Item = Value> + use<> {
        let (first, second) = match *self {
            Self::Embed(_) => (None, None),
            Self::Add(a, b) | Self::Subtract(a, b) => (Some(a), Some(b)),
            Self::Gate { x, gate, .. } => (Some(x), Some(gate)),
            Self::Linear { x, .. }
            | Self::Norm { x, .. }
            | Self::Activate { x, .. }
            | Self::Experts { x, .. }
            | Self::Attend { x, .. }
            | Self::Select { x, .. }
            | Self::Pool { x, .. } => (Some(x), None),
        };
        first.into_iter().chain(second)
    }

    fn operands_mut(&mut self) -> impl Iterator<Item = &mut Value> {
        let (first, second) = match self {
            Self::Embed(_) => (None, None),
            Self::Add(a, b) | Self::Subtract(a, b) => (Some(a), Some(b)),
            Self::Gate { x, gate, .. } => (Some(x), Some(gate)),
            Self::Linear { x, .. }
            | Self::Norm { x, .. }
            | Self::Activate { x, .. }
            | Self::Experts { x, .. }
            | Self::Attend { x, .. }
            | Self::Select { x, .. }
            | Self::Pool { x, .. } => (Some(x), None),
        };
        first.into_iter().chain(second)
    }
}

/// An operation and the shape of its result.
#[derive(Debug, Clone)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Which tokens the result has rows for; of a pooling, [`Rows::First`]: one row per text.
    pub rows: Rows,
    /// Numbers in a row.
    pub width: usize,
}

/// An encoder, recorded. Every value is defined before it is used; the last one is the result.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    /// How many operations there were when the result was pooled.
    pooled_at: Option<usize>,
    refuses_f16: bool,
}

impl Graph {
    /// Records that numbers of trained models exceed 65504, the most that float16 holds: half precision has to be bfloat16.
    pub const fn refuse_f16(&mut self) {
        self.refuses_f16 = true;
    }

    /// See [`Self::refuse_f16`].
    #[must_use]
    pub const fn refuses_f16(&self) -> bool {
        self.refuses_f16
    }

    /// The operations, in an order in which they can be computed.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The operation that makes a value.
    #[must_use]
    pub fn node(&self, value: Value) -> &Node {
        &self.nodes[value.0]
    }

    /// The last value.
    ///
    /// # Panics
    /// Nothing is recorded yet.
    #[must_use]
    pub fn result(&self) -> Value {
        Value(self.nodes.len() - 1)
    }

    /// Width of the result.
    ///
    /// # Panics
    /// Nothing is recorded yet.
    #[must_use]
    pub fn width(&self) -> usize {
        self.node(self.result()).width
    }

    fn push(&mut self, op: Op, rows: Rows, width: usize) -> Value {
        self.nodes.push(Node { op, rows, width });
        Value(self.nodes.len() - 1)
    }

    /// Like `x`, which the operation is applied to row by row.
    fn push_like(&mut self, x: Value, op: Op) -> Value {
        let Node { rows, width, .. } = *self.node(x);
        self.push(op, rows, width)
    }

    /// Records [`Op::Embed`].
    pub fn embed(&mut self, embeddings: EmbeddingTables) -> Value {
        let width = embeddings.words.shape[1];
        self.push(Op::Embed(embeddings), Rows::All, width)
    }

    /// Records [`Op::Add`] of two values of one shape.
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.push_like(a, Op::Add(a, b))
    }

    /// Records [`Op::Subtract`] of two values of one shape.
    pub fn subtract(&mut self, a: Value, b: Value) -> Value {
        self.push_like(a, Op::Subtract(a, b))
    }

    /// Records [`Op::Linear`].
    pub fn linear(&mut self, x: Value, layer: Linear) -> Value {
        let (rows, width) = (self.node(x).rows, layer.outputs());
        self.push(Op::Linear { x, layer }, rows, width)
    }

    /// Records [`Op::Norm`].
    pub fn norm(&mut self, x: Value, layer: Norm) -> Value {
        self.push_like(x, Op::Norm { x, layer })
    }

    /// Records [`Op::Activate`].
    pub fn activate(&mut self, x: Value, activation: Activation) -> Value {
        self.push_like(x, Op::Activate { x, activation })
    }

    /// Records [`Op::Gate`] of two values of one shape.
    pub fn gate(&mut self, x: Value, gate: Value, activation: Activation) -> Value {
        let op = Op::Gate {
            x,
            gate,
            activation,
        };
        self.push_like(x, op)
    }

    /// Records [`Op::Experts`].
    pub fn experts(&mut self, x: Value, layer: Experts) -> Value {
        let layer = Box::new(layer);
        self.push_like(x, Op::Experts { x, layer })
    }

    /// Records [`Op::Attend`]: the heads of each token side by side, `heads · head_dim` wide.
    pub fn attend(&mut self, x: Value, projections: Projections, attention: Attention) -> Value {
        let width = attention.heads * attention.head_dim;
        let op = Op::Attend {
            x,
            projections: Box::new(projections),
            attention: Box::new(attention),
        };
        self.push(op, Rows::All, width)
    }

    /// The graph with its result pooled to one row per text, reduced to what that needs. If a pooling takes one token, the
    /// last layer computes only the keys and values of the others.
    #[must_use]
    pub fn pooled(&self, poolings: &[Pooling]) -> Self {
        let mut pooled = prune::pooled(self, poolings);
        pooled.pooled_at = Some(pooled.nodes.len());
        pooled
    }

    /// The operations of the encoder and its pooling, without those that were recorded after [`Graph::pooled`].
    #[must_use]
    pub fn encoder(&self) -> &[Node] {
        &self.nodes[..self.pooled_at.unwrap_or(self.nodes.len())]
    }

    /// The graph for pairs of texts, whose tokens have types where a table has more than one.
    #[must_use]
    pub fn of_pairs(mut self) -> Self {
        for node in &mut self.nodes {
            if let Op::Embed(EmbeddingTables {
                token_types: Some(types),
                ..
            }) = &mut node.op
            {
                types.vary = types.table.shape[0] > 1;
            }
        }
        self
    }

    /// Whether it computes from the types of tokens, beside their ids.
    #[must_use]
    pub fn takes_token_types(&self) -> bool {
        self.nodes.iter().any(|node| match &node.op {
            Op::Embed(embeddings) => {
                (embeddings.token_types.as_ref()).is_some_and(|types| types.vary)
            }
            _ => false,
        })
    }

    /// The longest text that its tables of positions have rows for, in tokens; `None` where it has none.
    #[must_use]
    pub fn longest_text(&self) -> Option<usize> {
        let tables = self.nodes.iter().filter_map(|node| match &node.op {
            Op::Embed(embeddings) => embeddings.positions.as_ref(),
            _ => None,
        });
        tables.map(Positions::longest).min()
    }

    /// The attentions, in their order.
    pub fn attentions(&self) -> impl Iterator<Item = &Attention> {
        self.nodes.iter().filter_map(|node| match &node.op {
            Op::Attend { attention, .. } => Some(&**attention),
            _ => None,
        })
    }

    /// The dynamic scalings of rotations, without repetitions.
    #[must_use]
    pub fn scalings(&self) -> Vec<NtkScaling> {
        let mut scalings = Vec::new();
        for scaling in self.attentions().filter_map(|one| one.rotary?.scaling) {
            if !scalings.contains(&scaling) {
                scalings.push(scaling);
            }
        }
        scalings
    }

    /// Bytes of activations per token in float32, an upper estimate: states in and out of a layer, q, k and v, and the
    /// wide part of the feed-forward, with their temporaries; of attention to a window, its scores and copies.
    #[must_use]
    pub fn token_bytes(&self) -> usize {
        // What follows the pooling has one row per text.
        let most = |width: fn(&Node) -> usize| self.encoder().iter().map(width).max().unwrap_or(0);
        let states = most(|node| match node.op {
            Op::Embed(_) => node.width,
            _ => 0,
        });
        let widest = most(|node| match &node.op {
            Op::Linear { .. } => node.width,
            Op::Experts { layer, .. } => layer.chosen * layer.inner(),
            _ => 0,
        });
        let windows = self.attentions().map(|attention| match attention.mask {
            Mask::Window(reach) => attention.heads * (9 * reach + 8 * attention.head_dim),
            _ => 0,
        });
        (8 * states + 4 * widest + windows.max().unwrap_or(0)) * size_of::<f32>()
    }

    /// Bytes of attention scores per pair of tokens in float32, where those of all heads are kept.
    #[must_use]
    pub fn score_bytes(&self) -> usize {
        Self::bytes_of_scores(self.attentions())
    }

    /// [`Self::score_bytes`] where they are kept only if something other than a causal mask is added to them.
    #[must_use]
    pub fn masked_score_bytes(&self) -> usize {
        let attentions = self.attentions();
        let is_kept = |one: &&Attention| !matches!(one.mask, Mask::None | Mask::Causal);
        Self::bytes_of_scores(attentions.filter(is_kept))
    }

    fn bytes_of_scores<'a>(attentions: impl Iterator<Item = &'a Attention>) -> usize {
        let of_pairs = attentions.filter(|one| !matches!(one.mask, Mask::Window(_)));
        let heads = of_pairs.map(|attention| attention.heads).max();
        heads.unwrap_or(0) * size_of::<f32>()
    }
}
