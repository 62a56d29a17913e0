//! Reading and writing recordings, pictures and videos.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

pub mod audio;
#[cfg(feature = "video")]
mod ffmpeg;
mod guard;
pub mod image;
#[cfg(feature = "video")]
pub mod video;

pub use audio::{AudioReader, Waveform};
pub use image::{Frames, Picture};
