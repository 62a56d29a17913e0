//! Random changes to recordings that keep what is to be learnt from them: who speaks, what is
//! said. All work on mono samples in +-1, draw from the stream that they are given and from
//! nothing else, and keep the length.

mod channel;
mod formants;
mod mask;
mod noise;
mod reverb;
mod speed;

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::rng::Stream;
use crate::{Error, Result};

pub use channel::{clip, mu_law, shape_spectrum};
pub use formants::Formants;
pub use mask::{MaskConfig, mask_range, spec_augment};
pub use noise::{Mix, add_noises, coloured_noise, level_db};
pub use reverb::{convolve, synthetic_impulse_response, with_unit_energy};
pub use speed::Speed;

/// How often each change is made and within which bounds; every bound is drawn uniformly. The
/// changes are made in the order of the fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentConfig {
    /// Probability of reverberation.
    pub reverb: f64,
    /// Of the reverberated, the share that takes a measured impulse response where there are any;
    /// the others take a synthetic one.
    pub measured_reverb: f64,
    /// Reverberation time (60 dB) of synthetic impulse responses, in seconds.
    pub reverb_time_s: [f64; 2],
    /// Probability of one recorded noise, where there are any.
    pub noise: f64,
    /// Its signal-to-noise ratio.
    pub noise_snr_db: [f64; 2],
    /// Probability of other voices, where there are any.
    pub babble: f64,
    /// Signal-to-noise ratio of each voice.
    pub babble_snr_db: [f64; 2],
    /// Number of voices.
    pub babble_voices: [usize; 2],
    /// Probability of stationary noise with a random spectral slope.
    pub coloured: f64,
    /// Its signal-to-noise ratio.
    pub coloured_snr_db: [f64; 2],
    /// Probability of a random smooth frequency response.
    pub equaliser: f64,
    /// Its gains.
    pub equaliser_db: [f64; 2],
    /// Probability that high frequencies are missing.
    pub low_pass: f64,
    /// Where they begin to be.
    pub low_pass_hz: [f64; 2],
    /// Probability of a telephone line: 300 to 3400 Hz in 8-bit mu-law.
    pub telephone: f64,
    /// Probability of clipping.
    pub clip: f64,
    /// Share of the peak at which it clips.
    pub clip_level: [f64; 2],
    /// Change of loudness, always.
    pub gain_db: [f64; 2],
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self {
            reverb: 0.45,
            measured_reverb: 0.4,
            reverb_time_s: [0.1, 0.9],
            noise: 0.25,
            noise_snr_db: [0.0, 18.0],
            babble: 0.2,
            babble_snr_db: [12.0, 22.0],
            babble_voices: [3, 7],
            coloured: 0.15,
            coloured_snr_db: [3.0, 25.0],
            equaliser: 0.4,
            equaliser_db: [-8.0, 8.0],
            low_pass: 0.1,
            low_pass_hz: [3000.0, 7000.0],
            telephone: 0.05,
            clip: 0.05,
            clip_level: [0.2, 0.8],
            gain_db: [-6.0, 3.0],
        }
    }
}

impl AugmentConfig {
    /// No change at all.
    pub fn off() -> Self {
        Self {
            reverb: 0.0,
            noise: 0.0,
            babble: 0.0,
            coloured: 0.0,
            equaliser: 0.0,
            low_pass: 0.0,
            telephone: 0.0,
            clip: 0.0,
            gain_db: [0.0, 0.0],
            ..Self::default()
        }
    }

    /// Fails when a probability is not between 0 and 1 or a pair of bounds is not ascending.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let probabilities = [
            ("reverb", self.reverb),
            ("measured_reverb", self.measured_reverb),
            ("noise", self.noise),
            ("babble", self.babble),
            ("coloured", self.coloured),
            ("equaliser", self.equaliser),
            ("low_pass", self.low_pass),
            ("telephone", self.telephone),
            ("clip", self.clip),
        ];
        if let Some((name, value)) =
            probabilities.iter().find(|(_, value)| !(0.0..=1.0).contains(value))
        {
            return Err(Error::Argument(format!("{name}: {value} is no probability")));
        }
        let bounds = [
            ("reverb_time_s", self.reverb_time_s),
            ("noise_snr_db", self.noise_snr_db),
            ("babble_snr_db", self.babble_snr_db),
            ("babble_voices", self.babble_voices.map(|voices| voices as f64)),
            ("coloured_snr_db", self.coloured_snr_db),
            ("equaliser_db", self.equaliser_db),
            ("low_pass_hz", self.low_pass_hz),
            ("clip_level", self.clip_level),
            ("gain_db", self.gain_db),
        ];
        let ascending = |[low, high]: [f64; 2]| low <= high && low.is_finite() && high.is_finite();
        match bounds.iter().find(|(_, bounds)| !ascending(*bounds)) {
            Some((name, bounds)) => {
                Err(Error::Argument(format!("{name}: {bounds:?} is not a finite, ascending pair")))
            }
            None => Ok(()),
        }
    }
}

/// Applies an [`AugmentConfig`], with recorded noises and impulse responses to choose from.
pub struct Augmenter {
    config: AugmentConfig,
    rate_hz: u32,
    noises: Vec<Vec<f32>>,
    impulse_responses: Vec<Vec<f32>>,
}

impl Augmenter {
    /// An augmenter for recordings at `rate_hz`, the rate that `noises` and `impulse_responses`
    /// have too. Either may be empty.
    ///
    /// # Errors
    /// As [`AugmentConfig::validate`].
    pub fn new(
        config: AugmentConfig,
        rate_hz: u32,
        noises: Vec<Vec<f32>>,
        impulse_responses: Vec<Vec<f32>>,
    ) -> Result<Self> {
        config.validate()?;
        let noises = noises.into_iter().filter(|noise| !noise.is_empty()).collect();
        let impulse_responses = impulse_responses
            .into_iter()
            .filter(|response| response.iter().any(|value| *value != 0.0))
            .map(|response| with_unit_energy(&response))
            .collect();
        Ok(Self { config, rate_hz, noises, impulse_responses })
    }

    /// Changes `samples`. `voice` gives a piece of the given length of somebody else's speech, or
    /// nothing if there is none.
    pub fn apply(
        &self,
        samples: &mut Vec<f32>,
        stream: &mut Stream,
        mut voice: impl FnMut(usize, &mut Stream) -> Option<Vec<f32>>,
    ) {
        let config = &self.config;
        let length = samples.len();
        if stream.uniform() < config.reverb {
            *samples = self.reverberated(samples, stream);
        }
        if stream.uniform() < config.noise && !self.noises.is_empty() {
            let noise = &self.noises[stream.below(self.noises.len())];
            let noise = super::crop::random_crop(noise, length, 0, stream);
            let snr_db = between(config.noise_snr_db, stream);
            *samples = add_noises(samples, &[noise], &[snr_db], Mix::Sum);
        }
        if stream.uniform() < config.babble {
            let [low, high] = config.babble_voices;
            let count = low + stream.below(high - low + 1);
            let voices: Vec<Vec<f32>> = (0..count).filter_map(|_| voice(length, stream)).collect();
            let snrs_db: Vec<f64> =
                voices.iter().map(|_| between(config.babble_snr_db, stream)).collect();
            *samples = add_noises(samples, &voices, &snrs_db, Mix::Sum);
        }
        if stream.uniform() < config.coloured {
            let slope = stream.uniform_in(0.0, 2.0);
            let noise = coloured_noise(length, slope, stream);
            let snr_db = between(config.coloured_snr_db, stream);
            *samples = add_noises(samples, &[noise], &[snr_db], Mix::Sum);
        }
        self.shape(samples, stream);
        if stream.uniform() < config.telephone {
            shape_spectrum(samples, self.rate_hz, |hz| band_gain(hz, 300.0..3400.0));
            mu_law(samples);
        }
        if stream.uniform() < config.clip {
            clip(samples, between(config.clip_level, stream) as f32);
        }
        let gain = 10f64.powf(between(config.gain_db, stream) / 20.0) as f32;
        samples.iter_mut().for_each(|sample| *sample *= gain);
    }

    fn reverberated(&self, samples: &[f32], stream: &mut Stream) -> Vec<f32> {
        let measured = stream.uniform() < self.config.measured_reverb;
        if measured && !self.impulse_responses.is_empty() {
            let response = &self.impulse_responses[stream.below(self.impulse_responses.len())];
            return convolve(samples, response);
        }
        let time_s = between(self.config.reverb_time_s, stream);
        convolve(samples, &synthetic_impulse_response(self.rate_hz, time_s, stream))
    }

    /// Equaliser and low-pass, in one pass through the spectrum.
    fn shape(&self, samples: &mut [f32], stream: &mut Stream) {
        /// Points of the random response, at equal distances up to half the rate.
        const POINTS: usize = 7;
        let config = &self.config;
        let equalise = stream.uniform() < config.equaliser;
        let gains_db: Vec<f64> =
            (0..POINTS).map(|_| between(config.equaliser_db, stream)).collect();
        let low_pass = stream.uniform() < config.low_pass;
        let cutoff_hz = between(config.low_pass_hz, stream);
        if !equalise && !low_pass {
            return;
        }
        let nyquist_hz = f64::from(self.rate_hz) / 2.0;
        shape_spectrum(samples, self.rate_hz, |hz| {
            let place = hz / nyquist_hz * (POINTS - 1) as f64;
            let left = (place as usize).min(POINTS - 2);
            let share = place - left as f64;
            let gain_db = match equalise {
                true => gains_db[left] * (1.0 - share) + gains_db[left + 1] * share,
                false => 0.0,
            };
            let pass = if low_pass { band_gain(hz, 0.0..cutoff_hz) } else { 1.0 };
            pass * 10f64.powf(gain_db / 20.0)
        });
    }
}

/// 1 inside `band_hz`, falling to 0 within 100 Hz outside.
fn band_gain(hz: f64, band_hz: Range<f64>) -> f64 {
    let outside_hz = (band_hz.start - hz).max(hz - band_hz.end).max(0.0);
    (1.0 - outside_hz / 100.0).max(0.0)
}

fn between([low, high]: [f64; 2], stream: &mut Stream) -> f64 {
    stream.uniform_in(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(index: u64, length: usize) -> Vec<f32> {
        let mut stream = Stream::new(5, "test", index);
        (0..length).map(|_| 0.1 * stream.normal() as f32).collect()
    }

    #[test]
    fn the_same_stream_gives_the_same_and_off_changes_nothing() {
        let samples = noise(0, 8000);
        let all = AugmentConfig {
            reverb: 1.0,
            noise: 1.0,
            babble: 1.0,
            coloured: 1.0,
            equaliser: 1.0,
            low_pass: 1.0,
            telephone: 1.0,
            clip: 1.0,
            ..AugmentConfig::default()
        };
        for (config, changes) in [(all, true), (AugmentConfig::off(), false)] {
            let augmenter =
                Augmenter::new(config, 16_000, vec![noise(1, 3000)], vec![noise(2, 400)]).unwrap();
            let run = |index| {
                let mut out = samples.clone();
                let mut stream = Stream::new(1, "augment", index);
                augmenter.apply(&mut out, &mut stream, |length, _| Some(noise(3, length)));
                out
            };
            assert_eq!(run(0), run(0));
            assert_eq!(run(0) != run(1), changes);
            assert_eq!(run(0) != samples, changes);
            assert_eq!(run(0).len(), samples.len());
            assert!(run(0).iter().all(|sample| sample.is_finite()));
        }
    }

    #[test]
    fn silence_and_nothing_stay_finite() {
        let config = AugmentConfig { reverb: 1.0, noise: 1.0, clip: 1.0, ..Default::default() };
        let augmenter = Augmenter::new(config, 16_000, vec![noise(1, 30)], vec![]).unwrap();
        for length in [0, 1, 2, 100] {
            let mut samples = vec![0.0; length];
            augmenter.apply(&mut samples, &mut Stream::new(1, "augment", 0), |_, _| None);
            assert!(samples.len() == length && samples.iter().all(|sample| sample.is_finite()));
        }
    }

    #[test]
    fn settings_outside_their_domain_are_refused() {
        let wrong = [
            AugmentConfig { noise: 1.5, ..Default::default() },
            AugmentConfig { noise_snr_db: [5.0, 1.0], ..Default::default() },
            AugmentConfig { gain_db: [f64::NAN, 1.0], ..Default::default() },
        ];
        assert!(wrong.iter().all(|config| config.validate().is_err()));
    }
}
