//! Normalisation layers.

use candle_core::{DType, Tensor, Var};

use super::weights::{Init, Weights};
use crate::kernels::norm::{BatchStatistics, GivenNorm, batch_norm_train, group_norm, layer_norm};
use crate::{Error, Result};

/// Batch norm of `[B, C]` or `[B, C, T]` with running statistics, as PyTorch's layer of this name.
///
/// The tensors are public for models that use a part of the channels: they narrow them and call
/// [`batch_norm_train`] and [`crate::nn::functional::batch_norm_eval`] themselves.
#[derive(Clone, Debug)]
pub struct BatchNorm1d {
    /// Scale after normalising, `[C]`.
    pub weight: Tensor,
    /// Shift after scaling, `[C]`.
    pub bias: Tensor,
    /// Running mean, `[C]`.
    pub running_mean: Var,
    /// Running unbiased variance, `[C]`.
    pub running_var: Var,
    /// Training batches seen, an `i64` scalar.
    pub num_batches_tracked: Var,
    /// Added to the variance.
    pub eps: f64,
    /// Share of a new batch in the running statistics.
    pub momentum: f64,
}

impl BatchNorm1d {
    /// The layer for `channels` channels; fresh: weight 1, bias 0, running mean 0 and variance 1.
    /// PyTorch's defaults are `eps` 1e-5 and `momentum` 0.1.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(weights: &Weights, channels: usize, eps: f64, momentum: f64) -> Result<Self> {
        let (zeros, ones) = (Init::Constant(0.0), Init::Constant(1.0));
        Ok(Self {
            weight: weights.parameter("weight", channels, ones)?,
            bias: weights.parameter("bias", channels, zeros)?,
            running_mean: weights.buffer("running_mean", channels, zeros, None)?,
            running_var: weights.buffer("running_var", channels, ones, None)?,
            num_batches_tracked: weights.buffer(
                "num_batches_tracked",
                (),
                zeros,
                Some(DType::I64),
            )?,
            eps,
            momentum,
        })
    }

    /// The normalised `x [B, C]` or `[B, C, T]`: in training with its own statistics, which also
    /// move the running ones; otherwise with the running ones.
    ///
    /// # Errors
    /// When `x` has another shape, or in training a channel has fewer than two elements.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        if !matches!(x.rank(), 2 | 3) {
            return Err(Error::shape("input of batch norm", "[B, C] or [B, C, T]", x.dims()));
        }
        if train {
            let (y, statistics) = batch_norm_train(x, &self.weight, &self.bias, self.eps)?;
            self.track(&statistics)?;
            return Ok(y);
        }
        self.given().apply(x)
    }

    /// The norm with the running statistics.
    pub(super) fn given(&self) -> GivenNorm<'_> {
        GivenNorm {
            mean: &self.running_mean,
            variance: &self.running_var,
            weight: &self.weight,
            bias: &self.bias,
            eps: self.eps,
        }
    }

    /// Moves the running statistics by those of a training batch, and counts it.
    ///
    /// # Errors
    /// When the numbers of channels differ.
    pub fn track(&self, statistics: &BatchStatistics) -> Result<()> {
        let (mean, variance) =
            statistics.update(&self.running_mean, &self.running_var, self.momentum)?;
        self.running_mean.set(&mean)?;
        self.running_var.set(&variance)?;
        let batches = self.num_batches_tracked.to_scalar::<i64>()? + 1;
        let batches = Tensor::new(batches, self.num_batches_tracked.device())?;
        Ok(self.num_batches_tracked.set(&batches)?)
    }
}

/// Layer norm over the last dimension, as PyTorch's layer of this name.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// Scale after normalising, `[C]`.
    pub weight: Tensor,
    /// Shift after scaling, `[C]`.
    pub bias: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

impl LayerNorm {
    /// The layer for `channels` channels; fresh: weight 1, bias 0. PyTorch's default `eps` is 1e-5.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(weights: &Weights, channels: usize, eps: f64) -> Result<Self> {
        let weight = weights.parameter("weight", channels, Init::Constant(1.0))?;
        let bias = weights.parameter("bias", channels, Init::Constant(0.0))?;
        Ok(Self { weight, bias, eps })
    }

    /// The normalised `x [.., C]`.
    ///
    /// # Errors
    /// When the last dimension is not C.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, Some(&self.weight), Some(&self.bias), self.eps)
    }
}

/// Group norm of `[B, C, ..]`, as PyTorch's layer of this name.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    /// Scale after normalising, `[C]`.
    pub weight: Tensor,
    /// Shift after scaling, `[C]`.
    pub bias: Tensor,
    /// Number of groups of channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
}

impl GroupNorm {
    /// The layer for `channels` channels in `groups` groups; fresh: weight 1, bias 0. PyTorch's
    /// default `eps` is 1e-5.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(weights: &Weights, groups: usize, channels: usize, eps: f64) -> Result<Self> {
        let weight = weights.parameter("weight", channels, Init::Constant(1.0))?;
        let bias = weights.parameter("bias", channels, Init::Constant(0.0))?;
        Ok(Self { weight, bias, groups, eps })
    }

    /// The normalised `x [B, C, ..]`.
    ///
    /// # Errors
    /// When `x` has another number of channels, or the groups do not divide it.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        group_norm(x, self.groups, Some(&self.weight), Some(&self.bias), self.eps)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::check;

    #[test]
    fn running_statistics_follow_pytorch() {
        // The rules of torch.nn.BatchNorm1d in f64: running variances are unbiased, batches enter
        // with the weight `momentum`, evaluation uses the running statistics.
        let weights = Weights::fresh(0, DType::F64, &Device::Cpu);
        let layer = BatchNorm1d::new(&weights, 2, 1e-5, 0.1).unwrap();
        let x = |step: usize| {
            let values: Vec<f64> = (0..12)
                .map(|i| {
                    let (b, c, t) = (i / 6, i / 3 % 2, i % 3);
                    (0.7 * b as f64 + 1.3 * c as f64 + 0.31 * t as f64 + step as f64).sin()
                })
                .collect();
            Tensor::from_vec(values, (2, 2, 3), &Device::Cpu).unwrap()
        };
        let (mut mean, mut variance) = ([0.0; 2], [1.0; 2]);
        for step in 0..2 {
            layer.forward(&x(step), true).unwrap();
            for c in 0..2 {
                let channel = check::to_vec(&x(step).narrow(1, c, 1).unwrap());
                let batch_mean = channel.iter().sum::<f64>() / 6.0;
                let squares = channel.iter().map(|x| (x - batch_mean).powi(2)).sum::<f64>();
                mean[c] = 0.9 * mean[c] + 0.1 * batch_mean;
                variance[c] = 0.9 * variance[c] + 0.1 * squares / 5.0;
            }
        }
        let close = |found: &Tensor, expected: &[f64]| {
            let found = check::to_vec(found);
            assert!(
                found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12),
                "{found:?} {expected:?}"
            );
        };
        close(&layer.running_mean, &mean);
        close(&layer.running_var, &variance);
        assert_eq!(layer.num_batches_tracked.to_scalar::<i64>().unwrap(), 2);
        let expected: Vec<f64> = check::to_vec(&x(1))
            .iter()
            .enumerate()
            .map(|(i, x)| (x - mean[i / 3 % 2]) / (variance[i / 3 % 2] + 1e-5).sqrt())
            .collect();
        close(&layer.forward(&x(1), false).unwrap(), &expected);
        // Evaluation leaves the statistics alone.
        close(&layer.running_mean, &mean);
        let names: Vec<String> = weights.state().into_keys().collect();
        assert_eq!(names, ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"]);
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let weights = Weights::fresh(0, DType::F32, &Device::Cpu);
        let layer = BatchNorm1d::new(&weights, 2, 1e-5, 0.1).unwrap();
        for dims in [&[2, 3, 4][..], &[2], &[2, 2, 2, 2], &[1, 2, 1]] {
            let x = Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
            assert!(layer.forward(&x, true).is_err(), "{dims:?}");
        }
    }
}
