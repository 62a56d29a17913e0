//! Clips of which a part is given.

mod given;

pub use given::Given;

use candle_core::{Tensor, Var};
use shared::{Error, Result};

use crate::diffusion::Level;
use crate::state::State;

/// How the rest is made to fit what is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Guidance {
    /// The network sees what is given, at the noise of each step, in the place of its own.
    Replacement,
    /// As replacement, and each step follows the gradient towards a prediction of what is given
    /// (reconstruction guidance, Ho et al., Video Diffusion Models, 2022).
    Gradient {
        /// Factor of the gradient. The published scripts ran in half precision, where their scale acts
        /// 2^20 times as strong, on the mean over B clips: a published scale of 3 is
        /// 3 * 2^20 / B per sample.
        scale: f64,
        /// What is differentiated.
        loss: Loss,
    },
}

/// What gradient guidance makes small: squared errors of the given part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Their mean over each sample's given elements: a sample is guided as if alone.
    PerSample,
    /// Their mean over the batch as well, as the published code has it: the more samples, the
    /// weaker the guidance of each.
    BatchMean,
}

/// What is known of clips beforehand.
#[derive(Clone, Debug)]
pub struct Condition<S> {
    given: S,
    mask: S,
    noise: S,
    guidance: Guidance,
}

impl<S: State> Condition<S> {
    /// The elements of `given` at which `mask` (broadcast to it) is 1, against 0 elsewhere. `noise` is
    /// what is added to them, the same at all steps: the noise that sampling starts with.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn new(given: S, mask: S, noise: S, guidance: Guidance) -> Result<Self> {
        let condition = Self { given, mask, noise, guidance };
        S::each(|part| {
            let (given, noise) = (part.of(&condition.given), part.of(&condition.noise));
            if given.dims() != noise.dims() {
                let what = format!("given {}", part.modality.name());
                return Err(Error::shape(what, format!("{:?}", noise.dims()), given.dims()));
            }
            Ok(part.of(&condition.mask).broadcast_as(given.shape())?)
        })?;
        if let Guidance::Gradient { scale, .. } = guidance
            && !scale.is_finite()
        {
            return Err(Error::Argument(format!("guidance of {scale} is not a number")));
        }
        Ok(condition)
    }

    /// `x` with the given elements, exactly.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn restore(&self, x: &S) -> Result<S> {
        self.blend(&self.given, x)
    }

    /// `x` with the given elements at the noise `level`.
    pub(crate) fn constrain(&self, x: &S, level: Level) -> Result<S> {
        self.blend(&self.noised(level)?, x)
    }

    /// Whether steps follow a gradient.
    pub(crate) fn is_guided(&self) -> bool {
        matches!(self.guidance, Guidance::Gradient { .. })
    }

    /// The state at `to` that `advance` makes of `x` at `from`, with what is given.
    pub(crate) fn step(
        &self,
        x: &S,
        from: Level,
        to: Level,
        advance: &mut dyn FnMut(&S) -> Result<S>,
    ) -> Result<S> {
        let x = self.constrain(x, from)?;
        match self.guidance {
            Guidance::Replacement => advance(&x),
            Guidance::Gradient { scale, loss } => {
                let x = S::each(|part| Ok(Var::from_tensor(part.of(&x))?.as_tensor().clone()))?;
                let stepped = advance(&x)?;
                let free = if to == Level::CLEAN {
                    stepped
                } else {
                    let gradients = self.loss(&stepped, to, loss)?.backward()?;
                    let gradient = S::each(|part| match gradients.get(part.of(&x)) {
                        Some(gradient) => Ok(gradient.clone()),
                        None => Ok(part.of(&x).zeros_like()?),
                    })?;
                    S::combine(&[(1.0, &stepped.detached()?), (-scale * from.alpha, &gradient)])?
                };
                // As in the published code, the given part stays as the step found it.
                self.blend(&x, &free)
            }
        }
    }

    fn noised(&self, level: Level) -> Result<S> {
        S::combine(&[(level.alpha, &self.given), (level.sigma, &self.noise)])
    }

    /// `known` where the mask is 1, `free` where it is 0.
    fn blend(&self, known: &S, free: &S) -> Result<S> {
        S::each(|part| {
            let mask = part.of(&self.mask);
            let rest = mask.affine(-1.0, 1.0)?;
            let known = part.of(known).broadcast_mul(mask)?;
            Ok((known + part.of(free).broadcast_mul(&rest)?)?)
        })
    }

    /// The squared errors of the given elements of `x` at `level`: the mean over those of each
    /// modality, then over modalities and samples as `loss` says.
    fn loss(&self, x: &S, level: Level, loss: Loss) -> Result<Tensor> {
        let target = self.noised(level)?;
        let samples = x.batch()?.max(1) as f64;
        let mut total: Option<Tensor> = None;
        S::each(|part| {
            let x = part.of(x);
            let mask = part.of(&self.mask).broadcast_as(x.shape())?;
            let given = f64::from(mask.sum_all()?.to_scalar::<f32>()?);
            let errors = ((x - part.of(&target))?.sqr()? * mask)?.sum_all()?;
            if given > 0.0 {
                let divisor = match loss {
                    Loss::PerSample => given / samples,
                    Loss::BatchMean => given,
                };
                let mean = errors.affine(1.0 / divisor, 0.0)?;
                total = Some(match total.take() {
                    None => mean,
                    Some(total) => (total + mean)?,
                });
            }
            Ok(errors)
        })?;
        total.ok_or_else(|| Error::Argument("guidance needs a given part".to_string()))
    }
}
