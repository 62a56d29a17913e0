//! The convolutional extractor: from samples to frames.

use candle_core::Tensor;
use shared::nn::functional::{
    Activation, ConvOptions, GroupNormOptions, activate, group_norm_of_positions, group_norm_with,
};
use shared::nn::{Conv1d, GroupNorm, Weights};
use shared::{Error, Result};

use crate::config::{ExtractorConfig, ExtractorMode, NORM_EPS};

/// Frames that go through all blocks together where nothing needs a gradient: 5 s of speech, whose
/// largest intermediate result then takes 33 MB instead of 196 MB for 30 s.
const PIECE_FRAMES: usize = 250;

/// Convolutions over time, each followed by a norm (see [`ExtractorMode`]) and GELU.
pub struct ConvExtractor {
    config: ExtractorConfig,
    blocks: Vec<ConvBlock>,
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
        Ok(Self { config: config.clone(), blocks })
    }

    /// The frames `[B, C, T]` of signals `[B, n]`.
    ///
    /// # Errors
    /// [`Error::TooShort`] when there is not one frame.
    pub fn forward(&self, source: &Tensor) -> Result<Tensor> {
        let &[_, samples] = source.dims() else {
            return Err(Error::shape("signal", "[B, n]", source.dims()));
        };
        let (frames, need_samples) = (self.config.frames(samples), self.config.receptive_samples());
        if frames == 0 {
            return Err(Error::TooShort { have_samples: samples, need_samples });
        }
        let whole = |x: Tensor| self.blocks.iter().try_fold(x, |x, block| block.forward(&x));
        let x = source.unsqueeze(1)?;
        // Without an instance norm, frames are independent of one another.
        let is_divisible = self.config.mode == ExtractorMode::LayerNorm && !self.is_tracked(&x);
        if !is_divisible || frames <= PIECE_FRAMES {
            return whole(x);
        }
        let hop_samples = self.config.hop_samples();
        let piece = |first: usize| {
            let count = PIECE_FRAMES.min(frames - first);
            whole(x.narrow(2, first * hop_samples, self.config.samples_of_frames(count))?)
        };
        let pieces = (0..frames).step_by(PIECE_FRAMES).map(piece).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&pieces, 2)?)
    }

    fn is_tracked(&self, x: &Tensor) -> bool {
        let weights = self.blocks.iter().filter_map(|block| block.conv.weight());
        weights.chain([x]).any(Tensor::track_op)
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{DType, Device};
    use shared::rng::Stream;

    use super::*;
    use crate::config::ConvLayer;

    #[test]
    fn pieces_give_the_frames_of_the_whole() {
        let layer = |kernel, stride| ConvLayer { channels: 16, kernel, stride };
        let layers = vec![layer(10, 5), layer(3, 2), layer(2, 2)];
        for mode in [ExtractorMode::LayerNorm, ExtractorMode::Default] {
            let config = ExtractorConfig { mode, layers: layers.clone(), bias: true };
            let fresh = Weights::fresh(0, DType::F32, &Device::Cpu);
            let trained = ConvExtractor::new(&config, &fresh).unwrap();
            let frozen =
                Weights::loaded(fresh.state(), Path::new("x"), false, DType::F32, &Device::Cpu);
            let frozen = ConvExtractor::new(&config, &frozen).unwrap();
            for frames in [1, 250, 251, 700] {
                let mut noise = vec![0.0; 2 * (config.samples_of_frames(frames) + 3)];
                Stream::new(1, "noise", frames as u64).fill_normal(&mut noise);
                let source =
                    Tensor::from_vec(noise.clone(), (2, noise.len() / 2), &Device::Cpu).unwrap();
                let [found, expected] = [&frozen, &trained].map(|it| it.forward(&source).unwrap());
                assert_eq!(found.dims(), [2, 16, frames]);
                let difference = (found - expected).unwrap().abs().unwrap().max_all().unwrap();
                assert!(difference.to_scalar::<f32>().unwrap() < 1e-5, "{mode:?} {frames}");
            }
            let short =
                Tensor::zeros((1, config.receptive_samples() - 1), DType::F32, &Device::Cpu);
            assert!(matches!(frozen.forward(&short.unwrap()), Err(Error::TooShort { .. })));
        }
    }
}
