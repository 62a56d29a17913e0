//! Log-mel features and the steps around them.

use serde::{Deserialize, Serialize};

use super::{Complex, MelFilterbank, MelOptions, Sample, Stft, StftOptions};
use crate::Result;

/// `samples` with high frequencies raised: `y[t] = x[t] - coefficient * x[t - 1]`. The first sample
/// uses `x[1]` as its predecessor (mirrored start), or itself when it is the only one.
pub fn pre_emphasis<T: Sample>(samples: &[T], coefficient: T) -> Vec<T> {
    let Some(&first) = samples.first() else { return Vec::new() };
    let before_first = samples.get(1).copied().unwrap_or(first);
    std::iter::once(first - coefficient * before_first)
        .chain(samples.windows(2).map(|pair| pair[1] - coefficient * pair[0]))
        .collect()
}

/// Normalises each row of `frames` values to mean 0 and variance 1 over time, in place:
/// `(v - mean) / sqrt(variance + eps)`, biased variance. Sums are in f64, so that a constant row
/// becomes 0 within rounding.
pub fn instance_norm<T: Sample>(features: &mut [T], frames: usize, eps: f64) {
    for row in features.chunks_mut(frames.max(1)) {
        let count = row.len() as f64;
        let wide = |value: &T| value.to_f64().unwrap_or(f64::NAN);
        let mean = row.iter().map(wide).sum::<f64>() / count;
        let variance = row.iter().map(|value| (wide(value) - mean).powi(2)).sum::<f64>() / count;
        let scale = 1.0 / (variance + eps).sqrt();
        row.iter_mut().for_each(|value| *value = T::of((wide(value) - mean) * scale));
    }
}

/// Parameters of [`LogMel`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogMelOptions {
    /// Sampling rate of the signal in Hz.
    pub rate_hz: u32,
    /// The short-time Fourier transform.
    pub stft: StftOptions,
    /// The mel filterbank.
    pub mel: MelOptions,
    /// Added to each filter's power before the logarithm.
    pub log_offset: f64,
}

/// Natural logarithm of the power in mel bands: `ln(filterbank(|STFT|^2) + log_offset)`.
#[derive(Clone, Debug)]
pub struct LogMel<T: Sample> {
    stft: Stft<T>,
    filterbank: MelFilterbank<T>,
    log_offset: T,
}

impl<T: Sample> LogMel<T> {
    /// The features for `options`.
    ///
    /// # Errors
    /// As [`Stft::new`] and [`MelFilterbank::new`].
    pub fn new(options: &LogMelOptions) -> Result<Self> {
        let stft = Stft::new(options.stft)?;
        let filterbank = MelFilterbank::new(&options.mel, stft.bins(), options.rate_hz)?;
        Ok(Self { stft, filterbank, log_offset: T::of(options.log_offset) })
    }

    /// The transform that it starts with.
    pub fn stft(&self) -> &Stft<T> {
        &self.stft
    }

    /// The filterbank that it applies.
    pub fn filterbank(&self) -> &MelFilterbank<T> {
        &self.filterbank
    }

    /// The power in mel bands, `[filters, frames]` in row-major order.
    ///
    /// # Errors
    /// [`crate::Error::TooShort`].
    pub fn mel(&self, samples: &[T]) -> Result<Vec<T>> {
        let frames = self.stft.frames(samples.len());
        let mut mel = vec![T::zero(); self.filterbank.filters() * frames];
        let mut power = vec![T::zero(); self.stft.bins()];
        self.stft.for_each_frame(samples, |frame, spectrum| {
            for (power, value) in power.iter_mut().zip(spectrum) {
                *power = Complex::norm_sqr(value);
            }
            let column = mel.iter_mut().skip(frame).step_by(frames);
            column.zip(self.filterbank.apply(&power)).for_each(|(out, value)| *out = value);
        })?;
        Ok(mel)
    }

    /// The features of a signal, `[filters, frames]` in row-major order.
    ///
    /// # Errors
    /// [`crate::Error::TooShort`].
    pub fn compute(&self, samples: &[T]) -> Result<Vec<T>> {
        let mut features = self.mel(samples)?;
        features.iter_mut().for_each(|value| *value = (*value + self.log_offset).ln());
        Ok(features)
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;
    use crate::dsp::{Window, WindowShape};

    fn options() -> LogMelOptions {
        LogMelOptions {
            rate_hz: 16_000,
            stft: StftOptions {
                fft_samples: 512,
                hop_samples: 160,
                window_samples: 400,
                window: Window::periodic(WindowShape::Hamming),
                centered: true,
            },
            mel: MelOptions { filters: 80, low_hz: 20.0, high_hz: 7600.0 },
            log_offset: 1e-6,
        }
    }

    #[test]
    fn pre_emphasis_mirrors_the_start() {
        assert!(pre_emphasis::<f64>(&[], 0.5).is_empty());
        assert_eq!(pre_emphasis(&[2.0], 0.5), [1.0]);
        assert_eq!(pre_emphasis(&[2.0, 4.0, 8.0], 0.5), [0.0, 3.0, 6.0]);
    }

    #[test]
    fn instance_norm_centres_and_scales_each_row() {
        let mut features = vec![1.0f32, 2.0, 3.0, 7.0, 7.0, 7.0];
        instance_norm(&mut features, 3, 0.0);
        let edge = 1.5f32.sqrt();
        assert_eq!(features[..3], [-edge, 0.0, edge]);
        // Variance 0 and eps 0: not finite, so eps is what keeps a constant row at 0.
        assert!(features[3..].iter().all(|v| v.is_nan()));
        let mut constant = vec![-13.815_511_f32; 21];
        instance_norm(&mut constant, 21, 1e-5);
        assert!(constant.iter().all(|v| v.abs() < 1e-9), "{constant:?}");
        instance_norm::<f32>(&mut [], 0, 1e-5);
    }

    #[test]
    fn a_tone_peaks_in_the_band_that_holds_it() {
        let features = LogMel::<f64>::new(&options()).unwrap();
        let mel_step = (hertz(7600.0) - hertz(20.0)) / 81.0;
        for tone_hz in [300.0, 1000.0, 4000.0] {
            let samples: Vec<f64> =
                (0..8000).map(|t| (TAU * tone_hz * t as f64 / 16_000.0).sin()).collect();
            let mel = features.compute(&samples).unwrap();
            let frames = features.stft().frames(samples.len());
            assert_eq!((mel.len(), frames), (80 * 51, 51));
            let loudest = (0..80)
                .max_by(|&a, &b| mel[a * frames + 20].total_cmp(&mel[b * frames + 20]))
                .unwrap();
            let expected = (hertz(tone_hz) - hertz(20.0)) / mel_step - 1.0;
            assert!((loudest as f64 - expected).abs() <= 1.0, "{tone_hz}: {loudest} {expected}");
        }
        fn hertz(value: f64) -> f64 {
            crate::dsp::hertz_to_mel(value)
        }
    }

    #[test]
    fn silence_gives_the_logarithm_of_the_offset() {
        let features = LogMel::<f32>::new(&options()).unwrap();
        let silent = features.compute(&[0.0; 3200]).unwrap();
        assert!(silent.iter().all(|v| (v - 1e-6f32.ln()).abs() < 1e-6));
    }

    #[test]
    fn single_precision_agrees_with_double() {
        let mut stream = crate::rng::Stream::new(5, "features", 0);
        let wide: Vec<f64> = (0..16_000).map(|_| 1000.0 * stream.normal()).collect();
        let narrow: Vec<f32> = wide.iter().map(|&v| v as f32).collect();
        let wide = LogMel::<f64>::new(&options()).unwrap().compute(&wide).unwrap();
        let narrow = LogMel::<f32>::new(&options()).unwrap().compute(&narrow).unwrap();
        for (narrow, wide) in narrow.iter().zip(&wide) {
            assert!((f64::from(*narrow) - wide).abs() < 1e-4, "{narrow} {wide}");
        }
    }
}
