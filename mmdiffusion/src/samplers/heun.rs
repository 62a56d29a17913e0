//! Heun's method on the steps of a process (Karras et al., EDM, 2022, algorithm 1).

use serde::{Deserialize, Serialize};
use shared::{Error, Result};

use super::run::{Network, Stepper};
use crate::diffusion::{Diffusion, DiffusionConfig, Level, Spacing};
use crate::state::State;

/// Settings of Heun's method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Heun {
    /// Number of steps; each evaluates the network twice, the last once.
    pub steps: usize,
    /// How much closer steps lie at little noise; 1 spreads them evenly in sigma / alpha.
    pub rho: f64,
    /// Hold predicted clean clips within -1..1.
    pub clip: bool,
}

impl Default for Heun {
    fn default() -> Self {
        Self { steps: 18, rho: 7.0, clip: true }
    }
}

impl Heun {
    /// Fails when a setting is outside its domain.
    ///
    /// # Errors
    /// [`Error::Argument`] naming it.
    pub fn validate(&self) -> Result<()> {
        if self.rho >= 1.0 && self.rho.is_finite() {
            return Ok(());
        }
        Err(Error::Argument(format!("heun: rho is at least 1, not {}", self.rho)))
    }
}

/// Heun's method. States are scaled as the process has them; in y = x / alpha and n = sigma / alpha,
/// the equation is `dy/dn = epsilon`.
pub(super) struct HeunSteps {
    diffusion: Diffusion,
    clip: bool,
    /// Steps of the process at which the network is asked, in falling order.
    times: Vec<usize>,
    levels: Vec<Level>,
}

impl HeunSteps {
    pub fn new(settings: &Heun, config: &DiffusionConfig) -> Result<Self> {
        let diffusion = Diffusion::new(config, &Spacing::All)?;
        if settings.steps > diffusion.steps() {
            return Err(Error::Argument(format!(
                "heun: {} steps are more than the {} of the process",
                settings.steps,
                diffusion.steps()
            )));
        }
        let times = times(settings, &diffusion);
        let mut levels =
            times.iter().map(|t| diffusion.level(*t)).collect::<Result<Vec<Level>>>()?;
        levels.push(Level::CLEAN);
        Ok(Self { diffusion, clip: settings.clip, times, levels })
    }

    /// The noise in `x` that the network sees before step `t`, and the clean clips.
    fn epsilon<S: State>(&self, network: &mut Network<S>, x: &S, t: usize) -> Result<(S, S)> {
        let level = self.diffusion.level(t)?;
        let x = network.constrained(x, level)?;
        let (_, clean) = network.clean(&self.diffusion, &x, &vec![t; x.batch()?], self.clip)?;
        let Level { alpha, sigma } = level;
        Ok((S::combine(&[(1.0 / sigma, &x), (-alpha / sigma, &clean)])?, clean))
    }
}

impl<S: State> Stepper<S> for HeunSteps {
    fn levels(&self) -> &[Level] {
        &self.levels
    }

    fn step(&mut self, index: usize, x: &S, network: &mut Network<S>) -> Result<S> {
        let (Some(t), Some([from, to])) =
            (self.times.get(index), self.levels.get(index..index + 2))
        else {
            return Ok(x.clone());
        };
        let (first, clean) = self.epsilon(network, x, *t)?;
        let Some(next) = self.times.get(index + 1) else { return Ok(clean) };
        let keep = to.alpha / from.alpha;
        let change = to.sigma - from.sigma * keep;
        let predicted = S::combine(&[(keep, x), (change, &first)])?;
        let (second, _) = self.epsilon(network, &predicted, *next)?;
        S::combine(&[(keep, x), (0.5 * change, &first), (0.5 * change, &second)])
    }
}

/// Steps of the process whose noise n = sigma / alpha is nearest to what is even in n^(1/rho), each
/// once, from the noisiest to the clearest.
fn times(settings: &Heun, diffusion: &Diffusion) -> Vec<usize> {
    let noise = &diffusion.coefficients().sqrt_recipm1_alphas_cumprod;
    let (Some(least), Some(most)) = (noise.first(), noise.last()) else { return vec![] };
    let root = |noise: f64| noise.powf(1.0 / settings.rho);
    let steps = settings.steps;
    let mut bound = noise.len();
    (0..steps)
        .map(|i| {
            let share = i as f64 / steps.saturating_sub(1).max(1) as f64;
            let wanted = (root(*most) + share * (root(*least) - root(*most))).powf(settings.rho);
            let above = noise.partition_point(|noise| *noise < wanted);
            let nearer_below = above > 0
                && noise.get(above).is_none_or(|noise_above| {
                    noise_above - wanted > wanted - noise.get(above - 1).unwrap_or(&0.0)
                });
            // Leave a step for each of those still to come.
            let nearest = if nearer_below { above - 1 } else { above };
            bound = nearest.clamp(steps - 1 - i, bound - 1);
            bound
        })
        .collect()
}
