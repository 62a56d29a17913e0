//! The features that the networks hear: normalised logarithmic mel bands.

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use shared::dsp::{
    LogMel, LogMelOptions, MelOptions, StftOptions, Window, WindowShape, instance_norm,
    pre_emphasis,
};
use shared::{Error, Result};

/// Settings of a [`Frontend`]; they travel with a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontendConfig {
    /// Factor applied to samples in +-1 before anything else. The published networks were trained
    /// on the values of 16-bit files, 32768 times larger, which the offset below the logarithm
    /// makes a difference to quiet frames.
    pub amplitude: f64,
    /// Coefficient of the pre-emphasis filter.
    pub pre_emphasis: f64,
    /// Spectrum and mel bands.
    pub log_mel: LogMelOptions,
    /// Added to the variance over time by which each band is normalised.
    pub norm_eps: f64,
}

impl Default for FrontendConfig {
    /// The published front-end: 80 bands from 20 to 7600 Hz of 25 ms frames every 10 ms at 16 kHz.
    fn default() -> Self {
        Self {
            amplitude: 32768.0,
            pre_emphasis: 0.97,
            log_mel: LogMelOptions {
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
            },
            norm_eps: 1e-5,
        }
    }
}

/// Pre-emphasis, log-mel bands, and each band's mean and variance over time removed.
#[derive(Clone, Debug)]
pub struct Frontend {
    config: FrontendConfig,
    log_mel: LogMel<f32>,
}

impl Frontend {
    /// The front-end for `config`.
    ///
    /// # Errors
    /// When a setting is outside its domain.
    pub fn new(config: FrontendConfig) -> Result<Self> {
        let positive = [config.amplitude, config.norm_eps, config.log_mel.log_offset];
        if !positive.iter().all(|value| value.is_finite() && *value > 0.0)
            || !config.pre_emphasis.is_finite()
        {
            return Err(Error::Argument(
                "front-end: amplitude, norm_eps and log_offset must be positive, pre_emphasis finite"
                    .into(),
            ));
        }
        let log_mel = LogMel::new(&config.log_mel)?;
        Ok(Self { config, log_mel })
    }

    /// The settings.
    pub fn config(&self) -> &FrontendConfig {
        &self.config
    }

    /// The mel bands and the spectrum below them.
    pub fn log_mel(&self) -> &LogMel<f32> {
        &self.log_mel
    }

    /// Sampling rate that the samples must have, in Hz.
    pub fn rate_hz(&self) -> u32 {
        self.config.log_mel.rate_hz
    }

    /// Features a frame.
    pub fn bands(&self) -> usize {
        self.config.log_mel.mel.filters
    }

    /// Fewest samples that give features.
    pub fn min_samples(&self) -> usize {
        self.log_mel.stft().min_samples()
    }

    /// Frames that `samples` samples give.
    pub fn frames(&self, samples: usize) -> usize {
        self.log_mel.stft().frames(samples)
    }

    /// The samples scaled and pre-emphasised.
    pub fn pre_emphasised(&self, samples: &[f32]) -> Vec<f32> {
        let amplitude = self.config.amplitude as f32;
        let scaled: Vec<f32> = samples.iter().map(|sample| sample * amplitude).collect();
        pre_emphasis(&scaled, self.config.pre_emphasis as f32)
    }

    /// Logarithmic mel bands before normalisation, `[bands, frames]` in row-major order.
    ///
    /// # Errors
    /// [`Error::TooShort`].
    pub fn log_bands(&self, samples: &[f32]) -> Result<Vec<f32>> {
        self.log_mel.compute(&self.pre_emphasised(samples))
    }

    /// The features of one recording with samples in +-1, `[bands, frames]` in row-major order.
    ///
    /// # Errors
    /// [`Error::TooShort`].
    pub fn features(&self, samples: &[f32]) -> Result<Vec<f32>> {
        let mut features = self.log_bands(samples)?;
        self.normalise(&mut features);
        Ok(features)
    }

    /// Makes features of what [`Self::log_bands`] gives, in place.
    pub fn normalise(&self, log_bands: &mut [f32]) {
        instance_norm(log_bands, log_bands.len() / self.bands(), self.config.norm_eps);
    }

    /// The features `[B, bands, frames]` of recordings of equal length. Each is what it would be
    /// alone.
    ///
    /// # Errors
    /// [`Error::TooShort`]; [`Error::Argument`] when there is no recording or the lengths differ.
    pub fn batch<S: AsRef<[f32]> + Sync>(
        &self,
        recordings: &[S],
        device: &Device,
    ) -> Result<Tensor> {
        let length = recordings.first().map(|first| first.as_ref().len());
        let Some(length) = length.filter(|length| {
            recordings.iter().all(|recording| recording.as_ref().len() == *length)
        }) else {
            return Err(Error::Argument("a batch needs recordings, all of the same length".into()));
        };
        let features: Vec<Vec<f32>> = recordings
            .par_iter()
            .map(|recording| self.features(recording.as_ref()))
            .collect::<Result<_>>()?;
        let shape = (recordings.len(), self.bands(), self.frames(length));
        Ok(Tensor::from_vec(features.concat(), shape, device)?)
    }
}

#[cfg(test)]
mod tests {
    use shared::rng::Stream;

    use super::*;

    fn noise(index: u64, count: usize) -> Vec<f32> {
        let mut stream = Stream::new(1, "noise", index);
        (0..count).map(|_| 0.1 * stream.normal() as f32).collect()
    }

    #[test]
    fn a_batch_is_what_its_items_are() {
        let frontend = Frontend::new(FrontendConfig::default()).unwrap();
        let items = [noise(0, 4001), noise(1, 4001), noise(2, 4001)];
        let batch = frontend.batch(&items, &Device::Cpu).unwrap();
        assert_eq!(batch.dims(), [3, 80, 26]);
        for (i, item) in items.iter().enumerate() {
            let row: Vec<f32> = batch.get(i).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(row, frontend.features(item).unwrap());
        }
    }

    #[test]
    fn each_band_has_mean_zero_and_variance_one() {
        let frontend = Frontend::new(FrontendConfig::default()).unwrap();
        for row in frontend.features(&noise(3, 16_000)).unwrap().chunks(101) {
            let mean = row.iter().sum::<f32>() / 101.0;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 101.0;
            assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-3, "{mean} {variance}");
        }
    }

    #[test]
    fn what_is_too_short_is_refused() {
        let frontend = Frontend::new(FrontendConfig::default()).unwrap();
        assert_eq!(frontend.min_samples(), 257);
        for count in [0, 1, 2, 256] {
            let refused = frontend.features(&noise(0, count));
            assert!(matches!(refused, Err(Error::TooShort { need_samples: 257, .. })), "{count}");
        }
        assert_eq!(frontend.features(&noise(0, 257)).unwrap().len(), 2 * 80);
        assert!(frontend.batch::<Vec<f32>>(&[], &Device::Cpu).is_err());
        assert!(frontend.batch(&[noise(0, 300), noise(0, 301)], &Device::Cpu).is_err());
    }

    #[test]
    fn settings_travel_as_json() {
        let config = FrontendConfig::default();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<FrontendConfig>(&json).unwrap(), config);
        let spoilt = json.replacen("\"amplitude\"", "\"gain\"", 1);
        assert!(serde_json::from_str::<FrontendConfig>(&spoilt).is_err());
        for wrong in [0.0, -1.0, f64::NAN] {
            assert!(Frontend::new(FrontendConfig { amplitude: wrong, ..config.clone() }).is_err());
        }
    }
}
