//! Rounding to bf16 and to 8-bit integers.

use rten_simd::{Isa, SimdOp};

use crate::kernels::isa::dispatch;

/// A kind of narrow number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The upper half of an `f32`.
    Bf16,
    /// 8-bit integers.
    Int8,
}

impl Format {
    /// Numbers in a word.
    pub fn parts(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }
}

/// The bits of `x`, rounded to bf16, to the nearest and from the middle to even.
#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    const QUIET_NAN: u32 = 0x7FC0;
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { QUIET_NAN } else { rounded }
}

/// The word of two numbers.
#[inline(always)]
pub(super) fn bf16_word([first, second]: [f32; 2]) -> u32 {
    bf16_bits(first) | bf16_bits(second) << 16
}

/// `x` (of a magnitude below 2^22), rounded to the nearest integer and from the middle to the even
/// one. A form that vectorises on all processors.
#[inline(always)]
pub(super) fn round(x: f32) -> i32 {
    // 1.5 * 2^23: the integers are the last bits of the sum.
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits()) as i32
}

/// The smallest and the largest of some numbers; NaN when one is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    low: f32,
    high: f32,
}

impl Range {
    /// The range of 0 alone.
    pub const ZERO: Self = Self { low: 0.0, high: 0.0 };

    /// The range of `numbers` and 0.
    pub fn of(numbers: &[f32]) -> Self {
        struct Fold<'a>(&'a [f32]);
        impl SimdOp for Fold<'_> {
            type Output = Range;

            #[inline(always)]
            fn eval<I: Isa>(self, _: I) -> Range {
                // A range for each lane, as the compiler does not reorder comparisons.
                const LANES: usize = 32;
                let (mut low, mut high) = ([0.0f32; LANES], [0.0f32; LANES]);
                let mut nan = [false; LANES];
                let mut add = |chunk: &[f32; LANES]| {
                    for lane in 0..LANES {
                        let x = chunk[lane];
                        low[lane] = if x < low[lane] { x } else { low[lane] };
                        high[lane] = if x > high[lane] { x } else { high[lane] };
                        nan[lane] |= x.is_nan();
                    }
                };
                let (chunks, rest) = self.0.as_chunks();
                chunks.iter().for_each(&mut add);
                let mut last = [0.0; LANES];
                last[..rest.len()].copy_from_slice(rest);
                add(&last);
                if nan.contains(&true) {
                    return Range { low: f32::NAN, high: f32::NAN };
                }
                Range {
                    low: low.into_iter().fold(0.0, f32::min),
                    high: high.into_iter().fold(0.0, f32::max),
                }
            }
        }
        dispatch(Fold(numbers))
    }

    /// The range that covers both.
    pub fn union(self, other: Self) -> Self {
        let is_nan = self.low.is_nan() || other.low.is_nan();
        let or_nan = |x: f32| if is_nan { f32::NAN } else { x };
        Self { low: or_nan(self.low.min(other.low)), high: or_nan(self.high.max(other.high)) }
    }

    /// The largest magnitude.
    pub fn magnitude(self) -> f32 {
        if self.low.is_nan() { f32::NAN } else { self.high.max(-self.low) }
    }
}

/// The step that `steps` of which reach over `length`, and its inverse: both 0 when the step would
/// be no normal number, so that all becomes 0; not finite when the length is not.
pub(super) fn step(length: f32, steps: f32) -> (f32, f32) {
    let step = length / steps;
    if step < f32::MIN_POSITIVE { (0.0, 0.0) } else { (step, 1.0 / step) }
}

/// A map of numbers to unsigned 8-bit integers: `x` is about `scale * (integer - zero)`, 0 exactly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Affine {
    /// Distance of neighbours; not finite when a number that it was made for is not.
    pub scale: f32,
    /// The integer of 0.
    pub zero: i32,
    inverse: f32,
}

impl Affine {
    /// The map of the numbers in `range` to all integers.
    pub fn covering(range: Range) -> Self {
        // Halves, as the difference of two numbers may be too large for an `f32`.
        let (half, _) = step(0.5 * range.high - 0.5 * range.low, 255.0);
        let scale = 2.0 * half;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        Self { scale, zero: round(-range.low * inverse).clamp(0, 255), inverse }
    }

    #[inline(always)]
    fn integer(self, x: f32) -> u32 {
        (round(x * self.inverse).wrapping_add(self.zero)).clamp(0, 255) as u32
    }

    #[inline(always)]
    fn word(self, [a, b, c, d]: [f32; 4]) -> u32 {
        self.integer(a) | self.integer(b) << 8 | self.integer(c) << 16 | self.integer(d) << 24
    }
}

/// How inputs become words.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rounding {
    /// To bf16.
    Bf16,
    /// To 8-bit integers.
    Int8(Affine),
}

impl Rounding {
    /// The rounding to `format` of numbers in a range, which is asked for when it matters.
    pub fn new(format: Format, range: impl FnOnce() -> Range) -> Self {
        match format {
            Format::Bf16 => Self::Bf16,
            Format::Int8 => Self::Int8(Affine::covering(range())),
        }
    }

    /// The word of zeros.
    pub fn zeros(self) -> u32 {
        match self {
            Self::Bf16 => 0,
            Self::Int8(affine) => affine.word([0.0; 4]),
        }
    }

    /// Writes the words whose parts are the numbers at the same place of each of `channels`, as
    /// many of them as a word has parts and each as long as `out`.
    pub fn interleave(self, channels: [&[f32]; 4], out: &mut [u32]) {
        struct Interleave<'a>(Rounding, [&'a [f32]; 4], &'a mut [u32]);
        impl SimdOp for Interleave<'_> {
            type Output = ();

            #[inline(always)]
            fn eval<I: Isa>(self, _: I) {
                let Self(rounding, [a, b, c, d], out) = self;
                match rounding {
                    Rounding::Bf16 => {
                        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                            *out = bf16_word([a, b]);
                        }
                    }
                    Rounding::Int8(affine) => {
                        let pairs = (a.iter().zip(b)).zip(c.iter().zip(d));
                        for (out, ((&a, &b), (&c, &d))) in out.iter_mut().zip(pairs) {
                            *out = affine.word([a, b, c, d]);
                        }
                    }
                }
            }
        }
        dispatch(Interleave(self, channels, out));
    }

    /// Writes the words of consecutive `numbers`, the last one filled up with zeros.
    pub fn join(self, numbers: &[f32], out: &mut [u32]) {
        struct Join<'a>(Rounding, &'a [f32], &'a mut [u32]);
        impl SimdOp for Join<'_> {
            type Output = ();

            #[inline(always)]
            fn eval<I: Isa>(self, _: I) {
                fn fill<const N: usize>(
                    numbers: &[f32],
                    out: &mut [u32],
                    word: impl Fn([f32; N]) -> u32,
                ) {
                    let (whole, rest) = numbers.as_chunks::<N>();
                    for (out, &parts) in out.iter_mut().zip(whole) {
                        *out = word(parts);
                    }
                    if let (false, Some(out)) = (rest.is_empty(), out.get_mut(whole.len())) {
                        let mut parts = [0.0; N];
                        parts[..rest.len()].copy_from_slice(rest);
                        *out = word(parts);
                    }
                }
                match self.0 {
                    Rounding::Bf16 => fill(self.1, self.2, bf16_word),
                    Rounding::Int8(affine) => fill(self.1, self.2, |parts| affine.word(parts)),
                }
            }
        }
        dispatch(Join(self, numbers, out));
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernels::check;

    #[test]
    fn bf16_is_rounded_to_the_nearest() {
        let special =
            [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45];
        let bits = (0..=u32::MAX).step_by(65_521 * 7).chain([0x3F80_8000, 0x3F81_8000]);
        for x in bits.map(f32::from_bits).chain(special) {
            let (found, expected) = (bf16::from_bits(bf16_bits(x) as u16), bf16::from_f32(x));
            if x.is_nan() {
                assert!(found.is_nan());
            } else {
                assert_eq!(found.to_bits(), expected.to_bits(), "{x}");
            }
        }
    }

    #[test]
    fn integers_are_within_half_a_step() {
        let normal: Vec<f32> =
            check::to_vec(&check::normal(0, &[1000])).into_iter().map(|x| x as f32).collect();
        let shifted = |by: f32| normal.iter().map(|x| x + by).collect::<Vec<f32>>();
        let scaled = |by: f32| normal.iter().map(|x| x * by).collect::<Vec<f32>>();
        let cases = [
            normal.clone(),
            shifted(10.0),
            shifted(-10.0),
            shifted(0.7),
            scaled(1e38),
            scaled(1e-30),
            vec![f32::MAX, -f32::MAX, 1e38],
            vec![127.5, -127.5],
            vec![3.0],
        ];
        for values in cases {
            let affine = Affine::covering(Range::of(&values));
            assert_eq!(affine.integer(0.0), affine.zero as u32);
            let scale = f64::from(affine.scale);
            for &x in &values {
                let integer = f64::from(affine.integer(x)) - f64::from(affine.zero);
                let error = (f64::from(x) - scale * integer).abs();
                // Half a step, and the rounding of 255 steps and of the step itself.
                let bound = scale * (0.5 + 255.0 * 2.0 * f64::from(f32::EPSILON));
                assert!(error <= bound, "{x}: off by {} steps", error / scale);
            }
        }
    }

    #[test]
    fn nothing_and_next_to_nothing_become_zero() {
        for values in [&[][..], &[0.0, -0.0], &[1e-40, -1e-40]] {
            let affine = Affine::covering(Range::of(values));
            assert_eq!((affine.scale, affine.zero), (0.0, 0));
            assert!(values.iter().all(|&x| affine.integer(x) == 0));
        }
    }

    #[test]
    fn ranges_cover_all_and_show_what_is_not_finite() {
        let mut values: Vec<f32> = (0..77).map(|i| i as f32 - 30.0).collect();
        let range = Range::of(&values);
        assert_eq!((range.low, range.high, range.magnitude()), (-30.0, 46.0, 46.0));
        assert_eq!(Range::of(&[3.0, 5.0]).low, 0.0);
        for at in [0, 40, 76] {
            let before = std::mem::replace(&mut values[at], f32::NAN);
            assert!(Affine::covering(Range::of(&values)).scale.is_nan());
            assert!(Range::of(&values).union(range).magnitude().is_nan());
            assert!(range.union(Range::of(&values)).magnitude().is_nan());
            values[at] = before;
        }
        assert_eq!(Affine::covering(Range::of(&[f32::NEG_INFINITY])).scale, f32::INFINITY);
    }

    #[test]
    fn words_hold_their_numbers_in_order() {
        let values = [1.0f32, -2.0, 3.5, 0.25, 100.0, -7.0, 0.5];
        for rounding in [Rounding::Bf16, Rounding::new(Format::Int8, || Range::of(&values))] {
            let parts = if matches!(rounding, Rounding::Bf16) { 2 } else { 4 };
            let mut joined = vec![0; values.len().div_ceil(parts)];
            rounding.join(&values, &mut joined);
            let channels: Vec<Vec<f32>> = (0..4)
                .map(|part| {
                    let at = |word| values.get(word * parts + part).copied().unwrap_or(0.0);
                    (0..joined.len()).map(at).collect()
                })
                .collect();
            let mut interleaved = vec![0; joined.len()];
            rounding.interleave([0, 1, 2, 3].map(|part| &channels[part][..]), &mut interleaved);
            assert_eq!(joined, interleaved);
            match rounding {
                Rounding::Bf16 => assert_eq!(joined[0], 0xC000_3F80),
                Rounding::Int8(affine) => {
                    let expected = [1.0, -2.0, 3.5, 0.25].map(|x| affine.integer(x) as u8);
                    assert_eq!(joined[0], u32::from_le_bytes(expected));
                }
            }
        }
    }
}
