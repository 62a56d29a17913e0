//! Speech recognition: word and character error rates, and where the errors are.
//!
//! Figures are those of jiwer 4: over a whole corpus (errors of all utterances over words of all
//! references), words between white space, characters with the spaces between words. Where the
//! references hold nothing at all, an error rate is the number of insertions.

mod align;
mod evaluation;
mod normaliser;
mod rates;
#[cfg(test)]
mod tests;
mod transcripts;

pub use align::{Step, align};
pub use evaluation::{Confusion, Evaluation, Missing, Resampled, Tally, Unit, Utterance};
pub use normaliser::Normaliser;
pub use rates::Counts;
pub use transcripts::{Transcript, Transcripts};
