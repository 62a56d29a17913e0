//! Steps forward and back.

use candle_core::{DType, Tensor};
use shared::{Error, Result};

use super::{Coefficients, Diffusion, Level, Target, Variance, column};

/// A normal distribution with independent elements.
#[derive(Clone, Debug)]
pub struct Gaussian {
    /// Means.
    pub mean: Tensor,
    /// Logarithms of the variances, of the same shape or broadcast to it.
    pub log_variance: Tensor,
}

/// Times `t` hold one step for each sample of the tensors, which are f32.
impl Diffusion {
    /// x_t of the clean `clean` with `noise`.
    ///
    /// # Errors
    /// When shapes or steps do not fit.
    pub fn q_sample(&self, clean: &Tensor, t: &[usize], noise: &Tensor) -> Result<Tensor> {
        let c = self.coefficients();
        self.weighted((&c.sqrt_alphas_cumprod, clean), (&c.sqrt_one_minus_alphas_cumprod, noise), t)
    }

    /// q(x_t | x_0).
    ///
    /// # Errors
    /// When steps do not fit.
    pub fn q_mean_variance(&self, clean: &Tensor, t: &[usize]) -> Result<Gaussian> {
        let c = self.coefficients();
        Ok(Gaussian {
            mean: clean.broadcast_mul(&column(&c.sqrt_alphas_cumprod, t, clean)?)?,
            log_variance: column(&c.log_one_minus_alphas_cumprod, t, clean)?,
        })
    }

    /// q(x_{t-1} | x_t, x_0), with the clipped variance.
    ///
    /// # Errors
    /// When shapes or steps do not fit.
    pub fn q_posterior(&self, clean: &Tensor, x: &Tensor, t: &[usize]) -> Result<Gaussian> {
        let c = self.coefficients();
        Ok(Gaussian {
            mean: self.weighted(
                (&c.posterior_mean_coef1, clean),
                (&c.posterior_mean_coef2, x),
                t,
            )?,
            log_variance: column(&c.posterior_log_variance_clipped, t, clean)?,
        })
    }

    /// The clean x_0 by the network's `output` for `x`, whose channels lie on `channel_axis`; with
    /// `clip`, held within -1..1.
    ///
    /// # Errors
    /// When shapes or steps do not fit.
    pub fn predicted_clean(
        &self,
        x: &Tensor,
        output: &Tensor,
        t: &[usize],
        channel_axis: usize,
        clip: bool,
    ) -> Result<Tensor> {
        let c = self.coefficients();
        let (predicted, _) = self.split(x, output, channel_axis)?;
        let clean = match self.config().target {
            Target::Epsilon => {
                let epsilon = &c.sqrt_recipm1_alphas_cumprod;
                let noise = predicted.broadcast_mul(&column(epsilon, t, x)?)?;
                (x.broadcast_mul(&column(&c.sqrt_recip_alphas_cumprod, t, x)?)? - noise)?
            }
            Target::Clean => predicted,
            Target::Previous => {
                let coefficients = c.posterior_mean_coef1.iter().zip(&c.posterior_mean_coef2);
                let (inverse, ratio): (Vec<f64>, Vec<f64>) =
                    coefficients.map(|(first, second)| (1.0 / first, second / first)).unzip();
                let known = x.broadcast_mul(&column(&ratio, t, x)?)?;
                (predicted.broadcast_mul(&column(&inverse, t, x)?)? - known)?
            }
        };
        Ok(if clip { clean.clamp(-1f32, 1f32)? } else { clean })
    }

    /// p(x_{t-1} | x_t) by the network's `output` for `x` and the `clean` x_0 predicted by it.
    ///
    /// # Errors
    /// When shapes or steps do not fit.
    pub fn predicted_previous(
        &self,
        x: &Tensor,
        output: &Tensor,
        clean: &Tensor,
        t: &[usize],
        channel_axis: usize,
    ) -> Result<Gaussian> {
        let c = self.coefficients();
        let (predicted, spread) = self.split(x, output, channel_axis)?;
        let log_variance = match (self.config().variance, spread) {
            (Variance::Learned, Some(spread)) => spread,
            (Variance::LearnedRange, Some(spread)) => {
                let share = spread.affine(0.5, 0.5)?;
                let largest = column(&logs(&c.betas), t, x)?;
                let smallest = column(&c.posterior_log_variance_clipped, t, x)?;
                let rest = share.affine(-1.0, 1.0)?;
                (share.broadcast_mul(&largest)? + rest.broadcast_mul(&smallest)?)?
            }
            (Variance::FixedSmall, _) => column(&c.posterior_log_variance_clipped, t, x)?,
            _ => column(&large_log_variances(c), t, x)?,
        };
        let mean = match self.config().target {
            Target::Previous => predicted,
            Target::Epsilon | Target::Clean => self.q_posterior(clean, x, t)?.mean,
        };
        Ok(Gaussian { mean, log_variance })
    }

    /// x_{t-1}, drawn from its distribution with the standard normal `noise`; its mean at step 0.
    ///
    /// # Errors
    /// When shapes or steps do not fit.
    pub fn ancestral_step(
        &self,
        previous: &Gaussian,
        t: &[usize],
        noise: &Tensor,
    ) -> Result<Tensor> {
        let noise = noise.broadcast_mul(&not_first(t, noise)?)?;
        let deviation = previous.log_variance.affine(0.5, 0.0)?.exp()?;
        Ok((&previous.mean + noise.broadcast_mul(&deviation)?)?)
    }

    /// x_{t-1} of DDIM (Song et al. 2021, equation 12): `eta` 0 is deterministic, 1 has the
    /// posterior's variance. `noise` may be absent for `eta` 0.
    ///
    /// # Errors
    /// When shapes or steps do not fit.
    pub fn ddim_step(
        &self,
        x: &Tensor,
        clean: &Tensor,
        t: &[usize],
        eta: f64,
        noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        let c = self.coefficients();
        let sigmas: Vec<f64> = (c.alphas_cumprod.iter().zip(&c.alphas_cumprod_prev))
            .map(|(abar, previous)| {
                eta * ((1.0 - previous) / (1.0 - abar) * (1.0 - abar / previous)).sqrt()
            })
            .collect();
        let (kept, direction): (Vec<f64>, Vec<f64>) = (c.alphas_cumprod_prev.iter().zip(&sigmas))
            .map(|(abar, sigma)| (abar.sqrt(), (1.0 - abar - sigma * sigma).max(0.0).sqrt()))
            .unzip();
        let epsilon = self.implied_epsilon(x, clean, t)?;
        let mean = self.weighted((&kept, clean), (&direction, &epsilon), t)?;
        let Some(noise) = noise else { return Ok(mean) };
        let noise = noise.broadcast_mul(&not_first(t, noise)?)?;
        Ok((mean + noise.broadcast_mul(&column(&sigmas, t, x)?)?)?)
    }

    /// x_{t+1} on DDIM's deterministic path (Dhariwal and Nichol 2021, appendix F).
    ///
    /// # Errors
    /// When shapes or steps do not fit.
    pub fn ddim_reverse_step(&self, x: &Tensor, clean: &Tensor, t: &[usize]) -> Result<Tensor> {
        let next = &self.coefficients().alphas_cumprod_next;
        let (kept, noise): (Vec<f64>, Vec<f64>) =
            next.iter().map(|abar| (abar.sqrt(), (1.0 - abar).sqrt())).unzip();
        let epsilon = self.implied_epsilon(x, clean, t)?;
        self.weighted((&kept, clean), (&noise, &epsilon), t)
    }

    /// The noise that makes `x` of `clean`.
    fn implied_epsilon(&self, x: &Tensor, clean: &Tensor, t: &[usize]) -> Result<Tensor> {
        let c = self.coefficients();
        let scaled = x.broadcast_mul(&column(&c.sqrt_recip_alphas_cumprod, t, x)?)?;
        Ok((scaled - clean)?.broadcast_div(&column(&c.sqrt_recipm1_alphas_cumprod, t, x)?)?)
    }

    /// The noise in `x` at `level` by the network's `output`, see [`Diffusion::predicted_clean`].
    ///
    /// # Errors
    /// When shapes do not fit, and for networks that predict x_{t-1}, which is tied to the steps.
    pub fn epsilon(
        &self,
        x: &Tensor,
        output: &Tensor,
        level: Level,
        channel_axis: usize,
    ) -> Result<Tensor> {
        let (predicted, _) = self.split(x, output, channel_axis)?;
        match self.config().target {
            Target::Epsilon => Ok(predicted),
            Target::Clean => {
                let noise = (x - predicted.affine(level.alpha, 0.0)?)?;
                Ok(noise.affine(1.0 / level.sigma, 0.0)?)
            }
            Target::Previous => Err(Error::Argument(
                "a network that predicts the step before is sampled with ddpm or ddim only".into(),
            )),
        }
    }

    /// The prediction and, where it is learned, the variance in a network's `output` for `x`.
    pub(crate) fn split(
        &self,
        x: &Tensor,
        output: &Tensor,
        channel_axis: usize,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let learned = self.config().variance.is_learned();
        let mut expected = x.dims().to_vec();
        let channels = expected.get(channel_axis).copied().unwrap_or(0);
        if let Some(axis) = expected.get_mut(channel_axis) {
            *axis *= 1 + usize::from(learned);
        }
        if output.dims() != expected {
            let variance = if learned { "with" } else { "without" };
            let what = format!("output of a network {variance} learned variance");
            return Err(Error::shape(what, format!("{expected:?}"), output.dims()));
        }
        let output = output.to_dtype(DType::F32)?;
        if !learned {
            return Ok((output, None));
        }
        let part = |index: usize| output.narrow(channel_axis, index * channels, channels);
        Ok((part(0)?, Some(part(1)?)))
    }

    fn weighted(
        &self,
        (first, x): (&[f64], &Tensor),
        (second, y): (&[f64], &Tensor),
        t: &[usize],
    ) -> Result<Tensor> {
        let x = x.broadcast_mul(&column(first, t, x)?)?;
        Ok((x + y.broadcast_mul(&column(second, t, y)?)?)?)
    }
}

fn logs(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value.ln()).collect()
}

/// Logarithms of the betas, with the posterior's variance of the second step for the first.
fn large_log_variances(c: &Coefficients) -> Vec<f64> {
    let first = c.posterior_log_variance_clipped.first().copied();
    first.into_iter().chain(c.betas.iter().skip(1).map(|beta| beta.ln())).collect()
}

/// `[B, 1, ..]`: 0 for samples at step 0, else 1.
fn not_first(t: &[usize], like: &Tensor) -> Result<Tensor> {
    let samples: Vec<usize> = (0..t.len()).collect();
    let noisy: Vec<f64> = t.iter().map(|t| if *t == 0 { 0.0 } else { 1.0 }).collect();
    column(&noisy, &samples, like)
}
