//! Where sounds begin.

use shared::dsp::{LogMel, LogMelOptions, MelOptions, StftOptions, Window, WindowShape};
use shared::{Error, Result};

/// Distance of frames in seconds: 512 samples at 22.05 kHz, as is usual for onsets.
const HOP_S: f64 = 512.0 / 22_050.0;
/// Length of a frame in hops.
const FRAME_HOPS: usize = 4;
/// Mel bands.
const BANDS: usize = 128;
/// Power below which all is silence, relative to full scale, and levels that count below the loudest.
const SILENCE: f32 = 1e-10;
const RANGE_DB: f32 = 80.0;
/// How far an onset must lie above its surroundings, of the clip's largest flux.
const PROMINENCE: f32 = 0.07;
/// Seconds around an onset in which it is the highest, over which it is compared with the mean, and
/// after it in which there is no other.
const HIGHEST_S: f64 = 0.03;
const SURROUNDINGS_S: f64 = 0.10;
const WAIT_S: f64 = 0.03;

/// Finds onsets: peaks of the energy flux, which is the rise of the level in each of 128 mel bands from
/// one frame to the next, falls left out, averaged over the bands. The definition, its parameters and
/// its choice of peaks are those of librosa's `onset_detect` (Böck et al., "Evaluating the online
/// capabilities of onset detection methods", 2012), but for the mel scale, which is HTK's, and frames
/// that last as long at any sampling rate.
#[derive(Clone, Debug)]
pub struct OnsetDetector {
    log_mel: LogMel<f32>,
    hop_s: f64,
}

impl OnsetDetector {
    /// The detector for sound of `rate_hz`.
    ///
    /// # Errors
    /// As [`LogMel::new`].
    pub fn new(rate_hz: u32) -> Result<Self> {
        let hop_samples = (HOP_S * f64::from(rate_hz)).round().max(1.0) as usize;
        let fft_samples = FRAME_HOPS * hop_samples;
        let log_mel = LogMel::new(&LogMelOptions {
            rate_hz,
            stft: StftOptions {
                fft_samples,
                hop_samples,
                window_samples: fft_samples,
                window: Window::periodic(WindowShape::Hann),
                // The ends are filled with silence below.
                centered: false,
            },
            mel: MelOptions { filters: BANDS, low_hz: 0.0, high_hz: f64::from(rate_hz) / 2.0 },
            log_offset: 0.0,
        })?;
        Ok(Self { log_mel, hop_s: hop_samples as f64 / f64::from(rate_hz) })
    }

    /// The times in seconds at which sounds begin in `samples`, ascending.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for samples that are no numbers.
    pub fn onsets_s(&self, samples: &[f32]) -> Result<Vec<f64>> {
        if samples.iter().any(|sample| !sample.is_finite()) {
            return Err(Error::NonFinite { what: "a sound".into() });
        }
        let flux = self.flux(samples)?;
        let frames = |seconds: f64| (seconds / self.hop_s) as usize;
        let peaks = peaks(&flux, frames(HIGHEST_S), frames(SURROUNDINGS_S), frames(WAIT_S));
        Ok(peaks.into_iter().map(|frame| frame as f64 * self.hop_s).collect())
    }

    /// The flux at each frame, from 0 to 1 of the clip's largest.
    fn flux(&self, samples: &[f32]) -> Result<Vec<f32>> {
        let half = self.log_mel.stft().options().fft_samples / 2;
        let silence = vec![0.0; half];
        let padded = [&silence, samples, &silence].concat();
        let frames = self.log_mel.stft().frames(padded.len());
        let mut levels = self.log_mel.mel(&padded)?;
        levels.iter_mut().for_each(|power| *power = 10.0 * power.max(SILENCE).log10());
        let loudest = levels.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        levels.iter_mut().for_each(|level| *level = level.max(loudest - RANGE_DB));
        // A frame rises when its window first touches the sound, half a window before its middle.
        let delay = FRAME_HOPS / 2 + 1;
        let mut flux = vec![0.0; frames];
        for band in levels.chunks_exact(frames.max(1)) {
            let rises = band.iter().zip(band.iter().skip(1)).map(|(before, now)| now - before);
            for (sum, rise) in flux.iter_mut().skip(delay).zip(rises) {
                *sum += rise.max(0.0) / BANDS as f32;
            }
        }
        let least = flux.iter().copied().fold(f32::INFINITY, f32::min);
        flux.iter_mut().for_each(|value| *value -= least);
        let most = flux.iter().copied().fold(0.0, f32::max);
        if most > 0.0 {
            flux.iter_mut().for_each(|value| *value /= most);
        }
        Ok(flux)
    }
}

/// The frames in which the flux is the highest of the `highest` frames before, at least [`PROMINENCE`]
/// above the mean of `around` frames on both sides, and more than `wait` frames after the last such.
fn peaks(flux: &[f32], highest: usize, around: usize, wait: usize) -> Vec<usize> {
    let mut found: Vec<usize> = vec![];
    let window = |from: usize, to: usize| flux.get(from..to.min(flux.len())).unwrap_or_default();
    for (frame, value) in flux.iter().enumerate() {
        let before = window(frame.saturating_sub(highest), frame + 1);
        let surroundings = window(frame.saturating_sub(around), frame + around + 1);
        let mean = surroundings.iter().sum::<f32>() / surroundings.len().max(1) as f32;
        let is_highest = before.iter().all(|other| other <= value);
        let is_apart = found.last().is_none_or(|last| frame > last + wait);
        if *value > 0.0 && is_highest && *value >= mean + PROMINENCE && is_apart {
            found.push(frame);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use shared::rng::Stream;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        name: String,
        rate_hz: u32,
        /// Start in seconds, frequency, decay in 1/s and amplitude of each tone.
        tones: Vec<[f64; 4]>,
        onsets_s: Vec<f64>,
    }

    fn sound(case: &Case) -> Vec<f32> {
        let rate = f64::from(case.rate_hz);
        let mut samples = vec![0.0; (1.6 * rate) as usize];
        for [start_s, frequency_hz, decay, amplitude] in &case.tones {
            let first = (start_s * rate).round() as usize;
            for (index, sample) in samples.iter_mut().skip(first).enumerate() {
                let time_s = index as f64 / rate;
                let tone = (std::f64::consts::TAU * frequency_hz * time_s).sin();
                *sample += (amplitude * tone * (-decay * time_s).exp()) as f32;
            }
        }
        samples
    }

    /// `onsets.json` has what librosa 0.11's `onset_detect` finds in these sounds at 22.05 kHz.
    #[test]
    fn agrees_with_librosa() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("onsets.json")).unwrap();
        assert!(cases.len() > 3);
        for case in cases {
            let found = OnsetDetector::new(case.rate_hz).unwrap().onsets_s(&sound(&case)).unwrap();
            let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1.01 * HOP_S;
            let agree =
                found.len() == case.onsets_s.len() && found.iter().zip(&case.onsets_s).all(near);
            assert!(agree, "{}: {found:?} instead of {:?}", case.name, case.onsets_s);
        }
    }

    #[test]
    fn the_sampling_rate_and_the_loudness_do_not_matter() {
        let tones = vec![[0.3, 440.0, 12.0, 0.5], [0.9, 900.0, 20.0, 0.4]];
        let mut case = Case { name: String::new(), rate_hz: 16_000, tones, onsets_s: vec![] };
        for rate_hz in [8_000, 16_000, 44_100] {
            case.rate_hz = rate_hz;
            let samples = sound(&case);
            let detector = OnsetDetector::new(rate_hz).unwrap();
            let onsets = detector.onsets_s(&samples).unwrap();
            assert_eq!(onsets.len(), 2, "{rate_hz}: {onsets:?}");
            assert!((onsets[0] - 0.3).abs() < 0.05 && (onsets[1] - 0.9).abs() < 0.05);
            let quiet: Vec<f32> = samples.iter().map(|sample| sample * 0.1).collect();
            assert_eq!(detector.onsets_s(&quiet).unwrap(), onsets);
        }
    }

    #[test]
    fn silence_has_no_onset_and_noise_has_some() {
        let detector = OnsetDetector::new(16_000).unwrap();
        for samples in [vec![], vec![0.0; 10], vec![0.0; 25_600]] {
            assert!(detector.onsets_s(&samples).unwrap().is_empty());
        }
        let mut noise = vec![0.0; 25_600];
        Stream::new(1, "noise", 0).fill_normal(&mut noise);
        assert!(!detector.onsets_s(&noise).unwrap().is_empty());
        assert!(detector.onsets_s(&[f32::NAN; 100]).is_err());
    }
}
