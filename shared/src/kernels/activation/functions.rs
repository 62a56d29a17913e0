//! The activations and their derivatives as functions of one number, in forms that compilers
//! vectorise.

use std::ops::Neg;

use candle_core::cpu::erf::erf_f64;

use crate::kernels::real::Real;

/// Functions beyond [`Real`] that activations are made of.
pub(crate) trait Smooth: Real + Neg<Output = Self> {
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;

    /// Distribution function and density of the standard normal.
    fn normal(self) -> (Self, Self);
}

impl Smooth for f32 {
    /// At most 2 units in the last place from the exact value (the tests measure it).
    #[inline(always)]
    fn tanh(self) -> Self {
        // Near 0 a polynomial for (tanh(x) / x - 1) / x^2 in x^2 (minimax fit on |x| < 0.6, error
        // 3e-9), as the form with the exponential cancels there.
        const NEAR_ZERO: [f32; 5] =
            [-0.333_333, 0.133_319_58, -0.053_786_68, 0.020_805_38, -0.005_905_86];
        let magnitude = self.abs();
        let square = self * self;
        let near = self + self * square * polynomial(square, NEAR_ZERO);
        let far = 1.0 - 2.0 / (Real::exp(2.0 * magnitude) + 1.0);
        if magnitude < 0.6 { near } else { far.copysign(self) }
    }

    /// The distribution function is at most 1.2e-7 from the exact value (the tests measure it); below
    /// -1.5, where it falls to 0, its relative error is that of the density, about `x^2` 3e-8.
    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        // (Phi(x) - 1/2) / x as a polynomial in x^2 (minimax fit on |x| < 1.5, relative error
        // 3e-9).
        const CENTRE: [f32; 7] = [
            0.398_942_27,
            -0.066_490_34,
            0.009_973_241,
            -0.001_186_488_5,
            0.000_114_356_385,
            -8.718_302e-6,
            4.115_557e-7,
        ];
        // Phi(-x) exp(x^2 / 2) as a polynomial in 4 / (4 + x) (minimax fit on x > 1.5, relative
        // error 3e-9).
        const TAIL: [f32; 9] = [
            2.351_694_3e-7,
            0.099_740_58,
            0.099_557_176,
            0.095_420_48,
            0.070_184_395,
            0.100_193_59,
            -0.033_076_096,
            0.117_030_72,
            -0.049_101_423,
        ];
        const DENSITY_AT_ZERO: f32 = 0.398_942_3;
        let magnitude = self.abs();
        let square = self * self;
        let exponential = Real::exp(-0.5 * square);
        let tail = exponential * polynomial(4.0 / (4.0 + magnitude), TAIL);
        let centre = 0.5 + self * polynomial(square, CENTRE);
        let far = if self > 0.0 { 1.0 - tail } else { tail };
        (if magnitude < 1.5 { centre } else { far }, DENSITY_AT_ZERO * exponential)
    }
}

impl Smooth for f64 {
    #[inline(always)]
    fn tanh(self) -> Self {
        f64::tanh(self)
    }

    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        let distribution = 0.5 * (1.0 + erf_f64(self * std::f64::consts::FRAC_1_SQRT_2));
        (distribution, (-0.5 * self * self).exp() / (2.0 * std::f64::consts::PI).sqrt())
    }
}

#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    coefficients.into_iter().rev().fold(0.0, |sum, coefficient| sum * x + coefficient)
}

#[inline(always)]
pub(super) fn relu<T: Smooth>(x: T) -> T {
    // NaN stays.
    if x < T::zero() { T::zero() } else { x }
}

#[inline(always)]
pub(super) fn sigmoid<T: Smooth>(x: T) -> T {
    T::one() / (T::one() + (-x).exp())
}

#[inline(always)]
pub(super) fn silu<T: Smooth>(x: T) -> T {
    x / (T::one() + (-x).exp())
}

#[inline(always)]
pub(super) fn gelu<T: Smooth>(x: T) -> T {
    x * x.normal().0
}

#[inline(always)]
pub(super) fn silu_derivative<T: Smooth>(x: T) -> T {
    let sigmoid = sigmoid(x);
    sigmoid * (T::one() + x * (T::one() - sigmoid))
}

#[inline(always)]
pub(super) fn gelu_derivative<T: Smooth>(x: T) -> T {
    let (distribution, density) = x.normal();
    distribution + x * density
}

/// Derivative of ReLU by its output; at the kink 0, as PyTorch has it.
#[inline(always)]
pub(super) fn relu_derivative<T: Smooth>(output: T) -> T {
    if output > T::zero() { T::one() } else { T::zero() }
}

/// Derivative of the hyperbolic tangent by its output.
#[inline(always)]
pub(super) fn tanh_derivative<T: Smooth>(output: T) -> T {
    T::one() - output * output
}

/// Derivative of the sigmoid by its output.
#[inline(always)]
pub(super) fn sigmoid_derivative<T: Smooth>(output: T) -> T {
    output * (T::one() - output)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest distance of `found` from `exact`, in units in the last place of an f32 (of `floor`
    /// at least), over f32 numbers within `bound`.
    fn worst_error(
        bound: f32,
        floor: f32,
        found: impl Fn(f32) -> f32,
        exact: impl Fn(f64) -> f64,
    ) -> f64 {
        let points = (0..=bound.to_bits()).step_by(613).map(f32::from_bits);
        points
            .flat_map(|x| [x, -x])
            .map(|x| {
                let exact = exact(f64::from(x));
                let unit = (exact.abs() as f32).max(floor);
                (f64::from(found(x)) - exact).abs() / f64::from(unit.next_up() - unit)
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn f32_functions_are_accurate() {
        let normal = |x: f64| x.normal().0;
        let cases = [
            ("tanh", worst_error(30.0, 1e-30, Smooth::tanh, f64::tanh), 2.0),
            ("Phi", worst_error(20.0, 0.5, |x| x.normal().0, normal), 2.0),
            ("gelu", worst_error(20.0, 0.5, gelu, gelu), 3.0),
            ("silu", worst_error(80.0, 0.1, silu, silu), 3.0),
            ("sigmoid", worst_error(80.0, 1e-30, sigmoid, sigmoid), 4.0),
        ];
        for (name, error, limit) in cases {
            assert!(error <= limit, "{name}: {error} units in the last place");
        }
        // Phi(-5) to 15 digits, from a table of the complementary error function.
        let found = f64::from((-5.0f32).normal().0);
        assert!((found / 2.866_515_718_791_939e-7 - 1.0).abs() < 2e-6, "{found}");
    }

    #[test]
    fn special_values_pass() {
        for function in [relu, sigmoid, silu, gelu, Smooth::tanh] {
            assert!(function(f32::NAN).is_nan());
        }
        assert_eq!(sigmoid(f32::NEG_INFINITY), 0.0);
        assert_eq!(sigmoid(f32::INFINITY), 1.0);
        assert_eq!(Smooth::tanh(f32::NEG_INFINITY), -1.0);
        assert_eq!(silu(-1000.0f32), 0.0);
        assert_eq!(gelu(-1000.0f32), 0.0);
        assert_eq!(gelu(1000.0f32), 1000.0);
    }
}
