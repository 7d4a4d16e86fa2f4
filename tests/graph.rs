//! Recorded graphs against an interpreter in double precision that follows the definitions word by word. Graphs are
//! random, and not only those of an architecture: every layer may have settings of its own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod setup;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::TensorView;
use semantic_search_native::checkpoint::{Checkpoint, TensorSlice};
use semantic_search_native::graph::{
    Activation, Attention, EmbeddingTables, Experts, Graph, Linear, Mask, Norm, NormKind,
    NtkScaling, Numbering, Op, Pooling, Positions, Projections, RelativeBias, Rotary, Rows,
    TokenTypes, Value, alibi_slope,
};
use semantic_search_native::options::Options;
use semantic_search_native::runtime::stop::Stop;
use semantic_search_native::runtime::{self, Tokens};

const VOCABULARY: usize = 40;
const POSITIONS: usize = 32;

/// Tensors with random numbers, and the file that they are in.
struct Weights {
    random: StdRng,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Weights {
    fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            tensors: Vec::new(),
        }
    }

    /// Returns the name.
    fn add(&mut self, shape: &[usize], center: f32, spread: f32) -> String {
        let name = format!("tensor.{}", self.tensors.len());
        let count = shape.iter().product();
        let values = (0..count).map(|_| center + spread * self.random.random_range(-1.7..1.7_f32));
        let values = values.collect();
        self.tensors.push((name.clone(), shape.to_vec(), values));
        name
    }

    fn checkpoint(&self) -> Checkpoint {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let bytes: Vec<Vec<u8>> = self
            .tensors
            .iter()
            .map(|(_, _, values)| {
                values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect()
            })
            .collect();
        let views = self.tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
            let (name, shape, _) = tensor;
            let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
            (name.clone(), view)
        });
        let file = safetensors::serialize(views, None).unwrap();
        std::fs::write(&path, file).unwrap();
        // The runtime wants the path to exist. The folder is left to the operating system.
        let folder = folder.keep();
        Checkpoint::open(&folder, &[path]).unwrap()
    }
}

/// Sizes and settings of one layer.
#[derive(Debug, Clone)]
struct Layer {
    attention: Attention,
    inner: usize,
    activation: Activation,
    is_gated: bool,
    /// Experts take the place of the feed-forward: how many there are, and how many are chosen.
    experts: Option<(usize, usize)>,
    has_bias: bool,
    norms: NormKind,
    /// Of queries and keys: none, of each head, or of whole rows.
    query_norms: Option<QueryNorms>,
    /// A bias by distance takes the place of the mask: a quarter of its buckets, and the largest distance.
    relative_bias: Option<(usize, usize)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum QueryNorms {
    Heads,
    Rows,
}

#[derive(Debug, Clone)]
struct Encoder {
    width: usize,
    /// Whether tokens share rows of the table of words, each with a factor of its own.
    shares_rows: bool,
    numbering: Option<Numbering>,
    /// Rows of the table of token types.
    token_types: Option<usize>,
    /// Whether the texts are pairs.
    of_pairs: bool,
    word_scale: Option<f32>,
    layers: Vec<Layer>,
    poolings: Vec<Pooling>,
    lengths: Vec<usize>,
    seed: u64,
}

fn rotary() -> impl Strategy<Value = Rotary> {
    let scaling = prop::option::of((1.0..4.0_f64, 3..20_usize).prop_map(
        |(factor, trained_positions)| NtkScaling {
            factor,
            trained_positions,
        },
    ));
    (2.0..20_000.0_f64, 1..3_usize, 1.0..2.0_f64, scaling).prop_map(
        |(base, half, position_divisor, scaling)| Rotary {
            base,
            dimensions: 8 * half,
            position_divisor,
            scaling,
        },
    )
}

fn attention() -> impl Strategy<Value = Attention> {
    let mask = prop_oneof![
        2 => Just(Mask::None),
        1 => Just(Mask::Causal),
        2 => (1..9_usize).prop_map(Mask::Window),
        1 => Just(Mask::Alibi),
    ];
    let heads = (1..4_usize, 1..3_usize);
    (
        heads,
        2..4_usize,
        0.1..0.6_f32,
        prop::option::of(rotary()),
        mask,
    )
        .prop_map(
            |((kv_heads, times), eighths, scale, rotary, mask)| Attention {
                heads: kv_heads * times,
                kv_heads,
                head_dim: 8 * eighths,
                scale,
                rotary,
                mask,
            },
        )
}

fn norm_kind() -> impl Strategy<Value = NormKind> {
    prop::sample::select(vec![
        NormKind::Layer,
        NormKind::RootMeanSquare { one_more: false },
        NormKind::RootMeanSquare { one_more: true },
    ])
}

fn layer() -> impl Strategy<Value = Layer> {
    let activation = prop::sample::select(vec![
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
    ]);
    let query_norms = prop::sample::select(vec![QueryNorms::Heads, QueryNorms::Rows]);
    (
        attention(),
        1..40_usize,
        activation,
        any::<bool>(),
        prop::option::weighted(0.2, (1..4_usize, 0..3_usize)),
        any::<bool>(),
        norm_kind(),
        prop::option::of(query_norms),
        prop::option::weighted(0.2, (1..9_usize, 9..40_usize)),
    )
        .prop_map(
            |(
                attention,
                inner,
                activation,
                is_gated,
                experts,
                has_bias,
                norms,
                query_norms,
                relative_bias,
            )| {
                Layer {
                    attention,
                    inner,
                    activation,
                    is_gated,
                    experts: experts.map(|(chosen, others)| (chosen + others, chosen)),
                    has_bias,
                    norms,
                    query_norms,
                    relative_bias,
                }
            },
        )
}

fn encoder() -> impl Strategy<Value = Encoder> {
    let pooling = prop::sample::select(Pooling::ALL.to_vec());
    let numbering = prop_oneof![
        Just(Numbering::Index),
        (0..4_usize).prop_map(|padding| Numbering::NotPadding { padding }),
    ];
    (
        // Fewer numbers may all be close to 0, where a norm magnifies rounding.
        8..40_usize,
        any::<bool>(),
        prop::option::of(numbering),
        (prop::option::of(1..4_usize), any::<bool>()),
        prop::option::of(0.3..3.0_f32),
        prop::collection::vec(layer(), 0..4),
        prop::collection::vec(pooling, 1..3),
        prop::collection::vec(1..POSITIONS, 1..4),
        any::<u64>(),
    )
        .prop_map(
            |(
                width,
                shares_rows,
                numbering,
                (token_types, of_pairs),
                word_scale,
                layers,
                poolings,
                lengths,
                seed,
            )| {
                Encoder {
                    width,
                    shares_rows,
                    numbering,
                    token_types,
                    of_pairs,
                    word_scale,
                    layers,
                    poolings,
                    lengths,
                    seed,
                }
            },
        )
}

/// Records the encoder, its weights made up on the way: first to know their names, then with their places in the file.
fn record(encoder: &Encoder) -> (Graph, Checkpoint, Weights) {
    let mut weights = Weights::new(encoder.seed);
    build(encoder, &mut |shape, center, spread| {
        let name = weights.add(shape, center, spread);
        TensorSlice {
            name,
            file: 0,
            dtype: semantic_search_native::checkpoint::WeightType::F32,
            shape: shape.to_vec(),
            offset: 0,
        }
    });
    let checkpoint = weights.checkpoint();
    let mut count = 0;
    let graph = build(encoder, &mut |shape, _, _| {
        let tensor = checkpoint.tensor(&format!("tensor.{count}"), shape);
        count += 1;
        tensor.unwrap()
    });
    (graph, checkpoint, weights)
}

type Tensor<'a> = &'a mut dyn FnMut(&[usize], f32, f32) -> TensorSlice;

fn linear(tensor: Tensor, outputs: usize, inputs: usize, has_bias: bool) -> Linear {
    Linear {
        weight: tensor(&[outputs, inputs], 0.0, 1.2 / (inputs as f32).sqrt()),
        bias: has_bias.then(|| tensor(&[outputs], 0.0, 0.1)),
    }
}

/// A layer norm has a shift in half of the cases: where the width is even.
fn norm(tensor: Tensor, kind: NormKind, width: usize) -> Norm {
    let center = match kind {
        NormKind::RootMeanSquare { one_more: true } => 0.0,
        _ => 1.0,
    };
    let has_bias = kind == NormKind::Layer && width.is_multiple_of(2);
    Norm {
        kind,
        weight: tensor(&[width], center, 0.1),
        bias: has_bias.then(|| tensor(&[width], 0.0, 0.1)),
        epsilon: 1e-5,
    }
}

fn build(encoder: &Encoder, tensor: Tensor) -> Graph {
    let width = encoder.width;
    let mut graph = Graph::default();
    let embeddings = EmbeddingTables {
        words: tensor(&[VOCABULARY, width], 0.0, 1.0),
        word_scale: encoder.word_scale,
        rows: encoder
            .shares_rows
            .then(|| (0..VOCABULARY as u32).map(|id| id * id % 7).collect()),
        factors: encoder
            .shares_rows
            .then(|| (0..VOCABULARY).map(|id| 0.5 + id as f32 / 16.0).collect()),
        positions: encoder.numbering.map(|numbering| Positions {
            table: tensor(&[POSITIONS + numbering.first_row(), width], 0.0, 0.5),
            numbering,
        }),
        token_types: encoder.token_types.map(|types| TokenTypes {
            table: tensor(&[types, width], 0.2, 0.3),
            vary: false,
        }),
    };
    let embedded = graph.embed(embeddings);
    let mut x = graph.norm(embedded, norm(tensor, NormKind::Layer, width));
    for layer in &encoder.layers {
        let Layer {
            inner,
            activation,
            is_gated,
            experts,
            has_bias,
            norms,
            query_norms,
            relative_bias,
            ..
        } = *layer;
        let mut attention = layer.attention.clone();
        let head_dim = attention.head_dim;
        let [heads, kv] = [attention.heads, attention.kv_heads].map(|heads| heads * head_dim);
        let projections = Projections {
            query: linear(tensor, heads, width, has_bias),
            key: linear(tensor, kv, width, has_bias),
            value: linear(tensor, kv, width, has_bias),
            norms: query_norms.map(|run| {
                [heads, kv].map(|width| match run {
                    QueryNorms::Heads => norm(tensor, norms, head_dim),
                    QueryNorms::Rows => norm(tensor, norms, width),
                })
            }),
        };
        if let Some((quarter, most_distance)) = relative_bias {
            attention.mask = Mask::Relative(RelativeBias {
                table: tensor(&[4 * quarter, attention.heads], 0.0, 1.5),
                most_distance,
            });
        }
        let attended = graph.attend(x, projections, attention);
        let attended = graph.linear(attended, linear(tensor, width, heads, has_bias));
        let sum = graph.add(attended, x);
        x = graph.norm(sum, norm(tensor, norms, width));
        let output = if let Some((count, chosen)) = experts {
            let spread = 1.2 / (width as f32).sqrt();
            let layer = Experts {
                router: tensor(&[count, width], 0.0, spread),
                up: tensor(&[count * inner, width], 0.0, spread),
                down: tensor(&[count * inner, width], 0.0, 1.2 / (inner as f32).sqrt()),
                bias: tensor(&[width], 0.0, 0.1),
                chosen,
                activation,
            };
            graph.experts(x, layer)
        } else {
            let wide = graph.linear(x, linear(tensor, inner, width, has_bias));
            let wide = if is_gated {
                let gate = graph.linear(x, linear(tensor, inner, width, has_bias));
                graph.gate(wide, gate, activation)
            } else {
                graph.activate(wide, activation)
            };
            graph.linear(wide, linear(tensor, width, inner, has_bias))
        };
        let sum = graph.add(output, x);
        x = graph.norm(sum, norm(tensor, norms, width));
    }
    if encoder.of_pairs {
        graph.of_pairs()
    } else {
        graph
    }
}

/// Rows of numbers.
type Matrix = Vec<Vec<f64>>;

/// Computes a graph for one text.
struct Interpreter<'a> {
    tensors: HashMap<&'a str, &'a [f32]>,
    ids: &'a [u32],
    /// Where the tokens of type 1 begin.
    second: usize,
    /// By how much the last expert that was chosen came before the next one, where it was closest.
    margin: Cell<f64>,
}

impl<'a> Interpreter<'a> {
    fn new(weights: &'a Weights, ids: &'a [u32], second: usize) -> Self {
        let tensors = weights.tensors.iter();
        let tensors = tensors.map(|(name, _, values)| (name.as_str(), values.as_slice()));
        Self {
            tensors: tensors.collect(),
            ids,
            second,
            margin: Cell::new(f64::INFINITY),
        }
    }

    fn row(&self, tensor: &TensorSlice, index: usize) -> Vec<f64> {
        let width = *tensor.shape.last().unwrap();
        let values = &self.tensors[tensor.name.as_str()][index * width..][..width];
        values.iter().map(|&value| f64::from(value)).collect()
    }

    fn linear(&self, x: &Matrix, layer: &Linear) -> Matrix {
        let apply = |row: &Vec<f64>| {
            (0..layer.outputs())
                .map(|output| {
                    let bias = layer.bias.as_ref().map(|bias| self.row(bias, 0)[output]);
                    dot(row, &self.row(&layer.weight, output)) + bias.unwrap_or(0.0)
                })
                .collect()
        };
        x.iter().map(apply).collect()
    }

    fn run(&self, graph: &Graph) -> Matrix {
        let mut values: Vec<Matrix> = Vec::new();
        for node in graph.nodes() {
            let of = |value: &Value| &values[value.index()];
            let made = match &node.op {
                Op::Embed(embeddings) => (self.ids.iter().enumerate())
                    .map(|(index, &id)| {
                        let id = id as usize;
                        let place = embeddings
                            .rows
                            .as_ref()
                            .map_or(id, |rows| rows[id] as usize);
                        let factor = embeddings
                            .factors
                            .as_ref()
                            .map_or(1.0, |all| all[id].into());
                        let factor = factor * f64::from(embeddings.word_scale.unwrap_or(1.0));
                        let row = self.row(&embeddings.words, place);
                        let mut row: Vec<f64> = row.iter().map(|x| x * factor).collect();
                        if let Some(positions) = &embeddings.positions {
                            let position = match positions.numbering {
                                Numbering::Index => index,
                                Numbering::NotPadding { padding } if id == padding => padding,
                                Numbering::NotPadding { padding } => {
                                    let before = &self.ids[..=index];
                                    let number =
                                        before.iter().filter(|id| **id as usize != padding).count();
                                    padding + number
                                }
                            };
                            row = add(&row, &self.row(&positions.table, position));
                        }
                        if let Some(types) = &embeddings.token_types {
                            let own = usize::from(types.vary && index >= self.second);
                            row = add(&row, &self.row(&types.table, own));
                        }
                        row
                    })
                    .collect(),
                Op::Add(a, b) => of(a).iter().zip(of(b)).map(|(a, b)| add(a, b)).collect(),
                Op::Subtract(a, b) => {
                    let minus = map(of(b), |number| -number);
                    (of(a).iter().zip(&minus)).map(|(a, b)| add(a, b)).collect()
                }
                Op::Linear { x, layer } => self.linear(of(x), layer),
                Op::Norm { x, layer } => self.norm(of(x), layer),
                Op::Activate { x, activation } => {
                    map(of(x), |number| activated(number, *activation))
                }
                Op::Gate {
                    x,
                    gate,
                    activation,
                } => {
                    let gates = map(of(gate), |number| activated(number, *activation));
                    let multiply = |(a, b): (&Vec<f64>, &Vec<f64>)| {
                        a.iter().zip(b).map(|(a, b)| a * b).collect()
                    };
                    of(x).iter().zip(&gates).map(multiply).collect()
                }
                Op::Experts { x, layer } => self.experts(of(x), layer),
                Op::Attend {
                    x,
                    projections,
                    attention,
                } => selected(&self.attend(of(x), projections, attention), node.rows),
                Op::Select { x, rows } => selected(of(x), *rows),
                Op::Pool { x, poolings } => {
                    let states = of(x);
                    vec![
                        poolings
                            .iter()
                            .flat_map(|&one| pooled(states, one))
                            .collect(),
                    ]
                }
            };
            assert!(made.iter().all(|row| row.len() == node.width));
            values.push(made);
        }
        values.pop().unwrap()
    }

    fn experts(&self, x: &Matrix, layer: &Experts) -> Matrix {
        let (count, inner) = (layer.count(), layer.inner());
        let give = |row: &Vec<f64>| {
            let scores = (0..count).map(|expert| dot(row, &self.row(&layer.router, expert)).exp());
            let scores: Vec<f64> = scores.collect();
            let total: f64 = scores.iter().sum();
            let mut order: Vec<usize> = (0..count).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            if let Some(&next) = order.get(layer.chosen) {
                let margin = (scores[order[layer.chosen - 1]] - scores[next]) / total;
                self.margin.set(self.margin.get().min(margin));
            }
            let mut sum = self.row(&layer.bias, 0);
            for &expert in &order[..layer.chosen] {
                for index in expert * inner..(expert + 1) * inner {
                    let wide = activated(dot(row, &self.row(&layer.up, index)), layer.activation);
                    let down = self.row(&layer.down, index);
                    for (sum, down) in sum.iter_mut().zip(down) {
                        *sum += scores[expert] / total * wide * down;
                    }
                }
            }
            sum
        };
        x.iter().map(give).collect()
    }

    fn norm(&self, x: &Matrix, norm: &Norm) -> Matrix {
        let scale = self.row(&norm.weight, 0);
        let shift = match &norm.bias {
            Some(bias) => self.row(bias, 0),
            None => vec![0.0; scale.len()],
        };
        let normalize = |row: &Vec<f64>| {
            let runs = row.chunks_exact(norm.width());
            let normed = runs.map(|run| normalized(run, norm.kind, &scale, &shift, norm.epsilon));
            normed.collect::<Vec<_>>().concat()
        };
        x.iter().map(normalize).collect()
    }

    fn attend(&self, x: &Matrix, projections: &Projections, attention: &Attention) -> Matrix {
        let project = |layer| -> Matrix { self.linear(x, layer) };
        let mut query = project(&projections.query);
        let mut key = project(&projections.key);
        let value = project(&projections.value);
        if let Some([of_query, of_key]) = &projections.norms {
            query = self.norm(&query, of_query);
            key = self.norm(&key, of_key);
        }
        let &Attention {
            heads,
            kv_heads,
            head_dim,
            ..
        } = attention;
        if let Some(rotary) = attention.rotary {
            for states in [&mut query, &mut key] {
                for (position, row) in states.iter_mut().enumerate() {
                    for head in row.chunks_exact_mut(head_dim) {
                        rotate(&mut head[..rotary.dimensions], position, x.len(), &rotary);
                    }
                }
            }
        }
        let mut mixed = vec![vec![0.0; heads * head_dim]; x.len()];
        for number in 0..heads {
            let head = number * head_dim..(number + 1) * head_dim;
            let kv = number * kv_heads / heads;
            let kv = kv * head_dim..(kv + 1) * head_dim;
            for (token, row) in mixed.iter_mut().enumerate() {
                let asked = &query[token][head.clone()];
                let scores = key.iter().enumerate().map(|(other, key)| {
                    let score = dot(asked, &key[kv.clone()]) * f64::from(attention.scale);
                    let distance = other as i64 - token as i64;
                    score
                        + match &attention.mask {
                            Mask::Causal if distance > 0 => f64::NEG_INFINITY,
                            Mask::Window(reach) if distance.unsigned_abs() as usize > *reach => {
                                f64::NEG_INFINITY
                            }
                            Mask::None | Mask::Causal | Mask::Window(_) => 0.0,
                            Mask::Relative(bias) => {
                                self.row(&bias.table, bias.bucket(distance))[number]
                            }
                            Mask::Alibi => -alibi_slope(number, heads) * distance.abs() as f64,
                        }
                });
                let weights: Vec<f64> = scores.map(f64::exp).collect();
                let total: f64 = weights.iter().sum();
                for (weight, value) in weights.iter().zip(&value) {
                    for (sum, number) in row[head.clone()].iter_mut().zip(&value[kv.clone()]) {
                        *sum += weight / total * number;
                    }
                }
            }
        }
        mixed
    }
}

/// Halves are rotated: number `i` with number `i + dimensions / 2`.
fn rotate(head: &mut [f64], position: usize, length: usize, rotary: &Rotary) {
    let dimensions = rotary.dimensions as f64;
    let mut base = rotary.base;
    if let Some(NtkScaling {
        factor,
        trained_positions,
    }) = rotary.scaling
        && length > trained_positions
    {
        let longer = factor * length as f64 / trained_positions as f64 - (factor - 1.0);
        base *= longer.powf(dimensions / (dimensions - 2.0));
    }
    let half = rotary.dimensions / 2;
    for i in 0..half {
        let position = position as f64 / rotary.position_divisor;
        let angle = position * base.powf(-2.0 * i as f64 / dimensions);
        let (a, b) = (head[i], head[i + half]);
        head[i] = a * angle.cos() - b * angle.sin();
        head[i + half] = b * angle.cos() + a * angle.sin();
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn map(x: &Matrix, apply: impl Fn(f64) -> f64) -> Matrix {
    let apply = |row: &Vec<f64>| row.iter().map(|&number| apply(number)).collect();
    x.iter().map(apply).collect()
}

fn normalized(row: &[f64], kind: NormKind, scale: &[f64], shift: &[f64], epsilon: f32) -> Vec<f64> {
    let count = row.len() as f64;
    let (mean, more) = match kind {
        NormKind::Layer => (row.iter().sum::<f64>() / count, 0.0),
        NormKind::RootMeanSquare { one_more } => (0.0, if one_more { 1.0 } else { 0.0 }),
    };
    let variance = row
        .iter()
        .map(|number| (number - mean).powi(2))
        .sum::<f64>()
        / count;
    let deviation = (variance + f64::from(epsilon)).sqrt();
    let numbers = row.iter().zip(scale).zip(shift);
    numbers
        .map(|((number, scale), shift)| (number - mean) / deviation * (scale + more) + shift)
        .collect()
}

fn activated(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Gelu => x * (1.0 + erf(x / 2.0_f64.sqrt())) / 2.0,
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            x * (1.0 + inner.tanh()) / 2.0
        }
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
    }
}

/// The error function by its power series, which is exact enough where it is not 1 anyway.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let mut power = x;
    let mut sum = x;
    for n in 1..200_u32 {
        power *= -x * x / f64::from(n);
        sum += power / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn selected(x: &Matrix, rows: Rows) -> Matrix {
    match rows {
        Rows::All => x.clone(),
        Rows::First => vec![x[0].clone()],
        Rows::Last => vec![x[x.len() - 1].clone()],
    }
}

fn pooled(x: &Matrix, pooling: Pooling) -> Vec<f64> {
    let weighted = |weight: fn(usize) -> f64, total: f64| {
        let mut sum = vec![0.0; x[0].len()];
        for (token, row) in x.iter().enumerate() {
            for (sum, number) in sum.iter_mut().zip(row) {
                *sum += weight(token) * number / total;
            }
        }
        sum
    };
    let count = x.len();
    match pooling {
        Pooling::Cls => x[0].clone(),
        Pooling::LastToken => x[count - 1].clone(),
        Pooling::Max => (0..x[0].len())
            .map(|i| x.iter().map(|row| row[i]).fold(f64::NEG_INFINITY, f64::max))
            .collect(),
        Pooling::Mean => weighted(|_| 1.0, count as f64),
        Pooling::MeanSqrtLength => weighted(|_| 1.0, (count as f64).sqrt()),
        Pooling::WeightedMean => weighted(
            |token| (token + 1) as f64,
            (count * (count + 1)) as f64 / 2.0,
        ),
    }
}

/// The graph on every backend of this build against the interpreter, which computes it with all rows of every layer.
fn check(encoder: &Encoder) {
    let (graph, checkpoint, weights) = record(encoder);
    let pooled_graph = graph.pooled(&encoder.poolings);
    let folder = checkpoint.files()[0].path.parent().unwrap().to_owned();
    let checkpoint = Arc::new(checkpoint);
    let mut random = StdRng::seed_from_u64(encoder.seed ^ 1);
    let texts: Vec<Vec<u32>> = encoder
        .lengths
        .iter()
        .map(|&length| {
            let ids = (0..length).map(|_| random.random_range(0..VOCABULARY as u32));
            ids.collect()
        })
        .collect();
    // Where a second text begins, also behind the last token.
    let seconds = texts.iter().map(|ids| random.random_range(0..=ids.len()));
    let seconds: Vec<usize> = seconds.collect();
    let mut margin = f64::INFINITY;
    let expected: Vec<Vec<f64>> = texts
        .iter()
        .zip(&seconds)
        .map(|(ids, &second)| {
            let interpreter = Interpreter::new(&weights, ids, second);
            let states = interpreter.run(&graph);
            margin = margin.min(interpreter.margin.get());
            let vector: Vec<f64> = (encoder.poolings.iter())
                .flat_map(|&one| pooled(&states, one))
                .collect();
            // Leaving out what no vector needs changes none.
            let pruned = &interpreter.run(&pooled_graph)[0];
            assert!(vector.iter().zip(pruned).all(|(a, b)| (a - b).abs() < 1e-9));
            vector
        })
        .collect();
    // Rounding may choose another expert.
    let backends = if margin > 1e-4 { *setup::BACKENDS } else { &[] };
    for &backend in backends {
        let options = Options {
            ..setup::options_for(backend)
        };
        let (mut runtime, _) = runtime::load(&pooled_graph, &checkpoint, &options, 1).unwrap();
        let mut worker = runtime.workers.remove(0)().unwrap();
        let batch = texts.iter().zip(&seconds);
        let batch: Vec<Tokens> = batch.map(|(ids, &second)| Tokens { ids, second }).collect();
        let vectors = worker.forward(&batch, &Arc::new(Stop::new())).unwrap();
        for (text, (actual, expected)) in vectors
            .chunks_exact(pooled_graph.width())
            .zip(&expected)
            .enumerate()
        {
            let length = dot(expected, expected).sqrt();
            for (actual, expected) in actual.iter().zip(expected) {
                let difference = (f64::from(*actual) - expected).abs();
                assert!(
                    difference <= 2e-5 * length.max(1.0),
                    "{backend:?}, text {text}: {actual} instead of {expected} in {encoder:?}"
                );
            }
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn runtimes_compute_what_graphs_say(encoder in encoder()) {
        check(&encoder);
    }
}

/// Two layers whose rotations differ in everything: neither may take the other's angles.
#[test]
fn every_layer_has_its_own_rotation() {
    let layer = |base, dimensions, scaling| Layer {
        attention: Attention {
            rotary: Some(Rotary {
                base,
                dimensions,
                position_divisor: 1.0,
                scaling,
            }),
            ..Attention::new(2, 16)
        },
        inner: 24,
        activation: Activation::Silu,
        is_gated: true,
        experts: None,
        has_bias: false,
        norms: NormKind::Layer,
        query_norms: None,
        relative_bias: None,
    };
    let scaled = |factor, trained_positions| {
        Some(NtkScaling {
            factor,
            trained_positions,
        })
    };
    let pairs = [
        (layer(1000.0, 16, None), layer(10.0, 16, None)),
        (layer(1000.0, 16, None), layer(1000.0, 8, None)),
        (
            layer(1000.0, 16, scaled(2.0, 8)),
            layer(1000.0, 16, scaled(3.0, 5)),
        ),
        (layer(1000.0, 16, scaled(2.0, 8)), layer(1000.0, 16, None)),
    ];
    for (seed, (first, second)) in (0..).zip(pairs) {
        check(&Encoder {
            width: 32,
            shares_rows: false,
            numbering: None,
            token_types: None,
            of_pairs: false,
            word_scale: None,
            layers: vec![first, second],
            poolings: vec![Pooling::Mean],
            lengths: vec![3, 7, 20],
            seed,
        });
    }
}

/// Of a last layer the rows that a pooling takes are computed, and no others.
#[test]
fn a_pooling_of_one_token_prunes_the_last_layer() {
    let layer = Layer {
        attention: Attention::new(1, 16),
        inner: 8,
        activation: Activation::Gelu,
        is_gated: false,
        experts: None,
        has_bias: true,
        norms: NormKind::Layer,
        query_norms: None,
        relative_bias: None,
    };
    let encoder = Encoder {
        width: 16,
        shares_rows: false,
        numbering: Some(Numbering::Index),
        token_types: None,
        of_pairs: false,
        word_scale: None,
        layers: vec![layer.clone(), layer],
        poolings: vec![],
        lengths: vec![],
        seed: 1,
    };
    let (graph, ..) = record(&encoder);
    let counted = |poolings: &[Pooling]| {
        let pooled = graph.pooled(poolings);
        let of = |rows| {
            pooled
                .nodes()
                .iter()
                .filter(|node| node.rows == rows)
                .count()
        };
        [Rows::All, Rows::First, Rows::Last].map(of)
    };
    // Embeddings and a norm, then layers of attention, three linear ones, an activation, two sums and two norms.
    assert_eq!(counted(&[Pooling::Mean]), [2 + 9 + 9, 1, 0]);
    // The residual of the last attention is selected.
    assert_eq!(counted(&[Pooling::Cls]), [2 + 9, 9 + 1, 0]);
    // And so is the attention itself, since it computes all rows.
    assert_eq!(counted(&[Pooling::LastToken]), [2 + 9 + 1, 0, 8 + 2]);
    assert_eq!(
        counted(&[Pooling::Cls, Pooling::LastToken]),
        [2 + 9 + 9, 1, 0]
    );
}
