//! What microphones, lines and codecs do to a signal.

use realfft::RealFftPlanner;

/// Multiplies the spectrum of `samples` by `gain` of the frequency in Hz.
pub fn shape_spectrum(samples: &mut [f32], rate_hz: u32, gain: impl Fn(f64) -> f64) {
    let length = samples.len();
    if length < 2 {
        return;
    }
    let mut planner = RealFftPlanner::<f32>::new();
    let (forward, inverse) = (planner.plan_fft_forward(length), planner.plan_fft_inverse(length));
    let mut bins = forward.make_output_vec();
    let mut signal = samples.to_vec();
    if forward.process(&mut signal, &mut bins).is_err() {
        return;
    }
    let bin_hz = f64::from(rate_hz) / length as f64;
    for (k, bin) in bins.iter_mut().enumerate() {
        *bin *= (gain(k as f64 * bin_hz) / length as f64) as f32;
    }
    if inverse.process(&mut bins, &mut signal).is_ok() {
        samples.copy_from_slice(&signal);
    }
}

/// Compands, rounds to 8 bits and expands `samples`, scaled to their peak, as mu-law telephony does
/// (ITU-T G.711, in its continuous form with mu = 255).
pub fn mu_law(samples: &mut [f32]) {
    const MU: f32 = 255.0;
    let peak = peak(samples);
    if peak == 0.0 {
        return;
    }
    for sample in samples {
        let x = *sample / peak;
        let companded = (MU * x.abs()).ln_1p() / MU.ln_1p();
        let rounded = (companded * 127.0).round() / 127.0;
        let expanded = ((rounded * MU.ln_1p()).exp() - 1.0) / MU;
        *sample = expanded.copysign(x) * peak;
    }
}

/// Limits `samples` to `level` times their peak.
pub fn clip(samples: &mut [f32], level: f32) {
    let limit = peak(samples) * level.abs();
    samples.iter_mut().for_each(|sample| *sample = sample.clamp(-limit, limit));
}

fn peak(samples: &[f32]) -> f32 {
    samples.iter().fold(0.0, |peak, sample| sample.abs().max(peak))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(hz: f64, length: usize) -> Vec<f32> {
        let step = std::f64::consts::TAU * hz / 16_000.0;
        (0..length).map(|t| (0.5 * (step * t as f64).sin()) as f32).collect()
    }

    #[test]
    fn the_spectrum_is_shaped_where_asked() {
        for (length, hz, gain) in [(1600, 1000.0, 2.0), (1601, 3000.0, 0.0)] {
            let mut samples = tone(hz, length);
            let before = samples.clone();
            shape_spectrum(&mut samples, 16_000, |hz| if hz < 2000.0 { 2.0 } else { 0.0 });
            let middle = 200..length - 200;
            let error = samples[middle.clone()]
                .iter()
                .zip(&before[middle])
                .map(|(after, before)| (after - gain * before).abs())
                .fold(0.0, f32::max);
            assert!(error < 0.02, "{hz}: {error}");
        }
    }

    #[test]
    fn mu_law_keeps_37_db() {
        let before = tone(440.0, 4000);
        let mut after = before.clone();
        mu_law(&mut after);
        let error: Vec<f32> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        let ratio_db = super::super::level_db(&before) - super::super::level_db(&error);
        assert!((35.0..42.0).contains(&ratio_db), "{ratio_db}");
        let mut silence = vec![0.0; 3];
        mu_law(&mut silence);
        assert_eq!(silence, [0.0; 3]);
    }

    #[test]
    fn clipping_limits_the_peak() {
        let mut samples = vec![0.5, -1.0, 0.1];
        clip(&mut samples, 0.25);
        assert_eq!(samples, [0.25, -0.25, 0.1]);
    }
}
