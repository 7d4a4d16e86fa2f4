//! What the processor can do, as one of a few levels.

use crate::error::Result;
use crate::options::named;

/// Instruction sets that kernels are written for, each with those before it. Values are only made where the processor has
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every processor of the target has.
    Portable,
    /// Dot products of int8 on ARM.
    Dotprod,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-VNNI: int8 in registers of AVX2.
    AvxVnni,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 VNNI; where the processor has it, AVX-512 BF16.
    Avx512Vnni,
    /// AMX: tiles of int8 and bfloat16.
    Amx,
}

const ALL: [(Level, &str); 7] = [
    (Level::Portable, "portable"),
    (Level::Dotprod, "dotprod"),
    (Level::Avx2, "avx2"),
    (Level::AvxVnni, "avx-vnni"),
    (Level::Avx512, "avx512"),
    (Level::Avx512Vnni, "avx512-vnni"),
    (Level::Amx, "amx"),
];

impl Level {
    /// The name in `SEMANTIC_SEARCH_CPU` and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        let named = ALL.iter().find(|(level, _)| *level == self);
        named.map_or("", |(_, name)| name)
    }

    /// Those that this processor has, lowest first.
    #[cfg(test)]
    #[must_use]
    pub fn found() -> Vec<Self> {
        let levels = ALL.iter().map(|(level, _)| *level);
        levels.filter(|level| level.is_found()).collect()
    }

    /// The highest one up to `most` and to the one that the environment variable `SEMANTIC_SEARCH_CPU` names. Others are not
    /// looked for: finding AMX asks the system for more state in each thread, after which it refuses small stacks for
    /// signals.
    ///
    /// # Errors
    /// It names none.
    pub fn best(most: Self) -> Result<Self> {
        let named = match std::env::var("SEMANTIC_SEARCH_CPU") {
            Ok(name) if !name.is_empty() => named(
                "SEMANTIC_SEARCH_CPU",
                &name,
                &ALL.map(|(level, name)| (name, level)),
            )?,
            _ => most,
        };
        let levels = ALL.iter().map(|(level, _)| *level).rev();
        let mut allowed = levels.filter(|level| *level <= most.min(named));
        let best = allowed.find(|level| level.is_found());
        Ok(best.unwrap_or(Self::Portable))
    }

    #[cfg(target_arch = "x86_64")]
    fn is_found(self) -> bool {
        let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = || {
            avx2()
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
        };
        match self {
            Self::Portable => true,
            Self::Dotprod => false,
            Self::Avx2 => avx2(),
            Self::AvxVnni => avx2() && is_x86_feature_detected!("avxvnni"),
            Self::Avx512 => avx512(),
            Self::Avx512Vnni => avx512() && is_x86_feature_detected!("avx512vnni"),
            Self::Amx => Self::Avx512Vnni.is_found() && amx::is_found(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_found(self) -> bool {
        #[cfg(target_arch = "aarch64")]
        if self == Self::Dotprod {
            return std::arch::is_aarch64_feature_detected!("dotprod");
        }
        self == Self::Portable
    }
}

#[cfg(target_arch = "x86_64")]
mod amx {
    /// Whether the processor has AMX with int8 and bfloat16, and the operating system lets this process use it.
    #[cfg(target_os = "linux")]
    pub fn is_found() -> bool {
        use std::arch::x86_64::__cpuid_count;
        use std::sync::LazyLock;

        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        const INT8: u32 = 1 << 25;
        /// `arch_prctl`: asks for a state that is not there by default, of tiles.
        const REQUEST: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        static IS_FOUND: LazyLock<bool> = LazyLock::new(|| {
            let all = BF16 | TILE | INT8;
            // SAFETY: the system refuses what it does not know; nothing else is changed.
            __cpuid_count(7, 0).edx & all == all
                && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) } == 0
        });
        *IS_FOUND
    }

    /// Nobody has run it elsewhere.
    #[cfg(not(target_os = "linux"))]
    pub const fn is_found() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `npm test` says which levels a processor has that it emulates.
    #[test]
    fn levels_are_those_of_the_processor() {
        let found = Level::found();
        assert_eq!(found[0], Level::Portable);
        assert!(found.is_sorted());
        if let Ok(expected) = std::env::var("SEMANTIC_SEARCH_TEST_LEVELS") {
            let names: Vec<_> = found.into_iter().map(Level::name).collect();
            assert_eq!(names.join(","), expected);
        }
    }
}
