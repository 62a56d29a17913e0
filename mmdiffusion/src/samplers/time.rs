//! Continuous time between the steps of a process, for solvers of its differential equation (Lu et
//! al., DPM-Solver, 2022, appendix D.1).
//!
//! All of it is computed in f32 and in one fixed order of operations: which of two neighbouring
//! steps a network is asked about depends on the last bit.

use serde::{Deserialize, Serialize};

use crate::diffusion::{DiffusionConfig, Level};

/// How the times of a solver's steps are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// Evenly in half the logarithm of the signal-to-noise ratio.
    #[default]
    LogSnr,
    /// Evenly in time.
    TimeUniform,
    /// Evenly in the square root of time.
    TimeQuadratic,
}

/// What a network is told about times between two steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelTime {
    /// The earlier step: a time that it was trained with.
    #[default]
    Whole,
    /// The time itself.
    Continuous,
}

/// A point in time and the noise there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Time; step n of N ends at (n + 1) / N.
    pub time: f32,
    /// log alpha.
    pub log_alpha: f32,
    /// Half the logarithm of the signal-to-noise ratio: log(alpha / sigma).
    pub lambda: f32,
    /// Factor of the clean clip.
    pub alpha: f32,
    /// Standard deviation of the noise.
    pub sigma: f32,
}

impl Point {
    /// The noise there.
    pub fn level(&self) -> Level {
        Level { alpha: self.alpha.into(), sigma: self.sigma.into() }
    }
}

/// The noise at every time: log alpha is linear between the steps, and beyond them.
#[derive(Clone, Debug)]
pub struct Timeline {
    config: DiffusionConfig,
    times: Vec<f32>,
    log_alphas: Vec<f32>,
}

impl Timeline {
    /// The times of the process `config` with the cumulative products `alphas_cumprod`.
    pub fn new(config: &DiffusionConfig, alphas_cumprod: &[f64]) -> Self {
        let times = linspace(0.0, 1.0, alphas_cumprod.len() + 1).split_off(1);
        let log_alphas = alphas_cumprod.iter().map(|abar| 0.5 * (*abar as f32).ln()).collect();
        Self { config: config.clone(), times, log_alphas }
    }

    /// Where sampling starts.
    pub fn start(&self) -> Point {
        self.at(1.0)
    }

    /// Where sampling ends: after the first step of the process.
    pub fn end(&self) -> Point {
        self.at((1.0 / self.times.len() as f64) as f32)
    }

    /// The point at `time`.
    pub fn at(&self, time: f32) -> Point {
        let log_alpha = interpolate(time, &self.times, &self.log_alphas);
        let variance = 1.0 - (2.0 * log_alpha).exp();
        Point {
            time,
            log_alpha,
            lambda: log_alpha - 0.5 * variance.ln(),
            alpha: log_alpha.exp(),
            sigma: variance.sqrt(),
        }
    }

    /// The point at which [`Point::lambda`] is `lambda`.
    pub fn at_lambda(&self, lambda: f32) -> Point {
        let log_alpha = -0.5 * log_add_exp(0.0, -2.0 * lambda);
        // The logarithms fall with time.
        let reversed = |values: &[f32]| values.iter().rev().copied().collect::<Vec<f32>>();
        self.at(interpolate(log_alpha, &reversed(&self.log_alphas), &reversed(&self.times)))
    }

    /// The point at the share `share` of the way from `from` to `to`, in lambda.
    pub fn between(&self, from: &Point, to: &Point, share: f32) -> Point {
        self.at_lambda(from.lambda + share * (to.lambda - from.lambda))
    }

    /// The `steps + 1` points around `steps` steps.
    pub fn grid(&self, skip: Skip, steps: usize) -> Vec<Point> {
        let (start, end) = (self.start(), self.end());
        let at = |time: f32| self.at(time);
        match skip {
            Skip::LogSnr => linspace(start.lambda, end.lambda, steps + 1)
                .into_iter()
                .map(|lambda| self.at_lambda(lambda))
                .collect(),
            Skip::TimeUniform => {
                linspace(start.time, end.time, steps + 1).into_iter().map(at).collect()
            }
            Skip::TimeQuadratic => linspace(start.time.sqrt(), end.time.sqrt(), steps + 1)
                .into_iter()
                .map(|root| at(root * root))
                .collect(),
        }
    }

    /// What the network is given as time at `point`.
    pub fn model_time(&self, point: &Point, form: ModelTime) -> f64 {
        let steps = self.times.len() as f64;
        let time = (point.time - (1.0 / steps) as f32) * steps as f32;
        let time = match form {
            ModelTime::Whole => time.trunc(),
            ModelTime::Continuous => time,
        };
        self.config.model_time(f64::from(time).clamp(0.0, steps - 1.0))
    }
}

/// `count` numbers from `first` to `last`, exact at both ends. Products are not rounded before the
/// sum: times on the edge between two steps depend on it.
fn linspace(first: f32, last: f32, count: usize) -> Vec<f32> {
    let step = (last - first) / count.saturating_sub(1).max(1) as f32;
    let number = |i: usize| {
        if i < count / 2 {
            step.mul_add(i as f32, first)
        } else {
            (-step).mul_add((count - 1 - i) as f32, last)
        }
    };
    (0..count).map(number).collect()
}

/// The value at `x` of the line through the points (`xs`, `ys`), by the nearest segment outside;
/// `xs` rise.
fn interpolate(x: f32, xs: &[f32], ys: &[f32]) -> f32 {
    let below = xs.partition_point(|knot| *knot < x);
    let first = below.saturating_sub(1).min(xs.len().saturating_sub(2));
    match (xs.get(first..), ys.get(first..)) {
        (Some([x0, x1, ..]), Some([y0, y1, ..])) => y0 + (x - x0) * (y1 - y0) / (x1 - x0),
        _ => ys.first().copied().unwrap_or(0.0),
    }
}

/// log(e^a + e^b).
fn log_add_exp(a: f32, b: f32) -> f32 {
    a.max(b) + (-(a - b).abs()).exp().ln_1p()
}
