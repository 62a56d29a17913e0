//! `mmdiffusion continue`: what comes after the beginning of a clip.

use std::path::PathBuf;

use clap::Args;
use mmdiffusion::generate::Continuation;
use serde_json::json;
use shared::cli::Common;

use super::given::GivenOptions;
use super::sampling::{GuidanceOptions, Job, SamplingOptions, Task};

#[derive(Args)]
pub struct Options {
    /// Videos with sound
    #[arg(required = true)]
    videos: Vec<PathBuf>,
    /// Frames that are taken from each video, with their sound [default: half of what the model
    /// makes at once]
    #[arg(long, value_name = "N")]
    given_frames: Option<usize>,
    /// Frames of the finished clip, those given included [default: twice what the model makes at
    /// once]
    #[arg(long, value_name = "N")]
    frames: Option<usize>,
    /// Frames that the model sees of what was before, each time it goes on [default: half of what it
    /// makes at once]
    #[arg(long, value_name = "N")]
    overlap: Option<usize>,
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
    let sampling = options.sampling.prepare("continue", guidance, |size| size, common)?;
    let (size, rates) = (&sampling.size, sampling.rates);
    let window = size.frames();
    let known = options.given_frames.unwrap_or(window / 2).max(1);
    let continuation = Continuation {
        frames: options.frames.unwrap_or(2 * window),
        overlap: options.overlap.unwrap_or(window / 2),
    };
    let mut jobs = vec![];
    for (path, clips) in options.videos.iter().zip(clips) {
        let start = options.given.both(path, known, size, rates, common)?;
        jobs.push(Job { task: Task::From(start, continuation), clips });
    }
    let mut facts = options.given.facts(&options.videos);
    facts.insert("given_frames".into(), json!(known));
    facts.insert("frames".into(), json!(continuation.frames));
    facts.insert("overlap".into(), json!(continuation.overlap));
    options.sampling.run(&sampling, &jobs, facts, common)
}
