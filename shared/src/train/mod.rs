//! Optimisers, schedules, logs and the training loop.

mod elements;
mod gradients;
mod optimiser;
mod schedule;
mod update;

pub use gradients::Gradients;
pub use optimiser::{Group, Optimiser, OptimiserState, Unreached};
pub use schedule::{Anneal, CyclicMode, Schedule};
pub use update::{AdamConfig, Rule, SgdConfig};
