//! Attention within a modality.

use candle_core::Tensor;
use shared::Result;
use shared::nn::functional::{
    Activation, AttentionOptions, Channels, TokenLayout, group_norm_of_positions,
    multi_head_attention,
};
use shared::nn::{Conv1d, GroupNorm};

use crate::layers::{Layers, normalise};

/// `x + projection(attention(norm(x)))`.
#[derive(Clone, Debug)]
pub struct SelfAttention {
    norm: GroupNorm,
    /// To queries, keys and values, each of all heads one after the other.
    qkv: Conv1d,
    projection: Conv1d,
    channels: usize,
    heads: usize,
}

impl SelfAttention {
    /// Attention with so many heads.
    pub fn new(layers: &Layers, channels: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            norm: layers.at("norm").at("GroupNorm").norm(channels)?,
            qkv: layers.at("qkv").conv1d([channels, 3 * channels], 1, 1)?,
            projection: layers.at("proj_out").zero().conv1d([channels; 2], 1, 1)?,
            channels,
            heads,
        })
    }

    /// See [`shared::nn::Conv::compact`].
    pub(super) fn compact(&mut self) -> Result<()> {
        self.qkv.compact()?;
        self.projection.compact()
    }

    /// The result for `x [B, C, T]`, in which the `T` tokens of each item attend to each other.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let normal = normalise(x, &self.norm, false, None, Activation::Identity)?;
        let attended = self.attend(&self.qkv.forward(&normal)?, TokenLayout::ChannelsFirst)?;
        self.projection.forward_add(&attended, x)
    }

    /// The result for `x [B, F, C, P]`, in which the `F` frames of each position attend to each other.
    fn forward_over_frames(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, frames, channels, positions) = x.dims4()?;
        let GroupNorm { groups, weight, bias, eps } = &self.norm;
        let normal = group_norm_of_positions(x, *groups, Some(weight), Some(bias), *eps)?;
        let items = (batch * frames, channels, positions);
        let qkv = self.qkv.forward(&normal.reshape(items)?)?;
        let qkv = qkv.reshape((batch, frames, 3 * channels, positions))?;
        let attended = self.attend(&qkv, TokenLayout::OverFrames)?;
        let sum = self.projection.forward_add(&attended.reshape(items)?, &x.reshape(items)?)?;
        Ok(sum.reshape(x.shape())?)
    }

    fn attend(&self, qkv: &Tensor, layout: TokenLayout) -> Result<Tensor> {
        let options = AttentionOptions {
            layout,
            heads: self.heads,
            scale: ((self.channels / self.heads) as f64).powf(-0.5),
            key_padding: None,
            windows: None,
        };
        let [q, k, v] = [0, 1, 2].map(|part| channels(qkv, part, self.channels));
        multi_head_attention(&q, &k, &v, &options)
    }
}

/// Queries (0), keys (1) or values (2) of all heads.
pub(super) fn channels(qkv: &Tensor, part: usize, channels: usize) -> Channels<'_> {
    Channels { of: qkv, range: part * channels..(part + 1) * channels }
}

/// The pixels of each frame attend to each other, then the frames of each pixel.
#[derive(Clone, Debug)]
pub struct VideoAttention {
    spatial: SelfAttention,
    temporal: SelfAttention,
}

impl VideoAttention {
    /// Attention with so many heads.
    pub fn new(layers: &Layers, channels: usize, heads: usize) -> Result<Self> {
        let spatial = SelfAttention::new(&layers.at("spatial_attention_block"), channels, heads)?;
        let temporal = SelfAttention::new(&layers.at("temporal_attention_block"), channels, heads)?;
        Ok(Self { spatial, temporal })
    }

    /// See [`shared::nn::Conv::compact`].
    pub(super) fn compact(&mut self) -> Result<()> {
        self.spatial.compact()?;
        self.temporal.compact()
    }

    /// The result for `x [B, F, C, H, W]`.
    pub fn forward(&self, x: Tensor) -> Result<Tensor> {
        let dims = x.dims5()?;
        let (batch, frames, channels, height, width) = dims;
        let pixels = height * width;
        let spatial = self.spatial.forward(&x.reshape((batch * frames, channels, pixels))?)?;
        drop(x);
        let temporal = spatial.reshape((batch, frames, channels, pixels))?;
        Ok(self.temporal.forward_over_frames(&temporal)?.reshape(dims)?)
    }
}
