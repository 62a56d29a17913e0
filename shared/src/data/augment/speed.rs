//! Speaking faster or slower, at a higher or lower pitch.

use std::f64::consts::PI;

use crate::{Error, Result};

/// Zero crossings of the interpolation kernel to each side.
const ZERO_CROSSINGS: f64 = 16.0;
/// Largest denominator of a speed: each makes a set of filters.
const LARGEST_DENOMINATOR: usize = 1000;

/// Plays recordings at another speed by band-limited interpolation (a Hann-windowed sinc), which
/// moves the pitch with the speed, so that it is another voice. Cheap enough to be done anew for
/// each training example.
#[derive(Clone, Debug)]
pub struct Speed {
    numerator: usize,
    denominator: usize,
    /// Taps to each side of the place that is interpolated.
    reach: usize,
    /// For each fraction of a sample, the `2 reach` taps around.
    filters: Vec<Vec<f32>>,
}

impl Speed {
    /// The speed `factor` (above 1 is faster), rounded to thousandths.
    ///
    /// # Errors
    /// When it is not between 0.25 and 4.
    pub fn new(factor: f64) -> Result<Self> {
        if !(0.25..=4.0).contains(&factor) {
            return Err(Error::Argument(format!("speed {factor} is not between 0.25 and 4")));
        }
        let rounded = (factor * LARGEST_DENOMINATOR as f64).round() as usize;
        let divisor = greatest_common_divisor(rounded, LARGEST_DENOMINATOR);
        let (numerator, denominator) = (rounded / divisor, LARGEST_DENOMINATOR / divisor);
        // Faster speech reaches beyond half the rate: the kernel becomes a narrower low-pass.
        let cutoff = (denominator as f64 / numerator as f64).min(1.0);
        let reach = (ZERO_CROSSINGS / cutoff).ceil() as usize;
        let filters = (0..denominator)
            .map(|phase| {
                let fraction = phase as f64 / denominator as f64;
                let taps: Vec<f64> = (0..2 * reach)
                    .map(|tap| {
                        let distance = (tap as f64 + 1.0 - reach as f64 - fraction) * cutoff;
                        windowed_sinc(distance)
                    })
                    .collect();
                let sum: f64 = taps.iter().sum();
                taps.iter().map(|tap| (tap / sum) as f32).collect()
            })
            .collect();
        Ok(Self { numerator, denominator, reach, filters })
    }

    /// Samples that `samples` samples become.
    pub fn output_samples(&self, samples: usize) -> usize {
        (samples as u128 * self.denominator as u128).div_ceil(self.numerator as u128) as usize
    }

    /// Samples that are needed to get at least `samples`.
    pub fn input_samples(&self, samples: usize) -> usize {
        (samples as u128 * self.numerator as u128).div_ceil(self.denominator as u128) as usize
    }

    /// `samples` at this speed. What is missing around them is taken as silence.
    pub fn apply(&self, samples: &[f32]) -> Vec<f32> {
        if self.numerator == self.denominator {
            return samples.to_vec();
        }
        let mut padded = vec![0.0; samples.len() + 2 * self.reach];
        padded[self.reach..][..samples.len()].copy_from_slice(samples);
        (0..self.output_samples(samples.len()))
            .map(|t| {
                let place = t as u128 * self.numerator as u128;
                let (whole, phase) = (
                    (place / self.denominator as u128) as usize,
                    (place % self.denominator as u128) as usize,
                );
                let around = &padded[whole + 1..][..2 * self.reach];
                around.iter().zip(&self.filters[phase]).map(|(x, tap)| x * tap).sum()
            })
            .collect()
    }
}

fn windowed_sinc(x: f64) -> f64 {
    if x.abs() >= ZERO_CROSSINGS {
        return 0.0;
    }
    let sinc = if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
    sinc * (0.5 + 0.5 * (PI * x / ZERO_CROSSINGS).cos())
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(hz: f64, length: usize) -> Vec<f32> {
        (0..length).map(|t| (2.0 * PI * hz / 16_000.0 * t as f64).sin() as f32).collect()
    }

    #[test]
    fn a_tone_moves_with_the_speed() {
        for factor in [0.9, 1.1, 1.25, 0.933] {
            let speed = Speed::new(factor).unwrap();
            for hz in [100.0, 1000.0, 5000.0] {
                let out = speed.apply(&tone(hz, 8000));
                assert_eq!(out.len(), (8000.0 / factor).ceil() as usize, "{factor}");
                let expected = tone(hz * factor, out.len());
                let inside = 100..out.len() - 100;
                let error = out[inside.clone()]
                    .iter()
                    .zip(&expected[inside])
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                assert!(error < 2e-3, "{factor} {hz}: {error}");
            }
        }
    }

    #[test]
    fn faster_speech_does_not_alias() {
        let out = Speed::new(1.25).unwrap().apply(&tone(7600.0, 8000));
        let peak = out[100..out.len() - 100].iter().fold(0.0f32, |peak, x| peak.max(x.abs()));
        assert!(peak < 0.01, "{peak}");
    }

    #[test]
    fn lengths_fit() {
        for factor in [0.8, 0.9, 1.0, 1.1] {
            let speed = Speed::new(factor).unwrap();
            for samples in [0, 1, 7, 32_000] {
                assert!(speed.output_samples(speed.input_samples(samples)) >= samples);
                assert_eq!(speed.apply(&vec![0.0; samples]).len(), speed.output_samples(samples));
            }
        }
        assert!(Speed::new(0.0).is_err() && Speed::new(f64::NAN).is_err());
    }
}
