//! What the commands that sample clips share: their options, the model, the run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Context;
use candle_core::Device;
use clap::Args;
use mmdiffusion::clip::check_formats;
use mmdiffusion::conditioning::{Given, Guidance, Loss};
use mmdiffusion::generate::{
    ClipSize, Continuation, Event, Generator, batch_within, coupled_needs,
};
use mmdiffusion::{
    Clip, CoupledDenoiser, DiffusionConfig, NetworkConfig, Pair, Rates, Sampler, Shifts, UnetConfig,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use shared::Error;
use shared::cli::Common;
use shared::train::Interrupt;

use super::folder::FolderOptions;
use super::model::{self, Dtype};
use super::progress::StepProgress;

/// Options of the commands that sample clips.
#[derive(Args, Debug)]
pub struct SamplingOptions {
    /// Model file [default: the one shipped with this program, which makes bouncing balls]
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Clips to make, of each given clip where one is given
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub num: u64,
    /// Most clips computed at once; the result does not depend on it
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: usize,
    /// How clips are sampled: ddpm, ddim, dpm_solver, dpm_solver++, dpm_solver++_adaptive, unipc
    /// or heun
    #[arg(long, value_name = "NAME", default_value = "dpm_solver")]
    pub sampler: String,
    /// Steps of the sampler [default: as is usual for it]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Seed of everything random; clip i is the same whatever --num, --batch and --shard
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Write a picture of the clip as predicted so far every N steps, into previews/
    #[arg(long, value_name = "N")]
    pub preview: Option<usize>,
    /// Numbers in which convolutions and linear layers compute
    #[arg(long, value_enum, value_name = "TYPE", default_value = "f32")]
    pub dtype: Dtype,
    /// Compute fewer clips at once than --batch says where more memory than this would be needed
    #[arg(long, value_name = "GIB")]
    pub memory_limit: Option<f64>,
    #[command(flatten)]
    pub folder: FolderOptions,
}

/// How the rest of a clip is made to fit what is given.
#[derive(Args, Debug)]
pub struct GuidanceOptions {
    /// Strength of gradient guidance; 0 only puts what is given in its place at each step.
    ///
    /// The published scripts say --classifier_scale 3.0, but in their fp16 mode the gradient is
    /// multiplied by 2^20 and never divided back, and it is divided by the number of clips in the
    /// batch. What they do with one clip is --guidance 3145728 here, whatever the batch.
    #[arg(long, value_name = "STRENGTH", default_value_t = 0.0)]
    pub guidance: f64,
}

impl GuidanceOptions {
    /// The library's form of it.
    pub fn guidance(&self) -> Guidance {
        match self.guidance {
            0.0 => Guidance::Replacement,
            scale => Guidance::Gradient { scale, loss: Loss::PerSample },
        }
    }
}

/// A checked plan: a model and how it is sampled.
pub struct Sampling {
    denoiser: CoupledDenoiser,
    diffusion: DiffusionConfig,
    sampler: Sampler,
    guidance: Guidance,
    /// Most clips at once.
    batch: usize,
    device: Device,
    /// Size of the clips that the network makes.
    pub size: ClipSize,
    /// Their rates.
    pub rates: Rates,
    /// What the files say of the settings.
    settings: Map<String, Value>,
}

/// What clips are made from.
pub enum Task {
    /// A clip around what is given, if anything.
    Around(Option<Given>),
    /// A longer clip that begins with what is given.
    From(Pair, Continuation),
}

/// Clips made from one thing.
pub struct Job {
    /// What they are made from.
    pub task: Task,
    /// Number and name of each.
    pub clips: Vec<(u64, String)>,
}

#[derive(Serialize)]
struct Outcome {
    out: String,
    /// Names of the clips that were made.
    clips: Vec<String>,
    /// How many were finished before.
    skipped: usize,
}

impl SamplingOptions {
    /// The plan of the command `command`. `resize` gives the size of the clips from the model's.
    pub fn prepare(
        &self,
        command: &str,
        guidance: Guidance,
        resize: impl FnOnce(ClipSize) -> ClipSize,
        common: &Common,
    ) -> anyhow::Result<Sampling> {
        let sampler = Sampler::named(&self.sampler, self.steps)?;
        if self.num == 0 || self.batch == 0 || self.preview == Some(0) {
            let reason = "--num, --batch and --preview must be at least 1";
            return Err(Error::Argument(reason.into()).into());
        }
        let model = model::load(self.model.as_deref())?;
        let device = common.open()?;
        let card = model.card.clone();
        let NetworkConfig::Coupled(config) = &card.network else {
            let kind = card.network.kind();
            let reason = format!("--model is a {kind}; expected one of picture and sound");
            return Err(Error::Argument(reason).into());
        };
        let size = resize(ClipSize::of(config));
        check_size(&size, config)?;
        let config =
            UnetConfig { video_size: size.video, audio_size: size.audio, ..config.clone() };
        let fitting = match self.memory_limit {
            Some(gib) => {
                let needs = coupled_needs(&config, card.network.parameters()?)?;
                batch_within(model::bytes(gib)?, needs.of_run(&sampler, guidance))?
            }
            None => self.batch,
        };
        if fitting < self.batch {
            common.note(format!("--memory-limit leaves room for {fitting} clips at once"));
        }
        let strength = match guidance {
            Guidance::Replacement => 0.0,
            Guidance::Gradient { scale, .. } => scale,
        };
        let settings = [
            ("program", json!(concat!("mmdiffusion ", env!("CARGO_PKG_VERSION")))),
            ("command", json!(command)),
            ("model", json!(card.tensors_sha256())),
            ("sampler", serde_json::to_value(&sampler)?),
            ("steps", json!(self.steps)),
            ("seed", json!(self.seed)),
            ("guidance", json!(strength)),
            ("dtype", json!(self.dtype.name())),
            ("video", json!(size.video)),
            ("audio", json!(size.audio)),
        ];
        let rates = model::rates(&card)?;
        let diffusion = DiffusionConfig::from_flags(&card.diffusion, config.learn_sigma)?;
        let network = model.into_coupled(self.dtype.precision(), &device)?;
        let network = match guidance {
            Guidance::Replacement => network.compact()?,
            Guidance::Gradient { .. } => network,
        };
        Ok(Sampling {
            denoiser: CoupledDenoiser { network, shifts: Shifts::Random { seed: self.seed } },
            diffusion,
            sampler,
            guidance,
            batch: self.batch.min(fitting),
            device,
            size,
            rates,
            settings: settings.map(|(name, value)| (name.to_owned(), value)).into_iter().collect(),
        })
    }

    /// The numbers and names of the clips made from given files, `num` of each: after the files, in
    /// whose order they are counted.
    pub fn clips_of(&self, files: &[PathBuf]) -> anyhow::Result<Vec<Vec<(u64, String)>>> {
        let mut stems = BTreeSet::new();
        let mut clips = vec![];
        for (place, file) in files.iter().enumerate() {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if !stems.insert(stem.clone()) {
                let reason = format!("two of the given files are called {stem:?}; rename one");
                return Err(Error::Argument(reason).into());
            }
            let number = |i: u64| place as u64 * self.num + i;
            clips.push((0..self.num).map(|i| (number(i), format!("{stem}-{i:03}"))).collect());
        }
        Ok(clips)
    }

    /// Makes the clips of all jobs and reports. `facts` belong to the settings, too.
    pub fn run(
        &self,
        sampling: &Sampling,
        jobs: &[Job],
        facts: Map<String, Value>,
        common: &Common,
    ) -> anyhow::Result<()> {
        for job in jobs {
            let [frames, samples] = job.length(&sampling.size)?;
            let [_, channels, height, width] = sampling.size.video;
            let video = [frames, channels, height, width];
            check_formats(&self.folder.formats, video, samples, sampling.rates)?;
        }
        let names: Vec<String> =
            jobs.iter().flat_map(|job| &job.clips).map(|(_, name)| name.clone()).collect();
        let ours = self.folder.shard()?.range(names.len());
        let names = names.get(ours.clone()).unwrap_or_default();
        let settings: Map<String, Value> =
            sampling.settings.clone().into_iter().chain(facts).collect();
        let (folder, open) = self.folder.open(names, &Value::Object(settings))?;
        let mut open: BTreeSet<&String> =
            open.iter().filter_map(|place| names.get(*place)).collect();
        let skipped = names.len() - open.len();
        let interrupt = Interrupt::on_signals()?;
        let windows = jobs.first().map_or(1, |job| job.windows(&sampling.size));
        let mut progress = StepProgress::new("generate", open.len(), windows, common.quiet);
        let generator = Generator {
            denoiser: &sampling.denoiser,
            diffusion: sampling.diffusion.clone(),
            sampler: sampling.sampler.clone(),
            guidance: sampling.guidance,
            size: sampling.size,
            seed: self.seed,
            batch: sampling.batch,
            device: sampling.device.clone(),
        };
        let mut made = vec![];
        for job in jobs {
            let clips: BTreeMap<u64, &String> = job
                .clips
                .iter()
                .filter(|(_, name)| open.remove(name))
                .map(|(number, name)| (*number, name))
                .collect();
            let numbers: Vec<u64> = clips.keys().copied().collect();
            let mut observe = |event: Event| -> shared::Result<()> {
                match event {
                    Event::Step { samples, window, step } => {
                        progress.step(samples.len(), step.steps);
                        if self.preview.is_some_and(|every| step.number % every == 0) {
                            let shown = Clip::of_batch(step.clean, sampling.rates)?;
                            for (clip, number) in shown.iter().zip(samples) {
                                let name = clips.get(number).map_or("", |name| name.as_str());
                                folder.preview(clip, &preview_name(name, window, step.number))?;
                            }
                        }
                    }
                    Event::Finished { sample, clip } => {
                        let clips_of_one = Clip::of_batch(&clip, sampling.rates)?;
                        if let (Some(clip), Some(name)) = (clips_of_one.first(), clips.get(&sample))
                        {
                            folder.write(name, clip, &[("sample", json!(sample))])?;
                            progress.finished();
                            made.push((*name).clone());
                        }
                        return Ok(());
                    }
                }
                if interrupt.requested() { Err(Error::Interrupted) } else { Ok(()) }
            };
            let done = match &job.task {
                Task::Around(given) => generator.generate(&numbers, given.as_ref(), &mut observe),
                Task::From(start, continuation) => {
                    generator.extend(&numbers, start, *continuation, &mut observe)
                }
            };
            done.with_context(|| progress.so_far())?;
        }
        progress.end();
        let outcome = Outcome { out: folder.path().display().to_string(), clips: made, skipped };
        let before = match outcome.skipped {
            0 => String::new(),
            skipped => format!(", {skipped} were there before"),
        };
        let text = format!("{} clips in {}{before}", outcome.clips.len(), outcome.out);
        common.print(&outcome, text)
    }
}

impl Job {
    /// Frames and samples of each clip.
    fn length(&self, size: &ClipSize) -> shared::Result<[usize; 2]> {
        match &self.task {
            Task::Around(_) => Ok([size.frames(), size.audio[1]]),
            Task::From(_, Continuation { frames, .. }) => {
                Ok([*frames, frames * size.samples_per_frame()?])
            }
        }
    }

    /// How often each clip is sampled.
    fn windows(&self, size: &ClipSize) -> usize {
        let Task::From(start, Continuation { frames, overlap }) = &self.task else { return 1 };
        let known = start.video.dims().get(1).copied().unwrap_or(0);
        let added = |known: usize| size.frames().saturating_sub(known.min(*overlap)).max(1);
        let lengths = std::iter::successors(Some(known), |known| Some(known + added(*known)));
        lengths.take_while(|length| length < frames).count()
    }
}

fn preview_name(name: &str, window: usize, step: usize) -> String {
    match window {
        0 => format!("{name}-step-{step:04}"),
        _ => format!("{name}-part-{window:02}-step-{step:04}"),
    }
}

/// Fails when no network of these settings can make clips of this size.
fn check_size(size: &ClipSize, config: &UnetConfig) -> shared::Result<()> {
    let levels = config.level_channels()?.len() as u32;
    let (halvings, quarterings) = (1 << (levels - 1), 1 << (2 * (levels - 1)));
    let ClipSize { video: [frames, _, height, width], audio: [_, samples] } = *size;
    let wrong = |what: String, multiple: usize| {
        Err(Error::Argument(format!(
            "{what}: this model's clips need a multiple of {multiple}, at least as many"
        )))
    };
    let fits = |size: usize, multiple: usize| size > 0 && size.is_multiple_of(multiple);
    if frames == 0 {
        return Err(Error::Argument("0 frames: a clip has at least one".into()));
    }
    if !fits(height, halvings) || !fits(width, halvings) {
        return wrong(format!("{width} x {height} pixels"), halvings);
    }
    if !fits(samples, quarterings) {
        return wrong(format!("{samples} samples of sound"), quarterings);
    }
    // The deepest level at which picture and sound see each other needs a sample for each frame.
    if samples / quarterings < frames {
        return wrong(
            format!("{samples} samples of sound for {frames} frames"),
            quarterings * frames,
        );
    }
    Ok(())
}
