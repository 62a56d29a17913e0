//! One file a command: what it takes, the call into the library, what it prints.

mod audio2video;
mod bench;
mod convert;
mod doctor;
mod evaluate;
mod extend;
mod folder;
mod gallery;
mod generate;
mod given;
mod info;
mod make_demo_data;
mod model;
mod progress;
mod sampling;
mod train;
mod train_sr;
mod training;
mod upscale;
mod video2audio;

use clap::Subcommand;
use shared::cli::Common;

#[derive(Subcommand)]
pub enum Command {
    /// Make videos with their sound
    Generate(generate::Options),
    /// Make the sound of videos
    Video2audio(video2audio::Options),
    /// Make the picture of sounds
    Audio2video(audio2video::Options),
    /// Make what comes after the beginning of videos, with its sound, as long as you like
    Continue(extend::Options),
    /// Make clips larger, frame by frame
    Upscale(upscale::Options),
    /// Show all clips of a folder in one page, with the waveforms and spectrograms of their sound
    Gallery(gallery::Options),
    /// Train a network of your own on clips
    Train(train::Options),
    /// Train a super-resolution network of your own on pictures or clips
    TrainSr(train_sr::Options),
    /// Make clips of bouncing balls, each impact heard: something to train on and to try things with
    MakeDemoData(make_demo_data::Options),
    /// Say how good generated clips are: compared with real ones, sound with picture, copies or not
    Evaluate(evaluate::Options),
    /// Describe a model: network, sizes, parameters, operations, diffusion, hash
    Info(info::Options),
    /// Turn published weights into a model
    Convert(convert::Options),
    /// Time the published networks on this machine
    Bench(bench::Options),
    /// Say what this build and machine can do, and check that clips are written rightly
    Doctor(doctor::Options),
}

/// Carries out `command`.
pub fn run(command: Command, common: &Common) -> anyhow::Result<()> {
    match command {
        Command::Generate(options) => generate::run(&options, common),
        Command::Video2audio(options) => video2audio::run(&options, common),
        Command::Audio2video(options) => audio2video::run(&options, common),
        Command::Continue(options) => extend::run(&options, common),
        Command::Upscale(options) => upscale::run(&options, common),
        Command::Gallery(options) => gallery::run(&options, common),
        Command::Train(options) => train::run(&options, common),
        Command::TrainSr(options) => train_sr::run(&options, common),
        Command::MakeDemoData(options) => make_demo_data::run(&options, common),
        Command::Evaluate(options) => evaluate::run(&options, common),
        Command::Info(options) => info::run(&options, common),
        Command::Convert(options) => convert::run(&options, common),
        Command::Bench(options) => bench::run(&options, common),
        Command::Doctor(options) => doctor::run(&options, common),
    }
}
