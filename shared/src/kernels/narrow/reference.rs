//! What narrow numbers and their sums should be, for the tests.

use candle_core::{DType, Tensor};
use half::bf16;

use super::numbers::{Affine, Range};
use crate::kernels::check;

/// `tensor`, rounded to bf16, in `f64`.
pub(crate) fn bf16(tensor: &Tensor) -> Tensor {
    map(tensor, |x| f64::from(bf16::from_f32(x)))
}

/// The integers of inputs that are rounded together, less their zero point, in `f64`; and their
/// scale.
pub(crate) fn integers(x: &Tensor) -> (Tensor, f32) {
    let values: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
    let affine = Affine::covering(Range::of(&values));
    let zero = f64::from(affine.zero);
    let integers = map(x, |x| {
        let steps = f64::from((x * (1.0 / affine.scale)).round_ties_even());
        (steps + zero).clamp(0.0, 255.0) - zero
    });
    (integers, affine.scale)
}

/// The integers of a channel's weight, in `f64`, and their scale.
pub(crate) fn weight_integers(weight: &Tensor) -> (Tensor, f32) {
    let values: Vec<f32> = weight.flatten_all().unwrap().to_vec1().unwrap();
    let scale = values.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0;
    (map(weight, |x| f64::from((x * (1.0 / scale)).round_ties_even().clamp(-127.0, 127.0))), scale)
}

fn map(tensor: &Tensor, function: impl Fn(f32) -> f64) -> Tensor {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    let values: Vec<f64> = values.into_iter().map(function).collect();
    Tensor::from_vec(values, tensor.shape(), tensor.device()).unwrap()
}

/// Checks sums in `f32` of `terms` terms, each rounded at most once when it is multiplied and once
/// when it is added, whose magnitudes add up to `magnitude`.
///
/// # Panics
/// With the first element that is too far from `expected`.
pub(crate) fn assert_sums(
    case: &str,
    found: &Tensor,
    expected: &Tensor,
    magnitude: &Tensor,
    terms: usize,
) {
    assert_eq!((found.dtype(), found.dims()), (DType::F32, expected.dims()), "{case}");
    let unit = f64::from(f32::EPSILON) / 2.0;
    // Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1.
    let steps = (terms + 1) as f64 * unit;
    let factor = steps / (1.0 - steps);
    let [found, expected, magnitude] = [found, expected, magnitude].map(check::to_vec);
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        // The smallest normal number: products below may be flushed to zero.
        let bound = factor * magnitude[at] + terms as f64 * f64::from(f32::MIN_POSITIVE);
        let error = (found - expected).abs();
        assert!(error <= bound, "{case}, element {at}: {found} instead of {expected}");
    }
}
