//! How good a result is: error rates with confidence intervals, distances between sets.

mod bootstrap;
mod features;
mod frechet;
mod kernel_distance;
#[cfg(test)]
mod reference;
mod sets;
pub mod verification;
pub mod wer;

pub use bootstrap::{Bootstrap, Interval};
pub use features::Features;
pub use frechet::{Gaussian, frechet_distance};
pub use kernel_distance::KernelDistance;
pub use sets::multiplicities;
