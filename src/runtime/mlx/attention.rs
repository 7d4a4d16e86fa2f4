//! Attention: projections, masks and windows.

use std::ops::Range;

use mlx_rs::error::Exception;
use mlx_rs::fast::{self, ScaledDotProductAttentionMask};
use mlx_rs::{Array, ops};

use super::forward::{Pass, affine, array, constant};
use super::parameters::{AttentionWeights, FusedProjections, NormWeights};
use super::{mlx_error, size};
use crate::error::{Error, Result};
use crate::graph::{Attention, Mask, Norm, Projections, RelativeBias, Rows, alibi_slope};

/// Queries, keys and values: `[batch, heads, length, head_dim]`.
type Heads = [Array; 3];

impl Pass<'_> {
    /// `[batch · tokens, heads · head_dim]`
    pub(super) fn attend(
        &mut self,
        x: &Array,
        projections: &Projections,
        attention: &Attention,
        weights: &AttentionWeights,
        rows: Rows,
    ) -> Result<Array> {
        let heads = self.project(x, projections, attention, weights)?;
        let mask = match &attention.mask {
            Mask::Causal => {
                // Padding comes after every token that counts.
                return mix(
                    &heads,
                    attention,
                    Some(ScaledDotProductAttentionMask::Causal),
                );
            }
            Mask::Window(reach) if rows == Rows::First => {
                return self.mix_near_first(heads, attention, size(*reach)?);
            }
            Mask::Window(reach) if size(*reach)? + 1 < self.batch.length => {
                return self.mix_in_window(heads, attention, *reach);
            }
            Mask::None | Mask::Window(_) => self.mask.clone(),
            Mask::Relative(bias) => {
                let table = weights.bias.as_ref();
                let table = table.ok_or_else(|| Error::inference("MLX has no table of a bias"))?;
                Some(self.relative_bias(bias, table, rows)?)
            }
            Mask::Alibi => Some(self.alibi(attention.heads, rows)?),
        };
        mix(&heads, attention, mask.as_ref().map(Into::into))
    }

    /// Queries, keys and values, normalized and rotated.
    fn project(
        &mut self,
        x: &Array,
        projections: &Projections,
        attention: &Attention,
        weights: &AttentionWeights,
    ) -> Result<Heads> {
        let Attention {
            heads,
            kv_heads,
            head_dim,
            ..
        } = *attention;
        let [heads, kv_heads, head_dim] = [size(heads)?, size(kv_heads)?, size(head_dim)?];
        let length = self.batch.length;
        let norms = projections.norms.as_ref().zip(weights.norms.as_ref());
        let (mut query, mut key, value) = match &weights.projections {
            FusedProjections::All(all) => {
                let joined = affine(x, all).map_err(mlx_error)?;
                if norms.is_none() {
                    let joined = self.to_heads(&joined, length, head_dim)?;
                    let Some(rotary) = &attention.rotary else {
                        return parts(&joined, 1, &[heads, heads + kv_heads]);
                    };
                    // One rotation for queries and keys together.
                    let [to_rotate, value] = parts(&joined, 1, &[heads + kv_heads])?;
                    let [query, key] = parts(&self.rotate(&to_rotate, rotary)?, 1, &[heads])?;
                    return Ok([query, key, value]);
                }
                let ends = [heads * head_dim, (heads + kv_heads) * head_dim];
                let [query, key, value] = parts(&joined, 1, &ends)?;
                (query, key, value)
            }
            FusedProjections::First(first, rest) => {
                let query = self.first_rows(x).and_then(|rows| affine(&rows, first));
                let rest = affine(x, rest).map_err(mlx_error)?;
                let [key, value] = parts(&rest, 1, &[kv_heads * head_dim])?;
                (query.map_err(mlx_error)?, key, value)
            }
        };
        if let Some(([of_query, of_key], [query_weights, key_weights])) = norms {
            query = self.norm_of_heads(&query, of_query, query_weights)?;
            key = self.norm_of_heads(&key, of_key, key_weights)?;
        }
        let is_first = matches!(weights.projections, FusedProjections::First(..));
        let queries = if is_first { 1 } else { length };
        query = self.to_heads(&query, queries, head_dim)?;
        key = self.to_heads(&key, length, head_dim)?;
        let value = self.to_heads(&value, length, head_dim)?;
        if let Some(rotary) = &attention.rotary {
            // A first token is at position 0, where the rotation is the identity.
            if !is_first {
                query = self.rotate(&query, rotary)?;
            }
            key = self.rotate(&key, rotary)?;
        }
        Ok([query, key, value])
    }

    /// Normalizes flat rows, or the heads that they consist of.
    fn norm_of_heads(&self, flat: &Array, norm: &Norm, weights: &NormWeights) -> Result<Array> {
        let runs = flat.reshape(&[-1, size(norm.width())?]);
        let normed = runs.and_then(|runs| self.norm(&runs, norm, weights));
        normed
            .and_then(|normed| normed.reshape(flat.shape()))
            .map_err(mlx_error)
    }

    /// `[batch · length, heads · head_dim]` → `[batch, heads, length, head_dim]`, a view.
    fn to_heads(&self, x: &Array, length: i32, head_dim: i32) -> Result<Array> {
        x.reshape(&[self.batch.texts, length, -1, head_dim])
            .and_then(|x| x.transpose_axes(&[0, 2, 1, 3]))
            .map_err(mlx_error)
    }

    /// The mask of this name, made once for a batch.
    fn shared_mask(
        &mut self,
        name: String,
        make: impl FnOnce(&Self) -> Result<Array>,
    ) -> Result<Array> {
        if let Some((_, known)) = self.masks.iter().find(|(known, _)| *known == name) {
            return Ok(known.clone());
        }
        let mask = make(self)?;
        self.masks.push((name, mask.clone()));
        Ok(mask)
    }

    /// What is added to the scores, minus infinity for padding: `[texts or 1, heads, queries, length]`.
    fn relative_bias(&mut self, bias: &RelativeBias, table: &Array, rows: Rows) -> Result<Array> {
        let name = format!("{} {rows:?}", bias.table.name);
        self.shared_mask(name, |pass| {
            let (queries, length) = pass.pairs(rows);
            let buckets = distances(queries, length).map(|distance| bias.bucket(distance) as u32);
            let buckets = array(&buckets.collect::<Vec<_>>(), &[queries, length])?;
            let biases = || -> Result<Array, Exception> {
                let biases = table.take_axis(&buckets, 0)?.transpose_axes(&[2, 0, 1])?;
                pass.without_padded_keys(&biases.reshape(&[1, -1, queries, length])?)
            };
            biases().map_err(mlx_error)
        })
    }

    /// The same for `ALiBi`.
    fn alibi(&mut self, heads: usize, rows: Rows) -> Result<Array> {
        self.shared_mask(format!("ALiBi {heads} {rows:?}"), |pass| {
            let (queries, length) = pass.pairs(rows);
            let distances = distances(queries, length).map(|distance| distance.abs() as f32);
            let distances = array(&distances.collect::<Vec<_>>(), &[queries, length])?;
            let slopes = (0..heads).map(|head| -alibi_slope(head, heads) as f32);
            let slopes = array(&slopes.collect::<Vec<_>>(), &[1, size(heads)?, 1, 1])?;
            ops::multiply(&slopes, &distances)
                .and_then(|biases| biases.as_dtype(pass.dtype()))
                .and_then(|biases| pass.without_padded_keys(&biases))
                .map_err(mlx_error)
        })
    }

    /// How many queries and keys there are.
    fn pairs(&self, rows: Rows) -> (i32, i32) {
        let length = self.batch.length;
        (if rows == Rows::All { length } else { 1 }, length)
    }

    fn without_padded_keys(&self, biases: &Array) -> Result<Array, Exception> {
        match &self.mask {
            Some(mask) => ops::select(mask, biases, constant(f32::NEG_INFINITY, biases.dtype())),
            None => Ok(biases.clone()),
        }
    }

    /// [`mix`] for first tokens, which see as many as `reach` behind themselves.
    fn mix_near_first(&self, heads: Heads, attention: &Attention, reach: i32) -> Result<Array> {
        let near = (reach + 1).min(self.batch.length);
        let [query, key, value] = heads;
        let heads = [query, leading(&key, 2, near)?, leading(&value, 2, near)?];
        let mask = self.mask.as_ref().map(|mask| leading(mask, 3, near));
        mix(
            &heads,
            attention,
            mask.transpose()?.as_ref().map(Into::into),
        )
    }

    /// [`mix`] with tokens at most `reach` away, in blocks of as many queries. Each sees the keys of its own block and of its
    /// neighbours, so that the cost is proportional to the length. A short text is one block without neighbours.
    fn mix_in_window(
        &mut self,
        heads: Heads,
        attention: &Attention,
        reach: usize,
    ) -> Result<Array> {
        let (texts, length) = (self.batch.texts, self.batch.length);
        let blocks = Blocks::of(length as usize, reach);
        let mask = self.shared_mask(format!("window {reach}"), |pass| {
            let whole = [length];
            let lengths = match &pass.batch.lengths[..] {
                [] => &whole,
                lengths => lengths,
            };
            let of_text = |&real: &i32| blocks.seen(reach as i64, i64::from(real));
            let seen: Vec<bool> = lengths.iter().flat_map(of_text).collect();
            let shape = [lengths.len(), blocks.count, 1, blocks.queries, blocks.keys];
            let shape = shape.map(|size| size as i32);
            let mask = array(&seen, &shape)?;
            let [_, rest @ ..] = shape;
            let every = [&[texts], &rest[..]].concat();
            let [count, one, queries, keys] = rest;
            ops::broadcast_to(&mask, &every)
                .and_then(|mask| mask.reshape(&[texts * count, one, queries, keys]))
                .map_err(mlx_error)
        })?;
        let count = size(blocks.count)?;
        let cut = |x: &Array, places: Vec<i32>| -> Result<Array> {
            let of_block = size(places.len() / blocks.count)?;
            let places = array(&places, &[size(places.len())?])?;
            let [_, heads, _, head_dim] = x.shape()[..] else {
                return Err(Error::inference("MLX was given heads of another shape"));
            };
            x.take_axis(&places, 2)
                .and_then(|x| x.reshape(&[texts, heads, count, of_block, head_dim]))
                .and_then(|x| x.transpose_axes(&[0, 2, 1, 3, 4]))
                .and_then(|x| x.reshape(&[texts * count, heads, of_block, head_dim]))
                .map_err(mlx_error)
        };
        let [query, key, value] = heads;
        let heads = [
            cut(&query, blocks.inside(|block| blocks.queries_of(block)))?,
            cut(&key, blocks.inside(|block| blocks.keys_of(block)))?,
            cut(&value, blocks.inside(|block| blocks.keys_of(block)))?,
        ];
        let mixed = mix(&heads, attention, Some((&mask).into()))?;
        let joined = mixed.reshape(&[texts, count * size(blocks.queries)?, -1]);
        let mixed = leading(&joined.map_err(mlx_error)?, 1, length)?;
        let width = size(attention.heads * attention.head_dim)?;
        mixed.reshape(&[-1, width]).map_err(mlx_error)
    }
}

/// How a text is cut for attention to a window.
struct Blocks {
    length: usize,
    count: usize,
    /// Queries of a block.
    queries: usize,
    /// Keys of a block.
    keys: usize,
}

impl Blocks {
    const fn of(length: usize, reach: usize) -> Self {
        if length <= 2 * reach {
            return Self {
                length,
                count: 1,
                queries: length,
                keys: length,
            };
        }
        Self {
            length,
            count: length.div_ceil(reach),
            queries: reach,
            keys: 3 * reach,
        }
    }

    /// Places of a block's queries; some may lie behind the text.
    fn queries_of(&self, block: usize) -> Range<i64> {
        let start = (block * self.queries) as i64;
        start..start + self.queries as i64
    }

    /// Places of the keys that it sees; some may lie before or behind the text.
    fn keys_of(&self, block: usize) -> Range<i64> {
        let margin = ((self.keys - self.queries) / 2) as i64;
        let Range { start, end } = self.queries_of(block);
        start - margin..end + margin
    }

    /// The places of all blocks, those beyond the text replaced by its ends.
    fn inside(&self, of_block: impl Fn(usize) -> Range<i64>) -> Vec<i32> {
        let last = self.length as i64 - 1;
        let places = (0..self.count).flat_map(of_block);
        places.map(|place| place.clamp(0, last) as i32).collect()
    }

    /// Which keys each query of each block sees, `[count, queries, keys]`, of a text with so many real tokens. Each sees
    /// itself, so that the softmax of padding gives no NaN.
    fn seen(&self, reach: i64, real: i64) -> Vec<bool> {
        let pairs = (0..self.count).flat_map(|block| {
            let keys = self.keys_of(block);
            let queries = self.queries_of(block);
            queries.flat_map(move |query| keys.clone().map(move |key| (query, key)))
        });
        let is_seen = |(query, key): (i64, i64)| {
            query == key || ((0..real).contains(&key) && (query - key).abs() <= reach)
        };
        pairs.map(is_seen).collect()
    }
}

/// How many tokens each key comes after each query, query by query.
fn distances(queries: i32, length: i32) -> impl Iterator<Item = i64> {
    let keys = move |query| (0..length).map(move |key| i64::from(key - query));
    (0..queries).flat_map(keys)
}

/// Values mixed by the softmax of the scores: `[batch · queries, heads · head_dim]`.
fn mix(
    heads: &Heads,
    attention: &Attention,
    mask: Option<ScaledDotProductAttentionMask>,
) -> Result<Array> {
    let [query, key, value] = heads;
    let width = size(attention.heads * attention.head_dim)?;
    fast::scaled_dot_product_attention(query, key, value, attention.scale, mask, None)
        .and_then(|mixed| mixed.transpose_axes(&[0, 2, 1, 3])?.reshape(&[-1, width]))
        .map_err(mlx_error)
}

/// The first so many of an axis.
fn leading(x: &Array, axis: i32, count: i32) -> Result<Array> {
    if x.dim(axis) == count {
        return Ok(x.clone());
    }
    let [first, _] = parts(x, axis, &[count])?;
    Ok(first)
}

/// Splits an axis before these places.
fn parts<const N: usize>(x: &Array, axis: i32, before: &[i32]) -> Result<[Array; N]> {
    let parts = x.split_at_indices(before, axis).map_err(mlx_error)?;
    parts.try_into().map_err(|parts: Vec<Array>| {
        let count = parts.len();
        Error::inference(format!(
            "MLX split an array into {count} parts instead of {N}"
        ))
    })
}
