//! `mmdiffusion upscale`: clips with more pixels.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use mmdiffusion::clip::{audio_tensor, check_formats, video_tensor};
use mmdiffusion::generate::{Upscaler, batch_within, super_resolution_needs};
use mmdiffusion::{Clip, DiffusionConfig, NetworkConfig, Rates, Sampler};
use serde::Serialize;
use serde_json::json;
use shared::Error;
use shared::cli::Common;
use shared::limits::Limits;
use shared::media::Waveform;
use shared::media::image::Letterbox;
use shared::media::video::{Channel, ClipOptions, read_clip};
use shared::train::Interrupt;

use super::folder::FolderOptions;
use super::model::{self, Dtype};
use super::progress::StepProgress;

#[derive(Args)]
pub struct Options {
    /// Clips: tensor files as `generate` writes them, or videos of any size, which are made small
    /// first
    #[arg(required = true)]
    clips: Vec<PathBuf>,
    /// Model file of a super-resolution network
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// How frames are sampled, see `generate` [default: ddim in 25 steps]
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,
    /// Steps of the sampler [default: as is usual for it]
    #[arg(long, value_name = "N", requires = "sampler")]
    steps: Option<usize>,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Most frames computed at once; the result does not depend on it
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Frames a second that are taken from videos
    #[arg(long, value_name = "N", default_value_t = 10)]
    fps: u32,
    /// Numbers in which convolutions and linear layers compute
    #[arg(long, value_enum, value_name = "TYPE", default_value = "f32")]
    dtype: Dtype,
    /// Compute fewer frames at once than --batch says where more memory than this would be needed
    #[arg(long, value_name = "GIB")]
    memory_limit: Option<f64>,
    #[command(flatten)]
    folder: FolderOptions,
}

#[derive(Serialize)]
struct Outcome {
    out: String,
    /// Names of the clips that were made.
    clips: Vec<String>,
    /// How many were finished before.
    skipped: usize,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let sampler = match &options.sampler {
        Some(name) => Sampler::named(name, options.steps)?,
        None => Upscaler::default_sampler(),
    };
    if options.batch == 0 || options.fps == 0 {
        return Err(Error::Argument("--batch and --fps must be at least 1".into()).into());
    }
    let model = model::load_enlarging(options.model.as_deref())?;
    let device = common.open()?;
    let card = model.card.clone();
    let NetworkConfig::SuperResolution(config) = &card.network else {
        let kind = card.network.kind();
        let reason = format!("--model is a {kind}; expected a super-resolution network");
        return Err(Error::Argument(reason).into());
    };
    let fitting = match options.memory_limit {
        Some(gib) => {
            let needs = super_resolution_needs(config, card.network.parameters()?)?;
            batch_within(model::bytes(gib)?, needs)?
        }
        None => options.batch,
    };
    if fitting < options.batch {
        common.note(format!("--memory-limit leaves room for {fitting} frames at once"));
    }
    let settings = json!({
        "program": concat!("mmdiffusion ", env!("CARGO_PKG_VERSION")),
        "command": "upscale",
        "model": card.tensors_sha256(),
        "sampler": sampler,
        "seed": options.seed,
        "dtype": options.dtype.name(),
    });
    let (names, ours) = names(options)?;
    let clips = ours.iter().map(|path| read(path, options, config.small_size));
    let clips: Vec<Clip> = clips.collect::<shared::Result<_>>()?;
    for clip in &clips {
        let (frames, channels, height, width) = clip.video.dims4()?;
        let enlarged = |size: usize| size * config.large_size / config.small_size;
        let video = [frames, channels, enlarged(height), enlarged(width)];
        check_formats(&options.folder.formats, video, clip.audio.dim(1)?, clip.rates)?;
    }
    let diffusion = DiffusionConfig::from_flags(&card.diffusion, config.learn_sigma)?;
    let network = model.into_super_resolution(options.dtype.precision(), &device)?.compact()?;
    let (folder, open) = options.folder.open(&names, &settings)?;
    let interrupt = Interrupt::on_signals()?;
    let frames = |place: &usize| clips.get(*place).and_then(|clip| clip.video.dim(0).ok());
    let frames: usize = open.iter().filter_map(frames).sum();
    let mut progress = StepProgress::new("upscale", frames, 1, common.quiet);
    let upscaler = Upscaler {
        network: &network,
        diffusion,
        sampler,
        seed: options.seed,
        batch: options.batch.min(fitting),
        device: device.clone(),
    };
    let mut made = vec![];
    for place in &open {
        let (Some(clip), Some(name), Some(path)) =
            (clips.get(*place), names.get(*place), ours.get(*place))
        else {
            continue;
        };
        let video = upscaler
            .upscale(0, &clip.video.to_device(&device)?, &mut |frames, step| {
                progress.step(frames.len(), step.steps);
                if step.steps == Some(step.number) {
                    frames.for_each(|_| progress.finished());
                }
                if interrupt.requested() { Err(Error::Interrupted) } else { Ok(()) }
            })
            .with_context(|| format!("{} clips are finished (--resume keeps them)", made.len()))?;
        let clip = Clip { video, audio: clip.audio.clone(), rates: clip.rates };
        folder.write(name, &clip, &[("given", json!(path.display().to_string()))])?;
        made.push(name.clone());
    }
    progress.end();
    let skipped = names.len() - open.len();
    let outcome = Outcome { out: folder.path().display().to_string(), clips: made, skipped };
    let text = format!("{} clips in {}", outcome.clips.len(), outcome.out);
    common.print(&outcome, text)
}

/// The names of this process's clips, and their files.
fn names(options: &Options) -> anyhow::Result<(Vec<String>, &[PathBuf])> {
    let ours = options.folder.shard()?.range(options.clips.len());
    let ours = options.clips.get(ours).unwrap_or_default();
    let name = |path: &PathBuf| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<String> = options.clips.iter().map(name).collect();
    for (place, name) in names.iter().enumerate() {
        if names.iter().skip(place + 1).any(|other| other == name) {
            let reason = format!("two of the given files are called {name:?}; rename one");
            return Err(Error::Argument(reason).into());
        }
    }
    Ok((ours.iter().map(name).collect(), ours))
}

/// The clip that is enlarged.
fn read(path: &Path, options: &Options, small_size: usize) -> shared::Result<Clip> {
    let limits = Limits::default();
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        return Clip::read_tensors(path, &limits);
    }
    let rates = Rates { fps: options.fps, rate_hz: 16_000 };
    let clip_options = ClipOptions {
        fps: rates.fps,
        start_s: 0.0,
        duration_s: None,
        letterbox: Some(Letterbox::new(small_size, small_size)),
        rate_hz: rates.rate_hz,
        channel: Channel::Mix,
    };
    let clip = read_clip(path, &clip_options, &limits)?;
    let frames = clip
        .frames
        .ok_or_else(|| Error::media(path, "has no picture, which this command needs"))?;
    let silence = || {
        let samples = frames.count() * rates.rate_hz as usize / rates.fps as usize;
        Waveform::from_mono(vec![0.0; samples], rates.rate_hz)
    };
    let sound = clip.sound.unwrap_or_else(silence);
    let cpu = &candle_core::Device::Cpu;
    Ok(Clip { video: video_tensor(&frames, cpu)?, audio: audio_tensor(&sound, cpu)?, rates })
}
