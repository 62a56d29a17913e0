//! Sizes and forms of encoders.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use shared::nn::functional::{Activation, activate};
use shared::{Error, Result};

use crate::subnet::{HEAD_DIM, LayerShape, Subnet, Window};

/// Layers of every supernet, which its kept-layer maps are made for.
pub const SUPERNET_LAYERS: usize = 12;
/// Sampling rate that all encoders are made for.
pub const RATE_HZ: u32 = 16_000;
/// Added to variances in all norms.
pub const NORM_EPS: f64 = 1e-5;

/// Most channels, taps, steps, layers and so on that a configuration may ask for.
const LARGEST_SIZE: usize = 1 << 16;

/// What the norms of the convolutional extractor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtractorMode {
    /// A layer norm over the channels of each frame in every block (LightHuBERT).
    LayerNorm,
    /// An instance norm over time in the first block only (HuBERT Base). Its statistics see the
    /// whole signal, padding included.
    Default,
}

/// A convolution of the extractor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvLayer {
    /// Output channels.
    pub channels: usize,
    /// Taps.
    pub kernel: usize,
    /// Step.
    pub stride: usize,
}

/// The convolutional extractor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtractorConfig {
    /// Which norms it has.
    pub mode: ExtractorMode,
    /// Its convolutions.
    pub layers: Vec<ConvLayer>,
    /// Whether the convolutions have biases.
    pub bias: bool,
}

impl ExtractorConfig {
    /// Frames of a signal: 0 when it is shorter than the receptive field.
    pub fn frames(&self, samples: usize) -> usize {
        self.layers.iter().fold(samples, |n, layer| match n.checked_sub(layer.kernel) {
            Some(rest) => rest / layer.stride + 1,
            None => 0,
        })
    }

    /// Samples that a frame sees, which are the fewest that give one.
    pub fn receptive_samples(&self) -> usize {
        self.samples_of_frames(1)
    }

    /// Samples between the starts of two frames.
    pub fn hop_samples(&self) -> usize {
        self.layers.iter().map(|layer| layer.stride).product()
    }

    /// Fewest samples that give so many frames; 0 for none.
    pub fn samples_of_frames(&self, frames: usize) -> usize {
        self.layers.iter().rev().fold(frames, |n, layer| match n {
            0 => 0,
            n => (n - 1).saturating_mul(layer.stride).saturating_add(layer.kernel),
        })
    }

    /// Channels of the output.
    pub fn channels(&self) -> usize {
        self.layers.last().map_or(1, |layer| layer.channels)
    }
}

/// The positional convolution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PositionalConfig {
    /// Taps; with several convolutions, of all together.
    pub kernel: usize,
    /// Groups of channels.
    pub groups: usize,
    /// Number of convolutions: 1, whose weight is normalised while it is trained, or several, each
    /// followed by a layer norm (as in data2vec).
    pub depth: usize,
    /// Channels between several convolutions; the width of the encoder where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner_width: Option<usize>,
}

impl PositionalConfig {
    /// Taps of each convolution.
    pub fn kernel_each(&self) -> usize {
        if self.depth == 1 { self.kernel } else { (self.kernel / self.depth).max(3) }
    }

    /// Input and output channels of each convolution in an encoder of the given width.
    pub fn widths(&self, width: usize) -> Vec<(usize, usize)> {
        let inner = self.inner_width.unwrap_or(width);
        let end = |place: usize| if place == 0 || place == self.depth { width } else { inner };
        (0..self.depth).map(|place| (end(place), end(place + 1))).collect()
    }
}

/// Activation of the feed-forward blocks, by its name in published configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FfnActivation {
    /// By the error function.
    Gelu,
    /// By the hyperbolic tangent (Hendrycks and Gimpel 2016, section 2).
    #[serde(alias = "gelu_fast")]
    GeluAccurate,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    ReluSquared,
    /// Hyperbolic tangent.
    Tanh,
    /// `x`.
    Linear,
}

impl FfnActivation {
    /// The activation that a linear layer can fuse, where there is one.
    pub(crate) fn fused(self) -> Activation {
        match self {
            Self::Gelu => Activation::Gelu,
            Self::Relu | Self::ReluSquared => Activation::Relu,
            Self::Tanh => Activation::Tanh,
            Self::GeluAccurate | Self::Linear => Activation::Identity,
        }
    }

    /// What is left to do after [`Self::fused`].
    pub(crate) fn finish(self, x: Tensor) -> Result<Tensor> {
        match self {
            Self::ReluSquared => Ok(x.sqr()?),
            Self::GeluAccurate => {
                // x (1 + tanh(u)) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
                let scale = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
                let argument = (&x * x.sqr()?.affine(0.044_715 * scale, scale)?)?;
                Ok((&x * activate(&argument, Activation::Sigmoid)?)?)
            }
            _ => Ok(x),
        }
    }
}

/// The prediction heads, linear maps to the size of a teacher's frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadsConfig {
    /// Size of one prediction.
    pub size: usize,
    /// Predictions from each layer.
    pub counts: Vec<usize>,
}

impl HeadsConfig {
    /// Whether there is a head on the last layer and no other.
    pub fn is_last_only(&self) -> bool {
        let (last, rest) =
            self.counts.split_last().map_or((0, &[][..]), |(last, rest)| (*last, rest));
        last > 0 && rest.iter().all(|count| *count == 0)
    }

    /// Whether there is any head.
    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }
}

/// What all networks of a supernet have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// The convolutional extractor.
    pub extractor: ExtractorConfig,
    /// The positional convolution.
    pub positional: PositionalConfig,
    /// Activation of the feed-forward blocks.
    pub activation: FfnActivation,
    /// Whether norms come before attention and feed-forward blocks instead of after their residual
    /// connections.
    pub layer_norm_first: bool,
    /// Sequences are filled up to a multiple of this many frames, which sliding windows see.
    pub sequence_multiple: usize,
    /// The prediction heads.
    pub heads: HeadsConfig,
    /// Whether each utterance is brought to mean 0 and variance 1 before the extractor.
    pub normalise: bool,
}

impl EncoderConfig {
    /// That of the published LightHuBERT.
    pub fn published() -> Self {
        let layer = |kernel, stride| ConvLayer { channels: 512, kernel, stride };
        let taps = [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)];
        let mut counts = vec![0; SUPERNET_LAYERS];
        counts[SUPERNET_LAYERS - 1] = 1;
        Self {
            extractor: ExtractorConfig {
                mode: ExtractorMode::LayerNorm,
                layers: taps.map(|(kernel, stride)| layer(kernel, stride)).to_vec(),
                bias: false,
            },
            positional: PositionalConfig { kernel: 128, groups: 16, depth: 1, inner_width: None },
            activation: FfnActivation::Gelu,
            layer_norm_first: false,
            sequence_multiple: 2,
            heads: HeadsConfig { size: 768, counts },
            normalise: true,
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |reason: &str| Err(Error::Argument(format!("encoder configuration: {reason}")));
        let layers = &self.extractor.layers;
        let convolutions = layers.iter().flat_map(|it| [it.channels, it.kernel, it.stride]);
        let Self { positional, heads, .. } = self;
        let others =
            [positional.kernel, positional.groups, positional.depth, self.sequence_multiple];
        let sizes = convolutions.chain(others).chain(positional.inner_width);
        if layers.is_empty() || layers.len() > 32 || positional.depth > 32 {
            return wrong("expected 1 to 32 convolutions in the extractor and for positions");
        }
        if !sizes.chain([heads.size]).all(|size| (1..=LARGEST_SIZE).contains(&size)) {
            return wrong("sizes must be from 1 to 65536");
        }
        if heads.counts.iter().any(|count| count.saturating_mul(heads.size) > LARGEST_SIZE) {
            return wrong("prediction heads are larger than 65536");
        }
        Ok(())
    }
}

/// A supernet: the sizes of its largest network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupernetConfig {
    /// What its networks have in common.
    pub encoder: EncoderConfig,
    /// Largest width.
    pub embed_dim: usize,
    /// Largest number of hidden units in a feed-forward block.
    pub ffn_embed_dim: usize,
    /// Whether the inner channels of several positional convolutions follow the width of the
    /// network. Otherwise they are `embed_dim`.
    pub prune_positional: bool,
}

impl SupernetConfig {
    /// That of the published LightHuBERT, the same for base, small and stage 1.
    pub fn published() -> Self {
        Self {
            encoder: EncoderConfig::published(),
            embed_dim: 768,
            ffn_embed_dim: 3072,
            prune_positional: true,
        }
    }

    /// Number of heads of the largest network.
    pub fn attention_heads(&self) -> usize {
        self.embed_dim / HEAD_DIM
    }

    /// The largest network.
    pub fn largest(&self) -> Subnet {
        let layer = LayerShape {
            heads: self.attention_heads(),
            ffn: self.ffn_embed_dim,
            window: Window::Global,
        };
        Subnet::new(self.embed_dim, vec![layer; SUPERNET_LAYERS])
    }

    /// Checks that the sizes make sense.
    ///
    /// # Errors
    /// [`Error::Argument`] that says which does not.
    pub fn check(&self) -> Result<()> {
        self.encoder.check()?;
        let wrong = |reason: String| Err(Error::Argument(format!("supernet: {reason}")));
        let (embed, ffn) = (self.embed_dim, self.ffn_embed_dim);
        if embed == 0 || !embed.is_multiple_of(HEAD_DIM) || embed > LARGEST_SIZE {
            return wrong(format!(
                "embed_dim {embed} is no multiple of {HEAD_DIM} up to {LARGEST_SIZE}"
            ));
        }
        if !(1..=LARGEST_SIZE).contains(&ffn) {
            return wrong(format!("ffn_embed_dim {ffn} is not from 1 to {LARGEST_SIZE}"));
        }
        let groups = self.encoder.positional.groups;
        if !embed.is_multiple_of(groups) {
            return wrong(format!(
                "embed_dim {embed} is not divisible by the {groups} groups of the positional convolution"
            ));
        }
        if self.encoder.heads.counts.len() != SUPERNET_LAYERS {
            let found = self.encoder.heads.counts.len();
            return wrong(format!(
                "{found} numbers of prediction heads, expected {SUPERNET_LAYERS}"
            ));
        }
        Ok(())
    }

    /// The plain network that `subnet` is.
    ///
    /// # Errors
    /// When the subnet is not within the supernet.
    pub fn network(&self, subnet: &Subnet) -> Result<NetworkConfig> {
        subnet.check_within(self)?;
        let mut encoder = self.encoder.clone();
        let positional = &mut encoder.positional;
        let keeps_inner = positional.depth > 1 && !self.prune_positional;
        positional.inner_width = keeps_inner.then_some(self.embed_dim);
        let heads = &mut encoder.heads;
        if subnet.depth() < SUPERNET_LAYERS {
            if !heads.is_empty() && !heads.is_last_only() {
                return Err(Error::Argument(format!(
                    "prediction heads on inner layers need all {SUPERNET_LAYERS} layers, the subnet has {}",
                    subnet.depth()
                )));
            }
            heads.counts.drain(..SUPERNET_LAYERS - subnet.depth());
        }
        let config = NetworkConfig { encoder, subnet: subnet.clone() };
        config.check()?;
        Ok(config)
    }
}

/// A plain network: what it has in common with others, and its own sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// What it has in common with the other networks of its supernet.
    pub encoder: EncoderConfig,
    /// Its sizes.
    pub subnet: Subnet,
}

impl NetworkConfig {
    /// Checks that the sizes make sense.
    ///
    /// # Errors
    /// [`Error::Argument`] that says which does not.
    pub fn check(&self) -> Result<()> {
        self.encoder.check()?;
        let wrong = |reason: String| Err(Error::Argument(format!("network: {reason}")));
        let Self { encoder, subnet } = self;
        let (embed, depth) = (subnet.embed_dim(), subnet.depth());
        let groups = encoder.positional.groups;
        let sizes = subnet.layers().iter().flat_map(|it| [it.heads, it.ffn]).chain([embed]);
        if !sizes.clone().all(|size| (1..=LARGEST_SIZE).contains(&size)) || depth > 1024 {
            return wrong("sizes must be from 1 to 65536, with at most 1024 layers".into());
        }
        if !embed.is_multiple_of(groups) {
            return wrong(format!(
                "embed_dim {embed} is not divisible by the {groups} groups of the positional convolution"
            ));
        }
        if encoder.heads.counts.len() != depth {
            let found = encoder.heads.counts.len();
            return wrong(format!("{found} numbers of prediction heads, expected {depth}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_follow_the_convolutions() {
        let extractor = EncoderConfig::published().extractor;
        assert_eq!((extractor.receptive_samples(), extractor.hop_samples()), (400, 320));
        for (samples, frames) in
            [(0, 0), (399, 0), (400, 1), (719, 1), (16_000, 49), (160_000, 499)]
        {
            assert_eq!(extractor.frames(samples), frames, "{samples}");
        }
        for frames in 1..50 {
            let samples = extractor.samples_of_frames(frames);
            assert_eq!(extractor.frames(samples), frames);
            assert_eq!(extractor.frames(samples - 1), frames - 1);
        }
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        let published = SupernetConfig::published();
        assert!(published.check().is_ok());
        let mut odd = published.clone();
        odd.embed_dim = 100;
        let mut empty = published.clone();
        empty.encoder.extractor.layers.clear();
        let mut still = published.clone();
        still.encoder.extractor.layers[0].stride = 0;
        let mut heads = published.clone();
        heads.encoder.heads.counts.pop();
        let mut groups = published;
        groups.encoder.positional.groups = 7;
        for config in [odd, empty, still, heads, groups] {
            assert!(matches!(config.check(), Err(Error::Argument(_))), "{config:?}");
        }
    }
}
