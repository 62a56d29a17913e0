//! The two number types that kernels compute in, and loops over them that compilers vectorise.

use candle_core::WithDType;

/// Partial sums kept by the reductions: their number fixes the result, not the vector width of the
/// processor.
const LANES: usize = 32;

/// Elements summed in their own precision before the sum is passed on in f64.
const PIECE: usize = 128 * LANES;

/// f32 or f64.
pub(crate) trait Real: WithDType + Default + std::ops::Neg<Output = Self> {
    /// e to the power of `self`, in a form without branches.
    fn exp(self) -> Self;

    /// The larger number; `other` where `self` is NaN.
    fn larger(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
}

impl Real for f32 {
    /// At most 1.5 units in the last place from the exact value (the tests measure it), over the
    /// whole range: denormal results are rounded, overflow gives infinity, NaN stays NaN.
    #[inline(always)]
    fn exp(self) -> Self {
        // e^x = 2^n e^r with |r| <= ln(2)/2. Adding 1.5 * 2^23 rounds to an integer, and leaves it
        // in the low bits. ln(2) is split so that n times its first part is exact.
        const ROUND: f32 = 12_582_912.0;
        const LN_2_HIGH: f32 = 0.693_359_375;
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        // Outside, the result is 0 or infinity all the same. These comparisons let NaN pass.
        let x = if self < -104.0 { -104.0 } else { self };
        let x = if x > 89.0 { 89.0 } else { x };
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
        // Taylor polynomial; what is left out is below r^8/8! = 6e-9 of the result.
        let mut tail = 1.0 / 5040.0;
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
            tail = tail * r + coefficient;
        }
        let power = 1.0 + (r + r * r * tail);
        // 2^n in two factors, as n reaches beyond the exponents of normal numbers.
        let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        let half = n >> 1;
        let scale = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
        power * scale(half) * scale(n.wrapping_sub(half))
    }
}

impl Real for f64 {
    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }
}

/// Sums over `x` of the `N` numbers that `terms` makes of each element.
#[inline(always)]
pub(crate) fn sums<T: Real, const N: usize>(x: &[T], terms: impl Fn(T) -> [T; N]) -> [f64; N] {
    sums_of_pairs(x, x, |x, _| terms(x))
}

/// Sums over the pairs of elements of `x` and `y` of the `N` numbers that `terms` makes of each.
#[inline(always)]
pub(crate) fn sums_of_pairs<T: Real, const N: usize>(
    x: &[T],
    y: &[T],
    terms: impl Fn(T, T) -> [T; N],
) -> [f64; N] {
    let mut total = [0.0; N];
    for (x, y) in x.chunks(PIECE).zip(y.chunks(PIECE)) {
        let mut lanes = [[T::zero(); LANES]; N];
        let (x, x_rest) = x.as_chunks::<LANES>();
        let (y, y_rest) = y.as_chunks::<LANES>();
        for (x, y) in x.iter().zip(y) {
            for lane in 0..LANES {
                let terms = terms(x[lane], y[lane]);
                for n in 0..N {
                    lanes[n][lane] += terms[n];
                }
            }
        }
        for (lane, (&x, &y)) in x_rest.iter().zip(y_rest).enumerate() {
            let terms = terms(x, y);
            for n in 0..N {
                lanes[n][lane] += terms[n];
            }
        }
        for n in 0..N {
            total[n] += lanes[n].iter().map(|sum| sum.to_f64()).sum::<f64>();
        }
    }
    total
}

/// The largest element of `x`; minus infinity if there is none, NaN is passed over.
#[inline(always)]
pub(crate) fn largest<T: Real>(x: &[T]) -> T {
    let lowest = T::from_f64(f64::NEG_INFINITY);
    let mut lanes = [lowest; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = chunk[lane].larger(lanes[lane]);
        }
    }
    lanes.iter().chain(rest).fold(lowest, |largest, x| x.larger(largest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_1_5_units_in_the_last_place() {
        // Every 61st f32 of the whole range, against the f64 function of the standard library.
        let mut worst = (0.0, 0.0);
        for bits in (0..=u32::MAX).step_by(61) {
            let x = f32::from_bits(bits);
            let (found, exact) = (Real::exp(x), f64::from(x).exp());
            if x.is_nan() {
                assert!(found.is_nan());
            } else if exact > f64::from(f32::MAX) {
                assert!(found == f32::INFINITY || exact < 3.402_823_6e38, "exp({x}) = {found}");
            } else {
                let unit = f64::from((exact as f32).max(f32::MIN_POSITIVE).next_up())
                    - f64::from((exact as f32).max(f32::MIN_POSITIVE));
                let error = (f64::from(found) - exact).abs() / unit;
                worst = if error > worst.0 { (error, x.to_f64()) } else { worst };
            }
        }
        assert!(worst.0 < 1.5, "{worst:?}");
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp(0.0f32), 1.0);
    }

    #[test]
    fn sums_and_largest_cover_every_length() {
        for len in [0, 1, 31, 32, 33, 100, PIECE, PIECE + 1, 3 * PIECE + 45] {
            let x: Vec<f64> = (0..len).map(|i| ((i * 37) % 101) as f64).collect();
            let y: Vec<f64> = (0..len).map(|i| ((i * 11) % 7) as f64).collect();
            let dot = x.iter().zip(&y).map(|(x, y)| x * y).sum::<f64>();
            assert_eq!(sums_of_pairs(&x, &y, |x, y| [x * y, x]), [dot, x.iter().sum()]);
            assert_eq!(largest(&x), x.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        }
    }
}
