//! The parts of a graph's operations: layers with their weights, and settings of those without weights.

use std::sync::Arc;

use crate::checkpoint::TensorSlice;

/// A fully connected layer, `x · weightᵀ + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`, as checkpoints store it.
    pub weight: TensorSlice,
    /// `[out]`.
    pub bias: Option<TensorSlice>,
}

impl Linear {
    /// One of `parts` equal groups of outputs: the q, k or v of a fused projection.
    #[must_use]
    pub fn part(&self, index: usize, parts: usize) -> Self {
        Self {
            weight: self.weight.part(index, parts),
            bias: self.bias.as_ref().map(|bias| bias.part(index, parts)),
        }
    }

    /// Width of the result.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.weight.shape[0]
    }
}

/// Normalization of every run of as many numbers as there are weights: of whole rows, or of each head in a row.
#[derive(Debug, Clone)]
pub struct Norm {
    /// How numbers are normalized.
    pub kind: NormKind,
    /// Scale, `[width]`.
    pub weight: TensorSlice,
    /// Shift, `[width]`.
    pub bias: Option<TensorSlice>,
    /// Added to the variance, or to the mean square.
    pub epsilon: f32,
}

impl Norm {
    /// How many numbers are normalized together.
    #[must_use]
    pub fn width(&self) -> usize {
        self.weight.shape[0]
    }
}

/// What is divided by what, before scale and shift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `LayerNorm`: the distance to the mean by the standard deviation.
    Layer,
    /// `RMSNorm`: by the root mean square. There is no shift.
    RootMeanSquare {
        /// Whether the scale is one more than the weight, as in Gemma.
        one_more: bool,
    },
}

/// What is summed into a token's first hidden state.
#[derive(Debug, Clone)]
pub struct EmbeddingTables {
    /// `[rows, width]`: a row for each token id, unless `rows` says which.
    pub words: TensorSlice,
    /// What rows of `words` are multiplied by.
    pub word_scale: Option<f32>,
    /// `[vocabulary]`: the row of `words` for each token id. Plain numbers, which are no weights and always exact.
    pub rows: Option<Arc<[u32]>>,
    /// `[vocabulary]`: what the row is multiplied by for each token id.
    pub factors: Option<Arc<[f32]>>,
    /// A row for each place in a text.
    pub positions: Option<Positions>,
    /// A row for each type of token.
    pub token_types: Option<TokenTypes>,
}

/// A table of token types.
#[derive(Debug, Clone)]
pub struct TokenTypes {
    /// `[types, width]`
    pub table: TensorSlice,
    /// Whether tokens have types of their own: 0 in the first text of a pair, 1 in the second. Otherwise every token has
    /// type 0.
    pub vary: bool,
}

impl TokenTypes {
    /// `[1, width]`: what is added to every token if types do not vary.
    #[must_use]
    pub fn first_row(&self) -> TensorSlice {
        self.table.part(0, self.table.shape[0])
    }
}

impl EmbeddingTables {
    /// A row for each token id, and nothing else.
    #[must_use]
    pub const fn of(words: TensorSlice) -> Self {
        Self {
            words,
            word_scale: None,
            rows: None,
            factors: None,
            positions: None,
            token_types: None,
        }
    }
}

/// A table of positions.
#[derive(Debug, Clone)]
pub struct Positions {
    /// `[rows, width]`
    pub table: TensorSlice,
    /// Which row a token takes.
    pub numbering: Numbering,
}

impl Positions {
    /// The longest text that the table has rows for, in tokens.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.table.shape[0] - self.numbering.first_row()
    }
}

/// Which row of a table of positions a token takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbering {
    /// Row `i` for the token at index `i`.
    Index,
    /// Row `padding + n` for the `n`-th token whose id is not `padding`, counted from 1, and row `padding` for those whose
    /// id it is, wherever they stand. Source: `create_position_ids_from_input_ids` in `transformers`,
    /// `models/roberta/modeling_roberta.py`.
    NotPadding {
        /// The id of the padding token.
        padding: usize,
    },
}

impl Numbering {
    /// The row of the first token of a text.
    #[must_use]
    pub const fn first_row(self) -> usize {
        match self {
            Self::Index => 0,
            Self::NotPadding { padding } => padding + 1,
        }
    }

    /// The row of each token of a text.
    pub fn rows(self, ids: &[u32]) -> impl Iterator<Item = usize> {
        let mut before = self.first_row();
        ids.iter().enumerate().map(move |(index, &id)| match self {
            Self::Index => index,
            Self::NotPadding { padding } if id as usize == padding => padding,
            Self::NotPadding { .. } => {
                before += 1;
                before - 1
            }
        })
    }
}

/// Element-wise non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · Φ(x)` with the error function.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x · sigmoid(x)`.
    Silu,
    /// `tanh(x)`.
    Tanh,
}

/// Rotary position embedding of queries and keys, halves rotated (not interleaved).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Base of the geometric progression of wavelengths.
    pub base: f64,
    /// How many leading dimensions of a head are rotated. Even.
    pub dimensions: usize,
    /// What positions are divided by: 1 where they are taken as they are.
    pub position_divisor: f64,
    /// Dynamic NTK scaling beyond the trained length.
    pub scaling: Option<NtkScaling>,
}

impl Rotary {
    /// Of whole heads, without scaling.
    #[must_use]
    pub const fn plain(base: f64, head_dim: usize) -> Self {
        Self {
            base,
            dimensions: head_dim,
            position_divisor: 1.0,
            scaling: None,
        }
    }

    /// [`NtkScaling::base_growth`] for a text of this length, or 1.
    #[must_use]
    pub fn growth(&self, length: usize) -> f64 {
        self.scaling
            .map_or(1.0, |scaling| scaling.base_growth(length))
    }

    /// The angle between neighbouring positions, for each pair of dimensions: `base^(−2i/d) / position_divisor`, with the
    /// base of this [`Self::growth`].
    #[must_use]
    pub fn frequencies(&self, growth: f64) -> Vec<f32> {
        let dimensions = self.dimensions as f64;
        let base = self.base * growth.powf(dimensions / (dimensions - 2.0));
        let frequency =
            |i: usize| (base.powf(-2.0 * i as f64 / dimensions) / self.position_divisor) as f32;
        (0..self.dimensions / 2).map(frequency).collect()
    }
}

/// Dynamic NTK scaling: a text of `L > trained_positions` tokens is rotated with the base
/// `base · (factor · L / trained_positions − (factor − 1))^(d / (d − 2))`, `d` the rotated dimensions.
/// Source: `NomicBertDynamicNTKRotaryEmbedding` in `nomic-ai/nomic-bert-2048`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NtkScaling {
    /// `rotary_scaling_factor` of the configuration.
    pub factor: f64,
    /// `max_trained_positions` of the configuration.
    pub trained_positions: usize,
}

impl NtkScaling {
    /// The factor in parentheses, at least 1.
    #[must_use]
    pub fn base_growth(&self, length: usize) -> f64 {
        (self.factor * length as f64 / self.trained_positions as f64 - (self.factor - 1.0)).max(1.0)
    }
}

/// Settings of a self-attention.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Number of heads.
    pub heads: usize,
    /// Number of heads that keys and values have: each is for `heads / kv_heads` neighbouring heads of queries.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Rotation of queries and keys.
    pub rotary: Option<Rotary>,
    /// Which tokens see each other.
    pub mask: Mask,
}

impl Attention {
    /// One head of keys and values for each head, all tokens seeing each other, and scores divided by the square root of the
    /// width of a head.
    #[must_use]
    pub fn new(heads: usize, head_dim: usize) -> Self {
        Self {
            heads,
            kv_heads: heads,
            head_dim,
            scale: (head_dim as f32).sqrt().recip(),
            rotary: None,
            mask: Mask::None,
        }
    }
}

/// What is added to the scaled scores of a query and a key.
#[derive(Debug, Clone)]
pub enum Mask {
    /// Nothing: every token sees all tokens of its text.
    None,
    /// Minus infinity for the tokens behind the query.
    Causal,
    /// Minus infinity for tokens that are farther away than this, before or behind.
    Window(usize),
    /// A number of its own for each head and distance.
    Relative(RelativeBias),
    /// The distance, times [`alibi_slope`] of the head, subtracted.
    Alibi,
}

/// How much the score of a pair of tokens falls with each token between them: of this head among so many.
/// Source: Press et al., <https://arxiv.org/abs/2108.12409>, and `_get_alibi_head_slopes` in `jinaai/jina-bert-implementation`:
/// `2^(−8(i+1)/n)` for a power of two; otherwise those of the largest power of two below, then every other one of twice as
/// many.
#[must_use]
pub fn alibi_slope(head: usize, heads: usize) -> f64 {
    let of_power = |head: usize, heads: usize| (-8.0 * (head + 1) as f64 / heads as f64).exp2();
    let power = if heads.is_power_of_two() {
        heads
    } else {
        heads.next_power_of_two() / 2
    };
    if head < power {
        of_power(head, power)
    } else {
        of_power(2 * (head - power), 2 * power)
    }
}

/// A number that is added to the scores of a head for each pair of tokens, by the distance between them: that of the row
/// [`RelativeBias::bucket`] of a table. Source: `relative_position_bucket` in `transformers`,
/// `models/mpnet/modeling_mpnet.py`, which is T5's in both directions.
#[derive(Debug, Clone)]
pub struct RelativeBias {
    /// `[buckets, heads]`
    pub table: TensorSlice,
    /// From this distance on, all share the last bucket of their direction.
    pub most_distance: usize,
}

impl RelativeBias {
    /// The row for a key that comes `distance` tokens after the query, in front of it if negative: half of the rows are for
    /// each direction. The nearer half of these are for one distance each, the others for ranges that grow exponentially.
    #[must_use]
    pub fn bucket(&self, distance: i64) -> usize {
        Self::row(self.table.shape[0], self.most_distance, distance)
    }

    /// [`Self::bucket`] of a table with so many rows.
    #[must_use]
    pub fn row(rows: usize, most_distance: usize, distance: i64) -> usize {
        let of_direction = rows / 2;
        let first = if distance > 0 { of_direction } else { 0 };
        let distance = distance.unsigned_abs() as usize;
        let exact = of_direction / 2;
        if distance < exact {
            return first + distance;
        }
        // In float32, as the reference does it: what is rounded down depends on it.
        let growth = (distance as f32 / exact as f32).ln();
        let growth = growth / (most_distance as f32 / exact as f32).ln();
        let bucket = exact + (growth * (of_direction - exact) as f32) as usize;
        first + bucket.min(of_direction - 1)
    }
}

/// Query, key and value projections: `[heads · head_dim, width]`, keys and values `[kv_heads · head_dim, width]`.
#[derive(Debug, Clone)]
pub struct Projections {
    /// Makes the queries.
    pub query: Linear,
    /// Makes the keys.
    pub key: Linear,
    /// Makes the values.
    pub value: Linear,
    /// Applied to queries and to keys, before they are rotated: to whole rows or to each head, by its width.
    pub norms: Option<[Norm; 2]>,
}

impl Projections {
    /// The thirds of a fused layer, whose outputs are queries, keys and values in this order.
    #[must_use]
    pub fn of_fused(fused: &Linear) -> Self {
        Self {
            query: fused.part(0, 3),
            key: fused.part(1, 3),
            value: fused.part(2, 3),
            norms: None,
        }
    }
}

/// A feed-forward of several experts, of which a router chooses some for each row `x`: with `s` the softmax of `x · routerᵀ`,
/// the sum of `s[e] · activation(x · upᵀ) · down` over the experts `e` with the largest `s[e]`, plus `bias`. The chosen `s[e]`
/// do not add up to 1.
#[derive(Debug, Clone)]
pub struct Experts {
    /// `[experts, width]`
    pub router: TensorSlice,
    /// `[experts · inner, width]`, expert by expert.
    pub up: TensorSlice,
    /// `[experts · inner, width]`, expert by expert.
    pub down: TensorSlice,
    /// `[width]`
    pub bias: TensorSlice,
    /// How many experts a row is given to.
    pub chosen: usize,
    /// The function between `up` and `down`.
    pub activation: Activation,
}

impl Experts {
    /// How many experts there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.router.shape[0]
    }

    /// Numbers in a row between `up` and `down` of an expert.
    #[must_use]
    pub fn inner(&self) -> usize {
        self.up.shape[0] / self.count()
    }
}

/// How token states become one vector. All tokens count, special ones included.
/// Source: `sentence_transformers` 6.2, `modules/pooling.py`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The first token.
    Cls,
    /// Element-wise maximum.
    Max,
    /// Arithmetic mean.
    Mean,
    /// Sum divided by the square root of the number of tokens.
    MeanSqrtLength,
    /// Mean weighted by position, 1 for the first token.
    WeightedMean,
    /// The last token.
    LastToken,
}

impl Pooling {
    /// Every pooling, in the order in which several are concatenated.
    pub const ALL: [Self; 6] = [
        Self::Cls,
        Self::Max,
        Self::Mean,
        Self::MeanSqrtLength,
        Self::WeightedMean,
        Self::LastToken,
    ];

    /// The name that sentence-transformers uses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Max => "max",
            Self::Mean => "mean",
            Self::MeanSqrtLength => "mean_sqrt_len_tokens",
            Self::WeightedMean => "weightedmean",
            Self::LastToken => "lasttoken",
        }
    }

    /// What the states of the tokens of a text of this length are multiplied by before they are added up; of the maximum,
    /// which is no sum, nothing.
    #[must_use]
    pub fn weights(self, length: usize) -> Vec<f32> {
        let count = length as f64;
        let weight = |place: usize| match self {
            Self::Cls => f64::from(u8::from(place == 0)),
            Self::LastToken => f64::from(u8::from(place + 1 == length)),
            Self::Mean => count.recip(),
            Self::MeanSqrtLength => count.sqrt().recip(),
            Self::WeightedMean => (place + 1) as f64 / (count * (count + 1.0) / 2.0),
            Self::Max => 0.0,
        };
        (0..length).map(|place| weight(place) as f32).collect()
    }

    /// The pooling of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pooling| pooling.name() == name)
    }
}
