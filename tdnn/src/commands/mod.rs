//! One file a command: what it takes, the call into the library, what it prints.

mod bench;
mod calibrate;
mod combine;
mod convert;
mod doctor;
mod embed;
mod enroll;
mod evaluate;
mod identify;
mod info;
mod merge;
mod model;
mod score;
mod train;
mod trials;
mod verify;

use std::process::ExitCode;

use clap::Subcommand;
use shared::cli::Common;

#[derive(Subcommand)]
pub enum Command {
    /// Tell whether two recordings are of the same speaker
    Verify(verify::Options),
    /// Compute the embeddings of recordings
    Embed(embed::Options),
    /// Add a speaker to a speaker book, or recordings to a speaker
    Enroll(enroll::Options),
    /// Tell which speaker of a book is heard in a recording, if any
    Identify(identify::Options),
    /// Score a list of trials
    Score(score::Options),
    /// Join the parts that were made with --shard
    Merge(merge::Options),
    /// Fit the calibration of a model to labelled trials, and save it into the model
    Calibrate(calibrate::Options),
    /// Measure error rates on labelled trials: EER, minDCF, Cllr, DET curve
    Evaluate(evaluate::Options),
    /// Train a network on recordings of many speakers
    Train(train::Options),
    /// Make one model of several, whose scores are the means of theirs
    Combine(combine::Options),
    /// Describe a model: architecture, parameters, operations, front-end, hashes
    Info(info::Options),
    /// Turn published weights, or any checkpoint, into a model or a safetensors file
    Convert(convert::Options),
    /// Time the published networks on this machine
    Bench(bench::Options),
    /// Say what this build and machine can do, and check that the model computes rightly
    Doctor(doctor::Options),
}

/// Carries out `command`.
pub fn run(command: Command, common: &Common) -> anyhow::Result<ExitCode> {
    match command {
        Command::Verify(options) => return verify::run(&options, common),
        Command::Identify(options) => return identify::run(&options, common),
        Command::Embed(options) => embed::run(&options, common)?,
        Command::Enroll(options) => enroll::run(&options, common)?,
        Command::Score(options) => score::run(&options, common)?,
        Command::Merge(options) => merge::run(&options, common)?,
        Command::Calibrate(options) => calibrate::run(&options, common)?,
        Command::Evaluate(options) => evaluate::run(&options, common)?,
        Command::Train(options) => train::run(options, common)?,
        Command::Combine(options) => combine::run(&options, common)?,
        Command::Info(options) => info::run(&options, common)?,
        Command::Convert(options) => convert::run(&options, common)?,
        Command::Bench(options) => bench::run(&options, common)?,
        Command::Doctor(options) => doctor::run(&options, common)?,
    }
    Ok(ExitCode::SUCCESS)
}
