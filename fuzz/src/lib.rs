//! libFuzzer over the targets of `targets.rs`, with mutations that know what their bytes mean. `tests/fuzz.rs` of the
//! package runs the same targets without libFuzzer.

pub mod mutation;
pub mod targets;

#[path = "../../tests/setup/mod.rs"]
pub mod setup;

/// Defines libFuzzer's entry points for the target of this name.
#[macro_export]
macro_rules! libfuzzer {
    ($name:literal) => {
        static TARGET: std::sync::LazyLock<&$crate::targets::Target> =
            std::sync::LazyLock::new(|| $crate::targets::named($name));
        static SEEDS: std::sync::LazyLock<Vec<Vec<u8>>> =
            std::sync::LazyLock::new(|| (TARGET.seeds)());

        libfuzzer_sys::fuzz_target!(|data: &[u8]| {
            (TARGET.check)(data);
        });

        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            // Its own mutations as well, which know which comparisons failed.
            if size > 1 && seed.is_multiple_of(4) {
                return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
            }
            // Without a corpus libFuzzer begins with no bytes at all.
            let mutated = if size > 1 {
                $crate::mutation::mutate(TARGET.format, &data[..size], seed.into())
            } else {
                SEEDS[seed as usize % SEEDS.len()].clone()
            };
            let length = mutated.len().min(max_size);
            data[..length].copy_from_slice(&mutated[..length]);
            length
        });
    };
}
