//! What super-resolution learns to undo.

use shared::Result;
use shared::media::image::{Letterbox, Picture};
use shared::rng::Stream;

/// Probability of noise, and of compression.
const PROBABILITY: f64 = 0.5;
/// Most deviation of the noise, in steps of a byte.
const NOISE: f64 = 20.0;
/// Qualities of the compression.
const QUALITIES: std::ops::Range<f64> = 20.0..80.0;

/// A small copy of a square picture as the published network was trained to enlarge them,
/// `[3, side, side]` in -1..1: made small without smoothing, then, each with a probability of one
/// half, noise is added and JPEG leaves its traces; mirrored left to right if asked. Noise alone may
/// leave the range.
///
/// # Errors
/// Those of [`Picture::compressed`].
pub fn degraded(
    picture: &Picture,
    side: usize,
    mirrored: bool,
    stream: &mut Stream,
) -> Result<Vec<f32>> {
    let small = Letterbox::new(side, side).fit(picture);
    let mut values: Vec<f32> = small.pixels().iter().map(|byte| f32::from(*byte)).collect();
    if stream.uniform() < PROBABILITY {
        let deviation = stream.uniform_in(0.0, NOISE);
        values.iter_mut().for_each(|value| *value += (deviation * stream.normal()) as f32);
    }
    if stream.uniform() < PROBABILITY {
        let quality = stream.uniform_in(QUALITIES.start, QUALITIES.end) as u8;
        // The conversion saturates.
        let bytes = values.iter().map(|value| value.round_ties_even() as u8).collect();
        let left = Picture::new(side, side, bytes)?.compressed(quality)?;
        values = left.pixels().iter().map(|byte| f32::from(*byte)).collect();
    }
    Ok(planes(&values, mirrored, side))
}

/// `[H, W, 3]` in 0..255 as `[3, H, W]` in -1..1, mirrored left to right if asked.
pub(super) fn planes(pixels: &[f32], mirrored: bool, width: usize) -> Vec<f32> {
    let area = pixels.len() / 3;
    let mut planes = vec![0.0; 3 * area];
    for (index, pixel) in pixels.chunks_exact(3).enumerate() {
        let column = index % width.max(1);
        let place = if mirrored { index + width - 1 - 2 * column } else { index };
        for (colour, value) in pixel.iter().enumerate() {
            planes[colour * area + place] = value / 127.5 - 1.0;
        }
    }
    planes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_each_is_noisy_and_compressed() {
        let shade = |i: usize| (3 * (i % 32 + i / 32) + 20) as u8;
        let pixels = (0..32 * 32).flat_map(|i| [shade(i); 3]).collect();
        let picture = Picture::new(32, 32, pixels).unwrap();
        let plain = Letterbox::new(8, 8).fit(&picture);
        let plain: Vec<f32> = plain.pixels().iter().map(|byte| f32::from(*byte)).collect();
        let plain = planes(&plain, false, 8);
        let (mut untouched, mut whole) = (0, 0);
        for number in 0..400 {
            let found = degraded(&picture, 8, false, &mut Stream::new(1, "test", number)).unwrap();
            assert_eq!(found.len(), plain.len());
            let byte = |value: &f32| (value + 1.0) * 127.5;
            untouched += usize::from(found == plain);
            whole += usize::from(found.iter().all(|v| (byte(v) - byte(v).round()).abs() < 1e-3));
            let pairs = found.iter().zip(&plain);
            let mean = pairs.map(|(a, b)| (a - b).abs()).sum::<f32>() / plain.len() as f32;
            // The mean deviation of the strongest noise is 0.125.
            assert!(mean < 0.2, "{mean}");
        }
        // A fourth is neither; three fourths are bytes.
        assert!((70..130).contains(&untouched), "{untouched}");
        assert!((260..340).contains(&whole), "{whole}");
    }
}
