//! Samplers: from noise to clips.
//!
//! [`Sampler`] is the one interface: a serialisable choice of method and settings that turns noise
//! into clean clips of any [`State`], a pair or pictures.

mod adaptive;
mod ddim;
mod ddpm;
mod dpm_solver;
mod exponential;
mod heun;
mod run;
#[cfg(test)]
mod tests;
mod threshold;
pub mod time;
mod unipc;

use serde::{Deserialize, Serialize};
use shared::{Error, Result};

pub use adaptive::Tolerance;
pub use ddim::Ddim;
pub use ddpm::Ddpm;
pub use dpm_solver::{DpmSolver, Method, singlestep_orders};
pub use exponential::Expansion;
pub use heun::Heun;
pub use run::{Run, Step};
pub use time::{ModelTime, Skip};
pub use unipc::{BasisScale, UniPc};

use ddim::DdimSteps;
use ddpm::DdpmSteps;
use dpm_solver::GridSteps;
use heun::HeunSteps;
use run::Loop;
use unipc::UniPcSteps;

use crate::conditioning::Condition;
use crate::diffusion::Spacing;
use crate::state::State;

/// Most steps of a solver.
const MOST_STEPS: usize = 10_000;

/// A way to sample, with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "sampler", rename_all = "snake_case")]
pub enum Sampler {
    /// Ancestral sampling.
    Ddpm(Ddpm),
    /// DDIM.
    Ddim(Ddim),
    /// DPM-Solver and DPM-Solver++.
    DpmSolver(DpmSolver),
    /// UniPC.
    #[serde(rename = "unipc")]
    UniPc(UniPc),
    /// Heun's method.
    Heun(Heun),
}

impl Default for Sampler {
    /// The published DPM-Solver in 20 evaluations.
    fn default() -> Self {
        Self::DpmSolver(DpmSolver::default())
    }
}

impl Sampler {
    /// The names that [`Sampler::named`] takes.
    pub const NAMES: [&str; 7] =
        ["ddpm", "ddim", "dpm_solver", "dpm_solver++", "dpm_solver++_adaptive", "unipc", "heun"];

    /// The sampler `name` with the settings of its authors or of the published scripts, in `steps`
    /// steps or as many as is usual for it.
    ///
    /// # Errors
    /// When there is no such sampler, or it cannot make so many steps.
    pub fn named(name: &str, steps: Option<usize>) -> Result<Self> {
        if steps == Some(0) {
            return Err(Error::Argument(format!("sampler {name} needs a step at least")));
        }
        let sampler = match name {
            "ddpm" => {
                let spacing = steps.map_or(Spacing::All, |steps| Spacing::Sections(vec![steps]));
                Self::Ddpm(Ddpm { spacing, ..Ddpm::default() })
            }
            "ddim" => {
                let spacing = Spacing::Sections(vec![steps.unwrap_or(50)]);
                Self::Ddim(Ddim { spacing, ..Ddim::default() })
            }
            "dpm_solver" => {
                let steps = steps.unwrap_or(20);
                Self::DpmSolver(DpmSolver { steps, ..DpmSolver::default() })
            }
            "dpm_solver++" => Self::DpmSolver(DpmSolver::plus_plus(steps.unwrap_or(20))),
            "dpm_solver++_adaptive" => match steps {
                None => Self::DpmSolver(DpmSolver::adaptive()),
                Some(_) => {
                    return Err(Error::Argument(format!(
                        "sampler {name} chooses the number of its steps itself"
                    )));
                }
            },
            "unipc" => Self::UniPc(UniPc { steps: steps.unwrap_or(20), ..UniPc::default() }),
            "heun" => Self::Heun(Heun { steps: steps.unwrap_or(18), ..Heun::default() }),
            _ => {
                return Err(Error::Argument(format!(
                    "there is no sampler {name:?}; there are {}",
                    Self::NAMES.join(", ")
                )));
            }
        };
        sampler.validate()?;
        Ok(sampler)
    }

    /// The name of the method.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ddpm(_) => "ddpm",
            Self::Ddim(_) => "ddim",
            Self::DpmSolver(DpmSolver { data_prediction: true, .. }) => "dpm_solver++",
            Self::DpmSolver(_) => "dpm_solver",
            Self::UniPc(_) => "unipc",
            Self::Heun(_) => "heun",
        }
    }

    /// Most evaluations of the network in one step.
    pub fn evaluations_per_step(&self) -> usize {
        match self {
            Self::DpmSolver(DpmSolver { method: Method::Multistep, .. }) => 1,
            Self::DpmSolver(settings) => settings.order,
            Self::Heun(_) => 2,
            Self::Ddpm(_) | Self::Ddim(_) | Self::UniPc(_) => 1,
        }
    }

    /// Whether the steps that it makes for a clip depend on the other clips of the batch.
    pub fn is_adaptive(&self) -> bool {
        matches!(self, Self::DpmSolver(DpmSolver { method: Method::Adaptive(_), .. }))
    }

    /// Fails when a setting is outside its domain.
    ///
    /// # Errors
    /// [`Error::Argument`] naming it.
    pub fn validate(&self) -> Result<()> {
        let steps = match self {
            Self::Ddpm(_) => None,
            Self::Ddim(settings) if (0.0..=1.0).contains(&settings.eta) => None,
            Self::Ddim(settings) => {
                return Err(Error::Argument(format!(
                    "ddim: eta is between 0 and 1, not {}",
                    settings.eta
                )));
            }
            Self::DpmSolver(settings) => {
                settings.validate()?;
                Some(settings.steps)
            }
            Self::UniPc(settings) => {
                settings.validate()?;
                Some(settings.steps)
            }
            Self::Heun(settings) => {
                settings.validate()?;
                Some(settings.steps)
            }
        };
        match steps {
            Some(steps) if !(1..=MOST_STEPS).contains(&steps) => Err(Error::Argument(format!(
                "{}: the number of steps is 1 to {MOST_STEPS}, not {steps}",
                self.name()
            ))),
            _ => Ok(()),
        }
    }

    /// The clean clips that standard normal noise `x` becomes.
    ///
    /// # Errors
    /// When a setting is outside its domain, a state is not finite ([`Error::NonFinite`] naming the
    /// step), and those of the network and the observer.
    pub fn sample<S: State>(&self, run: Run<'_, S>, x: S) -> Result<S> {
        self.validate()?;
        if self.is_adaptive() && run.condition.is_some_and(Condition::is_guided) {
            return Err(Error::Argument(
                "an adaptive solver takes no gradient guidance; take one with a fixed number of \
                 steps, or replacement"
                    .to_string(),
            ));
        }
        let config = run.diffusion;
        let mut steps = Loop::new(self.name(), run);
        match self {
            Self::Ddpm(settings) => steps.drive(&mut DdpmSteps::new(settings, config)?, x),
            Self::Ddim(settings) => steps.drive(&mut DdimSteps::new(settings, config)?, x),
            Self::DpmSolver(settings) => match settings.method {
                Method::Adaptive(tolerance) => {
                    adaptive::solve(&mut steps, settings, tolerance, config, x)
                }
                _ => steps.drive(&mut GridSteps::new(settings, config)?, x),
            },
            Self::UniPc(settings) => steps.drive(&mut UniPcSteps::new(settings, config)?, x),
            Self::Heun(settings) => steps.drive(&mut HeunSteps::new(settings, config)?, x),
        }
    }
}
