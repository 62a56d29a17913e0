//! Calibration: from scores to log-likelihood ratios.

use serde::{Deserialize, Serialize};

use super::CostModel;
use super::trials::Trials;
use crate::{Error, Result};

/// The affine map from a score to a natural log-likelihood ratio.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Factor of the score.
    pub slope: f64,
    /// Added afterwards.
    pub offset: f64,
}

/// Newton's steps at most; it converges in about ten.
const MAX_STEPS: usize = 100;

impl Calibration {
    /// The calibration that minimises the prior-weighted logistic loss of `trials` (Brummer and du
    /// Preez 2006, section 5): the log-likelihood ratios are best for decisions around
    /// `target_prior`.
    ///
    /// # Errors
    /// When the prior is not between 0 and 1, or when all targets score above all non-targets (or
    /// all below): the loss has no minimum then, and more or harder trials are needed; or when
    /// targets score no higher than non-targets on the whole.
    pub fn fit(trials: &Trials, target_prior: f64) -> Result<Self> {
        if !(target_prior > 0.0 && target_prior < 1.0) {
            let message = format!("the prior must be between 0 and 1, not {target_prior}");
            return Err(Error::Argument(message));
        }
        if separated(trials) {
            return Err(Error::Argument(
                "the scores separate targets from non-targets perfectly, so that no finite \
                 calibration is best; calibrate on more or harder trials"
                    .into(),
            ));
        }
        let problem = Problem::new(trials, target_prior);
        // In standardised scores, where slope and offset are of like size.
        let mut at = [1.0, 0.0];
        let mut loss = problem.loss(at);
        for _ in 0..MAX_STEPS {
            let step = problem.newton_step(at);
            // Halved until it lowers the loss, which is convex.
            let mut share = 1.0;
            let (next, lower) = loop {
                let next = [at[0] + share * step[0], at[1] + share * step[1]];
                let lower = problem.loss(next);
                if lower <= loss || share < 1e-10 {
                    break (next, lower);
                }
                share *= 0.5;
            };
            let moved = (next[0] - at[0]).abs().max((next[1] - at[1]).abs());
            (at, loss) = (next, lower);
            if moved <= 1e-12 * (1.0 + at[0].abs() + at[1].abs()) {
                break;
            }
        }
        if at[0] <= 0.0 {
            return Err(Error::Argument(
                "targets do not score higher than non-targets; calibration would invert the scores"
                    .into(),
            ));
        }
        let slope = at[0] / problem.deviation;
        let calibration = Self { slope, offset: at[1] - slope * problem.mean };
        if !(calibration.slope.is_finite() && calibration.offset.is_finite()) {
            return Err(Error::NonFinite { what: "the calibration".into() });
        }
        Ok(calibration)
    }

    /// The log-likelihood ratio of a score.
    pub fn llr(&self, score: f64) -> f64 {
        self.slope * score + self.offset
    }

    /// The score at which the log-likelihood ratio reaches the model's
    /// [`CostModel::bayes_threshold`].
    pub fn threshold(&self, model: CostModel) -> f64 {
        (model.bayes_threshold() - self.offset) / self.slope
    }
}

/// Whether one threshold, in one of the two directions, makes no error other than at equal scores.
fn separated(trials: &Trials) -> bool {
    let scores = |of: fn(&super::trials::Tie) -> f64| {
        let mut scores = trials.ties().iter().filter(|tie| of(tie) > 0.0).map(|tie| tie.score);
        let lowest = scores.next().unwrap_or(f64::NAN);
        (lowest, scores.next_back().unwrap_or(lowest))
    };
    let targets = scores(|tie| tie.targets);
    let nontargets = scores(|tie| tie.nontargets);
    targets.0 >= nontargets.1 || targets.1 <= nontargets.0
}

/// The loss in slope and offset of standardised scores.
struct Problem<'a> {
    trials: &'a Trials,
    mean: f64,
    deviation: f64,
    prior_log_odds: f64,
    target_weight: f64,
    nontarget_weight: f64,
}

impl<'a> Problem<'a> {
    fn new(trials: &'a Trials, prior: f64) -> Self {
        let count = trials.targets() + trials.nontargets();
        let average = |of: &dyn Fn(f64) -> f64| {
            let weighed = |tie: &super::trials::Tie| (tie.targets + tie.nontargets) * of(tie.score);
            trials.ties().iter().map(weighed).sum::<f64>() / count
        };
        let mean = average(&|score| score);
        Self {
            trials,
            mean,
            deviation: average(&|score| (score - mean).powi(2)).sqrt().max(f64::MIN_POSITIVE),
            prior_log_odds: (prior / (1.0 - prior)).ln(),
            target_weight: prior / trials.targets(),
            nontarget_weight: (1.0 - prior) / trials.nontargets(),
        }
    }

    /// Standardised score, weight of its targets, of its non-targets, and posterior log odds.
    fn terms(&self, [slope, offset]: [f64; 2]) -> impl Iterator<Item = (f64, f64, f64, f64)> {
        self.trials.ties().iter().map(move |tie| {
            let score = (tie.score - self.mean) / self.deviation;
            let log_odds = slope * score + offset + self.prior_log_odds;
            let targets = self.target_weight * tie.targets;
            (score, targets, self.nontarget_weight * tie.nontargets, log_odds)
        })
    }

    fn loss(&self, at: [f64; 2]) -> f64 {
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        self.terms(at)
            .map(|(_, targets, nontargets, log_odds)| {
                targets * softplus(-log_odds) + nontargets * softplus(log_odds)
            })
            .sum()
    }

    /// Minus the inverse Hessian times the gradient.
    fn newton_step(&self, at: [f64; 2]) -> [f64; 2] {
        let (mut gradient, mut hessian) = ([0.0; 2], [0.0; 3]);
        for (score, targets, nontargets, log_odds) in self.terms(at) {
            let posterior = 1.0 / (1.0 + (-log_odds).exp());
            let slope = nontargets * posterior - targets * (1.0 - posterior);
            let curvature = (targets + nontargets) * posterior * (1.0 - posterior);
            gradient[0] += slope * score;
            gradient[1] += slope;
            hessian[0] += curvature * score * score;
            hessian[1] += curvature * score;
            hessian[2] += curvature;
        }
        // A little is added so that a flat region far from the minimum can still be left.
        let (a, b, c) = (hessian[0] + 1e-12, hessian[1], hessian[2] + 1e-12);
        let determinant = a * c - b * b;
        [
            -(c * gradient[0] - b * gradient[1]) / determinant,
            -(a * gradient[1] - b * gradient[0]) / determinant,
        ]
    }
}
