//! How good a result is: error rates with confidence intervals.

mod bootstrap;
pub mod verification;
pub mod wer;

pub use bootstrap::{Bootstrap, Interval};
