//! The training run.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use shared::data::{Loader, LoaderOptions, Position};
use shared::nn::{Precision, Weights};
use shared::rng::Stream;
use shared::train::{
    Ema, Evaluation, Gradients, Group, Interrupt, StepOutcome, Task, Trainer, TrainerConfig,
    Unreached, check_settings,
};
use shared::{Error, Result};

use super::clips::{ClipSet, Window};
use super::config::TrainConfig;
use super::objective::{Losses, Objective};
use super::step_sampler::StepSampler;
use crate::diffusion::{Diffusion, DiffusionConfig, Spacing};
use crate::generate::Noise;
use crate::model_file::{ModelCard, ModelFile};
use crate::network::NetworkConfig;
use crate::{CoupledUnet, Pair, Shifts, State};

/// Threads that cut windows ahead of time.
const WORKERS: usize = 1;
/// Noise levels at which each validation clip is tried.
const VALIDATION_LEVELS: usize = 4;
/// Most validation clips.
const VALIDATION_CLIPS: usize = 64;

/// How a run is watched and kept.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Steps between two checkpoints.
    pub save_every: u64,
    /// Steps between two evaluations.
    pub evaluate_every: u64,
    /// What asks the run to stop.
    pub interrupt: Interrupt,
    /// Show no progress.
    pub quiet: bool,
}

/// Trains a coupled network as `config` says on `clips`, in `folder`, which holds all that is needed to
/// go on after an interruption. `initial` weights begin it where they are given. The model that comes
/// out has the averaged weights of the first rate, if there is any.
///
/// # Errors
/// [`Error::Interrupted`] with everything saved; those of [`Trainer::run`].
pub fn train(
    config: &TrainConfig,
    clips: &Arc<ClipSet>,
    validation: Option<&ClipSet>,
    initial: Option<&ModelFile>,
    folder: &Path,
    options: &RunOptions,
    device: &Device,
) -> Result<ModelFile> {
    config.validate()?;
    let weights = match initial {
        Some(model) => {
            let tensors = model.tensors.clone();
            Weights::loaded(tensors, &model.path, true, DType::F32, device)
        }
        None => Weights::fresh(config.seed, DType::F32, device),
    };
    let network = CoupledUnet::new(&config.network, &weights, Precision::F32)?;
    if initial.is_some() {
        weights.check(false)?;
    }
    let spacing: Spacing = config.diffusion.timestep_respacing.parse()?;
    let diffusion = DiffusionConfig::from_flags(&config.diffusion, config.network.learn_sigma)?;
    let diffusion = Diffusion::new(&diffusion, &spacing)?;
    let mut task = CoupledTask {
        config,
        folder,
        network: &network,
        sampler: StepSampler::new(config.step_sampling, diffusion.steps()),
        diffusion: &diffusion,
        clips,
        validation,
        device,
        position: Position::default(),
        loader: None,
    };
    let trainer_config = TrainerConfig {
        steps: config.steps,
        rule: config.rule(),
        schedule: config.schedule.clone(),
        unreached: Unreached::default(),
        clip_norm: config.clip_norm,
        ema_rates: config.ema_rates.clone(),
        log_every: 1,
        evaluate_every: options.evaluate_every,
        save_every: options.save_every,
        keep: NonZeroUsize::MIN,
    };
    let mut trainer =
        Trainer::open(folder, trainer_config, &weights, |_| Group::default(), &mut task)?
            .with_interrupt(options.interrupt.clone());
    if !options.quiet {
        trainer = trainer.with_progress();
    }
    trainer.run(&mut task)?;
    let mut tensors = weights.state();
    if !config.ema_rates.is_empty() {
        tensors.extend(trainer.ema().tensors(0)?);
    }
    let network = NetworkConfig::Coupled(config.network.clone());
    let mut card = ModelCard::new(network, config.diffusion.clone());
    card.frames_per_second = config.fps.into();
    card.rate_hz = config.rate_hz;
    ModelFile::new(card, &tensors, DType::F16)
}

struct CoupledTask<'a> {
    config: &'a TrainConfig,
    folder: &'a Path,
    network: &'a CoupledUnet,
    diffusion: &'a Diffusion,
    sampler: StepSampler,
    clips: &'a Arc<ClipSet>,
    validation: Option<&'a ClipSet>,
    device: &'a Device,
    /// Where the loader starts when it is made.
    position: Position,
    loader: Option<Loader<Window>>,
}

impl Task for CoupledTask<'_> {
    fn step(&mut self, step: u64, gradients: &mut Gradients) -> Result<StepOutcome> {
        let mut windows = self.windows()?;
        let (seed, batch) = (self.config.seed, windows.len());
        let mut draws = Stream::new(seed, "training steps of diffusion", step);
        let draws: Vec<(usize, f64)> = (0..batch).map(|_| self.sampler.draw(&mut draws)).collect();
        let mut sums: Vec<(String, f64)> = vec![];
        let mut mean = 0.0;
        let mut first = 0;
        while !windows.is_empty() {
            let rest = windows.split_off(self.config.part.min(windows.len()));
            let part = std::mem::replace(&mut windows, rest);
            let count = part.len();
            let (t, factors): (Vec<usize>, Vec<f64>) =
                draws.iter().skip(first).take(count).copied().unzip();
            let clean = self.clips.pair(part, self.device)?;
            let noise = noise_like(&clean, seed, step * batch as u64 + first as u64)?;
            let losses = self.losses(&clean, &noise, &t, step)?;
            let factors = Tensor::from_iter(factors.iter().map(|f| *f as f32), self.device)?;
            let loss = (&losses.total * factors)?.mean_all()?;
            gradients.add(&loss, count as f64)?;
            mean += f64::from(loss.to_scalar::<f32>()?) * count as f64 / batch as f64;
            let of_clips: Vec<f32> = losses.total.to_vec1()?;
            self.sampler.update(&t, &of_clips.into_iter().map(f64::from).collect::<Vec<_>>());
            for (name, term) in losses.terms {
                let sum = f64::from(term.sum_all()?.to_scalar::<f32>()?) / batch as f64;
                match sums.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, so_far)) => *so_far += sum,
                    None => sums.push((name, sum)),
                }
            }
            first += count;
        }
        gradients.average()?;
        Ok(StepOutcome { loss: mean, metrics: sums })
    }

    fn evaluate(&mut self, _steps: u64, ema: &Ema) -> Result<Evaluation> {
        let Some(clips) = self.validation else { return Ok(Evaluation::default()) };
        let loss = match ema.rates().is_empty() {
            true => self.validation_loss(clips)?,
            false => ema.with_average(0, || self.validation_loss(clips))?,
        };
        Ok(Evaluation { score: None, metrics: vec![("validation_loss".to_owned(), loss)] })
    }

    fn state(&self) -> Value {
        json!({
            "settings": self.settings(),
            "position": self.position,
            "losses": self.sampler.state(),
        })
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        check_settings(self.folder, &state["settings"], &self.settings())?;
        let malformed = |error| Error::Argument(format!("training state: {error}"));
        self.position = serde_json::from_value(state["position"].clone()).map_err(malformed)?;
        let losses = serde_json::from_value(state["losses"].clone()).map_err(malformed)?;
        self.sampler.restore(losses)
    }
}

impl CoupledTask<'_> {
    /// What decides on the examples and the loss; a run goes on under the same only, though it may be
    /// made longer or shorter.
    fn settings(&self) -> Value {
        let mut settings = json!(self.config);
        if let Some(settings) = settings.as_object_mut() {
            settings.remove("steps");
            settings.insert("clips".to_owned(), self.clips.len().into());
        }
        settings
    }

    /// The windows of the next step.
    fn windows(&mut self) -> Result<Vec<Window>> {
        let loader = match &mut self.loader {
            Some(loader) => loader,
            None => {
                let clips = self.clips.clone();
                let (seed, mirror) = (self.config.seed, self.config.mirror);
                let items = clips.len() as u64;
                let make = move |epoch: u64, number: usize| {
                    let mut stream = Stream::new(seed, "window", epoch * items + number as u64);
                    let first = stream.below(clips.places(number));
                    clips.window(number, first, stream.uniform() < mirror)
                };
                let options = LoaderOptions {
                    items: self.clips.len(),
                    batch: self.config.batch.min(self.clips.len()),
                    drop_last: true,
                    shuffle_seed: Some(seed),
                    epochs: None,
                    workers: WORKERS,
                    ahead: 4 * self.config.batch,
                    skip_failures: false,
                };
                self.loader.insert(Loader::new(options, self.position, make)?)
            }
        };
        let batch = loader
            .next_batch()?
            .ok_or_else(|| Error::Argument("the training data ended".into()))?;
        self.position = loader.position();
        Ok(batch.items)
    }

    fn losses(&self, clean: &Pair, noise: &Pair, t: &[usize], evaluation: u64) -> Result<Losses> {
        let rescale_bound = self.config.diffusion.rescale_learned_sigmas;
        let objective = Objective { diffusion: self.diffusion, rescale_bound };
        let largest = self.network.largest_shifts(self.clips.form().frames);
        let shifts = match self.config.network.cross_attention_shift {
            true => Shifts::Random { seed: self.config.seed }.draw(&largest, evaluation as usize),
            false => vec![0; largest.len()],
        };
        objective.losses(clean, noise, t, |x, time| self.network.forward(x, time, &shifts))
    }

    /// The mean loss of the first windows of clips, not mirrored, at evenly spread steps, always with
    /// the same noise.
    fn validation_loss(&self, clips: &ClipSet) -> Result<f64> {
        let mut sum = 0.0;
        let count = clips.len().min(VALIDATION_CLIPS);
        for number in 0..count {
            let clean = clips.pair(vec![clips.window(number, 0, false)?], self.device)?;
            for level in 0..VALIDATION_LEVELS {
                // Each clip has steps of its own within the four quarters.
                let place = (level as f64 + (number as f64 + 0.5) / count as f64)
                    / VALIDATION_LEVELS as f64;
                let t = (place * self.diffusion.steps() as f64) as usize;
                let draw = (number * VALIDATION_LEVELS + level) as u64;
                let noise = noise_like(&clean, u64::MAX, draw)?;
                let losses = self.losses(&clean, &noise, &[t], draw)?;
                sum += f64::from(losses.total.detach().sum_all()?.to_scalar::<f32>()?);
            }
        }
        Ok(sum / (count * VALIDATION_LEVELS) as f64)
    }
}

/// Noise of the shape of `clean`, whose first clip has number `first`.
fn noise_like(clean: &Pair, seed: u64, first: u64) -> Result<Pair> {
    let numbers: Vec<u64> = (first..first + clean.batch()? as u64).collect();
    Noise::new(seed, "training noise", &numbers).like(clean)
}

#[cfg(test)]
mod tests {
    use shared::limits::Limits;
    use shared::train::Schedule;

    use super::*;
    use crate::config::UnetConfig;
    use crate::training::StepSampling;
    use crate::training::clips::tests::{FORM, write_clips};

    fn config() -> TrainConfig {
        TrainConfig {
            network: UnetConfig {
                video_size: [FORM.frames, 3, FORM.height, FORM.width],
                audio_size: [1, FORM.samples],
                num_channels: 32,
                num_res_blocks: 1,
                channel_mult: vec![1, 1],
                num_head_channels: Some(16),
                cross_attention_resolutions: vec![2],
                cross_attention_windows: vec![2],
                video_attention_resolutions: vec![2],
                ..UnetConfig::published()
            },
            fps: FORM.fps,
            rate_hz: FORM.rate_hz,
            steps: 4,
            batch: 3,
            part: 2,
            schedule: Schedule::Constant { lr: 1e-3 },
            ema_rates: vec![0.5, 0.9],
            step_sampling: StepSampling::LossSecondMoment,
            ..TrainConfig::default()
        }
    }

    fn options() -> RunOptions {
        RunOptions {
            save_every: 1,
            evaluate_every: 2,
            interrupt: Interrupt::default(),
            quiet: true,
        }
    }

    #[test]
    fn a_run_goes_on_exactly_and_only_under_the_same_settings() {
        let folder = tempfile::tempdir().unwrap();
        let files = write_clips(folder.path(), 4);
        let (clips, _) = ClipSet::read(&files, FORM, 1 << 30, &Limits::default(), true).unwrap();
        let clips = Arc::new(clips);
        let run = |config: &TrainConfig, name: &str| {
            let folder = folder.path().join(name);
            train(config, &clips, Some(&clips), None, &folder, &options(), &Device::Cpu)
        };
        let whole = run(&config(), "whole").unwrap();
        run(&TrainConfig { steps: 2, ..config() }, "pieces").unwrap();
        let resumed = run(&config(), "pieces").unwrap();
        assert_eq!(resumed.card.tensors_sha256(), whole.card.tensors_sha256());

        let other = TrainConfig { mirror: 0.0, ..config() };
        let refused = run(&other, "whole").unwrap_err().to_string();
        assert!(refused.contains("other settings"), "{refused}");
    }
}
