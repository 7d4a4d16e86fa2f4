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
    /// Most padded tokens per real token: 1.0 puts only texts of equal length together.
    pub padding_ratio: f64,
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
            let padded = lengths[batch[0]] * (batch.len() + 1);
            let real = real_tokens + lengths[text];
            padded <= limits.budget_tokens && padded as f64 <= real as f64 * limits.padding_ratio
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
        ) {
            let batches = plan(&lengths, Limits { budget_tokens, padding_ratio });
            let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &batches {
                let longest = batch.iter().map(|&text| lengths[text]).max().unwrap_or(0);
                let real: usize = batch.iter().map(|&text| lengths[text]).sum();
                let padded = longest * batch.len();
                prop_assert!(batch.len() == 1 || padded <= budget_tokens);
                prop_assert!(padded as f64 <= real as f64 * padding_ratio + 1e-9);
            }
        }

        #[test]
        fn without_padding_all_texts_of_a_batch_have_one_length(
            lengths in prop::collection::vec(1_usize..20, 0..200),
        ) {
            for batch in plan(&lengths, Limits { budget_tokens: 64, padding_ratio: 1.0 }) {
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
