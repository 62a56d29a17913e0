//! What the three models share: media and data pipelines, checkpoints, kernels and layers,
//! training, supernet search, evaluation and reports. This crate knows no model.

pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
pub mod data;
pub mod device;
pub mod dsp;
pub mod error;
pub mod eval;
pub mod files;
pub mod kernels;
pub mod limits;
pub mod measure;
pub mod media;
pub mod nn;
pub mod report;
pub mod rng;
pub mod train;

pub use error::{Error, Result};
