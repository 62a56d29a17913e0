//! Speaker verification: error rates, detection costs, calibration and score normalisation.
//!
//! Everywhere a trial is accepted when its score is *above* the threshold; trials with equal scores
//! are accepted or rejected together.

mod bootstrap;
mod calibration;
mod cllr;
mod normalisation;
#[cfg(test)]
mod tests;
mod trials;

pub use super::bootstrap::{Bootstrap, Interval};
pub use bootstrap::Unit;
pub use calibration::Calibration;
pub use normalisation::{CohortStatistics, adaptive_s_norm};
pub use trials::{
    CostModel, EqualErrorRate, ErrorRates, MinimumCost, Trials, min_dcf_sample_by_sample, probit,
};
