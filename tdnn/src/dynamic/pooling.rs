//! Attentive statistics pooling with elastic channels.

use candle_core::Tensor;
use shared::Result;
use shared::nn::Weights;
use shared::nn::functional::{Activation, attentive_statistics};

use super::{Channels, ConvSelection, DynamicConv1d};

/// Weighted mean and deviation over time; two 1x1 convolutions score the frames of each channel.
pub struct DynamicAttentivePooling {
    linear1: DynamicConv1d,
    linear2: DynamicConv1d,
}

impl DynamicAttentivePooling {
    /// The layer for `channels` channels with `bottleneck` hidden ones.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(weights: &Weights, channels: usize, bottleneck: usize) -> Result<Self> {
        Ok(Self {
            linear1: DynamicConv1d::new(&weights.at("linear1"), channels, bottleneck, 1, 1)?,
            linear2: DynamicConv1d::new(&weights.at("linear2"), bottleneck, channels, 1, 1)?,
        })
    }

    /// The effective weights of both convolutions for the active `channels`.
    ///
    /// # Errors
    /// When the channels are not a part of the layer.
    pub fn effective_weights(&self, channels: &Channels) -> Result<[Tensor; 2]> {
        let (hidden, scores) = Self::selections(channels);
        Ok([self.linear1.effective_weight(&hidden)?, self.linear2.effective_weight(&scores)?])
    }

    /// The statistics `[B, 2 C]` of `x` `[B, C, T]`, whose channels are those of `channels`.
    ///
    /// # Errors
    /// When the channels are not a part of the layer or not those of `x`.
    pub fn forward(&self, x: &Tensor, channels: &Channels) -> Result<Tensor> {
        let (hidden, scores) = Self::selections(channels);
        let x_hidden = self.linear1.forward(x, &hidden, Activation::Tanh)?;
        let x_scores = self.linear2.forward(&x_hidden, &scores, Activation::Identity)?;
        attentive_statistics(x, &x_scores)
    }

    fn selections(channels: &Channels) -> (ConvSelection, ConvSelection) {
        (
            ConvSelection::pointwise(channels.clone(), Channels::All),
            ConvSelection::pointwise(Channels::All, channels.clone()),
        )
    }
}
