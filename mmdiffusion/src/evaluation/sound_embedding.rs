//! Numbers that say what a clip sounds like, without any learned network.

use shared::Result;
use shared::dsp::{LogMel, LogMelOptions, MelOptions, StftOptions, Window, WindowShape};

/// Mel bands.
const BANDS: usize = 32;
const LOW_HZ: f64 = 60.0;
const HIGH_HZ: f64 = 8_000.0;
/// Length and distance of frames.
const WINDOW_S: f64 = 0.025;
const HOP_S: f64 = 0.010;
/// Power of a band that counts as silence: 80 dB below that of a tone of full scale, about 1e4 at 16 kHz.
const SILENCE: f32 = 1e-4;
/// Frames that make one column of the levels.
const FRAMES_A_COLUMN: usize = 4;

/// Measures sounds of one sampling rate.
#[derive(Clone, Debug)]
pub struct SoundEmbedder {
    log_mel: LogMel<f32>,
}

/// What a sound was measured to be.
#[derive(Clone, Debug, PartialEq)]
pub struct SoundEmbedding {
    /// 96 numbers: of each of 32 mel bands the mean and the standard deviation of its level in bel above
    /// silence, `log10(1 + power / silence)`, and the mean absolute change from one frame to the next.
    pub statistics: Vec<f32>,
    /// The levels themselves, each the mean of 40 ms: 32 bands after one another.
    pub levels: Vec<f32>,
}

impl SoundEmbedder {
    /// What the embedding is, in words.
    pub const DEFINITION: &'static str = "log-mel statistics: mean, standard deviation and mean \
        absolute change over time of the level, log10(1 + power / silence), in 32 mel bands from 60 Hz \
        to 8 kHz, 25 ms frames every 10 ms";

    /// For sounds of `rate_hz`.
    ///
    /// # Errors
    /// As [`LogMel::new`].
    pub fn new(rate_hz: u32) -> Result<Self> {
        let samples = |seconds: f64| (seconds * f64::from(rate_hz)).round().max(1.0) as usize;
        let window_samples = samples(WINDOW_S);
        let log_mel = LogMel::new(&LogMelOptions {
            rate_hz,
            stft: StftOptions {
                fft_samples: window_samples.next_power_of_two(),
                hop_samples: samples(HOP_S),
                window_samples,
                window: Window::periodic(WindowShape::Hann),
                centered: true,
            },
            mel: MelOptions {
                filters: BANDS,
                low_hz: LOW_HZ,
                high_hz: HIGH_HZ.min(f64::from(rate_hz) / 2.0),
            },
            log_offset: 0.0,
        })?;
        Ok(Self { log_mel })
    }

    /// The embedding of `samples`.
    ///
    /// # Errors
    /// [`shared::Error::TooShort`].
    pub fn embed(&self, samples: &[f32]) -> Result<SoundEmbedding> {
        let mut bands = self.log_mel.mel(samples)?;
        bands.iter_mut().for_each(|power| *power = (1.0 + *power / SILENCE).log10());
        let frames = (bands.len() / BANDS).max(1);
        let (mut means, mut deviations, mut changes) = (vec![], vec![], vec![]);
        let mut levels = vec![];
        for band in bands.chunks_exact(frames) {
            let count = band.len() as f64;
            let mean = band.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
            let squares = band.iter().map(|value| (f64::from(*value) - mean).powi(2));
            means.push(mean as f32);
            deviations.push((squares.sum::<f64>() / count).sqrt() as f32);
            let steps = band.iter().zip(band.iter().skip(1)).map(|(a, b)| f64::from((b - a).abs()));
            changes.push((steps.sum::<f64>() / (count - 1.0).max(1.0)) as f32);
            let column = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
            levels.extend(band.chunks(FRAMES_A_COLUMN).map(column));
        }
        Ok(SoundEmbedding { statistics: [means, deviations, changes].concat(), levels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tones_differ_where_their_band_is() {
        let embedder = SoundEmbedder::new(16_000).unwrap();
        let tone = |frequency: f32, amplitude: f32| -> Vec<f32> {
            let turn = std::f32::consts::TAU * frequency / 16_000.0;
            (0..25_600).map(|i| amplitude * (turn * i as f32).sin()).collect()
        };
        let embed = |samples: &[f32]| embedder.embed(samples).unwrap();
        let (low, high) = (embed(&tone(300.0, 0.5)), embed(&tone(4_000.0, 0.5)));
        let loudest = |embedding: &SoundEmbedding| {
            (0..32).max_by(|a, b| embedding.statistics[*a].total_cmp(&embedding.statistics[*b]))
        };
        assert!(loudest(&low) < Some(8) && loudest(&high) > Some(18));
        assert_eq!((low.statistics.len(), low.levels.len()), (96, 32 * 41));
        // Half of the amplitude is a quarter of the power; steady tones do not change.
        let quiet = embed(&tone(300.0, 0.25));
        let band = loudest(&low).unwrap();
        let ratio = low.statistics[band] - quiet.statistics[band];
        assert!((ratio - 4f32.log10()).abs() < 0.005, "{ratio}");
        assert!(low.statistics[32 + band] < 0.2 && low.statistics[64 + band] < 0.02);
        let silence = embed(&[0.0; 25_600]);
        assert!(silence.statistics.iter().chain(&silence.levels).all(|level| *level == 0.0));
        assert!(embedder.embed(&[0.0; 10]).is_err());
    }
}
