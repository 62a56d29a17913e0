//! `mmdiffusion generate`: sound and picture from nothing.

use std::str::FromStr;

use clap::Args;
use mmdiffusion::conditioning::Guidance;
use serde_json::Map;
use shared::Error;
use shared::cli::Common;

use super::sampling::{Job, SamplingOptions, Task};

#[derive(Args)]
pub struct Options {
    /// Frames of each clip [default: as the model was trained]
    #[arg(long, value_name = "N")]
    frames: Option<usize>,
    /// Width and height in pixels [default: as the model was trained]
    #[arg(long, value_name = "WxH")]
    size: Option<PictureSize>,
    /// Samples of sound of each clip [default: as the model was trained, or as long as the picture]
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    #[command(flatten)]
    sampling: SamplingOptions,
}

/// Width and height.
#[derive(Clone, Copy, Debug)]
struct PictureSize(usize, usize);

impl FromStr for PictureSize {
    type Err = Error;

    fn from_str(text: &str) -> shared::Result<Self> {
        let sides = text
            .split_once('x')
            .and_then(|(width, height)| Some(Self(width.parse().ok()?, height.parse().ok()?)));
        sides.ok_or_else(|| Error::Argument(format!("size {text:?} is not of the form 64x64")))
    }
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let sampling = options.sampling.prepare(
        "generate",
        Guidance::Replacement,
        |mut size| {
            if let Some(frames) = options.frames {
                let per_frame = size.audio[1] / size.video[0].max(1);
                size.video[0] = frames;
                size.audio[1] = frames * per_frame;
            }
            if let Some(PictureSize(width, height)) = options.size {
                (size.video[2], size.video[3]) = (height, width);
            }
            size.audio[1] = options.samples.unwrap_or(size.audio[1]);
            size
        },
        common,
    )?;
    let clips = (0..options.sampling.num).map(|number| (number, format!("sample-{number:05}")));
    let jobs = [Job { task: Task::Around(None), clips: clips.collect() }];
    options.sampling.run(&sampling, &jobs, Map::new(), common)
}
