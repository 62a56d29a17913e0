//! Vectors of 32-bit words, each of two bf16 numbers or four 8-bit integers, and their products,
//! for each instruction set.
#![allow(unsafe_code)]

use rten_simd::ops::{BitOps, IntOps, NumOps};
use rten_simd::{Isa, Simd};

/// Vectors of words of one instruction set. Who has a value has the instructions, and calls these
/// functions in code that is compiled for them.
pub(super) trait Words: Copy {
    /// Some words.
    type Vector: Copy;
    /// Rows of a tile with two vectors each whose sums fit the registers, beside the operands.
    const ROWS: usize;

    /// Words in a vector.
    fn len(self) -> usize;

    /// The same word in all lanes.
    fn splat(self, word: u32) -> Self::Vector;

    /// The words from `at` on.
    ///
    /// # Safety
    /// The words must be readable.
    unsafe fn load(self, at: *const u32) -> Self::Vector;

    /// Writes the words from `at` on.
    ///
    /// # Safety
    /// The words must be writable.
    unsafe fn store(self, words: Self::Vector, at: *mut u32);

    /// `sums` (of `f32`) plus the products of the two bf16 numbers in each word.
    fn add_bf16(self, sums: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `sums` (of `i32`) plus the products of the four 8-bit integers in each word.
    fn add_int8(
        self,
        sums: Self::Vector,
        unsigned: Self::Vector,
        signed: Self::Vector,
    ) -> Self::Vector;
}

/// What the words of the operands hold.
pub(super) trait Product: Copy {
    /// `sums` plus the products of the numbers in each word of the left and right operand.
    fn add<W: Words>(words: W, sums: W::Vector, left: W::Vector, right: W::Vector) -> W::Vector;
}

/// bf16 on both sides.
#[derive(Clone, Copy)]
pub(super) struct Bf16;

/// Signed 8-bit integers on the left, unsigned ones on the right.
#[derive(Clone, Copy)]
pub(super) struct SignedUnsigned;

/// Unsigned 8-bit integers on the left, signed ones on the right.
#[derive(Clone, Copy)]
pub(super) struct UnsignedSigned;

impl Product for Bf16 {
    #[inline(always)]
    fn add<W: Words>(words: W, sums: W::Vector, left: W::Vector, right: W::Vector) -> W::Vector {
        words.add_bf16(sums, left, right)
    }
}

impl Product for SignedUnsigned {
    #[inline(always)]
    fn add<W: Words>(words: W, sums: W::Vector, left: W::Vector, right: W::Vector) -> W::Vector {
        words.add_int8(sums, right, left)
    }
}

impl Product for UnsignedSigned {
    #[inline(always)]
    fn add<W: Words>(words: W, sums: W::Vector, left: W::Vector, right: W::Vector) -> W::Vector {
        words.add_int8(sums, left, right)
    }
}

/// Any instruction set, without products of narrow numbers: they are widened before.
#[derive(Clone, Copy)]
pub(super) struct Widened<I>(pub I);

impl<I: Isa> Words for Widened<I> {
    type Vector = I::I32;
    const ROWS: usize = 4;

    #[inline(always)]
    fn len(self) -> usize {
        self.0.i32().len()
    }

    #[inline(always)]
    fn splat(self, word: u32) -> I::I32 {
        self.0.i32().splat(word as i32)
    }

    #[inline(always)]
    unsafe fn load(self, at: *const u32) -> I::I32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.i32().load_ptr(at.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, words: I::I32, at: *mut u32) {
        // SAFETY: the caller's promise.
        unsafe { self.0.i32().store_ptr(words, at.cast()) }
    }

    #[inline(always)]
    fn add_bf16(self, sums: I::I32, a: I::I32, b: I::I32) -> I::I32 {
        let (words, numbers) = (self.0.i32(), self.0.f32());
        let upper = words.splat(0xFFFF_0000_u32 as i32);
        let high = |v: I::I32| words.and(v, upper).reinterpret_cast::<I::F32>();
        let low = |v: I::I32| words.shift_left::<16>(v).reinterpret_cast::<I::F32>();
        let sums = numbers.mul_add(high(a), high(b), sums.reinterpret_cast());
        numbers.mul_add(low(a), low(b), sums).reinterpret_cast()
    }

    #[inline(always)]
    fn add_int8(self, sums: I::I32, unsigned: I::I32, signed: I::I32) -> I::I32 {
        let words = self.0.i32();
        let byte = words.splat(0xFF);
        let products = [
            words.mul(
                words.and(unsigned, byte),
                words.shift_right::<24>(words.shift_left::<24>(signed)),
            ),
            words.mul(
                words.and(words.shift_right::<8>(unsigned), byte),
                words.shift_right::<24>(words.shift_left::<16>(signed)),
            ),
            words.mul(
                words.and(words.shift_right::<16>(unsigned), byte),
                words.shift_right::<24>(words.shift_left::<8>(signed)),
            ),
            words.mul(
                words.and(words.shift_right::<24>(unsigned), byte),
                words.shift_right::<24>(signed),
            ),
        ];
        products.into_iter().fold(sums, |sums, product| words.add(sums, product))
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use super::Words;

    /// AVX2 with fused multiply-add, which widens the numbers, too.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(());

    impl Avx2 {
        /// The instruction set.
        ///
        /// # Safety
        /// The processor must have it.
        pub unsafe fn new_unchecked() -> Self {
            Self(())
        }
    }

    impl Words for Avx2 {
        type Vector = __m256i;
        const ROWS: usize = 4;

        #[inline(always)]
        fn len(self) -> usize {
            8
        }

        #[inline(always)]
        fn splat(self, word: u32) -> __m256i {
            // SAFETY: the processor has AVX2.
            unsafe { _mm256_set1_epi32(word as i32) }
        }

        #[inline(always)]
        unsafe fn load(self, at: *const u32) -> __m256i {
            // SAFETY: the caller's promise.
            unsafe { _mm256_loadu_si256(at.cast()) }
        }

        #[inline(always)]
        unsafe fn store(self, words: __m256i, at: *mut u32) {
            // SAFETY: the caller's promise.
            unsafe { _mm256_storeu_si256(at.cast(), words) }
        }

        #[inline(always)]
        fn add_bf16(self, sums: __m256i, a: __m256i, b: __m256i) -> __m256i {
            // SAFETY: the processor has AVX2 and fused multiply-add.
            unsafe {
                let upper = _mm256_set1_epi32(0xFFFF_0000_u32 as i32);
                let high = |words| _mm256_castsi256_ps(_mm256_and_si256(words, upper));
                let low = |words| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words));
                let sums = _mm256_fmadd_ps(high(a), high(b), _mm256_castsi256_ps(sums));
                _mm256_castps_si256(_mm256_fmadd_ps(low(a), low(b), sums))
            }
        }

        #[inline(always)]
        fn add_int8(self, sums: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
            // Every second byte as a 16-bit integer; `vpmaddubsw`, which takes bytes, saturates.
            // SAFETY: the processor has AVX2.
            unsafe {
                let even_unsigned = _mm256_and_si256(unsigned, _mm256_set1_epi16(0xFF));
                let odd_unsigned = _mm256_srli_epi16::<8>(unsigned);
                let even_signed = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(signed));
                let odd_signed = _mm256_srai_epi16::<8>(signed);
                let even = _mm256_madd_epi16(even_unsigned, even_signed);
                let odd = _mm256_madd_epi16(odd_unsigned, odd_signed);
                _mm256_add_epi32(_mm256_add_epi32(sums, even), odd)
            }
        }
    }

    /// AVX-512 with AVX512-BF16 and VNNI.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(());

    impl Avx512 {
        /// The instruction set.
        ///
        /// # Safety
        /// The processor must have it.
        pub unsafe fn new_unchecked() -> Self {
            Self(())
        }
    }

    impl Words for Avx512 {
        type Vector = __m512i;
        const ROWS: usize = 12;

        #[inline(always)]
        fn len(self) -> usize {
            16
        }

        #[inline(always)]
        fn splat(self, word: u32) -> __m512i {
            // SAFETY: the processor has AVX-512.
            unsafe { _mm512_set1_epi32(word as i32) }
        }

        #[inline(always)]
        unsafe fn load(self, at: *const u32) -> __m512i {
            // SAFETY: the caller's promise.
            unsafe { _mm512_loadu_epi32(at.cast()) }
        }

        #[inline(always)]
        unsafe fn store(self, words: __m512i, at: *mut u32) {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_epi32(at.cast(), words) }
        }

        #[inline(always)]
        fn add_bf16(self, sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: the processor has AVX512-BF16; all vectors are of 512 bits.
            unsafe {
                let [a, b] = [a, b].map(|words| transmute::<__m512i, __m512bh>(words));
                _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sums), a, b))
            }
        }

        #[inline(always)]
        fn add_int8(self, sums: __m512i, unsigned: __m512i, signed: __m512i) -> __m512i {
            // SAFETY: the processor has VNNI.
            unsafe { _mm512_dpbusd_epi32(sums, unsigned, signed) }
        }
    }
}
