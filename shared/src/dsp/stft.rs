//! Short-time Fourier transform.

use std::sync::Arc;

use realfft::{RealFftPlanner, RealToComplex};
use serde::{Deserialize, Serialize};

use super::{Complex, Sample, Window};
use crate::{Error, Result};

/// Longest transform accepted, in samples.
const MAX_FFT_SAMPLES: usize = 1 << 20;

/// Parameters of a short-time Fourier transform, with the meaning they have in `torch.stft`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StftOptions {
    /// Length of the Fourier transform in samples.
    pub fft_samples: usize,
    /// Distance between frames in samples.
    pub hop_samples: usize,
    /// Length of the window, at most `fft_samples`; zeros fill the rest on both sides.
    pub window_samples: usize,
    /// The window function.
    pub window: Window,
    /// Frame `t` is centred on sample `t * hop_samples`, the signal being mirrored by
    /// `fft_samples / 2` at both ends. If false, frame `t` begins there.
    pub centered: bool,
}

/// A planned short-time Fourier transform of real signals, not normalised, non-negative
/// frequencies only. Cheap to share between threads.
#[derive(Clone)]
pub struct Stft<T: Sample> {
    options: StftOptions,
    window: Vec<T>,
    transform: Arc<dyn RealToComplex<T>>,
}

impl<T: Sample> std::fmt::Debug for Stft<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stft").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<T: Sample> Stft<T> {
    /// The transform for `options`.
    ///
    /// # Errors
    /// If a length is 0, the window is longer than the transform, or the transform is longer than
    /// 2^20 samples.
    pub fn new(options: StftOptions) -> Result<Self> {
        let StftOptions { fft_samples, hop_samples, window_samples, .. } = options;
        if !(1..=MAX_FFT_SAMPLES).contains(&fft_samples) {
            return Err(Error::Argument(format!(
                "a Fourier transform of {fft_samples} samples: expected 1 to {MAX_FFT_SAMPLES}"
            )));
        }
        if hop_samples == 0 {
            return Err(Error::Argument("a hop of 0 samples between frames".into()));
        }
        if !(1..=fft_samples).contains(&window_samples) {
            return Err(Error::Argument(format!(
                "a window of {window_samples} samples: expected 1 to {fft_samples}, the length of \
                 the Fourier transform"
            )));
        }
        let window = options.window.values(window_samples).into_iter().map(T::of).collect();
        let transform = RealFftPlanner::new().plan_fft_forward(fft_samples);
        Ok(Self { options, window, transform })
    }

    /// The parameters.
    pub fn options(&self) -> &StftOptions {
        &self.options
    }

    /// Number of frequency bins, `fft_samples / 2 + 1`.
    pub fn bins(&self) -> usize {
        self.options.fft_samples / 2 + 1
    }

    /// Fewest samples that can be transformed.
    pub fn min_samples(&self) -> usize {
        let fft_samples = self.options.fft_samples;
        // Mirroring around the end samples does not repeat them.
        if self.options.centered { fft_samples / 2 + 1 } else { fft_samples }
    }

    /// Number of frames of a signal; 0 if it is shorter than [`Stft::min_samples`].
    pub fn frames(&self, samples: usize) -> usize {
        let StftOptions { fft_samples, hop_samples, centered, .. } = self.options;
        let padded = if centered { samples + fft_samples / 2 * 2 } else { samples };
        if samples < self.min_samples() { 0 } else { 1 + (padded - fft_samples) / hop_samples }
    }

    /// Calls `receive` with the number and the spectrum `[bins]` of each frame in turn.
    ///
    /// # Errors
    /// [`Error::TooShort`].
    pub fn for_each_frame(
        &self,
        samples: &[T],
        mut receive: impl FnMut(usize, &[Complex<T>]),
    ) -> Result<()> {
        let (have_samples, need_samples) = (samples.len(), self.min_samples());
        if have_samples < need_samples {
            return Err(Error::TooShort { have_samples, need_samples });
        }
        let StftOptions { fft_samples, hop_samples, window_samples, centered, .. } = self.options;
        let zeros_left = (fft_samples - window_samples) / 2;
        let padding = if centered { fft_samples / 2 } else { 0 };
        let mut frame = vec![T::zero(); fft_samples];
        let mut spectrum = self.transform.make_output_vec();
        let mut scratch = self.transform.make_scratch_vec();
        for number in 0..self.frames(have_samples) {
            frame.fill(T::zero());
            let windowed = &mut frame[zeros_left..zeros_left + window_samples];
            // Place of the window's first sample, counted from the start of the padding.
            let start = number * hop_samples + zeros_left;
            let inside = start
                .checked_sub(padding)
                .and_then(|from| samples.get(from..from + window_samples));
            match inside {
                Some(inside) => {
                    for ((out, &sample), &weight) in
                        windowed.iter_mut().zip(inside).zip(&self.window)
                    {
                        *out = sample * weight;
                    }
                }
                None => {
                    for (i, (out, &weight)) in windowed.iter_mut().zip(&self.window).enumerate() {
                        *out = samples[mirrored(start + i, padding, have_samples)] * weight;
                    }
                }
            }
            self.transform
                .process_with_scratch(&mut frame, &mut spectrum, &mut scratch)
                .expect("buffers made by the transform itself");
            receive(number, &spectrum);
        }
        Ok(())
    }

    /// The spectrum of every frame, `[frames, bins]` in row-major order.
    ///
    /// # Errors
    /// [`Error::TooShort`].
    pub fn spectra(&self, samples: &[T]) -> Result<Vec<Complex<T>>> {
        let mut spectra = Vec::with_capacity(self.frames(samples.len()) * self.bins());
        self.for_each_frame(samples, |_, spectrum| spectra.extend_from_slice(spectrum))?;
        Ok(spectra)
    }

    /// The power `|X|^2` of every frame, `[frames, bins]` in row-major order.
    ///
    /// # Errors
    /// [`Error::TooShort`].
    pub fn power(&self, samples: &[T]) -> Result<Vec<T>> {
        let mut power = Vec::with_capacity(self.frames(samples.len()) * self.bins());
        self.for_each_frame(samples, |_, spectrum| {
            power.extend(spectrum.iter().map(Complex::norm_sqr));
        })?;
        Ok(power)
    }
}

/// The index into `len` samples of place `padded` of the signal mirrored by `padding < len`
/// samples at both ends, the end samples not repeated.
fn mirrored(padded: usize, padding: usize, len: usize) -> usize {
    if padded < padding {
        padding - padded
    } else if padded - padding < len {
        padded - padding
    } else {
        2 * (len - 1) - (padded - padding)
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;
    use crate::dsp::WindowShape;
    use crate::rng::Stream;

    /// The definition, written as loops over an explicitly padded signal.
    fn reference(options: &StftOptions, samples: &[f64]) -> Vec<Vec<Complex<f64>>> {
        let StftOptions { fft_samples: n, hop_samples, window_samples, .. } = *options;
        let mut padded = samples.to_vec();
        if options.centered {
            let pad = n / 2;
            let left = samples[1..=pad].iter().rev();
            let right = samples[samples.len() - 1 - pad..samples.len() - 1].iter().rev();
            padded = left.chain(samples).chain(right).copied().collect();
        }
        let mut window = vec![0.0; (n - window_samples) / 2];
        window.extend(options.window.values(window_samples));
        window.resize(n, 0.0);
        padded
            .windows(n)
            .step_by(hop_samples)
            .map(|frame| {
                (0..=n / 2)
                    .map(|k| {
                        (0..n)
                            .map(|i| {
                                let turns = (k * i % n) as f64 / n as f64;
                                Complex::from_polar(frame[i] * window[i], -TAU * turns)
                            })
                            .sum()
                    })
                    .collect()
            })
            .collect()
    }

    #[test]
    fn equals_the_definition_at_any_length() {
        let hamming = Window::periodic(WindowShape::Hamming);
        let hann = Window::symmetric(WindowShape::Hann);
        let cases = [(16, 5, 16, hamming), (16, 4, 11, hann), (15, 7, 8, hann), (1, 1, 1, hann)];
        for (fft_samples, hop_samples, window_samples, window) in cases {
            for centered in [true, false] {
                let options =
                    StftOptions { fft_samples, hop_samples, window_samples, window, centered };
                let stft = Stft::<f64>::new(options).unwrap();
                for len in stft.min_samples()..stft.min_samples() + 20 {
                    let mut stream = Stream::new(1, "stft", len as u64);
                    let samples: Vec<f64> = (0..len).map(|_| stream.normal()).collect();
                    let want = reference(&options, &samples);
                    assert_eq!(stft.frames(len), want.len(), "{options:?} {len}");
                    let got = stft.spectra(&samples).unwrap();
                    assert_eq!(got.len(), want.len() * stft.bins());
                    for (got, want) in got.iter().zip(want.iter().flatten()) {
                        assert!((got - want).norm() < 1e-12, "{options:?} {len}: {got} {want}");
                    }
                    let single = Stft::<f32>::new(options).unwrap();
                    let narrow: Vec<f32> = samples.iter().map(|&x| x as f32).collect();
                    let power = single.power(&narrow).unwrap();
                    let scale = want.iter().flatten().map(Complex::norm_sqr).fold(1.0, f64::max);
                    for (got, want) in power.iter().zip(want.iter().flatten()) {
                        assert!((f64::from(*got) - want.norm_sqr()).abs() < 2e-6 * scale);
                    }
                }
            }
        }
    }

    #[test]
    fn refuses_short_signals_and_absurd_parameters() {
        let good = StftOptions {
            fft_samples: 512,
            hop_samples: 160,
            window_samples: 400,
            window: Window::periodic(WindowShape::Hamming),
            centered: true,
        };
        let stft = Stft::<f32>::new(good).unwrap();
        for len in [0, 1, 256] {
            assert_eq!(stft.frames(len), 0);
            let error = stft.power(&vec![0.0; len]).unwrap_err();
            assert!(matches!(error, Error::TooShort { need_samples: 257, .. }), "{error}");
        }
        assert_eq!((stft.frames(257), stft.frames(48_000)), (2, 301));
        for bad in [
            StftOptions { fft_samples: 0, ..good },
            StftOptions { fft_samples: 1 << 40, ..good },
            StftOptions { hop_samples: 0, ..good },
            StftOptions { window_samples: 0, ..good },
            StftOptions { window_samples: 513, ..good },
        ] {
            assert!(matches!(Stft::<f32>::new(bad), Err(Error::Argument(_))), "{bad:?}");
        }
    }
}
