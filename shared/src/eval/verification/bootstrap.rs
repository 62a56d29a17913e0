//! Confidence intervals by resampling.

use std::collections::HashMap;

use rayon::prelude::*;
use serde::Serialize;

use super::trials::{Trials, ascending};
use crate::rng::Stream;
use crate::{Error, Result};

/// Draws in a row without targets or without non-targets before resampling gives up.
const MAX_REDRAWS: usize = 1000;

/// How to resample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrap {
    /// Number of resampled trial lists.
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

/// What is drawn with replacement.
#[derive(Clone, Copy, Debug)]
pub enum Unit<'a> {
    /// Single trials, targets and non-targets apart. Trials of one speaker go together, so that the
    /// intervals are too narrow where speakers have many trials.
    Trials,
    /// Speakers: of each trial, that of the enrolled and that of the test recording. A non-target
    /// trial counts as often as both of its speakers were drawn, multiplied; a target trial as
    /// often as its one.
    Speakers(&'a [(&'a str, &'a str)]),
}

/// A confidence interval between two percentiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Bootstrap {
    /// Percentile intervals (Efron) of several figures at once, which `figures` computes from
    /// resampled trials. The scores are sorted once; the result does not depend on the thread
    /// count.
    ///
    /// # Errors
    /// As [`Trials::new`]; when there are too few speakers to draw lists with targets and
    /// non-targets; when a figure is not finite.
    pub fn intervals<const N: usize>(
        &self,
        scores: &[f64],
        targets: &[bool],
        unit: Unit,
        figures: impl Fn(&Trials) -> [f64; N] + Sync,
    ) -> Result<[Interval; N]> {
        if self.resamples == 0 || !(self.confidence > 0.0 && self.confidence < 1.0) {
            return Err(Error::Argument(
                "intervals need at least one resample and a confidence between 0 and 1".into(),
            ));
        }
        Trials::new(scores, targets)?;
        let trials = Sorted::new(scores, targets, unit)?;
        let drawn: Result<Vec<[f64; N]>> = (0..self.resamples as u64)
            .into_par_iter()
            .map(|index| {
                let mut stream = Stream::new(self.seed, "bootstrap", index);
                Ok(figures(&trials.resample(&mut stream)?))
            })
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
fn quantile(ascending: &[f64], share: f64) -> f64 {
    let place = share * (ascending.len().saturating_sub(1)) as f64;
    let at = |index: f64| ascending.get(index as usize).copied().unwrap_or(f64::NAN);
    let (low, high) = (at(place.floor()), at(place.ceil()));
    low + (high - low) * place.fract()
}

/// Trials by ascending score, with what it takes to draw them.
struct Sorted {
    trials: Vec<(f64, bool)>,
    draw: Draw,
}

enum Draw {
    /// Places of the targets and of the non-targets.
    Trials([Vec<usize>; 2]),
    /// The two speakers of each trial as numbers below `count`.
    Speakers { of_trial: Vec<[usize; 2]>, count: usize },
}

impl Sorted {
    fn new(scores: &[f64], targets: &[bool], unit: Unit) -> Result<Self> {
        let order = ascending(scores, targets)?;
        let trials: Vec<(f64, bool)> = order
            .iter()
            .filter_map(|&index| Some((*scores.get(index)?, *targets.get(index)?)))
            .collect();
        let draw = match unit {
            Unit::Trials => {
                let places = |kind: bool| {
                    let of_kind = trials.iter().zip(0..).filter(|((_, target), _)| *target == kind);
                    of_kind.map(|(_, place)| place).collect()
                };
                Draw::Trials([places(true), places(false)])
            }
            Unit::Speakers(names) => {
                if names.len() != scores.len() {
                    return Err(Error::Argument(format!(
                        "{} pairs of speakers for {} trials",
                        names.len(),
                        scores.len()
                    )));
                }
                let mut numbers = HashMap::new();
                let mut number = |name| {
                    let next = numbers.len();
                    *numbers.entry(name).or_insert(next)
                };
                let numbered: Vec<[usize; 2]> =
                    names.iter().map(|(a, b)| [number(*a), number(*b)]).collect();
                let of_trial =
                    order.iter().filter_map(|&index| numbered.get(index).copied()).collect();
                Draw::Speakers { of_trial, count: numbers.len() }
            }
        };
        Ok(Self { trials, draw })
    }

    fn resample(&self, stream: &mut Stream) -> Result<Trials> {
        for _ in 0..MAX_REDRAWS {
            let weights = self.weights(stream);
            let weighed = self
                .trials
                .iter()
                .zip(weights)
                .map(|((score, target), weight)| (*score, *target, f64::from(weight)));
            if let Some(trials) = Trials::from_sorted(weighed) {
                return Ok(trials);
            }
        }
        Err(Error::Argument(
            "too few speakers to resample: most draws have no target or no non-target trials"
                .into(),
        ))
    }

    /// How often each trial was drawn.
    fn weights(&self, stream: &mut Stream) -> Vec<u32> {
        let mut weights = vec![0; self.trials.len()];
        match &self.draw {
            Draw::Trials(kinds) => {
                for places in kinds {
                    for _ in places {
                        let drawn = places.get(stream.below(places.len()));
                        if let Some(weight) = drawn.and_then(|&place| weights.get_mut(place)) {
                            *weight += 1;
                        }
                    }
                }
            }
            Draw::Speakers { of_trial, count } => {
                let mut times = vec![0u32; *count];
                for _ in 0..*count {
                    if let Some(times) = times.get_mut(stream.below(*count)) {
                        *times += 1;
                    }
                }
                let times = |speaker: usize| times.get(speaker).copied().unwrap_or(0);
                for (weight, [a, b]) in weights.iter_mut().zip(of_trial) {
                    *weight = if a == b { times(*a) } else { times(*a) * times(*b) };
                }
            }
        }
        weights
    }
}
