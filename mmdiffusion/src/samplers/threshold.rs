//! Dynamic thresholding (Saharia et al., Imagen, 2022, section 2.3).

use candle_core::{DType, Tensor};
use shared::Result;

/// The share of the values that are kept as they are.
const BULK: f64 = 0.995;

/// `clean` with the values of each sample held within s and divided by it, where 99.5 % of them are
/// no larger than s; but s is at least 1.
///
/// # Errors
/// Those of the tensor library.
pub(super) fn within_bulk(clean: &Tensor) -> Result<Tensor> {
    let samples = clean.detach().abs()?.flatten_from(1)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let scales: Vec<f32> =
        samples.into_iter().map(|mut values| quantile(&mut values, BULK).max(1.0)).collect();
    let mut shape = vec![1; clean.rank()];
    shape[0] = scales.len();
    let scales = Tensor::from_vec(scales, shape, clean.device())?;
    let held = clean.broadcast_minimum(&scales)?.broadcast_maximum(&scales.neg()?)?;
    Ok(held.broadcast_div(&scales)?)
}

/// The value below which the `share` of `values` lies, on a straight line between two of them.
fn quantile(values: &mut [f32], share: f64) -> f32 {
    let rank = share as f32 * values.len().saturating_sub(1) as f32;
    let (below, rest) = (rank.floor() as usize, rank.fract());
    if below >= values.len() {
        return 0.0;
    }
    let (_, value, above) = values.select_nth_unstable_by(below, f32::total_cmp);
    let value = *value;
    let next = above.iter().copied().min_by(f32::total_cmp).unwrap_or(value);
    value + rest * (next - value)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn quantiles_lie_between_values() {
        for (values, share, expected) in [
            (vec![3.0], 0.5, 3.0),
            (vec![2.0, 1.0], 0.5, 1.5),
            (vec![5.0, 1.0, 3.0, 2.0, 4.0], 0.75, 4.0),
            (vec![4.0, 0.0, 2.0], 0.9, 3.6),
        ] {
            let mut sorted = values.clone();
            assert!((quantile(&mut sorted, share) - expected).abs() < 1e-6, "{values:?}");
        }
    }

    #[test]
    fn each_sample_has_its_own_scale() {
        let clean = Tensor::new(&[[4f32, -4.0, 2.0], [0.5, -0.25, 0.0]], &Device::Cpu).unwrap();
        let held: Vec<Vec<f32>> = within_bulk(&clean).unwrap().to_vec2().unwrap();
        assert_eq!(held, [[1.0, -1.0, 0.5], [0.5, -0.25, 0.0]]);
    }
}
