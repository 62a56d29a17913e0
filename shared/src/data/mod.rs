//! Manifests, loading in the background, length buckets and augmentation of recordings.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod audio_cache;
// Nothing there is from a file but samples, and their number is that of the slices.
#[allow(clippy::indexing_slicing)]
pub mod augment;
mod buckets;
mod crop;
mod json_lines;
mod kaldi;
pub mod lines;
mod loader;
mod manifest;
mod table;
mod tree;
mod trials;

pub use audio_cache::{AudioCache, ReadFailure, read_utterance, to_f32, to_i16};
pub use buckets::length_buckets;
pub use crop::{consecutive_segments, evaluation_segments, random_crop, wrapped};
pub use loader::{Batch, Loader, LoaderOptions, Position};
pub use manifest::{Filter, Manifest, SpeakerIndex, Utterance};
pub use tree::files_in;
pub use trials::{Trial, TrialList};
