//! Training one architecture to tell the speakers of a corpus apart.

mod config;
mod data;
mod run;

pub use config::{Stage, TrainConfig};
pub use data::{Example, TrainingData};
pub use run::{RunOptions, Trained, ValidationTrials, train};
