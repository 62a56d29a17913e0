//! What a training run does.

use serde::{Deserialize, Serialize};
use shared::data::augment::{AugmentConfig, Speed};
use shared::eval::wer::Normaliser;
use shared::train::{AdamConfig, Rule, Schedule};
use shared::{Error, Result};

use crate::config::NetworkConfig;
use crate::masking::{MaskConfig, SpanLength};
use crate::recogniser::{Features, HeadConfig};

/// A training run. Written as JSON; what is left out has its default, which is that of HuBERT Base on ten
/// hours of speech where something is published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FinetuneConfig {
    /// The encoder of a recogniser that begins with random weights; of one that begins with a model's,
    /// absent.
    pub network: Option<NetworkConfig>,
    /// Whether a random extractor's first convolution begins as a filterbank.
    pub filterbank: bool,
    /// What the head hears of the encoder.
    pub features: Features,
    /// The head.
    pub head: HeadConfig,
    /// Number of symbols, pieces of words by byte-pair encoding; characters where it is absent.
    pub word_pieces: Option<usize>,
    /// What is done to texts, those to learn from and those to compare with.
    pub normaliser: Normaliser,
    /// Seed of everything random.
    pub seed: u64,
    /// Number of steps.
    pub steps: u64,
    /// Length of all examples of a step together.
    pub batch_s: f64,
    /// Longer recordings are left out.
    pub longest_s: f64,
    /// Speeds at which recordings are played, one drawn for each example.
    pub speeds: Vec<f64>,
    /// Probability that another utterance follows in the same example.
    pub join: f64,
    /// Share of the examples that are augmented at all.
    pub augmented: f64,
    /// Changes to the recordings; absent for none.
    pub augmentation: Option<AugmentConfig>,
    /// Masks on frames; absent for none.
    pub frame_mask: Option<MaskConfig>,
    /// Masks on channels; absent for none.
    pub channel_mask: Option<MaskConfig>,
    /// What is left out at random.
    pub dropout: DropoutConfig,
    /// Probability that a layer is left out of a step.
    pub layer_drop: f64,
    /// What is not trained.
    pub freeze: FreezeConfig,
    /// The optimiser.
    pub rule: Rule,
    /// Learning rate by step.
    pub schedule: Schedule,
    /// Norm to which larger gradients are scaled down; absent for no limit.
    pub clip_norm: Option<f64>,
    /// Rates of the averages of the weights; the model has those of the first.
    pub ema_rates: Vec<f64>,
}

/// Shares of features that are left out at random, by place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DropoutConfig {
    /// Of what enters the encoder.
    pub features: f64,
    /// Of what attention and feed-forward blocks add.
    pub hidden: f64,
    /// Of the hidden units of feed-forward blocks.
    pub activation: f64,
    /// Of what the head hears, and between its LSTMs.
    pub head: f64,
}

/// What stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FreezeConfig {
    /// The whole encoder, in so many steps at the beginning: all of them for a head alone.
    pub encoder_steps: u64,
    /// The convolutional extractor, always.
    pub extractor: bool,
}

impl Default for FreezeConfig {
    fn default() -> Self {
        Self { encoder_steps: 0, extractor: true }
    }
}

/// Masks of fine-tuning: spans that may overlap, of each utterance its own.
fn mask(probability: f64, length: usize) -> MaskConfig {
    let selection = SpanLength::Static;
    MaskConfig {
        probability,
        length,
        selection,
        min_spans: 0,
        same_count: false,
        ..MaskConfig::default()
    }
}

impl Default for FinetuneConfig {
    fn default() -> Self {
        Self {
            network: None,
            filterbank: false,
            features: Features::Last,
            head: HeadConfig::Linear,
            word_pieces: None,
            normaliser: Normaliser::Librispeech,
            seed: 0,
            steps: 25_000,
            batch_s: 100.0,
            longest_s: 30.0,
            speeds: vec![1.0],
            join: 0.0,
            augmented: 1.0,
            augmentation: None,
            frame_mask: Some(mask(0.75, 10)),
            channel_mask: Some(mask(0.5, 64)),
            dropout: DropoutConfig { activation: 0.1, ..DropoutConfig::default() },
            layer_drop: 0.1,
            freeze: FreezeConfig { encoder_steps: 10_000, ..FreezeConfig::default() },
            rule: Rule::Adam(AdamConfig { beta2: 0.98, ..AdamConfig::default() }),
            schedule: Schedule::TriStage {
                peak_lr: 2e-5,
                warmup_steps: 2_000,
                hold_steps: 10_000,
                decay_steps: 13_000,
                start_share: 0.01,
                final_share: 0.05,
            },
            clip_norm: None,
            ema_rates: vec![],
        }
    }
}

impl FinetuneConfig {
    /// Fails when a setting is outside its domain.
    ///
    /// # Errors
    /// [`Error::Argument`] naming it.
    pub fn validate(&self) -> Result<()> {
        let wrong = |reason: &str| Err(Error::Argument(format!("fine-tuning: {reason}")));
        if let Some(network) = &self.network {
            network.check()?;
        }
        if self.filterbank && self.network.is_none() {
            return wrong("a filterbank goes with a network that begins at random");
        }
        self.rule.validate()?;
        self.schedule.validate()?;
        if let Some(augmentation) = &self.augmentation {
            augmentation.validate()?;
        }
        for mask in self.frame_mask.iter().chain(&self.channel_mask) {
            mask.check()?;
        }
        if self.speeds.is_empty() {
            return wrong("speeds must have a factor");
        }
        for speed in &self.speeds {
            Speed::new(*speed)?;
        }
        if self.steps == 0 {
            return wrong("steps must be at least 1");
        }
        if !(self.longest_s > 0.0 && self.batch_s >= self.longest_s && self.batch_s <= 1e5) {
            return wrong("batch_s must be at least longest_s, which must be above 0");
        }
        let DropoutConfig { features, hidden, activation, head } = self.dropout;
        let shares = [features, hidden, activation, head, self.layer_drop];
        if !shares.iter().all(|share| (0.0..1.0).contains(share)) {
            return wrong("dropout and layer_drop must be from 0 to below 1");
        }
        if ![self.join, self.augmented].iter().all(|share| (0.0..=1.0).contains(share)) {
            return wrong("join and augmented must be between 0 and 1");
        }
        if let HeadConfig::Recurrent { projected, hidden, layers } = self.head
            && !([projected, hidden].iter().all(|size| (1..=1 << 14).contains(size))
                && (1..=32).contains(&layers))
        {
            return wrong("the head must have 1 to 32 LSTMs of 1 to 16384 features");
        }
        Ok(())
    }
}
