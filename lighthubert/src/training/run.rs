//! The training run.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use shared::data::{Loader, Position, length_buckets};
use shared::eval::wer::{Counts, align};
use shared::nn::functional::{CtcOptions, ctc_loss, ctc_mean};
use shared::nn::{Dropout, Parameter};
use shared::rng::Stream;
use shared::train::{
    Ema, Evaluation, Gradients, Group, Interrupt, StepOutcome, Task, Trainer, TrainerConfig,
    Unreached, check_settings,
};
use shared::{Error, Result};

use super::config::FinetuneConfig;
use super::speech::{Example, Examples, TranscribedSpeech, prepared};
use super::start::Start;
use crate::decode::{Emissions, greedy};
use crate::masking::{MaskConfig, masked_places};
use crate::model_file::{ModelFile, Sizes};
use crate::network::{Conditions, Regularisation};
use crate::padding::PaddingRule;
use crate::recogniser::NETWORK;
use crate::speech_encoder::Output;

/// Steps in a row that may find no finite loss before the run stops.
const TOLERATED: u64 = 10;
/// Most recordings that an evaluation computes together, and their length together.
const EVALUATION_ITEMS: usize = 32;
const EVALUATION_SAMPLES: usize = 60 * crate::RATE_HZ as usize;

/// How a run is watched and kept.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Steps between two checkpoints.
    pub save_every: u64,
    /// Steps between two evaluations.
    pub evaluate_every: u64,
    /// Numbers in which the model's matrices are stored.
    pub storage: DType,
    /// What asks the run to stop.
    pub interrupt: Interrupt,
    /// Show no progress.
    pub quiet: bool,
}

/// What a run reads and writes.
pub struct Job<'a> {
    /// The settings.
    pub config: &'a FinetuneConfig,
    /// The recogniser, whose weights change.
    pub start: &'a Start,
    /// What is trained on.
    pub speech: &'a Arc<TranscribedSpeech>,
    /// Noises and impulse responses to augment with.
    pub noises: [Vec<Vec<f32>>; 2],
    /// What error rates are evaluated on, if anything.
    pub validation: Option<&'a TranscribedSpeech>,
    /// Holds all that is needed to go on after an interruption.
    pub folder: &'a Path,
    /// How the run is watched and kept.
    pub options: &'a RunOptions,
    /// Where the weights are.
    pub device: &'a Device,
}

/// What came of a run.
pub struct Trained {
    /// The recogniser after the last step, with averaged weights where the settings ask for them.
    pub model: ModelFile,
    /// Number of readable recordings that were not used.
    pub left_out: usize,
}

/// Trains a recogniser by CTC (Graves et al. 2006). The best model on the validation recordings so far, by
/// the word error rate of greedy decoding, is in the folder as `best-model.safetensors`. Before it starts
/// it tells `left_out` why recordings are not used, a sentence each.
///
/// # Errors
/// [`Error::Interrupted`] with everything saved; those of [`Trainer::run`].
pub fn finetune(job: Job, left_out: impl FnOnce(&[String])) -> Result<Trained> {
    let Job { config, start, speech, noises, validation, folder, options, device } = job;
    config.validate()?;
    let (examples, notes) = Examples::new(config, speech, start, noises)?;
    left_out(&notes);
    let trainer_config = TrainerConfig {
        steps: config.steps,
        rule: config.rule,
        schedule: config.schedule.clone(),
        unreached: Unreached::default(),
        clip_norm: config.clip_norm,
        ema_rates: config.ema_rates.clone(),
        log_every: 1,
        evaluate_every: options.evaluate_every,
        save_every: options.save_every,
        keep: NonZeroUsize::MIN,
        tolerated: TOLERATED,
    };
    let mut task = Finetuning {
        config,
        start,
        examples: Arc::new(examples),
        validation,
        folder,
        options,
        device,
        position: Position::default(),
        loader: None,
        best: f64::INFINITY,
    };
    let mut trainer =
        Trainer::open(folder, trainer_config, &start.weights, |_| Group::default(), &mut task)?
            .with_interrupt(options.interrupt.clone());
    if !options.quiet {
        trainer = trainer.with_progress();
    }
    trainer.run(&mut task)?;
    let mut tensors = start.weights.state();
    if !config.ema_rates.is_empty() {
        tensors.extend(trainer.ema().tensors(0)?);
    }
    Ok(Trained { model: task.model(tensors), left_out: notes.len() })
}

struct Finetuning<'a> {
    config: &'a FinetuneConfig,
    start: &'a Start,
    examples: Arc<Examples>,
    validation: Option<&'a TranscribedSpeech>,
    folder: &'a Path,
    options: &'a RunOptions,
    device: &'a Device,
    /// Where the loader starts when it is made.
    position: Position,
    loader: Option<Loader<Vec<Example>>>,
    /// Lowest word error rate of an evaluation.
    best: f64,
}

impl Task for Finetuning<'_> {
    fn step(&mut self, step: u64, gradients: &mut Gradients) -> Result<StepOutcome> {
        let loader = match &mut self.loader {
            Some(loader) => loader,
            None => self.loader.insert(self.examples.loader(self.position)?),
        };
        let batch = loader
            .next_batch()?
            .ok_or_else(|| Error::Argument("the training data ended".into()))?;
        self.position = loader.position();
        let examples: Vec<Example> = batch.items.into_iter().flatten().collect();
        let recogniser = &self.start.recogniser;
        let source = padded(examples.iter().map(|it| it.samples.as_slice()), self.device)?;
        let lengths: Vec<usize> = examples.iter().map(|it| it.samples.len()).collect();
        let frames: Vec<usize> = lengths.iter().map(|length| recogniser.frames(*length)).collect();
        let labels: Vec<Vec<u32>> = examples.into_iter().map(|it| it.labels).collect();

        let mut stream = Stream::new(self.config.seed, "fine-tuning masks", step);
        let longest = frames.iter().copied().max().unwrap_or(0);
        let width = self.start.config.network.subnet.embed_dim();
        let frame_mask =
            self.mask(self.config.frame_mask.as_ref(), &frames, longest, &mut stream)?;
        let channels = vec![width; frames.len()];
        let channel_mask =
            self.mask(self.config.channel_mask.as_ref(), &channels, width, &mut stream)?;
        let numbers: Vec<u64> = (0..frames.len() as u64).map(|item| (step << 20) | item).collect();
        let dropout = |share| Dropout::new(share, self.config.seed, &numbers);
        let shares = self.config.dropout;
        let regularisation = Regularisation {
            features: dropout(shares.features)?,
            hidden: dropout(shares.hidden)?,
            activation: dropout(shares.activation)?,
            skipped_layers: self.skipped_layers(step),
            freeze_extractor: self.config.freeze.extractor,
        };
        let conditions = Conditions {
            lengths: Some(&lengths),
            rule: PaddingRule::Exact,
            frame_mask: frame_mask.as_ref(),
            channel_mask: channel_mask.as_ref(),
            regularisation: Some(&regularisation),
        };
        let encoded = recogniser.network.forward(&source, &conditions)?;
        let encoded = match self.is_frozen(step) {
            true => encoded.detach(),
            false => encoded,
        };
        let logits = recogniser.head.logits(&encoded, &frames, Some(&dropout(shares.head)?))?;
        let blank = recogniser.vocabulary.blank();
        let losses =
            ctc_loss(&logits, &frames, &labels, CtcOptions { blank, zero_infinity: true })?;
        let loss = ctc_mean(&losses, &labels)?;
        gradients.add(&loss, 1.0)?;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        let metrics = vec![("utterances".to_owned(), labels.len() as f64)];
        Ok(StepOutcome { loss, metrics, ..StepOutcome::default() })
    }

    fn uses(&self, step: u64, parameter: &Parameter) -> bool {
        let Some(name) = parameter.name.strip_prefix(&format!("{NETWORK}.")) else { return true };
        let is_skipped = |layer: &usize| name.starts_with(&format!("encoder.layers.{layer}."));
        // Whether a mask covers anything is left to chance, and nothing is learned by prediction heads.
        !(self.is_frozen(step)
            || name == "mask_emb"
            || name.starts_with("layer_pred_heads.")
            || self.config.freeze.extractor && name.starts_with("feature_extractor.")
            || self.skipped_layers(step).iter().any(is_skipped))
    }

    fn evaluate(&mut self, _steps: u64, ema: &Ema) -> Result<Evaluation> {
        let Some(validation) = self.validation else { return Ok(Evaluation::default()) };
        let look = || -> Result<(Rates, BTreeMap<String, Tensor>)> {
            let copy = |(name, tensor): (String, Tensor)| Ok((name, tensor.copy()?.detach()));
            let tensors = self.start.weights.state().into_iter().map(copy);
            Ok((self.rates(validation)?, tensors.collect::<Result<_>>()?))
        };
        let (rates, tensors) = match ema.rates().is_empty() {
            true => look()?,
            false => ema.with_average(0, look)?,
        };
        let wer = rates.words.error_rate();
        if wer < self.best {
            self.best = wer;
            let path = self.folder.join("best-model.safetensors");
            self.model(tensors).write(&path, self.options.storage, true)?;
        }
        let metrics = [
            ("validation_loss", rates.loss),
            ("validation_wer", wer),
            ("validation_cer", rates.characters.error_rate()),
        ];
        let metrics = metrics.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Ok(Evaluation { score: None, metrics })
    }

    fn state(&self) -> Value {
        let best = self.best.is_finite().then_some(self.best);
        json!({ "settings": self.settings(), "position": self.position, "best_wer": best })
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        check_settings(self.folder, &state["settings"], &self.settings())?;
        let malformed = |error| Error::Argument(format!("training state: {error}"));
        self.position = serde_json::from_value(state["position"].clone()).map_err(malformed)?;
        self.best = state["best_wer"].as_f64().unwrap_or(f64::INFINITY);
        Ok(())
    }
}

/// What an evaluation counts.
#[derive(Default)]
struct Rates {
    loss: f64,
    words: Counts,
    characters: Counts,
}

impl Finetuning<'_> {
    /// What decides on the examples and the loss; a run may be made longer or shorter.
    fn settings(&self) -> Value {
        let mut settings = json!(self.config);
        if let Some(settings) = settings.as_object_mut() {
            settings.remove("steps");
        }
        let classes = self.start.config.vocabulary.symbols();
        json!({ "config": settings, "classes": classes, "recordings": self.examples.count() })
    }

    fn is_frozen(&self, step: u64) -> bool {
        step < self.config.freeze.encoder_steps
    }

    /// The layers that a step leaves out; never all of them.
    fn skipped_layers(&self, step: u64) -> Vec<usize> {
        let mut stream = Stream::new(self.config.seed, "layer drop", step);
        let depth = self.start.config.network.subnet.depth();
        (0..depth).filter(|_| stream.uniform() < self.config.layer_drop).collect()
    }

    /// A mask `[items, longest]` of which item `i` has `lengths[i]` places; none where nothing is masked.
    fn mask(
        &self,
        config: Option<&MaskConfig>,
        lengths: &[usize],
        longest: usize,
        stream: &mut Stream,
    ) -> Result<Option<Tensor>> {
        let Some(config) = config else { return Ok(None) };
        let places = masked_places(lengths, false, config, stream)?;
        let mut mask = vec![0u8; lengths.len() * longest];
        for (row, places) in mask.chunks_mut(longest.max(1)).zip(places) {
            for place in places {
                if let Some(masked) = row.get_mut(place) {
                    *masked = 1;
                }
            }
        }
        if mask.iter().all(|masked| *masked == 0) {
            return Ok(None);
        }
        Ok(Some(Tensor::from_vec(mask, (lengths.len(), longest), self.device)?))
    }

    /// Error rates of greedy decoding.
    fn rates(&self, validation: &TranscribedSpeech) -> Result<Rates> {
        let recogniser = &self.start.recogniser;
        let encoder = &self.start.config.network.encoder;
        let mut usable: Vec<(usize, Vec<f32>)> = vec![];
        for number in 0..validation.len() {
            if let Some(samples) = validation.samples(number)?
                && recogniser.frames(samples.len()) > 0
            {
                usable.push((number, prepared(samples, encoder.normalise)));
            }
        }
        let lengths: Vec<usize> = usable.iter().map(|(_, samples)| samples.len()).collect();
        let mut rates = Rates::default();
        let vocabulary = &recogniser.vocabulary;
        let mut scored = 0;
        for bucket in length_buckets(&lengths, EVALUATION_ITEMS, EVALUATION_SAMPLES) {
            let items: Vec<&(usize, Vec<f32>)> =
                bucket.iter().filter_map(|place| usable.get(*place)).collect();
            let source = padded(items.iter().map(|(_, samples)| samples.as_slice()), self.device)?;
            let lengths: Vec<usize> = items.iter().map(|(_, samples)| samples.len()).collect();
            let frames: Vec<usize> =
                lengths.iter().map(|length| recogniser.frames(*length)).collect();
            let conditions = Conditions {
                lengths: Some(&lengths),
                rule: PaddingRule::Exact,
                ..Conditions::default()
            };
            let encoded = recogniser.network.forward(&source, &conditions)?.detach();
            let found = recogniser.head.select(&encoded, &frames)?.detach();
            for (row, ((number, _), frames)) in items.into_iter().zip(frames).enumerate() {
                let found = found.narrow(0, row, 1)?.narrow(1, 0, frames)?;
                let text = validation.text(*number);
                if let Ok(labels) = vocabulary.encode(text) {
                    let options = CtcOptions { blank: vocabulary.blank(), zero_infinity: true };
                    let labels = vec![labels];
                    let loss = ctc_mean(&ctc_loss(&found, &[frames], &labels, options)?, &labels)?;
                    rates.loss += f64::from(loss.to_scalar::<f32>()?);
                    scored += 1;
                }
                let spans = greedy(&Emissions::new(&found.squeeze(0)?)?, vocabulary.blank());
                let classes: Vec<u32> = spans.iter().map(|span| span.class).collect();
                let heard = vocabulary.decode(&classes);
                add(&mut rates.words, &words(text), &words(&heard));
                add(&mut rates.characters, &characters(text), &characters(&heard));
            }
        }
        rates.loss /= f64::from(scored.max(1));
        Ok(rates)
    }

    fn model(&self, tensors: BTreeMap<String, Tensor>) -> ModelFile {
        let config = Box::new(self.start.config.clone());
        let mut model = ModelFile::new(Sizes::Recogniser { config }, tensors);
        model.card.provenance.insert("training".into(), json!(self.config));
        model
    }
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

fn characters(text: &str) -> Vec<char> {
    text.chars().collect()
}

fn add<T: PartialEq>(counts: &mut Counts, reference: &[T], heard: &[T]) {
    *counts += Counts::of(&align(reference, heard));
}

/// Signals as a batch `[B, n]`, the shorter ones followed by zeros.
fn padded<'s>(signals: impl Iterator<Item = &'s [f32]> + Clone, device: &Device) -> Result<Tensor> {
    let longest = signals.clone().map(<[f32]>::len).max().unwrap_or(0);
    let mut batch = vec![];
    let mut count = 0;
    for signal in signals {
        batch.extend_from_slice(signal);
        count += 1;
        batch.resize(count * longest, 0.0);
    }
    Ok(Tensor::from_vec(batch, (count, longest), device)?)
}
