//! Confidence intervals by resampling.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::rng::Stream;
use crate::{Error, Result};

/// How to resample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrap {
    /// Number of resampled lists.
    pub resamples: usize,
    /// Share of them that an interval covers.
    pub confidence: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { resamples: 1000, confidence: 0.95, seed: 0 }
    }
}

/// A confidence interval between two percentiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Bootstrap {
    /// Percentile intervals (Efron) of several figures at once, which `draw` computes from data that it
    /// resamples with the random numbers given. The result does not depend on the thread count.
    ///
    /// # Errors
    /// That of `draw`; when a figure is not finite; when the settings make no sense.
    pub fn percentiles<const N: usize>(
        &self,
        draw: impl Fn(&mut Stream) -> Result<[f64; N]> + Sync,
    ) -> Result<[Interval; N]> {
        if self.resamples == 0 || !(self.confidence > 0.0 && self.confidence < 1.0) {
            return Err(Error::Argument(
                "intervals need at least one resample and a confidence between 0 and 1".into(),
            ));
        }
        let drawn: Result<Vec<[f64; N]>> = (0..self.resamples as u64)
            .into_par_iter()
            .map(|index| draw(&mut Stream::new(self.seed, "bootstrap", index)))
            .collect();
        let drawn = drawn?;
        let mut intervals = [Interval { low: 0.0, high: 0.0 }; N];
        for (index, interval) in intervals.iter_mut().enumerate() {
            let mut values: Vec<f64> =
                drawn.iter().filter_map(|figures| figures.get(index).copied()).collect();
            if values.iter().any(|value| !value.is_finite()) {
                return Err(Error::NonFinite { what: "a resampled figure".into() });
            }
            values.sort_unstable_by(f64::total_cmp);
            let tail = 0.5 * (1.0 - self.confidence);
            *interval =
                Interval { low: quantile(&values, tail), high: quantile(&values, 1.0 - tail) };
        }
        Ok(intervals)
    }
}

/// The quantile of ascending values, interpolated between neighbours.
pub(super) fn quantile(ascending: &[f64], share: f64) -> f64 {
    let place = share * (ascending.len().saturating_sub(1)) as f64;
    let at = |index: f64| ascending.get(index as usize).copied().unwrap_or(f64::NAN);
    let (low, high) = (at(place.floor()), at(place.ceil()));
    low + (high - low) * place.fract()
}
