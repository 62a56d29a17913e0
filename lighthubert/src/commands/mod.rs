//! One file a command: what it takes, the call into the library, what it prints.

mod bench;
mod compare;
mod convert;
mod decoding;
mod doctor;
mod evaluate;
mod extract;
mod features;
mod finetune;
mod info;
mod language_model;
mod model;
mod sample;
mod score;
mod transcribe;

use std::process::ExitCode;

use clap::Subcommand;
use shared::cli::Common;

#[derive(Subcommand)]
pub enum Command {
    /// Write down what is said in recordings
    Transcribe(transcribe::Options),
    /// Recognise recordings whose texts are known, and score what came of it
    Evaluate(evaluate::Options),
    /// Compare recognisers that were evaluated: error rates against size, operations and time
    Compare(compare::Options),
    /// Compute the features of recordings
    Features(features::Options),
    /// Compare transcripts with references: error rates with intervals, and where the errors are
    Score(score::Options),
    /// Estimate an n-gram language model from texts
    LanguageModel(language_model::Options),
    /// Train a recogniser on transcribed recordings, from an encoder or from scratch
    Finetune(finetune::Options),
    /// Describe a model: sizes, parameters, operations, search space
    Info(info::Options),
    /// Take a subnet out of a supernet, or a part out of a recogniser
    Extract(extract::Options),
    /// Draw random subnets, under a budget if you like
    Sample(sample::Options),
    /// Turn published weights into a model, a network into Hugging Face's layout, or any checkpoint
    /// into a safetensors file
    Convert(convert::Options),
    /// Time the published networks on this machine
    Bench(bench::Options),
    /// Say what this build and machine can do, and check that a model computes rightly
    Doctor(doctor::Options),
}

/// Carries out `command`.
pub fn run(command: Command, common: &Common) -> anyhow::Result<ExitCode> {
    match command {
        Command::Transcribe(options) => return transcribe::run(&options, common),
        Command::Evaluate(options) => evaluate::run(&options, common)?,
        Command::Compare(options) => compare::run(&options, common)?,
        Command::Features(options) => features::run(&options, common)?,
        Command::Score(options) => score::run(&options, common)?,
        Command::LanguageModel(options) => language_model::run(&options, common)?,
        Command::Finetune(options) => finetune::run(&options, common)?,
        Command::Info(options) => info::run(&options, common)?,
        Command::Extract(options) => extract::run(&options, common)?,
        Command::Sample(options) => sample::run(&options, common)?,
        Command::Convert(options) => convert::run(&options, common)?,
        Command::Bench(options) => bench::run(&options, common)?,
        Command::Doctor(options) => doctor::run(&options, common)?,
    }
    Ok(ExitCode::SUCCESS)
}
