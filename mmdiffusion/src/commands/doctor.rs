//! `mmdiffusion doctor`: does everything work here?

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use mmdiffusion::clip::{audio_tensor, video_tensor};
use mmdiffusion::{Clip, ClipFormat, Rates};
use serde::Serialize;
use shared::cli::Common;
use shared::device;
use shared::kernels::isa::{self, InstructionSet};
use shared::limits::Limits;
use shared::media::video::{Channel, ClipOptions, h264_encoder, read_clip};
use shared::media::{Frames, Waveform};

use super::model;

/// Size of the clip that is written and read back.
const RATES: Rates = Rates { fps: 10, rate_hz: 16_000 };
const FRAMES: usize = 16;

#[derive(Args)]
pub struct Options {
    /// Model to check [default: the model shipped with this program]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
}

#[derive(Serialize)]
struct Outcome {
    version: &'static str,
    device: String,
    threads: usize,
    instruction_sets: Vec<&'static str>,
    /// Of the sets that kernels are compiled for, the one that is used.
    kernels: &'static str,
    /// All of them that this processor has, best last.
    available_kernels: Vec<&'static str>,
    ffmpeg: Option<String>,
    /// The encoder of H.264.
    h264: Option<String>,
    /// What the model is.
    model: &'static str,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let opened = common.open()?;
    let model = model::load(options.model.as_deref())?;
    let outcome = Outcome {
        version: env!("CARGO_PKG_VERSION"),
        device: format!("{:?}", opened.location()),
        threads: device::set_threads(common.threads)?,
        instruction_sets: device::instruction_sets(),
        kernels: isa::chosen()?.name(),
        available_kernels: InstructionSet::available().map(InstructionSet::name).collect(),
        ffmpeg: device::ffmpeg_version(),
        h264: h264_encoder(),
        model: model.card.network.kind(),
    };
    if outcome.h264.is_some() {
        check_clips()?;
    }
    let missing = || "none: MP4 files cannot be written, see samples/setup.sh".to_owned();
    let text = format!(
        "mmdiffusion     {}\ndevice          {}\nthreads         {}\ninstructions    {}\nkernels         {} of {}\nFFmpeg          {}\nH.264 encoder   {}\nmodel           {}",
        outcome.version,
        outcome.device,
        outcome.threads,
        outcome.instruction_sets.join(", "),
        outcome.kernels,
        outcome.available_kernels.join(", "),
        outcome.ffmpeg.as_deref().unwrap_or("none"),
        outcome.h264.clone().map_or_else(missing, |name| format!("{name}, clips come back right")),
        outcome.model,
    );
    common.print(&outcome, text)
}

/// Writes a clip and reads it back.
fn check_clips() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let pixels = (0..FRAMES).flat_map(|frame| vec![(20 + 12 * frame) as u8; 3 * 64 * 64]);
    let picture = Frames::new(64, 64, pixels.collect())?;
    let tone = (0..25_600).map(|i| (0.5 * (f64::from(i) * 0.2).sin()) as f32);
    let sound = Waveform::from_mono(tone.collect(), RATES.rate_hz);
    let cpu = &candle_core::Device::Cpu;
    let clip = Clip {
        video: video_tensor(&picture, cpu)?,
        audio: audio_tensor(&sound, cpu)?,
        rates: RATES,
    };
    clip.write(folder.path(), "clip", &[ClipFormat::Mp4], "", false)?;
    let options = ClipOptions {
        fps: RATES.fps,
        start_s: 0.0,
        duration_s: None,
        letterbox: None,
        rate_hz: RATES.rate_hz,
        channel: Channel::Mix,
    };
    let path = ClipFormat::Mp4.path(folder.path(), "clip");
    let read = read_clip(&path, &options, &Limits::default())?;
    let (Some(frames), Some(heard)) = (read.frames, read.sound) else {
        anyhow::bail!("a clip came back without its picture or its sound");
    };
    ensure!(
        frames.count() == FRAMES && heard.frames() == sound.frames(),
        "a clip of {FRAMES} frames and {} samples came back with {} and {}",
        sound.frames(),
        frames.count(),
        heard.frames()
    );
    let differs = |(a, b): (&u8, &u8)| a.abs_diff(*b) > 4;
    ensure!(
        !frames.pixels().iter().zip(picture.pixels()).any(differs),
        "the colours of a clip did not come back"
    );
    Ok(())
}
