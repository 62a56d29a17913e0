//! Settings of a training run.

use serde::{Deserialize, Serialize};
use shared::train::{AdamConfig, Rule, Schedule};
use shared::{Error, Result};

use super::clips::ClipForm;
use super::step_sampler::StepSampling;
use crate::config::{DiffusionFlags, UnetConfig};

/// Settings of a training run. `default()` is what the published model was trained with, on one
/// machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// The network; its sizes are those of the clips.
    pub network: UnetConfig,
    /// The diffusion.
    pub diffusion: DiffusionFlags,
    /// Frames a second of the clips.
    pub fps: u32,
    /// Sampling rate of the clips.
    pub rate_hz: u32,
    /// Steps.
    pub steps: u64,
    /// Clips in a step.
    pub batch: usize,
    /// Clips that are in memory together; the gradients of a step are the mean over all its clips,
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
    /// Probability that a picture is mirrored left to right.
    pub mirror: f64,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            network: UnetConfig::published(),
            diffusion: DiffusionFlags::default(),
            fps: 10,
            rate_hz: 16_000,
            steps: 100_000,
            batch: 4,
            part: 1,
            schedule: Schedule::Constant { lr: 1e-4 },
            weight_decay: 0.0,
            clip_norm: Some(1.0),
            ema_rates: vec![0.9999],
            step_sampling: StepSampling::Uniform,
            mirror: 0.5,
            seed: 0,
        }
    }
}

impl TrainConfig {
    /// The form of the clips.
    pub fn form(&self) -> ClipForm {
        let [frames, _, height, width] = self.network.video_size;
        let [_, samples] = self.network.audio_size;
        ClipForm { frames, fps: self.fps, height, width, samples, rate_hz: self.rate_hz }
    }

    /// AdamW.
    pub fn rule(&self) -> Rule {
        Rule::AdamW(AdamConfig { weight_decay: self.weight_decay, ..AdamConfig::default() })
    }

    /// # Errors
    /// [`Error::Argument`] naming the setting that is outside its domain.
    pub fn validate(&self) -> Result<()> {
        self.network.check()?;
        self.form().check()?;
        self.schedule.validate()?;
        let refuse = |what: String| Err(Error::Argument(format!("training: {what}")));
        if self.network.in_channels() != [3, 1] {
            let [video, audio] = self.network.in_channels();
            return refuse(format!(
                "clips have 3 channels of picture and 1 of sound, the network {video} and {audio}"
            ));
        }
        if self.network.dropout != 0.0 {
            return refuse(format!("dropout is not supported, found {}", self.network.dropout));
        }
        if self.network.use_checkpoint {
            return refuse("use_checkpoint is not supported: lower `part` to save memory".into());
        }
        if self.diffusion.use_kl {
            return refuse(
                "use_kl: the variational bound alone trains nothing, as in the original".into(),
            );
        }
        if self.batch == 0 || self.part == 0 || self.steps == 0 {
            return refuse("steps, batch and part must be at least 1".into());
        }
        if !(0.0..=1.0).contains(&self.mirror) {
            return refuse(format!("mirror must be between 0 and 1, not {}", self.mirror));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_outside_their_domain_are_named() {
        let good = TrainConfig::default();
        good.validate().unwrap();
        type Change = fn(&mut TrainConfig);
        let cases: [(Change, &str); 7] = [
            (|config| config.batch = 0, "batch"),
            (|config| config.mirror = f64::NAN, "mirror"),
            (|config| config.fps = 20, "equally long"),
            (|config| config.network.dropout = 0.1, "dropout"),
            (|config| config.network.use_checkpoint = true, "use_checkpoint"),
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
        assert_eq!(serde_json::from_str::<TrainConfig>(&json).unwrap(), good);
    }
}
