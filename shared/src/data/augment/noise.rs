//! Additive noise.

use realfft::RealFftPlanner;
use realfft::num_complex::Complex;

use crate::rng::Stream;

/// Power below which a signal counts as silent, for samples in +-1. It is 1e-4 on the scale of
/// 16-bit integers.
const POWER_FLOOR: f64 = 1e-4 / (32768.0 * 32768.0);

/// How several noises make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Their sum: each has its signal-to-noise ratio.
    Sum,
    /// Their mean, as EfficientTDNN was trained: n noises are 10 log10 n dB weaker together than
    /// their ratios say.
    Mean,
}

/// The power of `samples` in dB relative to full scale.
pub fn level_db(samples: &[f32]) -> f64 {
    let power = samples.iter().map(|sample| f64::from(*sample).powi(2)).sum::<f64>()
        / samples.len().max(1) as f64;
    10.0 * (power + POWER_FLOOR).log10()
}

/// `samples` with `noises` added, each scaled to its signal-to-noise ratio in `snrs_db`. What a
/// noise is longer than `samples` is cut off.
pub fn add_noises<N: AsRef<[f32]>>(
    samples: &[f32],
    noises: &[N],
    snrs_db: &[f64],
    mix: Mix,
) -> Vec<f32> {
    let mut out = samples.to_vec();
    let level = level_db(samples);
    let share = match mix {
        Mix::Sum => 1.0,
        Mix::Mean => 1.0 / noises.len().max(1) as f64,
    };
    for (noise, snr_db) in noises.iter().zip(snrs_db) {
        let noise = noise.as_ref();
        let gain = share * 10f64.powf((level - level_db(noise) - snr_db) / 20.0);
        for (sample, noise) in out.iter_mut().zip(noise) {
            *sample = (f64::from(*sample) + gain * f64::from(*noise)) as f32;
        }
    }
    out
}

/// Gaussian noise whose power falls with frequency to the power of `slope`: 0 white, 1 pink,
/// 2 brown.
pub fn coloured_noise(length: usize, slope: f64, stream: &mut Stream) -> Vec<f32> {
    let mut planner = RealFftPlanner::<f32>::new();
    let inverse = planner.plan_fft_inverse(length);
    let mut spectrum = inverse.make_input_vec();
    // Neither the mean nor, for even lengths, the alternating part has a phase: both are left out.
    for (k, bin) in spectrum.iter_mut().enumerate().take(length.div_ceil(2)).skip(1) {
        let gain = (k as f64).powf(-slope / 2.0);
        *bin = Complex::new((gain * stream.normal()) as f32, (gain * stream.normal()) as f32);
    }
    let mut noise = inverse.make_output_vec();
    if length < 2 || inverse.process(&mut spectrum, &mut noise).is_err() {
        return vec![0.0; length];
    }
    let rms = (noise.iter().map(|value| value * value).sum::<f32>() / length as f32).sqrt();
    noise.iter_mut().for_each(|value| *value /= rms.max(f32::MIN_POSITIVE));
    noise
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_the_ratio_asked_for() {
        let mut stream = Stream::new(1, "test", 0);
        let samples: Vec<f32> = (0..16_000).map(|_| 0.2 * stream.normal() as f32).collect();
        let noise: Vec<f32> = (0..20_000).map(|_| 0.01 * stream.normal() as f32).collect();
        for (snr_db, mix, count, expected) in [
            (5.0, Mix::Sum, 1, 5.0),
            (5.0, Mix::Mean, 1, 5.0),
            (20.0, Mix::Mean, 4, 20.0),
            (20.0, Mix::Sum, 4, 20.0 - 20.0 * 4f64.log10()),
        ] {
            // Equal noises add in amplitude.
            let noises = vec![&noise[..16_000]; count];
            let mixed = add_noises(&samples, &noises, &vec![snr_db; count], mix);
            let added: Vec<f32> = mixed.iter().zip(&samples).map(|(a, b)| a - b).collect();
            let found = level_db(&samples) - level_db(&added);
            assert!((found - expected).abs() < 0.01, "{found} {expected}");
        }
    }

    #[test]
    fn power_falls_with_the_slope() {
        for (slope, expected_db) in [(0.0, 0.0), (1.0, 6.02), (2.0, 12.04)] {
            let noise = coloured_noise(1 << 16, slope, &mut Stream::new(2, "test", 0));
            assert!((level_db(&noise)).abs() < 0.01);
            let mut spectrum = noise;
            let forward = RealFftPlanner::<f32>::new().plan_fft_forward(1 << 16);
            let mut bins = forward.make_output_vec();
            forward.process(&mut spectrum, &mut bins).unwrap();
            let power = |range: std::ops::Range<usize>| {
                let count = range.len() as f32;
                bins[range].iter().map(|bin| bin.norm_sqr()).sum::<f32>() / count
            };
            // Two octaves apart.
            let fall_db = 10.0 * (power(2000..2200) / power(8000..8800)).log10();
            assert!((fall_db - expected_db).abs() < 0.8, "{slope}: {fall_db}");
        }
    }
}
