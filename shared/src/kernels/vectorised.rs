//! Loops compiled for the vector instructions of the processor at hand.

/// Defines a function over f32 or f64 that is compiled several times, for AVX-512, AVX2 and the
/// baseline, and picks the one that is in use (see [`super::isa`]) when it is called. The functions that its
/// loops call must be `#[inline(always)]`, or tiny.
///
/// Rust never fuses or reorders floating-point operations by itself, so that the results are the
/// same for every instruction set.
macro_rules! vectorised {
    ($(
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident<$($lifetime:lifetime,)? T: Real>($($argument:ident: $type:ty),* $(,)?)
        $(-> $result:ty)? $body:block
    )*) => {$(
        $(#[$attribute])*
        $visibility fn $name<$($lifetime,)? T: Real>($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn baseline<$($lifetime,)? T: Real>($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512<$($lifetime,)? T: Real>($($argument: $type),*) $(-> $result)? {
                    baseline($($argument),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2<$($lifetime,)? T: Real>($($argument: $type),*) $(-> $result)? {
                    baseline($($argument),*)
                }
                let set = $crate::kernels::isa::instruction_set();
                if set >= $crate::kernels::isa::InstructionSet::Avx512 {
                    // SAFETY: the processor has the instructions that `avx512` is compiled to.
                    #[allow(unsafe_code)]
                    return unsafe { avx512($($argument),*) };
                }
                if set >= $crate::kernels::isa::InstructionSet::Avx2 {
                    // SAFETY: the processor has the instructions that `avx2` is compiled to.
                    #[allow(unsafe_code)]
                    return unsafe { avx2($($argument),*) };
                }
            }
            baseline($($argument),*)
        }
    )*};
}
pub(crate) use vectorised;
