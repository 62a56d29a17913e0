//! Gaussian diffusion (Ho et al. 2020; Nichol and Dhariwal 2021), tensor by tensor: a pair is
//! diffused by doing the same to its two tensors.

mod posterior;
pub mod schedule;
mod spacing;
pub mod variational;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use shared::{Error, Result};

use crate::config::DiffusionFlags;
pub use posterior::Gaussian;
pub use schedule::{Coefficients, Schedule};
pub use spacing::Spacing;

/// Most steps of a process.
const MOST_STEPS: usize = 100_000;

/// What the network was trained to predict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The noise in x_t.
    #[default]
    Epsilon,
    /// The clean x_0.
    Clean,
    /// The mean of x_{t-1}.
    Previous,
}

/// The variance of the steps back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// That of the posterior.
    FixedSmall,
    /// The betas.
    #[default]
    FixedLarge,
    /// The network outputs its logarithm.
    Learned,
    /// The network outputs where it lies between the posterior's (-1) and beta (1), in logarithms.
    LearnedRange,
}

impl Variance {
    /// Whether the network outputs it, as further channels.
    pub fn is_learned(self) -> bool {
        matches!(self, Self::Learned | Self::LearnedRange)
    }
}

/// The process that a network was trained for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiffusionConfig {
    /// Number of steps.
    pub steps: usize,
    /// How the noise grows.
    pub schedule: Schedule,
    /// What the network predicts.
    pub target: Target,
    /// The variance of the steps back.
    pub variance: Variance,
    /// Whether the network's times are scaled to 0..1000.
    pub rescale_times: bool,
}

impl Default for DiffusionConfig {
    /// The published one of pairs.
    fn default() -> Self {
        Self {
            steps: 1000,
            schedule: Schedule::default(),
            target: Target::default(),
            variance: Variance::default(),
            rescale_times: false,
        }
    }
}

impl DiffusionConfig {
    /// The process that published settings describe; `learn_sigma` is the network's.
    ///
    /// # Errors
    /// When there is no such schedule.
    pub fn from_flags(flags: &DiffusionFlags, learn_sigma: bool) -> Result<Self> {
        let schedule = match flags.noise_schedule.as_str() {
            "linear" => Schedule::Linear,
            "cosine" => Schedule::Cosine,
            name => {
                return Err(Error::Argument(format!(
                    "noise_schedule: expected linear or cosine, found {name:?}"
                )));
            }
        };
        Ok(Self {
            steps: flags.diffusion_steps,
            schedule,
            target: if flags.predict_xstart { Target::Clean } else { Target::Epsilon },
            variance: if learn_sigma { Variance::LearnedRange } else { Variance::FixedLarge },
            rescale_times: flags.rescale_timesteps,
        })
    }

    /// The published one of super-resolution.
    pub fn super_resolution() -> Self {
        Self { variance: Variance::LearnedRange, ..Self::default() }
    }

    /// What the network is given as time at step `time` of the process.
    pub fn model_time(&self, time: f64) -> f64 {
        if self.rescale_times { time * (1000.0 / self.steps as f64) } else { time }
    }
}

/// How much of the clean clip and how much noise there is at some time: `x = alpha x_0 + sigma z`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Factor of the clean clip.
    pub alpha: f64,
    /// Standard deviation of the noise.
    pub sigma: f64,
}

impl Level {
    /// No noise.
    pub const CLEAN: Self = Self { alpha: 1.0, sigma: 0.0 };
}

/// A process, or one that makes only some of its steps.
#[derive(Clone, Debug)]
pub struct Diffusion {
    config: DiffusionConfig,
    coefficients: Coefficients,
    kept: Vec<usize>,
}

impl Diffusion {
    /// The steps `spacing` of the process `config`.
    ///
    /// # Errors
    /// When there are no such steps.
    pub fn new(config: &DiffusionConfig, spacing: &Spacing) -> Result<Self> {
        if !(1..=MOST_STEPS).contains(&config.steps) {
            return Err(Error::Argument(format!(
                "diffusion: a process has 1 to {MOST_STEPS} steps, not {}",
                config.steps
            )));
        }
        let kept = spacing.kept(config.steps)?;
        let full = Coefficients::new(config.schedule.betas(config.steps));
        Ok(Self { config: config.clone(), coefficients: full.spaced(&kept), kept })
    }

    /// The process that this makes steps of.
    pub fn config(&self) -> &DiffusionConfig {
        &self.config
    }

    /// The coefficients of the steps made.
    pub fn coefficients(&self) -> &Coefficients {
        &self.coefficients
    }

    /// Number of steps made.
    pub fn steps(&self) -> usize {
        self.kept.len()
    }

    /// The step of the whole process that each step is.
    pub fn kept(&self) -> &[usize] {
        &self.kept
    }

    /// What the network is given as time at steps `t`.
    ///
    /// # Errors
    /// When there is no such step.
    pub fn model_times(&self, t: &[usize]) -> Result<Vec<f64>> {
        t.iter()
            .map(|t| match self.kept.get(*t) {
                Some(step) => Ok(self.config.model_time(*step as f64)),
                None => Err(no_step(*t, self.steps())),
            })
            .collect()
    }

    /// The noise after step `t`.
    ///
    /// # Errors
    /// When there is no such step.
    pub fn level(&self, t: usize) -> Result<Level> {
        let abar =
            self.coefficients.alphas_cumprod.get(t).ok_or_else(|| no_step(t, self.steps()))?;
        Ok(Level { alpha: abar.sqrt(), sigma: (1.0 - abar).sqrt() })
    }
}

fn no_step(t: usize, steps: usize) -> Error {
    Error::Argument(format!("diffusion: there is no step {t} in a process of {steps}"))
}

/// The `values` at steps `t`, one for each sample of `like`, as `[B, 1, ..]` of its rank in f32.
///
/// # Errors
/// When there is no such step, or the number of samples is another.
pub fn column(values: &[f64], t: &[usize], like: &Tensor) -> Result<Tensor> {
    let samples = like.dims().first().copied().unwrap_or(0);
    if t.len() != samples {
        return Err(Error::shape("diffusion steps", format!("[{samples}]"), &[t.len()]));
    }
    let picked = t
        .iter()
        .map(|t| values.get(*t).map(|value| *value as f32).ok_or_else(|| no_step(*t, values.len())))
        .collect::<Result<Vec<f32>>>()?;
    let mut shape = vec![1; like.rank().max(1)];
    shape[0] = samples;
    Ok(Tensor::from_vec(picked, shape, like.device())?)
}
