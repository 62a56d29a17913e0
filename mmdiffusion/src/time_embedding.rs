//! How a network is told the time.

use candle_core::Tensor;
use shared::nn::Linear;
use shared::nn::functional::{Activation, activate};
use shared::{Error, Result};

use crate::layers::Layers;

/// Longest period of the sinusoids, over 2 pi.
const MAX_PERIOD: f64 = 10_000.0;

/// Cosines, then sines of `time [B]` times frequencies that fall from 1 to 1 / 10000 geometrically:
/// `[B, channels]`; of odd `channels`, the last is 0.
///
/// # Errors
/// When `time` has another shape.
pub fn sinusoids(time: &Tensor, channels: usize) -> Result<Tensor> {
    if time.rank() != 1 {
        return Err(Error::shape("time of a network", "[B]", time.dims()));
    }
    let half = channels / 2;
    let frequency = |j: usize| (-MAX_PERIOD.ln() * j as f64 / half as f64).exp();
    let times = time.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
    let mut values = Vec::with_capacity(times.len() * channels);
    for time in &times {
        values.extend((0..half).map(|j| (time * frequency(j)).cos() as f32));
        values.extend((0..half).map(|j| (time * frequency(j)).sin() as f32));
        values.extend((2 * half..channels).map(|_| 0.0));
    }
    Ok(Tensor::from_vec(values, (times.len(), channels), time.device())?)
}

/// Two linear layers on [`sinusoids`] of the time.
#[derive(Clone, Debug)]
pub(crate) struct TimeEmbedding {
    channels: usize,
    first: Linear,
    second: Linear,
}

impl TimeEmbedding {
    /// The embedding of `width` numbers of as many sinusoids as `channels`.
    pub(crate) fn new(layers: &Layers, channels: usize, width: usize) -> Result<Self> {
        let first = layers.at(0).linear(channels, width)?;
        let second = layers.at(2).linear(width, width)?;
        Ok(Self { channels, first, second })
    }

    /// The embedding `[B, width]` of `time [B]`.
    pub(crate) fn forward(&self, time: &Tensor) -> Result<Tensor> {
        let hidden = self.first.forward(&sinusoids(time, self.channels)?)?;
        self.second.forward(&activate(&hidden, Activation::Silu)?)
    }
}
