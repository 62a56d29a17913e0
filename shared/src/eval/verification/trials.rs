//! Scored trials and what follows from counting them: EER, detection costs, the DET curve.

use candle_core::cpu::erf::erfc_inv;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Scored trials whose truth is known, sorted by score.
#[derive(Clone, Debug)]
pub struct Trials {
    /// Ascending and distinct in score.
    ties: Vec<Tie>,
    targets: f64,
    nontargets: f64,
}

/// Trials of one score. The counts are whole numbers; resampling weighs trials with others than 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tie {
    pub score: f64,
    pub targets: f64,
    pub nontargets: f64,
}

/// What errors cost, and how often a target comes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostModel {
    /// Probability that a trial is a target trial.
    pub target_prior: f64,
    /// Cost of rejecting a target.
    pub miss: f64,
    /// Cost of accepting a non-target.
    pub false_alarm: f64,
}

impl CostModel {
    /// Errors of cost 1 at this prior.
    pub fn prior(target_prior: f64) -> Self {
        Self { target_prior, miss: 1.0, false_alarm: 1.0 }
    }

    /// The threshold on log-likelihood ratios at which accepting and rejecting cost the same.
    pub fn bayes_threshold(&self) -> f64 {
        (self.false_alarm * (1.0 - self.target_prior) / (self.miss * self.target_prior)).ln()
    }

    /// Expected cost of these error rates, over that of the better of accepting all and rejecting
    /// all.
    fn normalised(&self, rates: &ErrorRates) -> f64 {
        let miss = self.miss * self.target_prior;
        let false_alarm = self.false_alarm * (1.0 - self.target_prior);
        (miss * rates.miss + false_alarm * rates.false_alarm) / miss.min(false_alarm)
    }

    fn validate(&self) -> Result<()> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        if positive(self.target_prior)
            && self.target_prior < 1.0
            && positive(self.miss)
            && positive(self.false_alarm)
        {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "a cost model needs a prior between 0 and 1 and costs above 0, not {self:?}"
        )))
    }
}

/// The shares of wrong decisions at one threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ErrorRates {
    /// Trials with a score above it are accepted.
    pub threshold: f64,
    /// Share of the targets that are rejected.
    pub miss: f64,
    /// Share of the non-targets that are accepted.
    pub false_alarm: f64,
}

/// Where misses and false alarms are equally frequent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EqualErrorRate {
    /// The rate, from 0 to 1.
    pub rate: f64,
    /// The threshold, half-way between two scores or interpolated between two such places.
    pub threshold: f64,
}

/// The lowest normalised detection cost over all thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MinimumCost {
    /// The cost; 1 is that of a system that does not listen.
    pub cost: f64,
    /// The lowest threshold that has it: the highest rejected score.
    pub threshold: f64,
}

impl Trials {
    /// Trials with their `scores`, high for the same speaker, and whether each is a target trial.
    ///
    /// # Errors
    /// When the lengths differ, a score is not finite, or one of the two classes is absent.
    pub fn new(scores: &[f64], targets: &[bool]) -> Result<Self> {
        let order = ascending(scores, targets)?;
        let sorted = order
            .into_iter()
            .filter_map(|index| Some((*scores.get(index)?, *targets.get(index)?, 1.0)));
        Self::from_sorted(sorted).ok_or_else(|| {
            let found =
                if targets.first() == Some(&true) { "only target" } else { "only non-target" };
            Error::Argument(format!("{found} trials; error rates need both kinds"))
        })
    }

    /// Trials given as ascending scores, truths and weights; `None` when a class is absent.
    pub(super) fn from_sorted(trials: impl Iterator<Item = (f64, bool, f64)>) -> Option<Self> {
        let mut ties: Vec<Tie> = Vec::with_capacity(trials.size_hint().0);
        let (mut targets, mut nontargets) = (0.0, 0.0);
        for (score, target, weight) in trials.filter(|(_, _, weight)| *weight > 0.0) {
            let (target, nontarget) = if target { (weight, 0.0) } else { (0.0, weight) };
            targets += target;
            nontargets += nontarget;
            match ties.last_mut() {
                Some(tie) if tie.score == score => {
                    tie.targets += target;
                    tie.nontargets += nontarget;
                }
                _ => ties.push(Tie { score, targets: target, nontargets: nontarget }),
            }
        }
        (targets > 0.0 && nontargets > 0.0).then_some(Self { ties, targets, nontargets })
    }

    /// Number of target trials.
    pub fn targets(&self) -> f64 {
        self.targets
    }

    /// Number of non-target trials.
    pub fn nontargets(&self) -> f64 {
        self.nontargets
    }

    pub(super) fn ties(&self) -> &[Tie] {
        &self.ties
    }

    /// The error rates of every decision that a threshold can make, from accepting all to rejecting
    /// all.
    fn operating_points(&self) -> impl Iterator<Item = ErrorRates> {
        let accept_all = ErrorRates { threshold: f64::NEG_INFINITY, miss: 0.0, false_alarm: 1.0 };
        let (mut missed, mut rejected) = (0.0, 0.0);
        let above = self.ties.iter().map(move |tie| {
            missed += tie.targets;
            rejected += tie.nontargets;
            ErrorRates {
                threshold: tie.score,
                miss: missed / self.targets,
                false_alarm: (self.nontargets - rejected) / self.nontargets,
            }
        });
        std::iter::once(accept_all).chain(above)
    }

    /// The error rates at a threshold.
    pub fn error_rates(&self, threshold: f64) -> ErrorRates {
        let below = self.ties.iter().take_while(|tie| tie.score <= threshold);
        let (missed, rejected) = below.fold((0.0, 0.0), |(missed, rejected), tie| {
            (missed + tie.targets, rejected + tie.nontargets)
        });
        ErrorRates {
            threshold,
            miss: missed / self.targets,
            false_alarm: (self.nontargets - rejected) / self.nontargets,
        }
    }

    /// The equal error rate: where the line through the operating points, straight between
    /// neighbours, crosses misses = false alarms.
    pub fn equal_error_rate(&self) -> EqualErrorRate {
        // Misses minus false alarms grow from -1 to 1 with the number of rejected scores.
        let difference = |rates: &ErrorRates| rates.miss - rates.false_alarm;
        let points: Vec<ErrorRates> = self.operating_points().collect();
        let crossing = points.partition_point(|rates| difference(rates) < 0.0);
        let (Some(below), Some(above)) =
            (crossing.checked_sub(1).and_then(|index| points.get(index)), points.get(crossing))
        else {
            // Never happens: the first difference is -1 and the last is 1.
            return EqualErrorRate { rate: f64::NAN, threshold: f64::NAN };
        };
        let share = -difference(below) / (difference(above) - difference(below));
        let threshold = self.middle(crossing - 1) * (1.0 - share) + self.middle(crossing) * share;
        EqualErrorRate { rate: below.miss + share * (above.miss - below.miss), threshold }
    }

    /// Half-way between the highest rejected and the lowest accepted score when the lowest
    /// `rejected` scores are rejected; at the ends, the one that there is.
    fn middle(&self, rejected: usize) -> f64 {
        let below = rejected.checked_sub(1).and_then(|index| self.ties.get(index));
        match (below, self.ties.get(rejected)) {
            (Some(below), Some(above)) => 0.5 * (below.score + above.score),
            (below, above) => below.or(above).map_or(f64::NAN, |tie| tie.score),
        }
    }

    /// The minimum normalised detection cost (NIST; Martin et al. 1997).
    ///
    /// # Errors
    /// When the cost model is outside its domain.
    pub fn min_dcf(&self, model: CostModel) -> Result<MinimumCost> {
        model.validate()?;
        let mut least = MinimumCost { cost: f64::INFINITY, threshold: f64::NEG_INFINITY };
        for rates in self.operating_points() {
            let cost = model.normalised(&rates);
            if cost < least.cost {
                least = MinimumCost { cost, threshold: rates.threshold };
            }
        }
        Ok(least)
    }

    /// The normalised detection cost of deciding at `threshold`; for calibrated scores that is
    /// [`CostModel::bayes_threshold`].
    ///
    /// # Errors
    /// When the cost model is outside its domain.
    pub fn actual_dcf(&self, model: CostModel, threshold: f64) -> Result<f64> {
        model.validate()?;
        Ok(model.normalised(&self.error_rates(threshold)))
    }

    /// The operating points for a DET or ROC curve, by ascending threshold. Points nearer than
    /// `spacing` to the one before on probit axes are left out; 0.01 cannot be told from all.
    pub fn det_curve(&self, spacing: f64) -> Vec<ErrorRates> {
        let mut curve: Vec<ErrorRates> = vec![];
        let mut kept = (0.0, 0.0);
        let mut skipped = None;
        for rates in self.operating_points() {
            let place = (probit(rates.false_alarm), probit(rates.miss));
            let moved = |a: f64, b: f64| a != b && (a - b).abs() >= spacing;
            if curve.is_empty() || moved(place.0, kept.0) || moved(place.1, kept.1) {
                curve.push(rates);
                kept = place;
                skipped = None;
            } else {
                skipped = Some(rates);
            }
        }
        curve.extend(skipped);
        curve
    }
}

/// The minimum detection cost as computed trial by trial in the order of a stable sort, without the
/// threshold that accepts all. It equals [`Trials::min_dcf`] for priors up to 0.5 when no two
/// trials have the same score; otherwise it counts decisions that no threshold can make, and its
/// value depends on the order of the trials. It serves to compare with numbers that were published
/// so.
///
/// # Errors
/// As [`Trials::new`] and [`Trials::min_dcf`].
pub fn min_dcf_sample_by_sample(
    scores: &[f64],
    targets: &[bool],
    model: CostModel,
) -> Result<MinimumCost> {
    model.validate()?;
    let totals = Trials::new(scores, targets)?;
    let mut least = MinimumCost { cost: f64::INFINITY, threshold: f64::NEG_INFINITY };
    let (mut missed, mut rejected) = (0.0, 0.0);
    for index in ascending(scores, targets)? {
        let (Some(&threshold), Some(&target)) = (scores.get(index), targets.get(index)) else {
            continue;
        };
        if target {
            missed += 1.0
        } else {
            rejected += 1.0
        }
        let miss = missed / totals.targets;
        let false_alarm = (totals.nontargets - rejected) / totals.nontargets;
        let cost = model.normalised(&ErrorRates { threshold, miss, false_alarm });
        if cost < least.cost {
            least = MinimumCost { cost, threshold };
        }
    }
    Ok(least)
}

/// The order that sorts `scores` ascending, after checking them.
pub(super) fn ascending(scores: &[f64], targets: &[bool]) -> Result<Vec<usize>> {
    if scores.len() != targets.len() {
        let (scores, targets) = (scores.len(), targets.len());
        return Err(Error::Argument(format!("{scores} scores for {targets} trials")));
    }
    if scores.is_empty() {
        return Err(Error::Argument("no trials to evaluate".into()));
    }
    if let Some(index) = scores.iter().position(|score| !score.is_finite()) {
        return Err(Error::NonFinite { what: format!("the score of trial {}", index + 1) });
    }
    let mut order: Vec<(f64, usize)> = scores.iter().copied().zip(0..).collect();
    order.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    Ok(order.into_iter().map(|(_, index)| index).collect())
}

/// The quantile of the standard normal distribution: infinite for 0 and 1.
pub fn probit(probability: f64) -> f64 {
    -std::f64::consts::SQRT_2 * erfc_inv(2.0 * probability)
}
