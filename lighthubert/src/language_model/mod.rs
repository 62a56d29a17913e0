//! N-gram language models: reading and writing, probabilities, estimation from texts.

mod arpa;
mod kneser_ney;
mod ngram;

pub use arpa::{parse_arpa, read_arpa, write_arpa};
pub use kneser_ney::estimate;
pub use ngram::{NgramModel, State, Step};
