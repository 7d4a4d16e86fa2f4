//! A graph as the steps that compute it, each with its weights, packed. A product is one step with what follows it: an
//! activation, a gate or a residual; q, k and v are one product, and so are a gate and what it scales.

use super::kernels::Format;
use super::level::Level;
use super::matrix::{Arithmetic, Columns, Matrix};
use super::team::Team;
use super::wide::{self, Then};
use crate::checkpoint::{Checkpoint, TensorSlice};
use crate::error::Result;
use crate::graph::{
    self, Activation, Attention, EmbeddingTables, Graph, Linear, Mask, Node, NormKind, Op, Pooling,
    Projections, Rows, Value,
};

/// What is computed.
pub enum Operation {
    Embed(EmbeddingTables),
    /// The first value and the second, multiplied by this.
    Combine(f32),
    /// Of the first value; with [`Then::Add`] added to the second.
    Product(Matrix, Then),
    Norm(Norm),
    Activate(Activation),
    Gate(Activation),
    Experts(Box<Experts>),
    Attend(Box<SelfAttention>),
    Select(Rows),
    Pool(Vec<Pooling>),
}

/// An operation, the values that it takes, and the one that it makes.
pub struct Step {
    pub operation: Operation,
    pub takes: Vec<Value>,
    /// Those of them that no later step takes.
    pub frees: Vec<Value>,
    pub makes: usize,
    pub rows: Rows,
    pub width: usize,
}

/// Scale and shift.
pub struct Norm {
    pub kind: NormKind,
    pub scale: Vec<f32>,
    pub shift: Option<Vec<f32>>,
    pub epsilon: f32,
}

impl Norm {
    /// Normalizes every run of as many numbers as there are scales.
    pub fn apply(&self, level: Level, x: &mut [f32]) {
        wide::norm(
            level,
            self.kind,
            x,
            &self.scale,
            self.shift.as_deref(),
            self.epsilon,
        );
    }
}

/// A feed-forward of experts; each has a matrix.
pub struct Experts {
    pub router: Matrix,
    pub up: Vec<Matrix>,
    pub down: Vec<Matrix>,
    pub bias: Vec<f32>,
    pub chosen: usize,
    pub inner: usize,
    /// Between up and down.
    pub activation: Activation,
}

/// How numbers are multiplied.
#[derive(Clone, Copy)]
pub struct Formats {
    /// In linear layers of the encoder.
    pub layers: Arithmetic,
    /// In float32.
    pub exact: Arithmetic,
    /// In attention, where there are no weights that could be quantized once: with int8 layers bfloat16, if the processor has
    /// instructions for it.
    pub attention: Arithmetic,
}

impl Formats {
    /// For layers of this format; `None` if the processor has no instructions for it.
    pub fn of(format: Format, level: Level) -> Option<Self> {
        let layers = Arithmetic::of(format, level)?;
        let exact = Arithmetic::of(Format::F32, level)?;
        let half = Arithmetic::of(Format::BF16, level).filter(|_| format != Format::F32);
        let attention = half.unwrap_or(exact);
        Some(Self {
            layers,
            exact,
            attention,
        })
    }
}

/// The weights and settings of an attention.
pub struct SelfAttention {
    pub projections: FusedProjections,
    /// Of queries and of keys.
    pub norms: Option<[Norm; 2]>,
    /// The table of a bias by distance, `[buckets, heads]`.
    pub bias: Vec<f32>,
    pub settings: Attention,
    /// How scores and values are multiplied.
    pub arithmetic: Arithmetic,
}

/// The projections of an attention, joined.
pub enum FusedProjections {
    /// q|k|v of all tokens.
    All(Matrix),
    /// q of the first token, k|v of all.
    First(Matrix, Matrix),
}

/// Turns a graph into steps.
///
/// # Errors
/// There is no memory for the packed weights.
pub fn of(
    graph: &Graph,
    checkpoint: &Checkpoint,
    formats: Formats,
    team: &Team,
) -> Result<Vec<Step>> {
    let mut users = vec![Vec::new(); graph.nodes().len()];
    for (index, node) in graph.nodes().iter().enumerate() {
        for operand in node.op.operands() {
            users[operand.index()].push(index);
        }
    }
    let mut planner = Planner {
        graph,
        users,
        loader: Loader {
            checkpoint,
            team,
            formats,
        },
    };
    let mut steps = Vec::new();
    for (index, node) in graph.nodes().iter().enumerate() {
        if index == graph.encoder().len() {
            // Few rows and small layers, whose rounding is seen directly.
            planner.loader.formats.layers = formats.exact;
        }
        steps.extend(planner.step(index, node)?);
    }
    let mut is_taken = vec![false; graph.nodes().len()];
    for step in steps.iter_mut().rev() {
        for value in &step.takes {
            if !std::mem::replace(&mut is_taken[value.index()], true) {
                step.frees.push(*value);
            }
        }
    }
    Ok(steps)
}

struct Planner<'a> {
    graph: &'a Graph,
    /// The operations that take each value.
    users: Vec<Vec<usize>>,
    loader: Loader<'a>,
}

impl Planner<'_> {
    /// The step that makes this value; `None` if it is part of a later one.
    fn step(&self, index: usize, node: &Node) -> Result<Option<Step>> {
        let loader = &self.loader;
        let takes: Vec<Value> = node.op.operands().collect();
        let (operation, takes) = match &node.op {
            Op::Linear { .. } if self.is_fused(index) => return Ok(None),
            Op::Linear { layer, .. } => (
                Operation::Product(loader.matrix(&[layer], false)?, Then::Store),
                takes,
            ),
            Op::Activate { x, activation } => match self.fused(*x, index) {
                Some((x, layer)) => {
                    let then = Then::Activate(*activation);
                    (
                        Operation::Product(loader.matrix(&[layer], false)?, then),
                        vec![x],
                    )
                }
                None => (Operation::Activate(*activation), takes),
            },
            Op::Gate {
                x,
                gate,
                activation,
            } => match (self.fused(*x, index), self.fused(*gate, index)) {
                (Some((x, layer)), Some((_, gate))) => {
                    let matrix = loader.matrix(&[layer, gate], true)?;
                    (Operation::Product(matrix, Then::Gate(*activation)), vec![x])
                }
                _ => (Operation::Gate(*activation), takes),
            },
            Op::Add(a, b) => {
                let fused = self.fused(*b, index).map(|fused| (fused, a));
                match fused.or_else(|| self.fused(*a, index).map(|fused| (fused, b))) {
                    Some(((x, layer), other)) => {
                        let matrix = loader.matrix(&[layer], false)?;
                        (Operation::Product(matrix, Then::Add), vec![x, *other])
                    }
                    None => (Operation::Combine(1.0), takes),
                }
            }
            Op::Subtract(..) => (Operation::Combine(-1.0), takes),
            Op::Embed(tables) => (Operation::Embed(tables.clone()), takes),
            Op::Norm { layer, .. } => (Operation::Norm(loader.norm(layer)?), takes),
            Op::Experts { layer, .. } => {
                (Operation::Experts(Box::new(loader.experts(layer)?)), takes)
            }
            Op::Attend {
                projections,
                attention,
                ..
            } => {
                let attention = loader.attention(projections, attention, node.rows)?;
                (Operation::Attend(Box::new(attention)), takes)
            }
            Op::Select { rows, .. } => (Operation::Select(*rows), takes),
            Op::Pool { poolings, .. } => (Operation::Pool(poolings.clone()), takes),
        };
        Ok(Some(Step {
            operation,
            takes,
            frees: Vec::new(),
            makes: index,
            rows: node.rows,
            width: node.width,
        }))
    }

    /// Whether the step of the only operation that takes this layer's result computes the layer, too.
    fn is_fused(&self, layer: usize) -> bool {
        let &[user] = &self.users[layer][..] else {
            return false;
        };
        match self.graph.nodes()[user].op {
            Op::Activate { .. } => true,
            Op::Gate { x, gate, .. } => {
                self.fused(x, user).is_some() && self.fused(gate, user).is_some()
            }
            // Of two layers, the second.
            Op::Add(a, b) => {
                b.index() == layer || (a.index() == layer && self.fused(b, user).is_none())
            }
            _ => false,
        }
    }

    /// What a layer is applied to, and the layer, if only `user` takes its result. A gate needs two layers of one input.
    fn fused(&self, value: Value, user: usize) -> Option<(Value, &Linear)> {
        let of = |value: Value| match &self.graph.node(value).op {
            Op::Linear { x, layer } if self.users[value.index()] == [user] => Some((*x, layer)),
            _ => None,
        };
        let (input, layer) = of(value)?;
        if let Op::Gate { x, gate, .. } = self.graph.nodes()[user].op {
            let inputs = [of(x)?.0, of(gate)?.0];
            return (inputs[0] == inputs[1]).then_some((input, layer));
        }
        Some((input, layer))
    }
}

/// Of as many products of bytes, int32 holds the sum: 255 · 127 · 65536 < 2³¹.
const MOST_INT8_DEPTH: usize = 65_536;

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    team: &'a Team,
    formats: Formats,
}

impl Loader<'_> {
    fn floats(&self, tensor: &TensorSlice) -> Result<Vec<f32>> {
        Ok(self.checkpoint.floats(tensor)?.into_owned())
    }

    fn matrix(&self, layers: &[&Linear], alternating: bool) -> Result<Matrix> {
        let depth = layers[0].weight.shape[1];
        let weights = layers
            .iter()
            .map(|layer| self.checkpoint.floats(&layer.weight));
        let weights = weights.collect::<Result<Vec<_>>>()?;
        let biases = layers.iter().map(|layer| {
            layer
                .bias
                .as_ref()
                .map(|bias| self.floats(bias))
                .transpose()
        });
        let biases = biases.collect::<Result<Vec<_>>>()?;
        let rows = weights.iter().map(|weights| {
            move |output: usize, row: &mut [f32]| {
                row.copy_from_slice(&weights[output * depth..][..depth]);
            }
        });
        let rows: Vec<_> = rows.collect();
        let columns = layers
            .iter()
            .zip(&rows)
            .zip(&biases)
            .map(|((layer, rows), bias)| Columns {
                outputs: layer.outputs(),
                weights: rows,
                bias: bias.as_deref(),
            });
        let columns: Vec<_> = columns.collect();
        let Formats {
            layers: usual,
            exact,
            ..
        } = self.formats;
        let is_too_deep = usual.kernel.format == Format::Int8 && depth > MOST_INT8_DEPTH;
        let arithmetic = if is_too_deep { exact } else { usual };
        Matrix::pack(arithmetic, depth, &columns, alternating, self.team)
    }

    fn norm(&self, norm: &graph::Norm) -> Result<Norm> {
        let mut scale = self.floats(&norm.weight)?;
        if norm.kind == (NormKind::RootMeanSquare { one_more: true }) {
            for scale in &mut scale {
                *scale += 1.0;
            }
        }
        let shift = norm.bias.as_ref().map(|shift| self.floats(shift));
        Ok(Norm {
            kind: norm.kind,
            scale,
            shift: shift.transpose()?,
            epsilon: norm.epsilon,
        })
    }

    /// A rounding in the router may choose other experts: it stays in float32. So do the experts of int8, which lose too much.
    fn experts(&self, layer: &graph::Experts) -> Result<Experts> {
        let (count, inner, width) = (layer.count(), layer.inner(), layer.router.shape[1]);
        let Formats { layers, exact, .. } = self.formats;
        let of_experts = if layers.kernel.format == Format::Int8 {
            exact
        } else {
            layers
        };
        let pack = |arithmetic, outputs, depth, weights: &(dyn Fn(usize, &mut [f32]) + Sync)| {
            let columns = Columns {
                outputs,
                weights,
                bias: None,
            };
            Matrix::pack(arithmetic, depth, &[columns], false, self.team)
        };
        let of_expert = |tensor: &TensorSlice, transposed: bool| {
            let weights = self.checkpoint.floats(tensor)?;
            let matrices = (0..count).map(|expert| {
                let weights = &weights[expert * inner * width..][..inner * width];
                if transposed {
                    return pack(of_experts, width, inner, &|output, row: &mut [f32]| {
                        for (row, weights) in row.iter_mut().zip(weights.chunks_exact(width)) {
                            *row = weights[output];
                        }
                    });
                }
                pack(of_experts, inner, width, &|output, row: &mut [f32]| {
                    row.copy_from_slice(&weights[output * width..][..width]);
                })
            });
            matrices.collect::<Result<Vec<_>>>()
        };
        let router = self.checkpoint.floats(&layer.router)?;
        Ok(Experts {
            router: pack(exact, count, width, &|output, row: &mut [f32]| {
                row.copy_from_slice(&router[output * width..][..width]);
            })?,
            up: of_expert(&layer.up, false)?,
            down: of_expert(&layer.down, true)?,
            bias: self.floats(&layer.bias)?,
            chosen: layer.chosen,
            inner,
            activation: layer.activation,
        })
    }

    fn attention(
        &self,
        projections: &Projections,
        attention: &Attention,
        rows: Rows,
    ) -> Result<SelfAttention> {
        let Projections {
            query,
            key,
            value,
            norms,
        } = projections;
        let norms = match norms {
            Some([query, key]) => Some([self.norm(query)?, self.norm(key)?]),
            None => None,
        };
        let bias = match &attention.mask {
            Mask::Relative(bias) => self.floats(&bias.table)?,
            _ => Vec::new(),
        };
        Ok(SelfAttention {
            projections: if rows == Rows::All {
                FusedProjections::All(self.matrix(&[query, key, value], false)?)
            } else {
                FusedProjections::First(
                    self.matrix(&[query], false)?,
                    self.matrix(&[key, value], false)?,
                )
            },
            norms,
            bias,
            settings: attention.clone(),
            arithmetic: self.formats.attention,
        })
    }
}
