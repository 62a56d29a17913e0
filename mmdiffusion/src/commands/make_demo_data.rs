//! `mmdiffusion make-demo-data`: clips to train and to try things on.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use mmdiffusion::demo_data::{self, DemoConfig};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;
use shared::Error;
use shared::cli::Common;
use shared::files::{check_output, write_atomic};
use shared::media::audio::Waveform;
use shared::media::image::Frames;
use shared::media::video::write_mp4;
use shared::report::Progress;

#[derive(Args)]
pub struct Options {
    /// Folder for the clips and for scenes.jsonl, which says what happens in each
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// Number of clips
    #[arg(long, value_name = "N", default_value_t = 1000)]
    num: u64,
    /// Seed; clips of other seeds are others
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Width and height in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 128)]
    size: usize,
    /// Frames of each clip, at 10 a second
    #[arg(long, value_name = "N", default_value_t = 16)]
    frames: usize,
    /// Overwrite clips that are there
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Outcome {
    out: String,
    clips: u64,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    common.open()?;
    let config =
        DemoConfig { frames: options.frames, side_pixels: options.size, ..DemoConfig::default() };
    config.check()?;
    let list = options.out.join("scenes.jsonl");
    fs::create_dir_all(&options.out).map_err(Error::io(&options.out))?;
    check_output(&list, options.force)?;
    let progress = Progress::new("make clips", "clips", Some(options.num), common.quiet);
    let make = |number: u64| -> shared::Result<String> {
        let clip = demo_data::clip(&config, options.seed, number)?;
        let name = format!("{number:06}.mp4");
        let frames = Frames::new(options.size, options.size, clip.frames.concat())?;
        let sound = Waveform { samples: clip.samples, rate_hz: config.rate_hz, channels: 1 };
        let comment = format!("mmdiffusion demo data, seed {}, clip {number}", options.seed);
        let path = options.out.join(&name);
        write_mp4(&path, &frames, config.fps as u32, Some(&sound), &comment, options.force)?;
        progress.inc(1);
        Ok(json!({"path": name, "scene": clip.scene, "impacts": clip.impacts}).to_string())
    };
    let lines: Vec<String> =
        (0..options.num).into_par_iter().map(make).collect::<shared::Result<_>>()?;
    // Written last: a folder with this list is whole.
    write_atomic(&list, options.force, |file| {
        lines.iter().try_for_each(|line| writeln!(file, "{line}"))
    })?;
    progress.finish();
    let outcome = Outcome { out: options.out.display().to_string(), clips: options.num };
    common.print(&outcome, format!("{} clips in {}", outcome.clips, outcome.out))
}
