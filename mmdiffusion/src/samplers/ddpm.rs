//! Ancestral sampling (Ho et al. 2020, algorithm 2).

use serde::{Deserialize, Serialize};
use shared::Result;

use super::run::{Network, Stepper};
use crate::diffusion::{Diffusion, DiffusionConfig, Level, Spacing};
use crate::state::State;

/// Settings of ancestral sampling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ddpm {
    /// The steps made.
    pub spacing: Spacing,
    /// Hold predicted clean clips within -1..1.
    pub clip: bool,
}

impl Default for Ddpm {
    fn default() -> Self {
        Self { spacing: Spacing::All, clip: true }
    }
}

/// Steps of a process in falling order.
pub(super) struct Descent {
    /// The process.
    pub diffusion: Diffusion,
    levels: Vec<Level>,
}

impl Descent {
    pub fn new(config: &DiffusionConfig, spacing: &Spacing) -> Result<Self> {
        let diffusion = Diffusion::new(config, spacing)?;
        let mut levels =
            (0..diffusion.steps()).rev().map(|t| diffusion.level(t)).collect::<Result<Vec<_>>>()?;
        levels.push(Level::CLEAN);
        Ok(Self { diffusion, levels })
    }

    /// The noise before each step and after the last.
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// The step of the process that is made as number `index`, once for each sample of `x`.
    pub fn times<S: State>(&self, index: usize, x: &S) -> Result<Vec<usize>> {
        Ok(vec![self.diffusion.steps().saturating_sub(index + 1); x.batch()?])
    }
}

/// Ancestral sampling of a process.
pub(super) struct DdpmSteps {
    descent: Descent,
    clip: bool,
}

impl DdpmSteps {
    pub fn new(settings: &Ddpm, config: &DiffusionConfig) -> Result<Self> {
        Ok(Self { descent: Descent::new(config, &settings.spacing)?, clip: settings.clip })
    }
}

impl<S: State> Stepper<S> for DdpmSteps {
    fn levels(&self) -> &[Level] {
        self.descent.levels()
    }

    fn step(&mut self, index: usize, x: &S, network: &mut Network<S>) -> Result<S> {
        let diffusion = &self.descent.diffusion;
        let t = self.descent.times(index, x)?;
        let (output, clean) = network.clean(diffusion, x, &t, self.clip)?;
        let noise = network.noise(x)?;
        S::each(|part| {
            let axis = part.modality.channel_axis();
            let (x, output) = (part.of(x), part.of(&output));
            let previous = diffusion.predicted_previous(x, output, part.of(&clean), &t, axis)?;
            diffusion.ancestral_step(&previous, &t, part.of(&noise))
        })
    }
}
