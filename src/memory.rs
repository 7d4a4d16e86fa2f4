//! Allocations whose size depends on the caller's texts or on the model. If there is no memory for them, these functions
//! return an error; Rust's collections would end the process.

use crate::error::{Error, Result};

/// An empty vector with room for `capacity` values. `what` says in an error what they are for.
///
/// # Errors
/// There is no memory for them.
pub(crate) fn room<T>(capacity: usize, what: &str) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(capacity)
        .map_err(|_| Error::no_memory(capacity.saturating_mul(size_of::<T>()), what))?;
    Ok(values)
}

/// Makes room for more values at the end of a growing vector.
///
/// # Errors
/// There is no memory for them.
pub(crate) fn reserve<T>(values: &mut Vec<T>, more: usize, what: &str) -> Result<()> {
    let needed = (values.len() + more).saturating_mul(size_of::<T>());
    values
        .try_reserve(more)
        .map_err(|_| Error::no_memory(needed, what))
}

/// Makes a vector that is used again as long as this. Its contents are any.
///
/// # Errors
/// There is no memory for it.
pub(crate) fn resize<T: Clone + Default>(
    values: &mut Vec<T>,
    length: usize,
    what: &str,
) -> Result<()> {
    if values.len() < length {
        let more = length - values.len();
        reserve(values, more, what)?;
    }
    values.resize(length, T::default());
    Ok(())
}

/// `count` times the same value.
///
/// # Errors
/// There is no memory for them.
pub(crate) fn filled<T: Clone>(count: usize, value: T, what: &str) -> Result<Vec<T>> {
    let mut values = room(count, what)?;
    values.resize(count, value);
    Ok(values)
}

/// All items of an iterator.
///
/// # Errors
/// There is no memory for it.
pub(crate) fn collected<T>(values: impl ExactSizeIterator<Item = T>, what: &str) -> Result<Vec<T>> {
    let mut all = room(values.len(), what)?;
    all.extend(values);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_an_error() {
        for count in [usize::MAX, usize::MAX / 8, 1 << 60] {
            let error = filled(count, 0.0_f32, "the test").unwrap_err();
            assert_eq!(error.code(), "RESOURCE_EXHAUSTED");
            assert!(
                error.to_string().contains("no memory for the test"),
                "{error}"
            );
        }
        assert_eq!(filled(3, 7, "the test").unwrap(), [7; 3]);
        assert_eq!(collected([1, 2].iter(), "the test").unwrap(), [&1, &2]);
    }
}
