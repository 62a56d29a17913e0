//! Mel filterbanks.

use serde::{Deserialize, Serialize};

use super::Sample;
use crate::{Error, Result};

/// Most filters accepted.
const MAX_FILTERS: usize = 1 << 16;

/// Parameters of a [`MelFilterbank`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MelOptions {
    /// Number of filters.
    pub filters: usize,
    /// Lower edge of the first filter in Hz.
    pub low_hz: f64,
    /// Upper edge of the last filter in Hz, at most half the sampling rate.
    pub high_hz: f64,
}

/// `hertz` on the mel scale, `2595 log10(1 + f / 700)` (O'Shaughnessy 1987; HTK's).
pub fn hertz_to_mel(hertz: f64) -> f64 {
    2595.0 * (1.0 + hertz / 700.0).log10()
}

/// Inverse of [`hertz_to_mel`].
pub fn mel_to_hertz(mel: f64) -> f64 {
    700.0 * (10f64.powf(mel / 2595.0) - 1.0)
}

/// Triangular filters of height 1 whose corners are equally spaced in mel, each reaching from its
/// left neighbour's centre to its right neighbour's; no normalisation of the area.
#[derive(Clone, Debug)]
pub struct MelFilterbank<T> {
    bins: usize,
    filters: Vec<Filter<T>>,
}

/// Weights of the bins from `first_bin` on; all other bins have weight 0.
#[derive(Clone, Debug)]
struct Filter<T> {
    first_bin: usize,
    weights: Vec<T>,
}

impl<T: Sample> MelFilterbank<T> {
    /// The filterbank for spectra of `bins` values from 0 Hz to half of `rate_hz`. Filters narrower
    /// than the distance of two bins may be empty.
    ///
    /// # Errors
    /// If there are no filters, fewer than 2 bins, or the band is not within 0 and half the rate.
    pub fn new(options: &MelOptions, bins: usize, rate_hz: u32) -> Result<Self> {
        let MelOptions { filters: count, low_hz, high_hz } = *options;
        let nyquist_hz = f64::from(rate_hz) / 2.0;
        if !(1..=MAX_FILTERS).contains(&count) || bins < 2 {
            return Err(Error::Argument(format!(
                "{count} mel filters over {bins} bins: expected 1 to {MAX_FILTERS} filters over at \
                 least 2 bins"
            )));
        }
        if !(0.0 <= low_hz && low_hz < high_hz && high_hz <= nyquist_hz) {
            return Err(Error::Argument(format!(
                "mel filters from {low_hz} to {high_hz} Hz: expected an interval within 0 and \
                 {nyquist_hz} Hz, half the sampling rate"
            )));
        }
        // Computed in the precision of `T`, in this order, as the published single-precision models
        // were trained: rounding moves the weights by up to 6e-6.
        let base = T::of(10.0);
        let corners: Vec<T> =
            equally_spaced(hertz_to_mel(low_hz), hertz_to_mel(high_hz), count + 2)
                .into_iter()
                .map(|mel: T| T::of(700.0) * (base.powf(mel / T::of(2595.0)) - T::one()))
                .collect();
        let bins_hz: Vec<T> = equally_spaced(0.0, nyquist_hz, bins);
        let filters = corners
            .windows(3)
            .map(|corner| {
                let (rise, fall) = (corner[1] - corner[0], corner[2] - corner[1]);
                let weights = bins_hz.iter().map(|&hertz| {
                    ((hertz - corner[0]) / rise).min((corner[2] - hertz) / fall).max(T::zero())
                });
                let first_bin = weights.clone().take_while(|&weight| weight <= T::zero()).count();
                let weights = weights.skip(first_bin).take_while(|&weight| weight > T::zero());
                Filter { first_bin, weights: weights.collect() }
            })
            .collect();
        Ok(Self { bins, filters })
    }

    /// Number of filters.
    pub fn filters(&self) -> usize {
        self.filters.len()
    }

    /// Number of bins of the spectra it applies to.
    pub fn bins(&self) -> usize {
        self.bins
    }

    /// Each filter's weighted sum of the spectrum `power` `[bins]`, in order.
    pub fn apply<'a>(&'a self, power: &'a [T]) -> impl Iterator<Item = T> + 'a {
        self.filters.iter().map(|filter| {
            let bins = power.iter().skip(filter.first_bin);
            filter.weights.iter().zip(bins).map(|(&weight, &power)| weight * power).sum()
        })
    }

    /// The weights as a dense matrix `[bins, filters]` in row-major order.
    pub fn matrix(&self) -> Vec<T> {
        let mut matrix = vec![T::zero(); self.bins * self.filters()];
        for (column, filter) in self.filters.iter().enumerate() {
            for (offset, &weight) in filter.weights.iter().enumerate() {
                matrix[(filter.first_bin + offset) * self.filters() + column] = weight;
            }
        }
        matrix
    }
}

/// `count` >= 2 values from `first` to `last`, counted from the nearer end so that both are exact.
fn equally_spaced<T: Sample>(first: f64, last: f64, count: usize) -> Vec<T> {
    let (first, last) = (T::of(first), T::of(last));
    let step = (last - first) / T::of((count - 1) as f64);
    (0..count)
        .map(|i| {
            if i < count / 2 {
                step.mul_add(T::of(i as f64), first)
            } else {
                (-step).mul_add(T::of((count - 1 - i) as f64), last)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mel_scale_inverts_and_has_its_fixed_point() {
        // 1000 Hz is 1000 mel by construction of the scale, to 3 digits.
        assert!((hertz_to_mel(1000.0) - 999.9855).abs() < 1e-3);
        for hertz in [0.0, 20.0, 440.0, 7600.0] {
            assert!((mel_to_hertz(hertz_to_mel(hertz)) - hertz).abs() < 1e-9);
        }
    }

    #[test]
    fn equals_the_definition_bin_by_bin() {
        let options = MelOptions { filters: 23, low_hz: 100.0, high_hz: 3700.0 };
        let (bins, rate_hz) = (129, 8000);
        let bank = MelFilterbank::<f64>::new(&options, bins, rate_hz).unwrap();
        let matrix = bank.matrix();
        let step = (hertz_to_mel(3700.0) - hertz_to_mel(100.0)) / 24.0;
        let corners: Vec<f64> =
            (0..25).map(|i| mel_to_hertz(hertz_to_mel(100.0) + step * i as f64)).collect();
        for bin in 0..bins {
            let hertz = 4000.0 * bin as f64 / 128.0;
            for (filter, c) in corners.windows(3).enumerate() {
                let want =
                    ((hertz - c[0]) / (c[1] - c[0])).min((c[2] - hertz) / (c[2] - c[1])).max(0.0);
                assert!((matrix[bin * 23 + filter] - want).abs() < 1e-12, "{bin} {filter}");
            }
        }
        let power: Vec<f64> = (0..bins).map(|bin| (bin * bin % 17) as f64).collect();
        for (filter, value) in bank.apply(&power).enumerate() {
            let want: f64 = (0..bins).map(|bin| matrix[bin * 23 + filter] * power[bin]).sum();
            assert!((value - want).abs() < 1e-9);
        }
    }

    #[test]
    fn refuses_bands_outside_the_spectrum() {
        let good = MelOptions { filters: 80, low_hz: 20.0, high_hz: 7600.0 };
        assert!(MelFilterbank::<f32>::new(&good, 257, 16_000).is_ok());
        for (bad, bins, rate_hz) in [
            (good, 257, 8000),
            (good, 1, 16_000),
            (MelOptions { filters: 0, ..good }, 257, 16_000),
            (MelOptions { filters: usize::MAX, ..good }, 257, 16_000),
            (MelOptions { low_hz: 7600.0, ..good }, 257, 16_000),
            (MelOptions { low_hz: f64::NAN, ..good }, 257, 16_000),
            (MelOptions { low_hz: -1.0, ..good }, 257, 16_000),
        ] {
            assert!(MelFilterbank::<f32>::new(&bad, bins, rate_hz).is_err(), "{bad:?} {bins}");
        }
    }
}
