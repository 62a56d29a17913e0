//! Reverberation.

use realfft::RealFftPlanner;

use crate::rng::Stream;

/// `samples` convolved with `response`, cut to the length of `samples`.
pub fn convolve(samples: &[f32], response: &[f32]) -> Vec<f32> {
    if samples.is_empty() || response.is_empty() {
        return vec![0.0; samples.len()];
    }
    let response = &response[..response.len().min(samples.len())];
    let size = (samples.len() + response.len() - 1).next_power_of_two().max(2);
    let mut planner = RealFftPlanner::<f32>::new();
    let (forward, inverse) = (planner.plan_fft_forward(size), planner.plan_fft_inverse(size));
    let spectrum = |signal: &[f32]| {
        let mut padded = forward.make_input_vec();
        padded.iter_mut().zip(signal).for_each(|(slot, value)| *slot = *value);
        let mut bins = forward.make_output_vec();
        forward.process(&mut padded, &mut bins).ok().map(|()| bins)
    };
    let (Some(mut product), Some(factor)) = (spectrum(samples), spectrum(response)) else {
        return samples.to_vec();
    };
    product.iter_mut().zip(&factor).for_each(|(a, b)| *a *= b);
    // Both are real in a product of spectra of real signals, up to rounding.
    for edge in [0, product.len() - 1] {
        product[edge].im = 0.0;
    }
    let mut out = inverse.make_output_vec();
    if inverse.process(&mut product, &mut out).is_err() {
        return samples.to_vec();
    }
    out.truncate(samples.len());
    let scale = 1.0 / size as f32;
    out.iter_mut().for_each(|value| *value *= scale);
    out
}

/// `response` scaled so that its squares sum to 1; zeros stay.
pub fn with_unit_energy(response: &[f32]) -> Vec<f32> {
    let energy: f64 = response.iter().map(|value| f64::from(*value).powi(2)).sum();
    let scale = if energy > 0.0 { 1.0 / energy.sqrt() } else { 0.0 };
    response.iter().map(|value| (f64::from(*value) * scale) as f32).collect()
}

/// A simple model of a room's impulse response, of unit energy: the direct sound, then Gaussian
/// noise that decays by 60 dB within `reverb_time_s` (Polack 1988), with a random ratio between the
/// two of 0 to 12 dB.
pub fn synthetic_impulse_response(
    rate_hz: u32,
    reverb_time_s: f64,
    stream: &mut Stream,
) -> Vec<f32> {
    let rate_hz = f64::from(rate_hz);
    let length = (reverb_time_s * rate_hz).max(1.0) as usize;
    let decay = 1000f64.ln() / (reverb_time_s * rate_hz).max(1.0);
    let tail: Vec<f32> =
        (0..length).map(|t| ((-decay * t as f64).exp() * stream.normal()) as f32).collect();
    let mut response = with_unit_energy(&tail);
    let direct_db = stream.uniform_in(0.0, 12.0);
    response[0] = 10f64.powf(direct_db / 20.0) as f32;
    with_unit_energy(&response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn convolution_equals_its_definition() {
        let mut stream = Stream::new(1, "test", 0);
        for (samples, response) in [(1, 1), (5, 3), (64, 65), (100, 7)] {
            let mut draw = |n: usize| (0..n).map(|_| stream.normal() as f32).collect::<Vec<_>>();
            let (x, h) = (draw(samples), draw(response));
            for (t, found) in convolve(&x, &h).iter().enumerate() {
                let expected: f64 =
                    (0..=t.min(h.len() - 1)).map(|k| f64::from(h[k]) * f64::from(x[t - k])).sum();
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
            }
        }
        assert!(convolve(&[], &[1.0]).is_empty());
        assert_eq!(convolve(&[1.0, 2.0], &[]), [0.0, 0.0]);
    }

    #[test]
    fn synthetic_responses_decay_as_asked() {
        let response = synthetic_impulse_response(16_000, 0.5, &mut Stream::new(1, "test", 0));
        let energy = |range: std::ops::Range<usize>| {
            response[range].iter().map(|value| value * value).sum::<f32>()
        };
        assert!((energy(0..response.len()) - 1.0).abs() < 1e-4);
        // A quarter of the reverberation time apart: 15 dB.
        let fall_db = 10.0 * (energy(500..2500) / energy(2500..4500)).log10();
        assert!((fall_db - 15.0).abs() < 1.5, "{fall_db}");
    }
}
