//! Batch norm with elastic channels.

use candle_core::Tensor;
use shared::Result;
use shared::nn::functional::{BatchStatistics, batch_norm_eval, batch_norm_train};
use shared::nn::{BatchNorm1d, Weights};

use super::Channels;
use crate::subnet::{BATCH_NORM_EPS, BATCH_NORM_MOMENTUM};

/// Batch norm of which channels can be selected.
///
/// In training, running statistics follow when the active channels are the leading ones. When
/// they are an incomplete choice by number, the statistics stay as they are and only the counter
/// advances: so the published supernets were trained, and so their statistics look. Networks
/// taken out of a supernet need recalibration either way.
pub struct DynamicBatchNorm1d(BatchNorm1d);

/// The vectors of a [`DynamicBatchNorm1d`]'s selected channels, `[C]` each.
pub struct BatchNormVectors {
    /// Factor.
    pub weight: Tensor,
    /// Offset.
    pub bias: Tensor,
    /// Running mean.
    pub mean: Tensor,
    /// Running variance.
    pub variance: Tensor,
}

impl DynamicBatchNorm1d {
    /// The layer for `channels` channels, with the parameters and buffers `bn.*`.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(weights: &Weights, channels: usize) -> Result<Self> {
        let norm =
            BatchNorm1d::new(&weights.at("bn"), channels, BATCH_NORM_EPS, BATCH_NORM_MOMENTUM)?;
        Ok(Self(norm))
    }

    /// The vectors of the selected channels.
    ///
    /// # Errors
    /// When the channels are not a part of the layer.
    pub fn vectors(&self, channels: &Channels) -> Result<BatchNormVectors> {
        Ok(BatchNormVectors {
            weight: channels.select(&self.0.weight, 0)?,
            bias: channels.select(&self.0.bias, 0)?,
            mean: channels.select(&self.0.running_mean, 0)?,
            variance: channels.select(&self.0.running_var, 0)?,
        })
    }

    /// `x` `[B, C]` or `[B, C, T]` normalised, its channels being those of `channels`: by the
    /// running statistics, or with `train` by the batch's.
    ///
    /// # Errors
    /// When the channels are not a part of the layer or not those of `x`, or when `train` meets a
    /// batch with a single value a channel.
    pub fn forward(&self, x: &Tensor, channels: &Channels, train: bool) -> Result<Tensor> {
        let BatchNormVectors { weight, bias, mean, variance } = self.vectors(channels)?;
        if !train {
            return batch_norm_eval(x, &mean, &variance, &weight, &bias, self.0.eps);
        }
        let (y, statistics) = batch_norm_train(x, &weight, &bias, self.0.eps)?;
        let full = self.0.weight.dim(0)?;
        match channels {
            _ if channels.is_complete(full) => self.0.track(&statistics)?,
            Channels::Index(_) => self.count()?,
            Channels::All | Channels::First(_) => {
                self.count()?;
                self.move_leading(&statistics)?;
            }
        }
        Ok(y)
    }

    fn count(&self) -> Result<()> {
        let counter = &self.0.num_batches_tracked;
        Ok(counter.set(&(counter.as_tensor() + 1.0)?)?)
    }

    fn move_leading(&self, batch: &BatchStatistics) -> Result<()> {
        let BatchNorm1d { running_mean, running_var, momentum, .. } = &self.0;
        let leading = batch.mean.dim(0)?;
        let (mean, variance) = batch.update(
            &running_mean.narrow(0, 0, leading)?,
            &running_var.narrow(0, 0, leading)?,
            *momentum,
        )?;
        running_mean.slice_set(&mean, 0, 0)?;
        running_var.slice_set(&variance, 0, 0)?;
        Ok(())
    }
}
