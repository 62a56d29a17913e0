//! `mmdiffusion audio2video`: the picture of given sounds.

use std::path::PathBuf;

use clap::Args;
use mmdiffusion::conditioning::Given;
use shared::cli::Common;

use super::given::GivenOptions;
use super::sampling::{GuidanceOptions, Job, SamplingOptions, Task};

#[derive(Args)]
pub struct Options {
    /// Sounds, or videos whose sound is taken
    #[arg(required = true)]
    sounds: Vec<PathBuf>,
    #[command(flatten)]
    given: GivenOptions,
    #[command(flatten)]
    guidance: GuidanceOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let guidance = options.guidance.guidance();
    let clips = options.sampling.clips_of(&options.sounds)?;
    let sampling = options.sampling.prepare("audio2video", guidance, |size| size, common)?;
    let [_, samples] = sampling.size.audio;
    let mut jobs = vec![];
    for (path, clips) in options.sounds.iter().zip(clips) {
        let audio = options.given.sound(path, samples, sampling.rates, common)?;
        jobs.push(Job { task: Task::Around(Some(Given::Audio(audio))), clips });
    }
    let facts = options.given.facts(&options.sounds);
    options.sampling.run(&sampling, &jobs, facts, common)
}
