//! From the probabilities of a recogniser's classes to words.

mod beam;
mod emissions;
mod fusion;
mod greedy;
mod hotwords;
mod lexicon;
mod timestamps;

pub use beam::{BeamOptions, BeamSearch, Hypothesis};
pub use emissions::Emissions;
pub use fusion::{Fusion, FusionState, UnknownWord};
pub use greedy::greedy;
pub use hotwords::Hotwords;
pub use lexicon::Lexicon;
pub use timestamps::{Span, TimedWord, align, timed_words};
