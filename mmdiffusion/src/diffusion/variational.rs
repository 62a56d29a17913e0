//! Terms of the variational bound, in bits per element (Nichol and Dhariwal 2021).

use std::f64::consts::{LN_2, PI};

use candle_core::{D, Tensor};
use shared::Result;

use super::{Diffusion, Gaussian, Spacing, column};

/// Half the width of one of 256 bins over -1..1.
const HALF_BIN: f64 = 1.0 / 255.0;
/// What the arguments of logarithms are held above.
const LEAST: f32 = 1e-12;

/// The divergence KL(p || q) of each element, in nats.
///
/// # Errors
/// When shapes do not fit.
pub fn normal_kl(p: &Gaussian, q: &Gaussian) -> Result<Tensor> {
    let log_ratio = p.log_variance.broadcast_sub(&q.log_variance)?;
    let distance = p.mean.broadcast_sub(&q.mean)?.sqr()?;
    let distance = distance.broadcast_mul(&q.log_variance.neg()?.exp()?)?;
    let spread = (log_ratio.exp()? - log_ratio)?.affine(1.0, -1.0)?;
    Ok(distance.broadcast_add(&spread)?.affine(0.5, 0.0)?)
}

/// The logarithm of the probability that `distribution` gives the bin of 8 bits in which each
/// element of `x` (within -1..1) lies; the outermost bins are open.
///
/// # Errors
/// When shapes do not fit.
pub fn discretised_log_likelihood(x: &Tensor, distribution: &Gaussian) -> Result<Tensor> {
    let centred = x.broadcast_sub(&distribution.mean)?;
    let inverse_deviation = distribution.log_variance.affine(-0.5, 0.0)?.exp()?;
    let below = |edge: f64| -> Result<Tensor> {
        cumulative(&centred.affine(1.0, edge)?.broadcast_mul(&inverse_deviation)?)
    };
    let (upper, lower) = (below(HALF_BIN)?, below(-HALF_BIN)?);
    let log = |probability: Tensor| probability.maximum(LEAST)?.log();
    let first = log(upper.clone())?;
    let last = log(lower.affine(-1.0, 1.0)?)?;
    let inner = log((upper - lower)?)?;
    let rest = x.gt(0.999f32)?.where_cond(&last, &inner)?;
    Ok(x.lt(-0.999f32)?.where_cond(&first, &rest)?)
}

/// An approximation of the normal distribution function.
fn cumulative(x: &Tensor) -> Result<Tensor> {
    let inner = (x + (x.sqr()? * x)?.affine(0.044715, 0.0)?)?;
    Ok(inner.affine((2.0 / PI).sqrt(), 0.0)?.tanh()?.affine(0.5, 0.5)?)
}

/// The mean over all but the first axis, in bits.
fn bits(nats: &Tensor) -> Result<Tensor> {
    Ok(nats.flatten_from(1)?.mean(D::Minus1)?.affine(1.0 / LN_2, 0.0)?)
}

impl Diffusion {
    /// The terms `[B]` of the bound for the distribution `previous` that a network gives x_{t-1} at
    /// `x` = x_t: its divergence from the posterior given `clean`; at step 0, minus the log
    /// likelihood of `clean`.
    ///
    /// # Errors
    /// When shapes or steps do not fit.
    pub fn variational_bits(
        &self,
        clean: &Tensor,
        x: &Tensor,
        t: &[usize],
        previous: &Gaussian,
    ) -> Result<Tensor> {
        let posterior = self.q_posterior(clean, x, t)?;
        let divergence = bits(&normal_kl(&posterior, previous)?)?;
        let likelihood = bits(&discretised_log_likelihood(clean, previous)?.neg()?)?;
        let first: Vec<u8> = t.iter().map(|t| u8::from(*t == 0)).collect();
        let first = Tensor::from_vec(first, t.len(), clean.device())?;
        Ok(first.where_cond(&likelihood, &divergence)?)
    }

    /// The divergence `[B]` of q(x_T | `clean`) from the standard normal distribution, where T is the
    /// last step of the whole process.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn prior_bits(&self, clean: &Tensor) -> Result<Tensor> {
        let whole = Self::new(self.config(), &Spacing::All)?;
        let samples = clean.dims().first().copied().unwrap_or(0);
        let last = vec![whole.steps() - 1; samples];
        let zero = column(&[0.0], &vec![0; samples], clean)?;
        let standard = Gaussian { mean: zero.clone(), log_variance: zero };
        bits(&normal_kl(&whole.q_mean_variance(clean, &last)?, &standard)?)
    }
}
