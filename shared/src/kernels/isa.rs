//! Which vector instructions the kernels use, decided once for the process.
#![allow(unsafe_code)]

use std::fmt;
use std::sync::OnceLock;

use rten_simd::{Isa, SimdOp};

use crate::{Error, Result};

/// Environment variable that holds kernels back to a lesser instruction set than the processor has,
/// for tests and comparisons.
pub const VARIABLE: &str = "KERNELS_ISA";

/// Instruction sets that kernels are compiled for, each with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// What every processor of the architecture has.
    Portable,
    /// NEON, on 64-bit ARM.
    Neon,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// These, and products of bf16 (AVX512-BF16) and of 8-bit integers (VNNI).
    Avx512Narrow,
}

impl InstructionSet {
    const ALL: [Self; 5] =
        [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512, Self::Avx512Narrow];

    /// The name by which [`VARIABLE`] chooses it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Narrow => "avx512-narrow",
        }
    }

    /// Those that this processor has, best last.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|set| set.is_available())
    }

    fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => rten_simd::isa::Avx2Isa::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Self::Avx2.is_available() && rten_simd::isa::Avx512Isa::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Narrow => {
                Self::Avx512.is_available()
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The instruction set that kernels use: the best of this processor, or the one that
/// [`VARIABLE`] names.
///
/// # Errors
/// When the variable names none, or one that this processor lacks. Kernels then use the best.
pub fn chosen() -> Result<InstructionSet> {
    let best = || InstructionSet::available().last().unwrap_or(InstructionSet::Portable);
    let Some(name) = std::env::var_os(VARIABLE) else { return Ok(best()) };
    let named = InstructionSet::available().find(|set| *set.name() == *name);
    named.ok_or_else(|| {
        let names: Vec<&str> = InstructionSet::available().map(InstructionSet::name).collect();
        Error::Argument(format!("{VARIABLE} is {name:?}; this processor has {}", names.join(", ")))
    })
}

/// [`chosen`], as it was when the first kernel ran.
pub(crate) fn instruction_set() -> InstructionSet {
    static IN_USE: OnceLock<InstructionSet> = OnceLock::new();
    *IN_USE.get_or_init(|| {
        chosen().unwrap_or_else(|_| {
            InstructionSet::available().last().unwrap_or(InstructionSet::Portable)
        })
    })
}

/// Runs `operation`, compiled for the instruction set in use.
#[inline]
pub(crate) fn dispatch<O: SimdOp>(operation: O) -> O::Output {
    #[cfg(target_arch = "x86_64")]
    {
        use rten_simd::isa::{Avx2Isa, Avx512Isa};

        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c,fma")]
        fn with_avx512<O: SimdOp>(isa: impl Isa, operation: O) -> O::Output {
            operation.eval(isa)
        }
        #[target_feature(enable = "avx,avx2,f16c,fma")]
        fn with_avx2<O: SimdOp>(isa: impl Isa, operation: O) -> O::Output {
            operation.eval(isa)
        }
        let set = instruction_set();
        if set >= InstructionSet::Avx512
            && let Some(isa) = Avx512Isa::new()
        {
            // SAFETY: the processor has the instructions.
            return unsafe { with_avx512(isa, operation) };
        }
        if set >= InstructionSet::Avx2
            && let Some(isa) = Avx2Isa::new()
        {
            // SAFETY: the processor has the instructions.
            return unsafe { with_avx2(isa, operation) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    if instruction_set() >= InstructionSet::Neon
        && let Some(isa) = rten_simd::isa::ArmNeonIsa::new()
    {
        return operation.eval(isa);
    }
    operation.eval(rten_simd::isa::GenericIsa::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_last_and_always_one_is_there() {
        let available: Vec<InstructionSet> = InstructionSet::available().collect();
        assert_eq!(available[0], InstructionSet::Portable);
        assert!(available.is_sorted());
        assert!(available.contains(&instruction_set()));
    }
}
