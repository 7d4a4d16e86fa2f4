//! From lengths to batches. Pure: knows neither texts nor runtimes.
//!
//! A plan holds every text exactly once. Texts are sorted by length, longest first, so that the last batches are
//! short ones and parallel workers finish together.

/// Token ids of several texts in one flat buffer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Ids of all texts, one after the other.
    pub ids: Vec<u32>,
    /// Text `i` is `ids[offsets[i]..offsets[i + 1]]`; starts with 0.
    pub offsets: Vec<usize>,
}

impl Batch {
    /// Joins texts, each given by its ids.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self {
            ids: Vec::new(),
            offsets: vec![0],
        };
        for ids in texts {
            batch.ids.extend_from_slice(ids);
            batch.offsets.push(batch.ids.len());
        }
        batch
    }

    /// Number of texts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is no text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The texts in order.
    pub fn texts(&self) -> impl Iterator<Item = &[u32]> {
        self.offsets
            .windows(2)
            .map(|range| &self.ids[range[0]..range[1]])
    }
}

/// What a batch may hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Most tokens in a batch, padding included. A single text above it still gets a batch of its own.
    pub budget_tokens: usize,
    /// Most padded tokens per real token in a batch of several: 1.0 puts only texts of equal length together.
    pub padding_ratio: f64,
    /// Whether batches are padded to [`bucket`] lengths.
    pub buckets: bool,
}

/// The length that a batch is padded to where shapes should repeat: rounded up by at most an eighth, or 3 tokens, to one of
/// eight lengths per doubling.
#[must_use]
pub fn bucket(length: usize) -> usize {
    let step = (length.next_power_of_two() / 16).max(4);
    length.next_multiple_of(step)
}

/// Groups texts of these lengths (in tokens) into batches of indices.
#[must_use]
pub fn plan(lengths: &[usize], limits: Limits) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&text| std::cmp::Reverse(lengths[text]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut real_tokens = 0;
    let padded_length = |length| {
        if limits.buckets {
            bucket(length)
        } else {
            length
        }
    };
    for text in order {
        let fits = batches.last().is_some_and(|batch| {
            let length = padded_length(lengths[batch[0]]);
            let padded = length * (batch.len() + 1);
            let real = real_tokens + lengths[text];
            let is_dense = padded as f64 <= real as f64 * limits.padding_ratio;
            // Texts of one bucket are padded alike whether they share a batch or not.
            padded <= limits.budget_tokens && (is_dense || padded_length(lengths[text]) == length)
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
            padding_ratio in 1.0_f64..2.0,
            buckets: bool,
        ) {
            let batches = plan(&lengths, Limits { budget_tokens, padding_ratio, buckets });
            let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            let padded_length = |length| if buckets { bucket(length) } else { length };
            for batch in &batches {
                let longest = batch.iter().map(|&text| padded_length(lengths[text])).max().unwrap_or(0);
                let shortest = batch.iter().map(|&text| padded_length(lengths[text])).min().unwrap_or(0);
                let real: usize = batch.iter().map(|&text| lengths[text]).sum();
                let padded = longest * batch.len();
                prop_assert!(batch.len() == 1 || padded <= budget_tokens);
                prop_assert!(padded as f64 <= real as f64 * padding_ratio + 1e-9 || longest == shortest);
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
        fn without_padding_all_texts_of_a_batch_have_one_length(
            lengths in prop::collection::vec(1_usize..20, 0..200),
        ) {
            for batch in plan(&lengths, Limits { budget_tokens: 64, padding_ratio: 1.0, buckets: false }) {
                prop_assert!(batch.iter().all(|&text| lengths[text] == lengths[batch[0]]));
            }
        }

        #[test]
        fn texts_come_back_from_a_batch(texts in prop::collection::vec(prop::collection::vec(0_u32..99, 0..9), 0..9)) {
            let batch = Batch::from_texts(texts.iter().map(Vec::as_slice));
            prop_assert_eq!(batch.len(), texts.len());
            prop_assert_eq!(batch.texts().map(<[u32]>::to_vec).collect::<Vec<_>>(), texts);
        }
    }
}
