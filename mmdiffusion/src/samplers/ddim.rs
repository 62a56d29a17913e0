//! Denoising diffusion implicit models (Song et al. 2021).

use serde::{Deserialize, Serialize};
use shared::Result;

use super::ddpm::Descent;
use super::run::{Loop, Network, Run, Stepper};
use crate::diffusion::{Diffusion, DiffusionConfig, Level, Spacing};
use crate::state::State;

/// Settings of DDIM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ddim {
    /// The steps made.
    pub spacing: Spacing,
    /// How much fresh noise a step adds: none with 0, as much as ancestral sampling with 1.
    pub eta: f64,
    /// Hold predicted clean clips within -1..1.
    pub clip: bool,
}

impl Default for Ddim {
    fn default() -> Self {
        Self { spacing: Spacing::Stride(50), eta: 0.0, clip: true }
    }
}

impl Ddim {
    /// The noise that the deterministic sampler turns into the clean clips `x`: its steps backwards.
    ///
    /// # Errors
    /// As [`super::Sampler::sample`].
    pub fn invert<S: State>(&self, run: Run<'_, S>, x: S) -> Result<S> {
        let diffusion = Diffusion::new(run.diffusion, &self.spacing)?;
        let levels =
            (0..diffusion.steps()).map(|t| diffusion.level(t)).collect::<Result<Vec<_>>>()?;
        let mut steps = ReverseSteps { diffusion, levels, clip: self.clip };
        Loop::new("ddim reverse", run).drive(&mut steps, x)
    }
}

/// DDIM of a process.
pub(super) struct DdimSteps {
    descent: Descent,
    eta: f64,
    clip: bool,
}

impl DdimSteps {
    pub fn new(settings: &Ddim, config: &DiffusionConfig) -> Result<Self> {
        let descent = Descent::new(config, &settings.spacing)?;
        Ok(Self { descent, eta: settings.eta, clip: settings.clip })
    }
}

impl<S: State> Stepper<S> for DdimSteps {
    fn levels(&self) -> &[Level] {
        self.descent.levels()
    }

    fn step(&mut self, index: usize, x: &S, network: &mut Network<S>) -> Result<S> {
        let diffusion = &self.descent.diffusion;
        let t = self.descent.times(index, x)?;
        let (_, clean) = network.clean(diffusion, x, &t, self.clip)?;
        let noise = (self.eta != 0.0).then(|| network.noise(x)).transpose()?;
        S::each(|part| {
            let noise = noise.as_ref().map(|noise| part.of(noise));
            diffusion.ddim_step(part.of(x), part.of(&clean), &t, self.eta, noise)
        })
    }
}

/// DDIM's deterministic path from the clean clip to noise.
struct ReverseSteps {
    diffusion: Diffusion,
    levels: Vec<Level>,
    clip: bool,
}

impl<S: State> Stepper<S> for ReverseSteps {
    fn levels(&self) -> &[Level] {
        &self.levels
    }

    fn step(&mut self, index: usize, x: &S, network: &mut Network<S>) -> Result<S> {
        let t = vec![index; x.batch()?];
        let (_, clean) = network.clean(&self.diffusion, x, &t, self.clip)?;
        S::each(|part| self.diffusion.ddim_reverse_step(part.of(x), part.of(&clean), &t))
    }
}
