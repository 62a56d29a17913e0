//! The two number types that kernels compute in, and the reductions over rows of them.

use candle_core::WithDType;
use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, Simd, SimdIterable, SimdOp};

use crate::kernels::isa::dispatch;

/// Elements that are summed in f32 before the sum is passed on in f64.
const PIECE: usize = 2048;

/// f32 or f64.
pub(crate) trait Real: WithDType + Default {
    /// e to the power of `self`, in a form without branches.
    fn exp(self) -> Self;

    /// The largest element of `x`; minus infinity if there is none. NaN may be passed over.
    fn largest(x: &[Self]) -> Self;

    /// `[sum(y - q), sum((x - p) (y - q))]` over the elements of `x` and `y`, two slices of one
    /// length.
    fn sums(x: &[Self], p: Self, y: &[Self], q: Self) -> [f64; 2];

    /// The sum of `x`.
    fn sum(x: &[Self]) -> f64 {
        Self::sums(x, Self::zero(), x, Self::zero())[0]
    }

    /// The sum of the products of the elements of `x` and `y`, two slices of one length.
    fn dot(x: &[Self], y: &[Self]) -> f64 {
        Self::sums(x, Self::zero(), y, Self::zero())[1]
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
        const LN_2_HIGH: f32 = 355.0 / 512.0;
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        // Outside, the result is 0 or infinity all the same. These comparisons let NaN pass.
        let x = if self < -104.0 { -104.0 } else { self };
        let x = if x > 89.0 { 89.0 } else { x };
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
        // Taylor polynomial; what is left out is below r^8/8! = 6e-9 of the result.
        let tail = ((r * (1.0 / 5040.0) + 1.0 / 720.0) * r + 1.0 / 120.0) * r + 1.0 / 24.0;
        let power = 1.0 + (r + r * r * ((tail * r + 1.0 / 6.0) * r + 0.5));
        // 2^n in two factors, as n reaches beyond the exponents of normal numbers.
        let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        let half = n >> 1;
        let scale = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
        power * scale(half) * scale(n.wrapping_sub(half))
    }

    fn largest(x: &[Self]) -> Self {
        dispatch(Largest(x))
    }

    fn sums(x: &[Self], p: Self, y: &[Self], q: Self) -> [f64; 2] {
        let pieces = x.chunks(PIECE).zip(y.chunks(PIECE));
        pieces.fold([0.0; 2], |total, (x, y)| {
            let sums = dispatch(Sums { x, p, y, q });
            [total[0] + f64::from(sums[0]), total[1] + f64::from(sums[1])]
        })
    }
}

impl Real for f64 {
    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }

    fn largest(x: &[Self]) -> Self {
        x.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    fn sums(x: &[Self], p: Self, y: &[Self], q: Self) -> [f64; 2] {
        let pairs = x.iter().zip(y);
        pairs.fold([0.0; 2], |sums, (x, y)| [sums[0] + (y - q), sums[1] + (x - p) * (y - q)])
    }
}

struct Largest<'a>(&'a [f32]);

impl SimdOp for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) -> f32 {
        let ops = isa.f32();
        let lowest = ops.splat(f32::NEG_INFINITY);
        let largest = self.0.simd_iter(ops).fold(
            lowest,
            #[inline(always)]
            |largest, x| ops.max(largest, x),
        );
        ops.fold_splat(largest, f32::NEG_INFINITY, f32::max).to_array()[0]
    }
}

struct Sums<'a> {
    x: &'a [f32],
    p: f32,
    y: &'a [f32],
    q: f32,
}

impl SimdOp for Sums<'_> {
    type Output = [f32; 2];

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) -> [f32; 2] {
        let ops = isa.f32();
        let (p, q) = (ops.splat(self.p), ops.splat(self.q));
        let (mut sum, mut products) = (ops.zero(), ops.zero());
        let (mut xs, mut ys) = (self.x.simd_iter(ops), self.y.simd_iter(ops));
        for (x, y) in (&mut xs).zip(&mut ys) {
            let y = ops.sub(y, q);
            sum = ops.add(sum, y);
            products = ops.mul_add(ops.sub(x, p), y, products);
        }
        if let (Some((x, _)), Some((y, mask))) = (xs.tail(), ys.tail()) {
            let y = ops.select(ops.sub(y, q), ops.zero(), mask);
            sum = ops.add(sum, y);
            products = ops.mul_add(ops.sub(x, p), y, products);
        }
        [ops.sum(sum), ops.sum(products)]
    }
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
    fn reductions_cover_every_length() {
        for len in [0, 1, 3, 15, 16, 17, 100, PIECE, PIECE + 1, 3 * PIECE + 45] {
            // Small integers, so that f32 is exact.
            let x: Vec<f64> = (0..len).map(|i| ((i * 37) % 101) as f64).collect();
            let y: Vec<f64> = (0..len).map(|i| ((i * 11) % 7) as f64 - 3.0).collect();
            let sum = y.iter().map(|y| y - 2.0).sum::<f64>();
            let products = x.iter().zip(&y).map(|(x, y)| (x - 50.0) * (y - 2.0)).sum::<f64>();
            let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert_eq!(f64::sums(&x, 50.0, &y, 2.0), [sum, products]);
            assert_eq!(f64::largest(&x), largest);
            let f32s = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<_>>();
            assert_eq!(f32::sums(&f32s(&x), 50.0, &f32s(&y), 2.0), [sum, products]);
            assert_eq!(f64::from(f32::largest(&f32s(&x))), largest);
        }
    }
}
