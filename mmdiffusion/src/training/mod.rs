//! Training.

mod clips;
mod config;
mod coupled;
mod degradation;
mod library;
mod objective;
mod pictures;
mod run;
mod step_sampler;
mod super_resolution;

pub use clips::{ClipForm, ClipSet, Window};
pub use config::{CoupledTraining, OptimisationConfig, SuperResolutionTraining};
pub use coupled::train_coupled;
pub use degradation::degraded;
pub use library::LibraryOptions;
pub use objective::{Losses, Objective};
pub use pictures::{PictureSet, SizedPicture};
pub use run::{RunOptions, Start};
pub use step_sampler::{StepSampler, StepSampling};
pub use super_resolution::train_super_resolution;
