//! Score normalisation with a cohort of other speakers.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Mean and deviation of one recording's scores against a cohort.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CohortStatistics {
    /// Mean.
    pub mean: f64,
    /// Population standard deviation, at least 1e-8.
    pub deviation: f64,
}

impl CohortStatistics {
    /// Statistics of the `top` highest of a recording's scores against the cohort, or of all.
    ///
    /// # Errors
    /// When there are no scores, `top` is 0 or above their number, or a score is not finite.
    pub fn of(scores: &[f32], top: Option<usize>) -> Result<Self> {
        let count = top.unwrap_or(scores.len());
        if count == 0 || count > scores.len() {
            return Err(Error::Argument(format!(
                "cannot take the {count} nearest of a cohort of {}",
                scores.len()
            )));
        }
        if scores.iter().any(|score| !score.is_finite()) {
            return Err(Error::NonFinite { what: "a cohort score".into() });
        }
        let mut nearest = scores.to_vec();
        if count < nearest.len() {
            nearest.select_nth_unstable_by(count, |a, b| b.total_cmp(a));
            nearest.truncate(count);
            // In order, so that the sums do not depend on how the selection went.
            nearest.sort_unstable_by(|a, b| b.total_cmp(a));
        }
        let count = count as f64;
        let mean = nearest.iter().copied().map(f64::from).sum::<f64>() / count;
        let square = |score: f32| (f64::from(score) - mean).powi(2);
        let variance = nearest.iter().copied().map(square).sum::<f64>() / count;
        Ok(Self { mean, deviation: variance.sqrt().max(1e-8) })
    }

    /// The score in deviations from the cohort's mean: Z-norm with the statistics of the enrolled
    /// recording, T-norm with those of the test recording.
    pub fn normalise(&self, score: f64) -> f64 {
        (score - self.mean) / self.deviation
    }
}

/// S-norm: the mean of the score normalised by both sides. With statistics of the nearest cohort
/// members only it is adaptive, AS-norm (Matejka et al. 2017, "AS-norm1").
pub fn adaptive_s_norm(score: f64, enrolment: CohortStatistics, test: CohortStatistics) -> f64 {
    0.5 * (enrolment.normalise(score) + test.normalise(score))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_the_nearest() {
        let cohort = [0.1f32, 0.9, -0.5, 0.5, 0.7];
        let all = CohortStatistics::of(&cohort, None).unwrap();
        assert!((all.mean - 0.34).abs() < 1e-7 && (all.deviation - 0.2464f64.sqrt()).abs() < 1e-7);
        let near = CohortStatistics::of(&cohort, Some(3)).unwrap();
        let deviation = (0.08f64 / 3.0).sqrt();
        assert!((near.mean - 0.7).abs() < 1e-7 && (near.deviation - deviation).abs() < 1e-7);
        let score = adaptive_s_norm(0.8, all, near);
        let expected = 0.5 * (0.46 / 0.2464f64.sqrt() + 0.1 / deviation);
        assert!((score - expected).abs() < 1e-6, "{score} {expected}");
    }

    #[test]
    fn a_cohort_of_one_value_does_not_divide_by_zero() {
        let flat = CohortStatistics::of(&[0.25; 7], Some(4)).unwrap();
        assert_eq!(flat, CohortStatistics { mean: 0.25, deviation: 1e-8 });
    }

    #[test]
    fn impossible_cohorts_are_refused() {
        for (cohort, top) in [(&[][..], None), (&[1.0], Some(2)), (&[1.0], Some(0))] {
            assert!(CohortStatistics::of(cohort, top).is_err(), "{cohort:?} {top:?}");
        }
        assert!(CohortStatistics::of(&[1.0, f32::NAN], None).is_err());
    }
}
