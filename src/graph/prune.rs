//! Pooling, and removal of what pooled vectors do not need.
//!
//! Going backwards from the result, this finds which rows of each value are used. Most operations use the same rows of their
//! operands that they compute themselves; an attention uses all rows of its input, but can compute its result for first
//! tokens only. What is not used is dropped.

use super::{Graph, Mask, Node, Op, Pooling, Rows, Value};

pub fn pooled(graph: &Graph, poolings: &[Pooling]) -> Graph {
    match poolings {
        [Pooling::Cls] => needed_for(graph, Rows::First),
        [Pooling::LastToken] => needed_for(graph, Rows::Last),
        _ => {
            let mut pooled = graph.clone();
            let op = Op::Pool {
                x: graph.result(),
                poolings: poolings.to_vec(),
            };
            pooled.push(op, Rows::First, graph.width() * poolings.len());
            needed_for(&pooled, Rows::First)
        }
    }
}

/// The part of the graph that the given rows of its result need.
fn needed_for(graph: &Graph, rows: Rows) -> Graph {
    let mut wanted: Vec<Option<Rows>> = vec![None; graph.nodes.len()];
    wanted[graph.result().0] = Some(rows);
    for (index, node) in graph.nodes.iter().enumerate().rev() {
        let Some(rows) = computed(node, wanted[index]) else {
            continue;
        };
        for Value(operand) in node.op.operands() {
            let rows = taken(&node.op, rows);
            wanted[operand] = match wanted[operand] {
                Some(others) if others != rows => Some(Rows::All),
                _ => Some(rows),
            };
        }
    }

    let mut pruned = Graph {
        nodes: Vec::new(),
        ..*graph
    };
    // For each value, its place in the new graph, and the places of its selected rows.
    let mut places: Vec<Option<Value>> = vec![None; graph.nodes.len()];
    let mut selections: Vec<(Value, Rows, Value)> = Vec::new();
    let mut select = |pruned: &mut Graph, x: Value, rows: Rows| {
        let made = pruned.node(x).rows;
        if made == rows || made != Rows::All {
            return x;
        }
        let known = selections.iter().find(|one| (one.0, one.1) == (x, rows));
        if let Some(&(_, _, selected)) = known {
            return selected;
        }
        let selected = pruned.push(Op::Select { x, rows }, rows, pruned.node(x).width);
        selections.push((x, rows, selected));
        selected
    };
    for (index, node) in graph.nodes.iter().enumerate() {
        let Some(rows) = computed(node, wanted[index]) else {
            continue;
        };
        let mut op = node.op.clone();
        for operand in op.operands_mut() {
            let place = places[operand.0].expect("wanted by this operation, which comes later");
            *operand = select(&mut pruned, place, taken(&node.op, rows));
        }
        places[index] = Some(pruned.push(op, rows, node.width));
    }
    let result = pruned.result();
    select(&mut pruned, result, rows);
    pruned
}

/// The rows that an operation has to compute if these are wanted; `None` if none are.
fn computed(node: &Node, wanted: Option<Rows>) -> Option<Rows> {
    let wanted = wanted?;
    Some(match &node.op {
        Op::Embed(_) => Rows::All,
        // The position of the last token depends on the text's length, and so would its rotation.
        Op::Attend { .. } if wanted == Rows::Last => Rows::All,
        // A first token that sees only itself says nothing about a text: no model pools it.
        Op::Attend { attention, .. } if matches!(attention.mask, Mask::Causal) => Rows::All,
        Op::Select { .. } | Op::Pool { .. } => node.rows,
        _ => wanted,
    })
}

/// The rows of its operands that an operation needs to compute these.
fn taken(op: &Op, rows: Rows) -> Rows {
    match op {
        Op::Attend { .. } | Op::Select { .. } | Op::Pool { .. } => Rows::All,
        _ => rows,
    }
}
