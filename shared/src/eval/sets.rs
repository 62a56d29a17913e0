//! Confidence intervals of what is computed from whole sets, whose items are resampled.

use rayon::prelude::*;

use super::bootstrap::{Bootstrap, Interval, quantile};
use crate::rng::Stream;
use crate::{Error, Result};

impl Bootstrap {
    /// The interval of `value`, which `statistic` computes from the places of items drawn with
    /// replacement from each of N sets of `counts` items, all sets independently. Does not depend on
    /// the number of threads. NaN values of the statistic do not count.
    ///
    /// The interval lies between percentiles of the drawn values (Efron), all moved by the difference
    /// of `value` and their mean: drawing items twice alone raises distances between sets, so that
    /// plain percentiles would lie beside the value.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings that make no sense; [`Error::NonFinite`] when no drawn value is
    /// finite; those of `statistic`.
    pub fn interval_of_sets<const N: usize>(
        &self,
        counts: [usize; N],
        value: f64,
        statistic: impl Fn([&[usize]; N]) -> Result<f64> + Sync,
    ) -> Result<Interval> {
        if self.resamples == 0 || !(self.confidence > 0.0 && self.confidence < 1.0) {
            return Err(Error::Argument(
                "intervals need at least one resample and a confidence between 0 and 1".into(),
            ));
        }
        let drawn: Result<Vec<f64>> = (0..self.resamples as u64)
            .into_par_iter()
            .map(|index| {
                let mut stream = Stream::new(self.seed, "resampled sets", index);
                let draws: [Vec<usize>; N] =
                    counts.map(|count| (0..count).map(|_| stream.below(count)).collect());
                statistic(std::array::from_fn(|set| draws[set].as_slice()))
            })
            .collect();
        let mut drawn = drawn?;
        drawn.retain(|value| value.is_finite());
        if drawn.is_empty() {
            return Err(Error::NonFinite { what: "every resampled value".into() });
        }
        let shift = value - drawn.iter().sum::<f64>() / drawn.len() as f64;
        drawn.sort_unstable_by(f64::total_cmp);
        let tail = 0.5 * (1.0 - self.confidence);
        let end = |share| quantile(&drawn, share) + shift;
        Ok(Interval { low: end(tail), high: end(1.0 - tail) })
    }
}

/// How often each of `count` places is among `places`.
pub fn multiplicities(places: &[usize], count: usize) -> Vec<f64> {
    let mut times = vec![0.0; count];
    for place in places {
        if let Some(times) = times.get_mut(*place) {
            *times += 1.0;
        }
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(values: &[f64], places: &[usize]) -> f64 {
        places.iter().map(|place| values[*place]).sum::<f64>() / places.len() as f64
    }

    #[test]
    fn the_interval_of_a_mean_has_the_width_of_theory() {
        let mut stream = Stream::new(1, "test", 0);
        let values: Vec<f64> = (0..400).map(|_| 5.0 + 2.0 * stream.normal()).collect();
        let all: Vec<usize> = (0..400).collect();
        let value = mean(&values, &all);
        let resampling = Bootstrap { resamples: 2000, ..Bootstrap::default() };
        let interval = resampling
            .interval_of_sets([400], value, |[places]| Ok(mean(&values, places)))
            .unwrap();
        let variance = values.iter().map(|it| (it - value).powi(2)).sum::<f64>() / 400.0;
        let expected = 1.96 * (variance / 400.0).sqrt();
        for half in [value - interval.low, interval.high - value] {
            assert!((half / expected - 1.0).abs() < 0.1, "{half} {expected}");
        }
    }

    #[test]
    fn sets_are_drawn_independently_and_repeatably() {
        let drawn = |seed| {
            let resampling = Bootstrap { resamples: 50, seed, ..Bootstrap::default() };
            let statistic = |[a, b]: [&[usize]; 2]| {
                assert_eq!((a.len(), b.len()), (9, 4));
                assert!(a.iter().all(|place| *place < 9) && b.iter().all(|place| *place < 4));
                Ok(mean(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], a) * 10.0
                    + mean(&[0.0, 1.0, 2.0, 3.0], b))
            };
            resampling.interval_of_sets([9, 4], 41.5, statistic).unwrap()
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
    }

    #[test]
    fn values_that_are_not_numbers_do_not_count() {
        let resampling = Bootstrap::default();
        let some = |[places]: [&[usize]; 1]| Ok(if places[0] == 0 { f64::NAN } else { 1.0 });
        let interval = resampling.interval_of_sets([3], 1.0, some).unwrap();
        assert_eq!((interval.low, interval.high), (1.0, 1.0));
        assert!(resampling.interval_of_sets([3], 1.0, |_| Ok(f64::NAN)).is_err());
        let none = Bootstrap { resamples: 0, ..resampling };
        assert!(none.interval_of_sets([3], 1.0, |_| Ok(0.0)).is_err());
        assert_eq!(multiplicities(&[2, 0, 2, 9], 3), [1.0, 0.0, 2.0]);
    }
}
