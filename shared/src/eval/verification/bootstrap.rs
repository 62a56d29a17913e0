//! Confidence intervals by resampling trials.

use std::collections::HashMap;

use super::trials::{Trials, ascending};
use crate::eval::{Bootstrap, Interval};
use crate::rng::Stream;
use crate::{Error, Result};

/// Draws in a row without targets or without non-targets before resampling gives up.
const MAX_REDRAWS: usize = 1000;

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
        Trials::new(scores, targets)?;
        let trials = Sorted::new(scores, targets, unit)?;
        self.percentiles(|stream| Ok(figures(&trials.resample(stream)?)))
    }
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
