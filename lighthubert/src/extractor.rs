//! The convolutional extractor: from samples to frames.

use candle_core::Tensor;
use shared::nn::functional::{
    Activation, ConvOptions, GroupNormOptions, activate, group_norm_of_positions, group_norm_with,
};
use shared::nn::{Conv1d, GroupNorm, Weights};
use shared::{Error, Result};

use crate::config::{ExtractorConfig, ExtractorMode, NORM_EPS};

/// Convolutions over time, each followed by a norm (see [`ExtractorMode`]) and GELU.
pub struct ConvExtractor {
    blocks: Vec<ConvBlock>,
    receptive_samples: usize,
}

/// A convolution of the extractor with what follows it.
pub struct ConvBlock {
    conv: Conv1d,
    norm: Norm,
}

enum Norm {
    None,
    /// Of each channel over time.
    OfChannels(GroupNorm),
    /// Of each frame over its channels.
    OfFrames(GroupNorm),
}

impl ConvExtractor {
    /// The extractor with parameters `conv_layers.{i}.0` and, of the norms, `conv_layers.{i}.2.1`
    /// (layer norms) or `conv_layers.0.2` (instance norm).
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(config: &ExtractorConfig, weights: &Weights) -> Result<Self> {
        let weights = weights.at("conv_layers");
        let mut inputs = 1;
        let mut blocks = vec![];
        for (i, layer) in config.layers.iter().enumerate() {
            let (weights, channels) = (weights.at(i), layer.channels);
            let has_norm = config.mode == ExtractorMode::LayerNorm || i == 0;
            let activation = if has_norm { Activation::Identity } else { Activation::Gelu };
            let options = ConvOptions { stride: [layer.stride], activation, ..Default::default() };
            let at = weights.at(0);
            let conv = Conv1d::new(&at, inputs, channels, [layer.kernel], config.bias, options)?;
            let norm = match (config.mode, has_norm) {
                (_, false) => Norm::None,
                (ExtractorMode::LayerNorm, _) => {
                    Norm::OfFrames(GroupNorm::new(&weights.at("2.1"), 1, channels, NORM_EPS)?)
                }
                (ExtractorMode::Default, _) => {
                    Norm::OfChannels(GroupNorm::new(&weights.at(2), channels, channels, NORM_EPS)?)
                }
            };
            blocks.push(ConvBlock { conv, norm });
            inputs = channels;
        }
        Ok(Self { blocks, receptive_samples: config.receptive_samples() })
    }

    /// The frames `[B, C, T]` of signals `[B, n]`.
    ///
    /// # Errors
    /// [`Error::TooShort`] when there is not one frame.
    pub fn forward(&self, source: &Tensor) -> Result<Tensor> {
        let &[_, samples] = source.dims() else {
            return Err(Error::shape("signal", "[B, n]", source.dims()));
        };
        if samples < self.receptive_samples {
            let need_samples = self.receptive_samples;
            return Err(Error::TooShort { have_samples: samples, need_samples });
        }
        self.blocks.iter().try_fold(source.unsqueeze(1)?, |x, block| block.forward(&x))
    }

    /// The blocks in order; the first takes `[B, 1, n]`.
    pub fn blocks(&self) -> &[ConvBlock] {
        &self.blocks
    }
}

impl ConvBlock {
    /// The output `[B, C', T']` for `x` `[B, C, T]`.
    ///
    /// # Errors
    /// When the channels are others, or `x` is shorter than the kernel.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.conv.forward(x)?;
        match &self.norm {
            Norm::None => Ok(y),
            Norm::OfChannels(norm) => {
                let options = GroupNormOptions {
                    groups: norm.groups,
                    weight: Some(&norm.weight),
                    bias: Some(&norm.bias),
                    eps: norm.eps,
                    activation: Activation::Gelu,
                    ..GroupNormOptions::default()
                };
                group_norm_with(&y, &options)
            }
            Norm::OfFrames(norm) => {
                let (weight, bias) = (Some(&norm.weight), Some(&norm.bias));
                let y = group_norm_of_positions(&y.unsqueeze(1)?, 1, weight, bias, norm.eps)?;
                activate(&y.squeeze(1)?, Activation::Gelu)
            }
        }
    }
}
