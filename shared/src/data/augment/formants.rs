//! Another vocal tract at the same pitch.

use std::f64::consts::PI;

use crate::dsp::{MelOptions, hertz_to_mel, mel_to_hertz};
use crate::{Error, Result};

/// Cosines that make up the smooth part of a log-mel spectrum, which is the vocal tract's; what is
/// left are the harmonics of the pitch.
const SMOOTH_COSINES: usize = 18;
/// Up to here formants are moved by the whole factor; above, by less and less, so that the edge of
/// the spectrum stays where it is (Jaitly and Hinton 2013, "Vocal tract length perturbation").
const WHOLE_UP_TO_HZ: f64 = 4800.0;

/// Moves the formants in log-mel spectra by a factor and leaves pitch and tempo as they are, which
/// makes another voice. With [`super::Speed`], which moves all three, pitch and formants can be
/// set apart.
///
/// The smooth part of each spectrum (its lowest cosines) is stretched along the frequency axis; the
/// rest, the harmonics, stays. Both are linear in the logarithm, so that one matrix does it.
#[derive(Clone, Debug)]
pub struct Formants {
    /// `[bands, bands]`; none for the factor 1.
    matrix: Option<Vec<f32>>,
    bands: usize,
}

impl Formants {
    /// Formants at `factor` times their frequencies, in the bands of `mel` of recordings at
    /// `rate_hz`.
    ///
    /// # Errors
    /// When the factor is not between 0.5 and 2.
    pub fn new(factor: f64, mel: &MelOptions, rate_hz: u32) -> Result<Self> {
        if !(0.5..=2.0).contains(&factor) {
            return Err(Error::Argument(format!(
                "formants: factor {factor} is not between 0.5 and 2"
            )));
        }
        let bands = mel.filters;
        if factor == 1.0 {
            return Ok(Self { matrix: None, bands });
        }
        let (low, high) = (hertz_to_mel(mel.low_hz), hertz_to_mel(mel.high_hz));
        let step = (high - low) / (bands + 1) as f64;
        let nyquist_hz = f64::from(rate_hz) / 2.0;
        let last = bands.saturating_sub(1);
        let mut matrix = vec![0.0; bands * bands];
        for (band, row) in matrix.chunks_exact_mut(bands.max(1)).enumerate() {
            let hertz = mel_to_hertz(low + (band + 1) as f64 * step);
            let source = (hertz_to_mel(source_hz(hertz, factor, nyquist_hz)) - low) / step - 1.0;
            let source = source.clamp(0.0, last as f64);
            let (left, share) = (source as usize, source.fract());
            for (other, weight) in row.iter_mut().enumerate() {
                let smooth = |band| smoothing(band, other, bands);
                let moved = smooth(left) * (1.0 - share) + smooth((left + 1).min(last)) * share;
                let same = if other == band { 1.0 } else { 0.0 };
                *weight = (same + moved - smooth(band)) as f32;
            }
        }
        Ok(Self { matrix: Some(matrix), bands })
    }

    /// Changes log-mel spectra `[bands, frames]` in row-major order.
    pub fn apply(&self, features: &mut [f32]) {
        let Some(matrix) = &self.matrix else { return };
        let frames = features.len() / self.bands;
        let mut moved = vec![0.0; features.len()];
        for (out, weights) in moved.chunks_exact_mut(frames).zip(matrix.chunks_exact(self.bands)) {
            for (row, weight) in features.chunks_exact(frames).zip(weights) {
                out.iter_mut().zip(row).for_each(|(out, value)| *out += weight * value);
            }
        }
        features.copy_from_slice(&moved);
    }
}

/// Where what is to be heard at `hertz` comes from.
fn source_hz(hertz: f64, factor: f64, nyquist_hz: f64) -> f64 {
    // The end of the straight part, before and after.
    let before = (WHOLE_UP_TO_HZ / factor.max(1.0)).min(nyquist_hz * 0.9);
    let after = before * factor;
    if hertz <= after {
        hertz / factor
    } else {
        before + (hertz - after) * (nyquist_hz - before) / (nyquist_hz - after)
    }
}

/// Element `[row, column]` of the projection of `bands` values onto their lowest cosines.
fn smoothing(row: usize, column: usize, bands: usize) -> f64 {
    let cosine =
        |k: usize, place: usize| (PI * k as f64 * (place as f64 + 0.5) / bands as f64).cos();
    (0..SMOOTH_COSINES.min(bands))
        .map(|k| {
            let norm = if k == 0 { 1.0 } else { 2.0 } / bands as f64;
            norm * cosine(k, row) * cosine(k, column)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEL: MelOptions = MelOptions { filters: 80, low_hz: 20.0, high_hz: 7600.0 };

    fn band(hertz: f64) -> f64 {
        let (low, high) = (hertz_to_mel(MEL.low_hz), hertz_to_mel(MEL.high_hz));
        (hertz_to_mel(hertz) - low) / (high - low) * 81.0 - 1.0
    }

    /// A log-mel spectrum with one smooth peak.
    fn peak(hertz: f64) -> Vec<f32> {
        (0..80).map(|b| (-((b as f64 - band(hertz)) / 8.0).powi(2)).exp() as f32).collect()
    }

    #[test]
    fn smooth_peaks_move_by_the_factor() {
        for factor in [0.85, 1.15] {
            let formants = Formants::new(factor, &MEL, 16_000).unwrap();
            for hertz in [500.0, 1500.0, 3000.0] {
                let mut features = peak(hertz);
                formants.apply(&mut features);
                let top = (0..80).max_by(|a, b| features[*a].total_cmp(&features[*b])).unwrap();
                let expected = band(hertz * factor);
                assert!((top as f64 - expected).abs() <= 1.0, "{factor} {hertz}: {top} {expected}");
            }
        }
    }

    #[test]
    fn harmonics_and_level_stay() {
        let formants = Formants::new(1.2, &MEL, 16_000).unwrap();
        // Cosine 30 of the bands, beyond the smooth ones, and a constant; two frames.
        let ripple = |b: usize| (PI * 30.0 * (b as f64 + 0.5) / 80.0).cos() as f32;
        let features: Vec<f32> = (0..80).flat_map(|b| [ripple(b), 3.0]).collect();
        let mut moved = features.clone();
        formants.apply(&mut moved);
        for (moved, before) in moved.iter().zip(&features) {
            assert!((moved - before).abs() < 1e-4, "{moved} {before}");
        }
    }

    #[test]
    fn the_factor_1_changes_nothing_and_absurd_ones_are_refused() {
        let mut features = peak(1000.0);
        Formants::new(1.0, &MEL, 16_000).unwrap().apply(&mut features);
        assert_eq!(features, peak(1000.0));
        for factor in [0.0, -1.0, 3.0, f64::NAN] {
            assert!(Formants::new(factor, &MEL, 16_000).is_err(), "{factor}");
        }
        // One band has nowhere to go.
        let one = MelOptions { filters: 1, ..MEL };
        let mut single = vec![2.0, 5.0];
        Formants::new(1.1, &one, 16_000).unwrap().apply(&mut single);
        assert!(single.iter().zip([2.0, 5.0]).all(|(a, b)| (a - b).abs() < 1e-6), "{single:?}");
    }

    #[test]
    fn the_frequency_axis_is_covered_without_jumps() {
        for factor in [0.7, 0.9, 1.1, 1.4] {
            assert!(source_hz(0.0, factor, 8000.0) == 0.0);
            assert!((source_hz(8000.0, factor, 8000.0) - 8000.0).abs() < 1e-9);
            let places: Vec<f64> =
                (0..=800).map(|i| source_hz(f64::from(i) * 10.0, factor, 8000.0)).collect();
            assert!(places.windows(2).all(|p| p[1] > p[0] && p[1] - p[0] < 40.0), "{factor}");
        }
    }
}
