//! Training of the coupled network.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use serde_json::json;
use shared::media::audio::{Waveform, write_wav};
use shared::media::image::{Frames, write_png};
use shared::rng::Stream;
use shared::train::Tape;
use shared::{Error, Result};

use super::clips::{ClipSet, Window};
use super::config::CoupledTraining;
use super::objective::{Losses, Objective};
use super::run::{self, Examples, Job, Part, RunOptions, Start, Subject};
use crate::clip::{Clip, Rates};
use crate::conditioning::Guidance;
use crate::diffusion::{Diffusion, DiffusionConfig, Spacing};
use crate::generate::{ClipSize, Event, Generator};
use crate::model_file::{ModelCard, ModelFile};
use crate::network::{Network, NetworkConfig};
use crate::samplers::Sampler;
use crate::segment::Training;
use crate::{CoupledDenoiser, CoupledUnet, Shifts};

/// Trains a coupled network as `config` says on `clips`, in `folder`, which holds all that is needed to
/// go on after an interruption. The model that comes out has the averaged weights of the first rate, if
/// there is any.
///
/// # Errors
/// [`Error::Interrupted`] with everything saved; those of [`shared::train::Trainer::run`].
pub fn train_coupled(
    config: &CoupledTraining,
    start: &Start,
    clips: &Arc<ClipSet>,
    validation: Option<&ClipSet>,
    folder: &Path,
    options: &RunOptions,
    device: &Device,
) -> Result<ModelFile> {
    config.validate()?;
    let Network::Coupled(network) = &start.network else { return Err(start.unfit()) };
    let spacing: Spacing = config.diffusion.timestep_respacing.parse()?;
    let process = DiffusionConfig::from_flags(&config.diffusion, config.network.learn_sigma)?;
    let subject = Coupled {
        config,
        network,
        diffusion: Diffusion::new(&process, &spacing)?,
        process,
        clips,
        device,
    };
    let job = Job {
        optimisation: &config.optimisation,
        settings: json!(config),
        examples: clips,
        mirror: config.mirror,
        validation,
        weights: &start.weights,
        folder,
        options,
    };
    let tensors = run::run(&subject, job)?;
    let network = NetworkConfig::Coupled(config.network.clone());
    let mut card = ModelCard::new(network, config.diffusion.clone());
    card.frames_per_second = config.fps.into();
    card.rate_hz = config.rate_hz;
    ModelFile::new(card, &tensors, DType::F16)
}

impl Examples for ClipSet {
    type Item = Window;

    fn len(&self) -> usize {
        Self::len(self)
    }

    fn draw(&self, number: usize, mirror: f64, stream: &mut Stream) -> Result<Window> {
        let first = stream.below(self.places(number));
        self.window(number, first, stream.uniform() < mirror)
    }
}

struct Coupled<'a> {
    config: &'a CoupledTraining,
    network: &'a CoupledUnet,
    process: DiffusionConfig,
    diffusion: Diffusion,
    clips: &'a ClipSet,
    device: &'a Device,
}

impl Coupled<'_> {
    fn shifts(&self) -> Shifts {
        match self.config.network.cross_attention_shift {
            true => Shifts::Random { seed: self.config.optimisation.seed },
            false => Shifts::Zero,
        }
    }
}

impl Subject for Coupled<'_> {
    type Examples = ClipSet;

    fn losses<'a>(
        &'a self,
        items: Vec<Window>,
        part: &Part,
        tape: Option<&Tape<'a>>,
    ) -> Result<Losses> {
        let rescale_bound = self.config.diffusion.rescale_learned_sigmas;
        let objective = Objective { diffusion: &self.diffusion, rescale_bound };
        let largest = self.network.largest_shifts(self.clips.form().frames);
        let shifts = self.shifts().draw(&largest, part.step as usize);
        let dropout = part.dropout()?;
        let training = Training { dropout: dropout.as_ref(), tape };
        let clean = self.clips.pair(items, self.device)?;
        let noise = part.noise(&clean)?;
        objective.losses(&clean, &noise, &part.t, |x, time| {
            self.network.forward_training(x, time, &shifts, training)
        })
    }

    fn steps(&self) -> usize {
        self.diffusion.steps()
    }

    fn dropout(&self) -> f64 {
        self.config.network.dropout
    }

    fn uses_tape(&self) -> bool {
        self.config.network.use_checkpoint
    }

    /// A PNG with a row of frames for each sample, and a WAV of their sounds one after the other.
    fn preview(&self, count: usize, folder: &Path, name: &str) -> Result<()> {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let denoiser = CoupledDenoiser { network: self.network.clone(), shifts: self.shifts() };
        let generator = Generator {
            denoiser: &denoiser,
            diffusion: self.process.clone(),
            sampler: Sampler::default(),
            guidance: Guidance::Replacement,
            size: ClipSize::of(&self.config.network),
            seed: self.config.optimisation.seed,
            batch: self.config.optimisation.part,
            device: self.device.clone(),
        };
        let rates = Rates { fps: self.config.fps, rate_hz: self.config.rate_hz };
        let mut clips = vec![];
        let samples: Vec<u64> = (0..count as u64).collect();
        generator.generate(&samples, None, &mut |event| {
            if let Event::Finished { clip, .. } = event {
                clips.extend(Clip::of_batch(&clip, rates)?);
            }
            Ok(())
        })?;
        let frames: Vec<Frames> = clips.iter().map(Clip::frames).collect::<Result<_>>()?;
        let Some(first) = frames.first() else { return Ok(()) };
        let pixels = frames.iter().flat_map(|frames| frames.pixels().iter().copied()).collect();
        let rows = Frames::new(first.width(), first.height(), pixels)?.grid(first.count());
        write_png(&folder.join(format!("{name}.png")), &rows, &[], true)?;
        let mut samples = vec![];
        for clip in &clips {
            samples.extend(clip.sound()?.samples);
        }
        let sound = Waveform { samples, rate_hz: self.config.rate_hz, channels: 1 };
        write_wav(&folder.join(format!("{name}.wav")), &sound, true)?;
        Ok(())
    }
}
