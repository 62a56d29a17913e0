//! Reading and writing recordings.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

pub mod audio;

pub use audio::{AudioReader, Waveform};
