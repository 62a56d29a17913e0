//! Manifests, loading in the background, length buckets and augmentation of recordings.

mod json_lines;
mod kaldi;
mod lines;
mod manifest;
mod table;
mod tree;
mod trials;

pub use manifest::{Filter, Manifest, SpeakerIndex, Utterance};
pub use trials::{Trial, TrialList};
