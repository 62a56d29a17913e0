//! The training run.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use shared::data::{AudioCache, Loader, Position, TrialList};
use shared::eval::verification::{CostModel, Trials};
use shared::nn::Weights;
use shared::train::{
    Ema, Evaluation, Gradients, Group, Interrupt, StepOutcome, Task, Trainer, TrainerConfig,
    Unreached, check_settings,
};
use shared::{Error, Result};

use super::config::TrainConfig;
use super::data::{Example, TrainingData, joined, used_samples};
use crate::architecture::NetworkConfig;
use crate::embed::Embedder;
use crate::embeddings::Embeddings;
use crate::loss::{Objective, SpeakerClassifier};
use crate::model_file::{ModelCard, ModelFile};
use crate::score::{Scorer, Scoring};
use crate::subnet::Subnet;

/// Prefix of the training head's parameters, which are no part of the model.
const HEAD: &str = "head";

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

/// Labelled trials that a run is evaluated on as it goes, by people and not by the run: nothing is
/// chosen by them.
pub struct ValidationTrials {
    /// The trials.
    pub trials: TrialList,
    /// The recordings of the list, in its order.
    pub recordings: AudioCache,
}

/// What came of a run.
pub struct Trained {
    /// The model, not calibrated.
    pub model: ModelFile,
    /// Mean loss of the last steps.
    pub loss: f64,
}

/// Trains as `config` says on `data`, in `folder`, which holds all that is needed to go on after an
/// interruption: each stage has checkpoints and logs in a folder of its own.
///
/// # Errors
/// [`Error::Interrupted`] with everything saved; those of [`Trainer::run`].
pub fn train(
    config: &TrainConfig,
    data: &Arc<TrainingData>,
    validation: Option<&ValidationTrials>,
    folder: &Path,
    options: &RunOptions,
    device: &Device,
) -> Result<Trained> {
    config.validate()?;
    let network_config = NetworkConfig::published(config.architecture.clone());
    let weights = Weights::fresh(config.seed, DType::F32, device);
    let network = Subnet::new(network_config.clone(), &weights)?;
    let head = SpeakerClassifier::new(&weights.at(HEAD), network_config.embedding, data.classes())?;
    let mut loss = f64::NAN;
    for (number, stage) in config.stages.iter().enumerate() {
        let trainer_config = TrainerConfig {
            steps: stage.steps,
            rule: config.rule,
            schedule: stage.schedule.clone(),
            unreached: Unreached::default(),
            clip_norm: config.clip_norm,
            ema_rates: vec![],
            log_every: 1,
            evaluate_every: options.evaluate_every,
            save_every: options.save_every,
            keep: NonZeroUsize::MIN,
            tolerated: 0,
        };
        let stage_folder = folder.join(format!("stage-{number}"));
        let mut task = StageTask {
            config,
            number,
            folder: &stage_folder,
            network: &network,
            head: &head,
            weights: &weights,
            data,
            validation,
            device,
            position: Position::default(),
            loader: None,
            smoothed_loss: f64::NAN,
        };
        // A stage that is done restores its weights and has nothing left to run.
        let mut trainer = Trainer::open(
            &stage_folder,
            trainer_config,
            &weights,
            |_| Group::default(),
            &mut task,
        )?
        .with_interrupt(options.interrupt.clone());
        if !options.quiet {
            trainer = trainer.with_progress();
        }
        trainer.run(&mut task)?;
        loss = task.smoothed_loss;
    }
    let card = ModelCard::new(network_config, config.frontend.clone(), config.windows.clone());
    let model = ModelFile::new(card, &network_state(&weights), DType::F16)?;
    Ok(Trained { model, loss })
}

/// The tensors of the network without the training head.
fn network_state(weights: &Weights) -> BTreeMap<String, Tensor> {
    let mut state = weights.state();
    state.retain(|name, _| !name.starts_with(&format!("{HEAD}.")));
    state
}

/// One stage of a run.
struct StageTask<'a> {
    config: &'a TrainConfig,
    number: usize,
    /// Where its checkpoints are.
    folder: &'a Path,
    network: &'a Subnet,
    head: &'a SpeakerClassifier,
    weights: &'a Weights,
    data: &'a Arc<TrainingData>,
    validation: Option<&'a ValidationTrials>,
    device: &'a Device,
    /// Where the loader starts when it is made.
    position: Position,
    loader: Option<Loader<Example>>,
    smoothed_loss: f64,
}

impl Task for StageTask<'_> {
    fn step(&mut self, step: u64, gradients: &mut Gradients) -> Result<StepOutcome> {
        let loader = match &mut self.loader {
            Some(loader) => loader,
            None => self.loader.insert(self.data.loader(self.number, self.position)?),
        };
        let batch = loader
            .next_batch()?
            .ok_or_else(|| Error::Argument("the training data ended".into()))?;
        self.position = loader.position();
        let labels: Vec<u32> = batch.items.iter().map(|example| example.label).collect();
        let features = self.features(batch.items)?;
        let margin = self.config.stage(self.number)?.margin_at(step);
        let objective =
            Objective::AngularMargin { margin, scale: self.config.scale, easy_margin: false };
        let embeddings = self.network.forward(&features, true)?;
        let classified = self.head.forward(&embeddings, &labels, objective)?;
        gradients.add(&classified.loss, 1.0)?;
        let loss = f64::from(classified.loss.to_scalar::<f32>()?);
        self.smoothed_loss = match self.smoothed_loss.is_nan() {
            true => loss,
            false => 0.98 * self.smoothed_loss + 0.02 * loss,
        };
        let metrics = vec![
            ("accuracy".to_owned(), accuracy(&classified.logits, &labels)?),
            ("margin".to_owned(), margin),
        ];
        Ok(StepOutcome { loss, metrics, ..StepOutcome::default() })
    }

    fn evaluate(&mut self, _steps: u64, _ema: &Ema) -> Result<Evaluation> {
        let Some(validation) = self.validation else { return Ok(Evaluation::default()) };
        let trials = validation.score(&self.embedder()?, self.config.detect_speech)?;
        let equal_error_rate = trials.equal_error_rate().rate;
        let min_dcf = trials.min_dcf(CostModel::prior(0.05))?.cost;
        Ok(Evaluation {
            score: None,
            metrics: vec![
                ("validation_eer".to_owned(), equal_error_rate),
                ("validation_min_dcf_05".to_owned(), min_dcf),
            ],
        })
    }

    fn state(&self) -> Value {
        json!({
            "settings": self.settings(),
            "position": self.position,
            "smoothed_loss": self.smoothed_loss,
        })
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        check_settings(self.folder, &state["settings"], &self.settings())?;
        let malformed = |error| Error::Argument(format!("training state: {error}"));
        self.position = serde_json::from_value(state["position"].clone()).map_err(malformed)?;
        self.smoothed_loss = state["smoothed_loss"].as_f64().unwrap_or(f64::NAN);
        Ok(())
    }
}

impl StageTask<'_> {
    /// What decides on the examples and the loss; a stage goes on under the same only. It may be
    /// made longer or shorter.
    fn settings(&self) -> Value {
        let mut settings = json!(self.config);
        let mut stage = settings["stages"][self.number].take();
        if let Some(stage) = stage.as_object_mut() {
            stage.remove("steps");
        }
        settings["stages"] = stage;
        settings
    }

    /// `[B, bands, frames]`.
    fn features(&self, examples: Vec<Example>) -> Result<Tensor> {
        let bands = self.data.frontend().bands();
        let count = examples.len();
        let values: Vec<f32> = examples.into_iter().flat_map(|example| example.features).collect();
        let frames = values.len() / (count * bands).max(1);
        Ok(Tensor::from_vec(values, (count, bands, frames), self.device)?)
    }

    /// The network as it stands, frozen.
    fn embedder(&self) -> Result<Embedder> {
        let tensors: BTreeMap<String, Tensor> = network_state(self.weights)
            .into_iter()
            .map(|(name, tensor)| Ok((name, tensor.copy()?.detach())))
            .collect::<Result<_>>()?;
        let origin = Path::new("the network in training");
        let config = self.network.config().clone();
        let (network, _) = Subnet::from_tensors(config, tensors, origin, false, self.device)?;
        let frontend = self.data.frontend().clone();
        let windows = self.config.windows.clone();
        Embedder::new(frontend, vec![network], windows, self.device.clone())
    }
}

impl ValidationTrials {
    /// The scored trials; those with a recording that is unreadable or too short are left out.
    fn score(&self, embedder: &Embedder, detect_speech: bool) -> Result<Trials> {
        let mut embeddings = Embeddings::new("", embedder.dimension());
        for (number, name) in self.trials.recordings.iter().enumerate() {
            let used = used_samples(&self.recordings, number, detect_speech)?;
            if used.is_empty() {
                continue;
            }
            match embedder.embed(&joined(&self.recordings.read(number)?, &used)) {
                Ok(embedding) => embeddings.insert(name, &embedding)?,
                Err(Error::TooShort { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let scorer = Scorer::new(Scoring::Cosine, None)?;
        let (mut scores, mut targets) = (vec![], vec![]);
        for (trial, (a, b)) in self.trials.trials.iter().zip(self.trials.pairs()) {
            if let (Some(a), Some(b)) = (embeddings.get(a), embeddings.get(b)) {
                scores.push(scorer.score(a, b)?);
                targets.push(trial.target == Some(true));
            }
        }
        Trials::new(&scores, &targets)
    }
}

/// Share of the rows of `logits` that are largest at their label.
fn accuracy(logits: &Tensor, labels: &[u32]) -> Result<f64> {
    let best: Vec<u32> = logits.argmax(1)?.to_vec1()?;
    let right = best.iter().zip(labels).filter(|(best, label)| best == label).count();
    Ok(right as f64 / labels.len().max(1) as f64)
}
