//! The arithmetic of an optimiser step for one parameter: a fused kernel for f32 on the CPU, the
//! same in tensor operations for every other device and type.

use candle_core::{DType, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::elements::{with_elements, with_elements_mut};
use crate::{Error, Result};

/// Elements that one task updates; small enough that the streams of a task share the cache.
const CHUNK: usize = 1 << 14;

/// How gradients change parameters. The learning rate comes from a [`super::Schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Rule {
    /// Adam (Kingma and Ba 2015, algorithm 1); weight decay is L2: added to the gradient.
    Adam(AdamConfig),
    /// AdamW (Loshchilov and Hutter 2019, algorithm 2): weight decay acts on the weight directly.
    AdamW(AdamConfig),
    /// Gradient descent with momentum, in PyTorch's form: `b = momentum b + g`, `p -= lr b`.
    Sgd(SgdConfig),
}

/// Settings of [`Rule::Adam`] and [`Rule::AdamW`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamConfig {
    /// Decay of the mean of the gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// Settings of [`Rule::Sgd`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SgdConfig {
    /// Share of the earlier direction that is kept.
    pub momentum: f64,
    /// Looks one step ahead (Nesterov).
    pub nesterov: bool,
    /// L2 weight decay, added to the gradient.
    pub weight_decay: f64,
}

/// What one step does to one parameter, apart from the rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Learning rate.
    pub lr: f64,
    /// Multiplies the rule's weight decay.
    pub weight_decay_multiplier: f64,
    /// Multiplies the gradient first.
    pub gradient_scale: f64,
    /// Number of this update of the parameter, from 1.
    pub number: u64,
}

impl Rule {
    /// Fails unless every setting is in its domain.
    ///
    /// # Errors
    /// [`Error::Argument`] with the setting's name.
    pub fn validate(&self) -> Result<()> {
        let share = |x: f64| (0.0..1.0).contains(&x);
        let bad = |name: &str, value: f64, range: &str| {
            Err(Error::Argument(format!("optimiser: {name} must be {range}, not {value}")))
        };
        let weight_decay = match *self {
            Self::Adam(AdamConfig { beta1, beta2, eps, weight_decay })
            | Self::AdamW(AdamConfig { beta1, beta2, eps, weight_decay }) => {
                if !share(beta1) {
                    return bad("beta1", beta1, "in [0, 1)");
                }
                if !share(beta2) {
                    return bad("beta2", beta2, "in [0, 1)");
                }
                if !(eps > 0.0 && eps.is_finite()) {
                    return bad("eps", eps, "above 0");
                }
                weight_decay
            }
            Self::Sgd(SgdConfig { momentum, nesterov, weight_decay }) => {
                if !share(momentum) || (nesterov && momentum == 0.0) {
                    return bad("momentum", momentum, "in [0, 1), above 0 with nesterov");
                }
                weight_decay
            }
        };
        if !(weight_decay >= 0.0 && weight_decay.is_finite()) {
            return bad("weight_decay", weight_decay, "at least 0");
        }
        Ok(())
    }

    /// Names of the tensors that the rule keeps for each parameter.
    pub(super) fn state_names(&self) -> &'static [&'static str] {
        match self {
            Self::Adam(_) | Self::AdamW(_) => &["first_moment", "second_moment"],
            Self::Sgd(config) if config.momentum > 0.0 => &["momentum"],
            Self::Sgd(_) => &[],
        }
    }

    /// Type of the tensors that the rule keeps for a parameter of type `dtype`.
    pub(super) fn state_dtype(dtype: DType) -> DType {
        if dtype == DType::F64 { DType::F64 } else { DType::F32 }
    }

    /// Updates `parameter` and its `state` (one tensor per name of [`Rule::state_names`]).
    pub(super) fn update(
        &self,
        step: Step,
        parameter: &Var,
        state: &[Var],
        gradient: &Tensor,
    ) -> Result<()> {
        let fused = parameter.dtype() == DType::F32 && parameter.device().is_cpu();
        match (*self, state) {
            (Self::Adam(config), [first, second]) => {
                let adam = Adam::new(config, false, step);
                adam.update(parameter, first, second, gradient, fused)?
            }
            (Self::AdamW(config), [first, second]) => {
                let adam = Adam::new(config, true, step);
                adam.update(parameter, first, second, gradient, fused)?
            }
            (Self::Sgd(config), _) => {
                Sgd::new(config, step).update(parameter, state.first(), gradient, fused)?
            }
            _ => return Err(Error::Argument("optimiser state does not fit its rule".into())),
        }
        Ok(())
    }
}

/// The numbers of one Adam step.
#[derive(Clone, Copy)]
struct Adam {
    gradient_scale: f64,
    /// Weight decay that is added to the gradient.
    l2: f64,
    /// What decoupled weight decay leaves of the parameter.
    keep: f64,
    beta1: f64,
    beta2: f64,
    /// The learning rate over the first moment's bias correction.
    step_size: f64,
    /// One over the root of the second moment's bias correction.
    root_correction: f64,
    eps: f64,
}

impl Adam {
    fn new(config: AdamConfig, decoupled: bool, step: Step) -> Self {
        let weight_decay = config.weight_decay * step.weight_decay_multiplier;
        let number = step.number as f64;
        Self {
            gradient_scale: step.gradient_scale,
            l2: if decoupled { 0.0 } else { weight_decay },
            keep: if decoupled { 1.0 - step.lr * weight_decay } else { 1.0 },
            beta1: config.beta1,
            beta2: config.beta2,
            step_size: step.lr / (1.0 - config.beta1.powf(number)),
            root_correction: 1.0 / (1.0 - config.beta2.powf(number)).sqrt(),
            eps: config.eps,
        }
    }

    fn update(
        self,
        parameter: &Var,
        first: &Var,
        second: &Var,
        gradient: &Tensor,
        fused: bool,
    ) -> candle_core::Result<()> {
        if !fused {
            return self.update_portably(parameter, first, second, gradient);
        }
        with_elements(gradient, |g| {
            with_elements_mut(parameter, |p| {
                with_elements_mut(first, |m| {
                    with_elements_mut(second, |v| {
                        let chunks = (
                            p.par_chunks_mut(CHUNK),
                            m.par_chunks_mut(CHUNK),
                            v.par_chunks_mut(CHUNK),
                            g.par_chunks(CHUNK),
                        );
                        chunks.into_par_iter().for_each(|(p, m, v, g)| self.fused(p, m, v, g));
                        Ok(())
                    })
                })
            })
        })
    }

    fn fused(self, parameter: &mut [f32], first: &mut [f32], second: &mut [f32], g: &[f32]) {
        let [scale, l2, keep] = [self.gradient_scale, self.l2, self.keep].map(|x| x as f32);
        let [beta2, rest1, rest2] =
            [self.beta2, 1.0 - self.beta1, 1.0 - self.beta2].map(|x| x as f32);
        let [step_size, root_correction, eps] =
            [self.step_size, self.root_correction, self.eps].map(|x| x as f32);
        for (((p, m), v), g) in parameter.iter_mut().zip(first).zip(second).zip(g) {
            let g = g * scale + l2 * *p;
            *m += rest1 * (g - *m);
            *v = beta2 * *v + rest2 * g * g;
            *p = keep * *p - step_size * *m / (v.sqrt() * root_correction + eps);
        }
    }

    fn update_portably(
        self,
        parameter: &Var,
        first: &Var,
        second: &Var,
        gradient: &Tensor,
    ) -> candle_core::Result<()> {
        let p = parameter.to_dtype(first.dtype())?;
        let g = ((gradient.to_dtype(first.dtype())? * self.gradient_scale)? + (&p * self.l2)?)?;
        let m = ((first.as_tensor() * self.beta1)? + (&g * (1.0 - self.beta1))?)?;
        let v = ((second.as_tensor() * self.beta2)? + (g.sqr()? * (1.0 - self.beta2))?)?;
        let denominator = v.sqrt()?.affine(self.root_correction, self.eps)?;
        let p = ((p * self.keep)? - (&m / denominator)? * self.step_size)?;
        first.set(&m)?;
        second.set(&v)?;
        parameter.set(&p.to_dtype(parameter.dtype())?)
    }
}

/// The numbers of one step of gradient descent.
#[derive(Clone, Copy)]
struct Sgd {
    gradient_scale: f64,
    l2: f64,
    momentum: f64,
    nesterov: bool,
    lr: f64,
}

impl Sgd {
    fn new(config: SgdConfig, step: Step) -> Self {
        Self {
            gradient_scale: step.gradient_scale,
            l2: config.weight_decay * step.weight_decay_multiplier,
            momentum: config.momentum,
            nesterov: config.nesterov,
            lr: step.lr,
        }
    }

    fn update(
        self,
        parameter: &Var,
        momentum: Option<&Var>,
        gradient: &Tensor,
        fused: bool,
    ) -> candle_core::Result<()> {
        if !fused {
            return self.update_portably(parameter, momentum, gradient);
        }
        with_elements(gradient, |g| {
            with_elements_mut(parameter, |p| match momentum {
                Some(momentum) => with_elements_mut(momentum, |b| {
                    let chunks =
                        (p.par_chunks_mut(CHUNK), b.par_chunks_mut(CHUNK), g.par_chunks(CHUNK));
                    chunks.into_par_iter().for_each(|(p, b, g)| self.fused_momentum(p, b, g));
                    Ok(())
                }),
                None => {
                    let chunks = (p.par_chunks_mut(CHUNK), g.par_chunks(CHUNK));
                    chunks.into_par_iter().for_each(|(p, g)| self.fused_plain(p, g));
                    Ok(())
                }
            })
        })
    }

    fn fused_momentum(self, parameter: &mut [f32], direction: &mut [f32], gradient: &[f32]) {
        let [scale, l2, momentum, lr] =
            [self.gradient_scale, self.l2, self.momentum, self.lr].map(|x| x as f32);
        for ((p, b), g) in parameter.iter_mut().zip(direction).zip(gradient) {
            let g = g * scale + l2 * *p;
            *b = momentum * *b + g;
            *p -= lr * if self.nesterov { g + momentum * *b } else { *b };
        }
    }

    fn fused_plain(self, parameter: &mut [f32], gradient: &[f32]) {
        let [scale, l2, lr] = [self.gradient_scale, self.l2, self.lr].map(|x| x as f32);
        for (p, g) in parameter.iter_mut().zip(gradient) {
            *p -= lr * (g * scale + l2 * *p);
        }
    }

    fn update_portably(
        self,
        parameter: &Var,
        momentum: Option<&Var>,
        gradient: &Tensor,
    ) -> candle_core::Result<()> {
        let dtype = Rule::state_dtype(parameter.dtype());
        let p = parameter.to_dtype(dtype)?;
        let g = ((gradient.to_dtype(dtype)? * self.gradient_scale)? + (&p * self.l2)?)?;
        let direction = match momentum {
            None => g,
            Some(momentum) => {
                let b = ((momentum.as_tensor() * self.momentum)? + &g)?;
                momentum.set(&b)?;
                if self.nesterov { (g + (b * self.momentum)?)? } else { b }
            }
        };
        parameter.set(&(p - (direction * self.lr)?)?.to_dtype(parameter.dtype())?)
    }
}
