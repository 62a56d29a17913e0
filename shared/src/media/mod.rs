//! Reading and writing recordings.

pub mod audio;

pub use audio::{AudioReader, Waveform};
