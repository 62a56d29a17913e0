//! Settings of training runs.

use serde::{Deserialize, Serialize};
use shared::train::{AdamConfig, Rule, Schedule};
use shared::{Error, Result};

use super::clips::ClipForm;
use super::step_sampler::StepSampling;
use crate::config::{DiffusionFlags, SuperResolutionConfig, UnetConfig};

/// How the weights of any network are found. `default()` is what the published models were trained
/// with, on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimisationConfig {
    /// Steps.
    pub steps: u64,
    /// Examples in a step.
    pub batch: usize,
    /// Examples that are in memory together; the gradients of a step are the mean over all of its,
    /// however they are cut into parts.
    pub part: usize,
    /// Learning rate by step.
    pub schedule: Schedule,
    /// Weight decay of AdamW.
    pub weight_decay: f64,
    /// Norm to which gradients are clipped; not clipped when not given.
    pub clip_norm: Option<f64>,
    /// Rates of the averages of the weights; the first is that of the model that comes out.
    pub ema_rates: Vec<f64>,
    /// Which steps of the diffusion are trained on.
    pub step_sampling: StepSampling,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for OptimisationConfig {
    fn default() -> Self {
        Self {
            steps: 100_000,
            batch: 4,
            part: 1,
            schedule: Schedule::Constant { lr: 1e-4 },
            weight_decay: 0.0,
            clip_norm: Some(1.0),
            ema_rates: vec![0.9999],
            step_sampling: StepSampling::Uniform,
            seed: 0,
        }
    }
}

impl OptimisationConfig {
    /// AdamW.
    pub fn rule(&self) -> Rule {
        Rule::AdamW(AdamConfig { weight_decay: self.weight_decay, ..AdamConfig::default() })
    }

    fn validate(&self) -> Result<()> {
        if self.batch == 0 || self.part == 0 || self.steps == 0 {
            return refuse("steps, batch and part must be at least 1");
        }
        self.schedule.validate()
    }
}

/// Settings of the training of a coupled network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoupledTraining {
    /// The network; its sizes are those of the clips.
    pub network: UnetConfig,
    /// The diffusion.
    pub diffusion: DiffusionFlags,
    /// Frames a second of the clips.
    pub fps: u32,
    /// Sampling rate of the clips.
    pub rate_hz: u32,
    /// Probability that a picture is mirrored left to right.
    pub mirror: f64,
    /// How weights are found.
    pub optimisation: OptimisationConfig,
}

impl Default for CoupledTraining {
    fn default() -> Self {
        Self {
            network: UnetConfig { dropout: 0.1, ..UnetConfig::published() },
            diffusion: DiffusionFlags::default(),
            fps: 10,
            rate_hz: 16_000,
            mirror: 0.5,
            optimisation: OptimisationConfig::default(),
        }
    }
}

impl CoupledTraining {
    /// The form of the clips.
    pub fn form(&self) -> ClipForm {
        let [frames, _, height, width] = self.network.video_size;
        let [_, samples] = self.network.audio_size;
        ClipForm { frames, fps: self.fps, height, width, samples, rate_hz: self.rate_hz }
    }

    /// # Errors
    /// [`Error::Argument`] naming the setting that is outside its domain.
    pub fn validate(&self) -> Result<()> {
        self.network.check()?;
        self.form().check()?;
        self.optimisation.validate()?;
        if self.network.in_channels() != [3, 1] {
            let [video, audio] = self.network.in_channels();
            return refuse(format!(
                "clips have 3 channels of picture and 1 of sound, the network {video} and {audio}"
            ));
        }
        check_mirror(self.mirror)?;
        check_loss(&self.diffusion)
    }
}

/// Settings of the training of a super-resolution network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SuperResolutionTraining {
    /// The network; its sizes are those of the pictures.
    pub network: SuperResolutionConfig,
    /// The diffusion.
    pub diffusion: DiffusionFlags,
    /// Probability that a picture is mirrored left to right; not at all in the original.
    pub mirror: f64,
    /// How weights are found.
    pub optimisation: OptimisationConfig,
}

impl SuperResolutionTraining {
    /// # Errors
    /// [`Error::Argument`] naming the setting that is outside its domain.
    pub fn validate(&self) -> Result<()> {
        self.network.check()?;
        self.optimisation.validate()?;
        let (large, small) = (self.network.large_size, self.network.small_size);
        if small >= large {
            return refuse(format!("small_size {small} is not below large_size {large}"));
        }
        check_mirror(self.mirror)?;
        check_loss(&self.diffusion)
    }
}

fn check_mirror(mirror: f64) -> Result<()> {
    match (0.0..=1.0).contains(&mirror) {
        true => Ok(()),
        false => refuse(format!("mirror must be between 0 and 1, not {mirror}")),
    }
}

fn check_loss(diffusion: &DiffusionFlags) -> Result<()> {
    match diffusion.use_kl {
        true => refuse("use_kl: the variational bound alone trains nothing, as in the original"),
        false => Ok(()),
    }
}

fn refuse<T>(what: impl std::fmt::Display) -> Result<T> {
    Err(Error::Argument(format!("training: {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_outside_their_domain_are_named() {
        let good = CoupledTraining::default();
        good.validate().unwrap();
        type Change = fn(&mut CoupledTraining);
        let cases: [(Change, &str); 6] = [
            (|config| config.optimisation.batch = 0, "batch"),
            (|config| config.mirror = f64::NAN, "mirror"),
            (|config| config.fps = 20, "equally long"),
            (|config| config.network.dropout = 1.0, "dropout"),
            (|config| config.diffusion.use_kl = true, "use_kl"),
            (|config| config.network.audio_size = [2, 25_600], "1 of sound"),
        ];
        for (change, word) in cases {
            let mut config = good.clone();
            change(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        let json = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<CoupledTraining>(&json).unwrap(), good);

        let good = SuperResolutionTraining::default();
        good.validate().unwrap();
        for (small, large) in [(0, 256), (256, 256), (64, 8192)] {
            let network = SuperResolutionConfig {
                small_size: small,
                large_size: large,
                ..good.network.clone()
            };
            let config = SuperResolutionTraining { network, ..good.clone() };
            assert!(config.validate().is_err(), "{small} {large}");
        }
        let json = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<SuperResolutionTraining>(&json).unwrap(), good);
    }
}
