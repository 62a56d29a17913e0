//! Masks on features.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::rng::Stream;

/// Sizes of the masks of [`spec_augment`]; 0 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskConfig {
    /// Fewer bands than this are masked.
    pub bands: usize,
    /// Fewer frames than this are masked.
    pub frames: usize,
}

/// What one mask covers of `size`: `width_draw * limit` (rounded down at the end) from
/// `start_draw * (size - width_draw * limit)` on; both draws are in `[0, 1)`.
pub fn mask_range(width_draw: f64, start_draw: f64, limit: usize, size: usize) -> Range<usize> {
    let width = width_draw * limit.min(size) as f64;
    let start = (start_draw * (size as f64 - width)) as usize;
    start..(start + width as usize).min(size)
}

/// SpecAugment (Park et al. 2019) on features `[bands, frames]` in row-major order: one mask over
/// bands and one over frames, filled with 0.
pub fn spec_augment(features: &mut [f32], bands: usize, config: MaskConfig, stream: &mut Stream) {
    let frames = features.len() / bands.max(1);
    let masked_bands = mask_range(stream.uniform(), stream.uniform(), config.bands, bands);
    let masked_frames = mask_range(stream.uniform(), stream.uniform(), config.frames, frames);
    for (band, row) in features.chunks_exact_mut(frames.max(1)).enumerate() {
        let masked = if masked_bands.contains(&band) { 0..frames } else { masked_frames.clone() };
        row[masked].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_narrower_than_their_limit_and_inside() {
        let mut stream = Stream::new(1, "mask", 0);
        for _ in 0..1000 {
            let range = mask_range(stream.uniform(), stream.uniform(), 10, 80);
            assert!(range.len() < 10 && range.end <= 80);
            assert!(mask_range(stream.uniform(), stream.uniform(), 10, 3).end <= 3);
        }
        assert!(mask_range(0.9, 0.9, 0, 80).is_empty() && mask_range(0.9, 0.9, 5, 0).is_empty());
    }

    #[test]
    fn a_cross_of_zeros_is_left() {
        let config = MaskConfig { bands: 4, frames: 5 };
        let mut features = vec![1.0; 8 * 20];
        spec_augment(&mut features, 8, config, &mut Stream::new(3, "mask", 0));
        let zero_rows = features.chunks(20).filter(|row| row.iter().all(|v| *v == 0.0)).count();
        let zero_columns =
            (0..20).filter(|t| features.iter().skip(*t).step_by(20).all(|v| *v == 0.0)).count();
        let zeros = features.iter().filter(|value| **value == 0.0).count();
        assert!(zero_rows < 4 && zero_columns < 5 && zeros > 0);
        assert_eq!(zeros, zero_rows * 20 + zero_columns * (8 - zero_rows));
    }
}
