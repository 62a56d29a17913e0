//! What a training run does.

use serde::{Deserialize, Serialize};
use shared::data::augment::{AugmentConfig, Formants, MaskConfig, Speed};
use shared::train::{AdamConfig, Rule, Schedule};
use shared::{Error, Result};

use crate::architecture::Architecture;
use crate::embed::WindowConfig;
use crate::frontend::{Frontend, FrontendConfig};

/// A training run from its first to its last step. Written as JSON; what is left out has its
/// default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// The network.
    pub architecture: Architecture,
    /// Its features.
    pub frontend: FrontendConfig,
    /// How recordings are cut for it in use.
    pub windows: WindowConfig,
    /// Seed of everything random.
    pub seed: u64,
    /// Examples in a step.
    pub batch: usize,
    /// Examples of a speaker in an epoch, on average over the speakers.
    pub examples_per_speaker: usize,
    /// Take only the parts of the recordings in which somebody speaks, as in use.
    pub detect_speech: bool,
    /// Speeds at which all recordings are played; each other than 1 makes further speakers, for it
    /// changes the voice (Yamamoto et al. 2019).
    pub speeds: Vec<f64>,
    /// Factors on the frequencies of the formants, for each speed; each other than 1 makes further
    /// speakers in the same way.
    pub formants: Vec<f64>,
    /// Changes to the recordings; absent for none.
    pub augmentation: Option<AugmentConfig>,
    /// Factor on the cosines of AAM-softmax.
    pub scale: f64,
    /// The optimiser.
    pub rule: Rule,
    /// Norm to which larger gradients are scaled down; absent for no limit.
    pub clip_norm: Option<f64>,
    /// The stages, one after the other. Each starts with the weights that the one before ends with,
    /// and with a new optimiser.
    pub stages: Vec<Stage>,
}

/// Consecutive steps with settings of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Number of steps.
    pub steps: u64,
    /// Length of an example.
    pub crop_s: f64,
    /// Angular margin at the stage's first and after its last step, on a straight line between.
    pub margin: [f64; 2],
    /// A speaker's share of the examples is as its number of recordings to this power: with 0 all
    /// speakers are equal, with 1 all recordings.
    #[serde(default)]
    pub balance: f64,
    /// Share of the examples that are augmented at all.
    #[serde(default = "all")]
    pub augmented: f64,
    /// Masks on the features; absent for none.
    #[serde(default)]
    pub mask: Option<MaskConfig>,
    /// Learning rate by the step of the stage.
    pub schedule: Schedule,
}

fn all() -> f64 {
    1.0
}

impl Default for TrainConfig {
    /// A compact network with the published optimiser, speed copies and augmentation.
    fn default() -> Self {
        let steps = 4000;
        Self {
            architecture: Architecture::default(),
            frontend: FrontendConfig::default(),
            windows: WindowConfig::default(),
            seed: 0,
            batch: 64,
            examples_per_speaker: 4,
            detect_speech: true,
            speeds: vec![1.0, 0.9, 1.1],
            formants: vec![1.0],
            augmentation: Some(AugmentConfig::default()),
            scale: 30.0,
            rule: Rule::Adam(AdamConfig { weight_decay: 2e-5, ..AdamConfig::default() }),
            clip_norm: Some(5.0),
            stages: vec![Stage {
                steps,
                crop_s: 2.0,
                margin: [0.0, 0.2],
                balance: 0.0,
                augmented: all(),
                mask: None,
                schedule: Schedule::WarmupCosine {
                    peak_lr: 2e-3,
                    warmup_steps: 200,
                    total_steps: steps,
                    final_lr: 1e-6,
                },
            }],
        }
    }
}

impl TrainConfig {
    /// Fails when a setting is outside its domain.
    ///
    /// # Errors
    /// [`Error::Argument`] naming it.
    pub fn validate(&self) -> Result<()> {
        let wrong = |reason: &str| Err(Error::Argument(format!("training: {reason}")));
        self.architecture.check_plain()?;
        let frontend = Frontend::new(self.frontend.clone())?;
        self.rule.validate()?;
        if let Some(augmentation) = &self.augmentation {
            augmentation.validate()?;
        }
        for speed in &self.speeds {
            Speed::new(*speed)?;
        }
        for factor in &self.formants {
            Formants::new(*factor, &self.frontend.log_mel.mel, frontend.rate_hz())?;
        }
        if self.speeds.is_empty() || self.formants.is_empty() {
            return wrong("speeds and formants must have a factor each");
        }
        if self.batch < 2 || self.examples_per_speaker == 0 {
            return wrong("batch must be at least 2, examples_per_speaker at least 1");
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            return wrong("scale must be positive");
        }
        if self.stages.is_empty() || self.stages.iter().any(|stage| stage.steps == 0) {
            return wrong("there must be a stage, and each must have a step");
        }
        for stage in &self.stages {
            stage.schedule.validate()?;
            if stage.crop_samples(frontend.rate_hz()) < frontend.min_samples() {
                return wrong("crop_s is too short for the front-end");
            }
            if ![stage.augmented, stage.balance].iter().all(|share| (0.0..=1.0).contains(share)) {
                return wrong("augmented and balance must be between 0 and 1");
            }
            if !stage.margin.iter().all(|margin| (0.0..1.5).contains(margin)) {
                return wrong("margins must be between 0 and 1.5");
            }
        }
        Ok(())
    }

    /// Stage number `index`, from 0.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn stage(&self, index: usize) -> Result<&Stage> {
        self.stages.get(index).ok_or_else(|| {
            Error::Argument(format!("there is no stage {index}, there are {}", self.stages.len()))
        })
    }
}

impl Stage {
    /// Samples of an example.
    pub fn crop_samples(&self, rate_hz: u32) -> usize {
        (self.crop_s * f64::from(rate_hz)).round() as usize
    }

    /// The margin at `step` of the stage.
    pub fn margin_at(&self, step: u64) -> f64 {
        let [first, last] = self.margin;
        first + (last - first) * (step as f64 / self.steps as f64).min(1.0)
    }
}
