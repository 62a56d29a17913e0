//! `mmdiffusion video2audio`: the sound of given videos.

use std::path::PathBuf;

use clap::Args;
use mmdiffusion::conditioning::Given;
use shared::cli::Common;

use super::given::GivenOptions;
use super::sampling::{GuidanceOptions, Job, SamplingOptions, Task};

#[derive(Args)]
pub struct Options {
    /// Videos
    #[arg(required = true)]
    videos: Vec<PathBuf>,
    #[command(flatten)]
    given: GivenOptions,
    #[command(flatten)]
    guidance: GuidanceOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let guidance = options.guidance.guidance();
    let clips = options.sampling.clips_of(&options.videos)?;
    let sampling = options.sampling.prepare("video2audio", guidance, |size| size, common)?;
    let (size, rates) = (&sampling.size, sampling.rates);
    let mut jobs = vec![];
    for (path, clips) in options.videos.iter().zip(clips) {
        let video = options.given.video(path, size.frames(), size, rates, common)?;
        jobs.push(Job { task: Task::Around(Some(Given::Video(video))), clips });
    }
    let facts = options.given.facts(&options.videos);
    options.sampling.run(&sampling, &jobs, facts, common)
}
