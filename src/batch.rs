//! From lengths to batches. Pure: knows neither texts nor runtimes.
//!
//! A plan holds every text exactly once. Texts are sorted by length, longest first, so that the last batches are
//! short and parallel workers finish together.

/// What a batch may hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Most tokens in a batch, padding included. A single text above it still gets a batch of its own.
    pub budget_tokens: usize,
    /// How texts of different lengths share a batch.
    pub padding: Padding,
    /// Most bytes that the activations of a batch may take. A single text above it still gets a batch of its own.
    pub budget_bytes: usize,
    /// Bytes of activations per token, an upper estimate.
    pub token_bytes: usize,
    /// Bytes per pair of tokens of a text: attention scores of all heads, if the runtime keeps them.
    pub score_bytes: usize,
}

/// How texts of different lengths share a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Padding {
    /// They lie one after the other: nothing is padded.
    Flat,
    /// They are padded to the longest, by at most this many tokens per real token: 1.0 puts only texts of equal length
    /// together.
    ToLongest(f64),
    /// The same, and all are padded to a [`bucket`] length.
    ToBucket(f64),
}

impl Padding {
    /// For kernels that are compiled for a shape, or buffers that are kept for one: few shapes, at most 15 % of padding.
    pub const TO_FEW_SHAPES: Self = Self::ToBucket(1.15);
}

impl Limits {
    /// [`Self::budget_tokens`] where texts are padded: on a GPU, which needs many at once, and elsewhere, where more gain
    /// nothing.
    #[must_use]
    pub const fn padded_tokens(is_gpu: bool) -> usize {
        if is_gpu { 8192 } else { 1024 }
    }

    /// Default of [`Limits::budget_bytes`].
    pub const DEFAULT_BUDGET_BYTES: usize = 1 << 30;

    /// Bytes that the activations of `texts` texts of this padded length take, an upper estimate.
    #[must_use]
    pub const fn bytes(&self, texts: usize, length: usize) -> usize {
        texts * length * (self.token_bytes + length * self.score_bytes)
    }

    /// The length that a text of this length is padded to in a batch of its own.
    const fn padded(&self, length: usize) -> usize {
        match self.padding {
            Padding::Flat | Padding::ToLongest(_) => length,
            Padding::ToBucket(_) => bucket(length),
        }
    }
}

/// The length that a batch is padded to if shapes should repeat: rounded up by at most an eighth, or 3 tokens, to one of
/// eight fixed lengths per doubling.
#[must_use]
pub const fn bucket(length: usize) -> usize {
    let step = length.next_power_of_two() / 16;
    length.next_multiple_of(if step < 4 { 4 } else { step })
}

/// The [`bucket`] of the longest text of a batch, which ends with the model's table of positions, if it has one.
#[must_use]
pub fn padded(longest: usize, positions: Option<usize>) -> usize {
    bucket(longest).min(positions.unwrap_or(usize::MAX))
}

/// Groups texts of these lengths (in tokens) into batches of indices.
#[must_use]
pub fn plan(lengths: &[usize], limits: Limits) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&text| std::cmp::Reverse(lengths[text]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut real_tokens = 0;
    for text in order {
        let fits = batches.last().is_some_and(|batch| {
            let length = limits.padded(lengths[batch[0]]);
            let texts = batch.len() + 1;
            let real = real_tokens + lengths[text];
            let (tokens, bytes, is_dense) = match limits.padding {
                Padding::Flat => (real, limits.bytes(1, real), true),
                Padding::ToLongest(ratio) | Padding::ToBucket(ratio) => {
                    let padded = length * texts;
                    let is_dense = padded as f64 <= real as f64 * ratio;
                    (padded, limits.bytes(texts, length), is_dense)
                }
            };
            // Texts of one bucket are padded alike whether they share a batch or not.
            tokens <= limits.budget_tokens
                && bytes <= limits.budget_bytes
                && (is_dense || limits.padded(lengths[text]) == length)
        });
        if let Some(batch) = batches.last_mut().filter(|_| fits) {
            batch.push(text);
            real_tokens += lengths[text];
        } else {
            batches.push(vec![text]);
            real_tokens = lengths[text];
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_once_within_limits(
            lengths in prop::collection::vec(1_usize..600, 0..200),
            budget_tokens in 1_usize..4000,
            ratio in 1.0_f64..2.0,
            kind in 0..3,
            budget_bytes in 1_usize..40_000,
            score_bytes in 0_usize..3,
        ) {
            let padding = match kind {
                0 => Padding::Flat,
                1 => Padding::ToLongest(ratio),
                _ => Padding::ToBucket(ratio),
            };
            let limits = Limits { budget_tokens, padding, budget_bytes, token_bytes: 7, score_bytes };
            let batches = plan(&lengths, limits);
            let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &batches {
                let padded = || batch.iter().map(|&text| limits.padded(lengths[text]));
                let longest = padded().max().unwrap_or(0);
                let shortest = padded().min().unwrap_or(0);
                let real: usize = batch.iter().map(|&text| lengths[text]).sum();
                let (tokens, width) = match padding {
                    Padding::Flat => (real, real),
                    _ => (longest * batch.len(), longest),
                };
                let bytes = tokens * 7 + tokens * width * score_bytes;
                prop_assert!(batch.len() == 1 || (tokens <= budget_tokens && bytes <= budget_bytes));
                prop_assert!(tokens as f64 <= real as f64 * ratio + 1e-9 || longest == shortest);
            }
        }

        #[test]
        fn a_bucket_is_a_little_longer_and_there_are_few(length in 1_usize..8193) {
            let padded = bucket(length);
            prop_assert!(padded >= length && padded <= length + (length / 8).max(3));
            prop_assert_eq!(bucket(padded), padded);
            let distinct: std::collections::BTreeSet<usize> = (1..=8192).map(bucket).collect();
            prop_assert!(distinct.len() <= 80, "{}", distinct.len());
        }

        #[test]
        fn padding_ends_with_the_table_of_positions(positions in 1_usize..600, part in 0.0_f64..1.0) {
            let longest = 1 + (part * positions as f64) as usize;
            let longest = longest.min(positions);
            let length = padded(longest, Some(positions));
            prop_assert!((longest..=positions).contains(&length));
            prop_assert!(length == positions || length == bucket(longest));
            prop_assert_eq!(padded(longest, None), bucket(longest));
        }

        #[test]
        fn without_padding_all_texts_of_a_batch_have_one_length(
            lengths in prop::collection::vec(1_usize..20, 0..200),
        ) {
            let limits = Limits {
                budget_tokens: 64,
                padding: Padding::ToLongest(1.0),
                budget_bytes: usize::MAX,
                token_bytes: 1,
                score_bytes: 0,
            };
            for batch in plan(&lengths, limits) {
                prop_assert!(batch.iter().all(|&text| lengths[text] == lengths[batch[0]]));
            }
        }
    }
}
