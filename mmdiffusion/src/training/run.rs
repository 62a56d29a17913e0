//! The training run, of either network.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use shared::checkpoint::LoadReport;
use shared::data::{Batch, Loader, LoaderOptions, Position};
use shared::nn::{Dropout, Precision, Weights};
use shared::rng::Stream;
use shared::train::{
    Ema, Evaluation, Gradients, Group, Interrupt, StepOutcome, Tape, Task, Trainer, TrainerConfig,
    Unreached, check_settings,
};
use shared::{Error, Result};

use super::config::OptimisationConfig;
use super::objective::Losses;
use super::step_sampler::StepSampler;
use crate::State;
use crate::generate::Noise;
use crate::model_file::ModelFile;
use crate::network::{Network, NetworkConfig};

/// Threads that prepare examples ahead of time.
const WORKERS: usize = 1;
/// Noise levels at which each validation example is tried.
const VALIDATION_LEVELS: usize = 4;
/// Most validation examples.
const VALIDATION_EXAMPLES: usize = 64;
/// Steps in a row that may find no finite loss before the run stops.
const TOLERATED: u64 = 10;

/// How a run is watched and kept.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Steps between two checkpoints.
    pub save_every: u64,
    /// Steps between two evaluations, with samples to look at.
    pub evaluate_every: u64,
    /// Samples to look at in each evaluation.
    pub previews: usize,
    /// What asks the run to stop.
    pub interrupt: Interrupt,
    /// Show no progress.
    pub quiet: bool,
}

/// A network about to be trained.
pub struct Start {
    /// The network.
    pub network: Network,
    /// Its weights, which training changes.
    pub weights: Weights,
    /// What came of taking them from a model, if that was asked for.
    pub report: Option<LoadReport>,
}

impl Start {
    /// A network with the weights of `initial`; with `allow_missing`, those that it lacks begin at
    /// random, as all do without it.
    ///
    /// # Errors
    /// [`Error::Tensors`] when the weights do not fit; as [`NetworkConfig::build`].
    pub fn new(
        network: &NetworkConfig,
        initial: Option<&ModelFile>,
        allow_missing: bool,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let weights = match initial {
            Some(model) => {
                let tensors = model.tensors.clone();
                Weights::loaded(tensors, &model.path, true, DType::F32, device)
            }
            None => Weights::fresh(seed, DType::F32, device),
        };
        let network = network.build(&weights, Precision::F32)?;
        let report = initial.map(|_| weights.check(allow_missing)).transpose()?;
        Ok(Self { network, weights, report })
    }

    /// Says that training was to begin with the other network.
    pub(super) fn unfit(&self) -> Error {
        Error::Argument("training begins with a network of the other kind".into())
    }
}

/// What is trained on.
pub(super) trait Examples: Send + Sync + 'static {
    /// An example.
    type Item: Send + 'static;

    /// Number of examples.
    fn len(&self) -> usize;

    /// Example `number`, varied by `stream`, mirrored left to right with probability `mirror`.
    fn draw(&self, number: usize, mirror: f64, stream: &mut Stream) -> Result<Self::Item>;
}

/// A part of a step.
pub(super) struct Part {
    /// Steps of the diffusion, one for each example.
    pub t: Vec<usize>,
    /// Seed of the noise.
    pub seed: u64,
    /// Numbers of the examples, which decide on their noise.
    pub numbers: Vec<u64>,
    /// The step, which decides on what examples share.
    pub step: u64,
    /// Share of the features that is left out.
    pub dropout: f64,
}

impl Part {
    /// Noise of the shape of `clean`.
    pub fn noise<S: State>(&self, clean: &S) -> Result<S> {
        Noise::new(self.seed, "training noise", &self.numbers).like(clean)
    }

    /// What leaves out features.
    pub fn dropout(&self) -> Result<Option<Dropout>> {
        let dropout = || Dropout::new(self.dropout, self.seed, &self.numbers);
        (self.dropout > 0.0).then(dropout).transpose()
    }
}

/// A network and what it is to learn.
pub(super) trait Subject {
    /// What it is trained on.
    type Examples: Examples;

    /// The losses of examples.
    fn losses<'a>(
        &'a self,
        items: Vec<<Self::Examples as Examples>::Item>,
        part: &Part,
        tape: Option<&Tape<'a>>,
    ) -> Result<Losses>;

    /// Number of steps of the diffusion.
    fn steps(&self) -> usize;

    /// Share of the features that training leaves out.
    fn dropout(&self) -> f64;

    /// Whether blocks are computed again instead of kept.
    fn uses_tape(&self) -> bool;

    /// Writes `count` samples of the network as it is now below `folder`, under a name that begins so.
    fn preview(&self, count: usize, folder: &Path, name: &str) -> Result<()>;
}

/// What a run reads and writes.
pub(super) struct Job<'a, E> {
    /// How weights are found.
    pub optimisation: &'a OptimisationConfig,
    /// All settings; a run goes on under the same only, though it may be made longer or shorter.
    pub settings: Value,
    /// What is trained on.
    pub examples: &'a Arc<E>,
    /// Probability that a picture is mirrored left to right.
    pub mirror: f64,
    /// Other examples, on which the loss is evaluated.
    pub validation: Option<&'a E>,
    /// The weights, which change.
    pub weights: &'a Weights,
    /// Holds all that is needed to go on after an interruption.
    pub folder: &'a Path,
    /// How the run is watched and kept.
    pub options: &'a RunOptions,
}

/// Trains `subject`; returns the averaged weights of the first rate, if there is any.
///
/// # Errors
/// [`Error::Interrupted`] with everything saved; those of [`Trainer::run`].
pub(super) fn run<S: Subject>(
    subject: &S,
    job: Job<S::Examples>,
) -> Result<BTreeMap<String, Tensor>> {
    let Job { optimisation, weights, folder, options, .. } = job;
    let trainer_config = TrainerConfig {
        steps: optimisation.steps,
        rule: optimisation.rule(),
        schedule: optimisation.schedule.clone(),
        unreached: Unreached::default(),
        clip_norm: optimisation.clip_norm,
        ema_rates: optimisation.ema_rates.clone(),
        log_every: 1,
        evaluate_every: options.evaluate_every,
        save_every: options.save_every,
        keep: NonZeroUsize::MIN,
        tolerated: TOLERATED,
    };
    let mut task = DiffusionTask {
        subject,
        sampler: StepSampler::new(optimisation.step_sampling, subject.steps()),
        job,
        position: Position::default(),
        loader: None,
    };
    let mut trainer =
        Trainer::open(folder, trainer_config, weights, |_| Group::default(), &mut task)?
            .with_interrupt(options.interrupt.clone());
    if !options.quiet {
        trainer = trainer.with_progress();
    }
    trainer.run(&mut task)?;
    let mut tensors = weights.state();
    if !optimisation.ema_rates.is_empty() {
        tensors.extend(trainer.ema().tensors(0)?);
    }
    Ok(tensors)
}

type Item<S> = <<S as Subject>::Examples as Examples>::Item;

struct DiffusionTask<'a, S: Subject> {
    subject: &'a S,
    job: Job<'a, S::Examples>,
    sampler: StepSampler,
    /// Where the loader starts when it is made.
    position: Position,
    loader: Option<Loader<Item<S>>>,
}

impl<S: Subject> Task for DiffusionTask<'_, S> {
    fn step(&mut self, step: u64, gradients: &mut Gradients) -> Result<StepOutcome> {
        let Batch { mut items, skipped, .. } = self.batch()?;
        let notes = skipped.iter().map(|(_, error)| format!("left out: {error}")).collect();
        if items.is_empty() {
            return Err(Error::Argument(format!("step {step} has no example that can be read")));
        }
        let OptimisationConfig { seed, part: most, batch: full, .. } = *self.job.optimisation;
        let batch = items.len();
        let mut draws = Stream::new(seed, "training steps of diffusion", step);
        let draws: Vec<(usize, f64)> = (0..batch).map(|_| self.sampler.draw(&mut draws)).collect();
        let mut sums: Vec<(String, f64)> = vec![];
        let mut mean = 0.0;
        let mut first = 0;
        while !items.is_empty() {
            let rest = items.split_off(most.min(items.len()));
            let examples = std::mem::replace(&mut items, rest);
            let count = examples.len();
            let (t, factors): (Vec<usize>, Vec<f64>) =
                draws.iter().skip(first).take(count).copied().unzip();
            let number = step * full as u64 + first as u64;
            let numbers = (number..number + count as u64).collect();
            let part = Part { t, seed, numbers, step, dropout: self.subject.dropout() };
            let tape = Tape::new();
            let used = self.subject.uses_tape().then_some(&tape);
            let losses = self.subject.losses(examples, &part, used)?;
            let device = losses.total.device();
            let factors = Tensor::from_iter(factors.iter().map(|f| *f as f32), device)?;
            let loss = (&losses.total * factors)?.mean_all()?;
            mean += f64::from(loss.to_scalar::<f32>()?) * count as f64 / batch as f64;
            let of_examples: Vec<f32> = losses.total.to_vec1()?;
            for (name, term) in losses.terms {
                let sum = f64::from(term.sum_all()?.to_scalar::<f32>()?) / batch as f64;
                match sums.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, so_far)) => *so_far += sum,
                    None => sums.push((name, sum)),
                }
            }
            gradients.add_taped(&loss, count as f64, tape)?;
            if of_examples.iter().all(|loss| loss.is_finite()) {
                let of_examples: Vec<f64> = of_examples.into_iter().map(f64::from).collect();
                self.sampler.update(&part.t, &of_examples);
            }
            first += count;
        }
        gradients.average()?;
        Ok(StepOutcome { loss: mean, metrics: sums, notes })
    }

    fn evaluate(&mut self, steps: u64, ema: &Ema) -> Result<Evaluation> {
        let RunOptions { previews, .. } = *self.job.options;
        let look = || -> Result<Vec<(String, f64)>> {
            if previews > 0 {
                let folder = self.job.folder.join("previews");
                self.subject.preview(previews, &folder, &format!("step-{steps:08}"))?;
            }
            let Some(examples) = self.job.validation else { return Ok(vec![]) };
            Ok(vec![("validation_loss".to_owned(), self.validation_loss(examples)?)])
        };
        let metrics = match ema.rates().is_empty() {
            true => look()?,
            false => ema.with_average(0, look)?,
        };
        Ok(Evaluation { score: None, metrics })
    }

    fn state(&self) -> Value {
        json!({
            "settings": self.settings(),
            "position": self.position,
            "losses": self.sampler.state(),
        })
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        check_settings(self.job.folder, &state["settings"], &self.settings())?;
        let malformed = |error| Error::Argument(format!("training state: {error}"));
        self.position = serde_json::from_value(state["position"].clone()).map_err(malformed)?;
        let losses = serde_json::from_value(state["losses"].clone()).map_err(malformed)?;
        self.sampler.restore(losses)
    }
}

impl<S: Subject> DiffusionTask<'_, S> {
    /// What decides on the examples and the loss.
    fn settings(&self) -> Value {
        let mut settings = self.job.settings.clone();
        if let Some(optimisation) = settings["optimisation"].as_object_mut() {
            optimisation.remove("steps");
        }
        json!({ "config": settings, "examples": self.job.examples.len() })
    }

    /// The examples of the next step.
    fn batch(&mut self) -> Result<Batch<Item<S>>> {
        let loader = match &mut self.loader {
            Some(loader) => loader,
            None => {
                let examples = self.job.examples.clone();
                let (seed, mirror) = (self.job.optimisation.seed, self.job.mirror);
                let items = examples.len();
                let batch = self.job.optimisation.batch;
                let make = move |epoch: u64, number: usize| {
                    let index = epoch * items as u64 + number as u64;
                    examples.draw(number, mirror, &mut Stream::new(seed, "example", index))
                };
                let options = LoaderOptions {
                    items,
                    batch: batch.min(items),
                    drop_last: true,
                    shuffle_seed: Some(seed),
                    epochs: None,
                    workers: WORKERS,
                    ahead: 4 * batch,
                    skip_failures: true,
                };
                self.loader.insert(Loader::new(options, self.position, make)?)
            }
        };
        let batch = loader
            .next_batch()?
            .ok_or_else(|| Error::Argument("the training data ended".into()))?;
        self.position = loader.position();
        Ok(batch)
    }

    /// The mean loss of the first examples at evenly spread steps, always varied alike and with the
    /// same noise.
    fn validation_loss(&self, examples: &S::Examples) -> Result<f64> {
        let mut sum = 0.0;
        let count = examples.len().min(VALIDATION_EXAMPLES);
        for number in 0..count {
            for level in 0..VALIDATION_LEVELS {
                // Each example has steps of its own within the four quarters.
                let place = (level as f64 + (number as f64 + 0.5) / count as f64)
                    / VALIDATION_LEVELS as f64;
                let index = (number * VALIDATION_LEVELS + level) as u64;
                let part = Part {
                    t: vec![(place * self.subject.steps() as f64) as usize],
                    seed: u64::MAX,
                    numbers: vec![index],
                    step: index,
                    dropout: 0.0,
                };
                let mut stream = Stream::new(u64::MAX, "validation example", number as u64);
                let item = examples.draw(number, 0.0, &mut stream)?;
                let losses = self.subject.losses(vec![item], &part, None)?;
                sum += f64::from(losses.total.detach().sum_all()?.to_scalar::<f32>()?);
            }
        }
        Ok(sum / (count * VALIDATION_LEVELS) as f64)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use shared::limits::Limits;
    use shared::train::Schedule;

    use super::*;
    use crate::config::{SuperResolutionConfig, UnetConfig};
    use crate::training::clips::tests::{FORM, options as library, write_clips};
    use crate::training::{
        ClipSet, CoupledTraining, PictureSet, StepSampling, SuperResolutionTraining, train_coupled,
        train_super_resolution,
    };

    fn optimisation() -> OptimisationConfig {
        OptimisationConfig {
            steps: 4,
            batch: 3,
            part: 2,
            schedule: Schedule::Constant { lr: 1e-3 },
            ema_rates: vec![0.5, 0.9],
            step_sampling: StepSampling::LossSecondMoment,
            ..OptimisationConfig::default()
        }
    }

    fn coupled() -> CoupledTraining {
        CoupledTraining {
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
                dropout: 0.2,
                ..UnetConfig::published()
            },
            fps: FORM.fps,
            rate_hz: FORM.rate_hz,
            optimisation: optimisation(),
            ..CoupledTraining::default()
        }
    }

    fn super_resolution() -> SuperResolutionTraining {
        SuperResolutionTraining {
            network: SuperResolutionConfig {
                large_size: 16,
                small_size: 8,
                num_channels: 32,
                num_res_blocks: 1,
                channel_mult: vec![1, 2],
                attention_resolutions: vec![2],
                dropout: 0.2,
                ..SuperResolutionConfig::default()
            },
            mirror: 0.5,
            optimisation: optimisation(),
            ..SuperResolutionTraining::default()
        }
    }

    fn options() -> RunOptions {
        RunOptions {
            save_every: 1,
            evaluate_every: 2,
            previews: 1,
            interrupt: Interrupt::default(),
            quiet: true,
        }
    }

    /// Trains with these settings below a folder; the model's weights.
    trait Trains: Clone {
        fn train(&self, files: &[std::path::PathBuf], folder: &Path) -> Result<ModelFile>;
        fn optimisation(&mut self) -> &mut OptimisationConfig;
        fn checkpointed(&mut self);
        fn mirror(&mut self) -> &mut f64;
    }

    fn start(network: NetworkConfig) -> Start {
        Start::new(&network, None, false, 3, &Device::Cpu).unwrap()
    }

    impl Trains for CoupledTraining {
        fn train(&self, files: &[std::path::PathBuf], folder: &Path) -> Result<ModelFile> {
            let set = ClipSet::read(files, FORM, &library(), &Limits::default()).unwrap().0;
            let start = start(NetworkConfig::Coupled(self.network.clone()));
            let set = Arc::new(set);
            train_coupled(self, &start, &set, Some(&set), folder, &options(), &Device::Cpu)
        }

        fn optimisation(&mut self) -> &mut OptimisationConfig {
            &mut self.optimisation
        }

        fn checkpointed(&mut self) {
            self.network.use_checkpoint = true;
        }

        fn mirror(&mut self) -> &mut f64 {
            &mut self.mirror
        }
    }

    impl Trains for SuperResolutionTraining {
        fn train(&self, files: &[std::path::PathBuf], folder: &Path) -> Result<ModelFile> {
            let set = PictureSet::read(files, [16, 8], &library(), &Limits::default()).unwrap().0;
            let start = start(NetworkConfig::SuperResolution(self.network.clone()));
            let set = Arc::new(set);
            let (options, device) = (options(), Device::Cpu);
            train_super_resolution(self, &start, &set, Some(&set), folder, &options, &device)
        }

        fn optimisation(&mut self) -> &mut OptimisationConfig {
            &mut self.optimisation
        }

        fn checkpointed(&mut self) {
            self.network.use_checkpoint = true;
        }

        fn mirror(&mut self) -> &mut f64 {
            &mut self.mirror
        }
    }

    fn goes_on_exactly<C: Trains>(config: &C) {
        let folder = tempfile::tempdir().unwrap();
        let files = write_clips(folder.path(), 4);
        let run = |config: &C, name: &str| {
            let folder = folder.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            config.train(&files, &folder)
        };
        let whole = run(config, "whole").unwrap();
        let mut short = config.clone();
        short.optimisation().steps = 2;
        run(&short, "pieces").unwrap();
        let resumed = run(config, "pieces").unwrap();
        assert_eq!(resumed.card.tensors_sha256(), whole.card.tensors_sha256());
        let preview = folder.path().join("whole/previews/step-00000004.png");
        assert!(preview.is_file());

        // Computing again what was not kept gives the same gradients, dropout and all.
        let mut checkpointed = config.clone();
        checkpointed.checkpointed();
        let again = run(&checkpointed, "checkpointed").unwrap();
        for (name, expected) in &whole.tensors {
            let values = |tensor: &Tensor| -> Vec<f32> {
                let flat = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
                flat.to_vec1().unwrap()
            };
            let pairs = values(expected).into_iter().zip(values(&again.tensors[name]));
            let far = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // The first steps of AdamW turn rounding of gradients near 0 into whole steps.
            assert!(far < 2e-3, "{name}: {far}");
        }

        let mut other = config.clone();
        *other.mirror() = 0.0;
        let refused = run(&other, "whole").unwrap_err().to_string();
        assert!(refused.contains("other settings"), "{refused}");
    }

    #[test]
    fn coupled_training_goes_on_exactly_and_only_under_the_same_settings() {
        goes_on_exactly(&coupled());
    }

    #[test]
    fn super_resolution_training_goes_on_exactly_and_only_under_the_same_settings() {
        goes_on_exactly(&super_resolution());
    }
}
