//! How good generated clips are: compared with real ones, and sound with picture.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod alignment;
mod clips;
mod compare;
mod extraction;
mod extractors;
mod impacts;
mod memorisation;
mod motion;
mod onsets;
mod picture_embedding;
mod report;
mod sound_embedding;
mod synchrony;

pub use clips::{EvaluationForm, clip_files};
pub use compare::{Comparison, Evaluation, Metric, Settings, evaluate};
pub use extraction::{ClipFeatures, Extraction, FeatureSet};
pub use extractors::Extractors;
pub use impacts::KnownImpacts;
pub use report::{definitions, page, plots, table};
pub use synchrony::Seen;
