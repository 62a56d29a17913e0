//! How good a result is: error rates with confidence intervals.

pub mod verification;
