//! The diffusion that a network was trained for.

use serde::{Deserialize, Serialize};

use super::flags;

/// The published settings of the diffusion that a network was trained for. `default()` is the
/// published library's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffusionFlags {
    /// Steps of the schedule.
    #[serde(alias = "sr_diffusion_steps", deserialize_with = "flags::count")]
    pub diffusion_steps: usize,
    /// Name of the schedule, `linear` or `cosine`.
    pub noise_schedule: String,
    /// The steps that are sampled: empty for all, counts of sections, or `ddimN`.
    #[serde(alias = "sr_timestep_respacing")]
    pub timestep_respacing: String,
    /// Whether the training loss is the variational bound.
    #[serde(deserialize_with = "flags::truth")]
    pub use_kl: bool,
    /// Whether the network predicts the clean clip instead of the noise.
    #[serde(deserialize_with = "flags::truth")]
    pub predict_xstart: bool,
    /// Whether the network's time runs to 1000, however many steps there are.
    #[serde(deserialize_with = "flags::truth")]
    pub rescale_timesteps: bool,
    /// Whether the loss of learned variances was scaled as with full training.
    #[serde(deserialize_with = "flags::truth")]
    pub rescale_learned_sigmas: bool,
}

impl Default for DiffusionFlags {
    fn default() -> Self {
        Self {
            diffusion_steps: 1000,
            noise_schedule: "linear".into(),
            timestep_respacing: String::new(),
            use_kl: false,
            predict_xstart: false,
            rescale_timesteps: false,
            rescale_learned_sigmas: false,
        }
    }
}
