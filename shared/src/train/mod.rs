//! Optimisers, schedules, logs and the training loop.

mod elements;
mod ema;
mod gradients;
mod interrupt;
mod log;
mod optimiser;
mod schedule;
mod tape;
mod tensorboard;
mod trainer;
mod update;

pub use ema::Ema;
pub use gradients::Gradients;
pub use interrupt::Interrupt;
pub use log::Logger;
pub use optimiser::{Group, Optimiser, OptimiserState, Unreached};
pub use schedule::{Anneal, CyclicMode, Schedule, Stage};
pub use tape::Tape;
pub use trainer::{Evaluation, StepOutcome, Task, Trainer, TrainerConfig, check_settings};
pub use update::{AdamConfig, Rule, SgdConfig};
