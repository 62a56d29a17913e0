//! Training of recognisers by CTC.

mod batches;
mod config;
mod filterbank;
mod run;
mod speech;
mod start;

pub use config::{DropoutConfig, FinetuneConfig, FreezeConfig};
pub use run::{Job, RunOptions, Trained, finetune};
pub use speech::{LeftOut, TranscribedSpeech};
pub use start::Start;
