//! Training.

mod clips;
mod config;
mod objective;
mod run;
mod step_sampler;

pub use clips::{ClipForm, ClipSet, Window};
pub use config::TrainConfig;
pub use objective::{Losses, Objective};
pub use run::{RunOptions, train};
pub use step_sampler::{StepSampler, StepSampling};
