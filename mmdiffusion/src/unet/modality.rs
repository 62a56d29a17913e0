//! The layers that picture and sound have in the same places.
//!
//! Pictures are `[B, F, C, H, W]` between the layers. A convolution reads them with frames and channels
//! exchanged and leaves its result so, as a view; the norm that follows reads it and writes frames
//! first again. Nothing is copied in between.

use candle_core::Tensor;
use shared::Result;
use shared::nn::functional::{Activation, activate, avg_pool1d, avg_pool2d, upsample_nearest};
use shared::nn::{Conv1d, Conv2d, Conv3d, GroupNorm};

use super::plan::Resampling;
use crate::layers::{Layers, Modulation, along, normalise};

/// Down-sampling factor of the picture's height and width from level to level.
pub(super) const VIDEO_FACTOR: usize = 2;
/// Down-sampling factor of the sound from level to level.
pub(super) const AUDIO_FACTOR: usize = 4;

/// Picture or sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modality {
    /// `[B, F, C, H, W]`.
    Video,
    /// `[B, C, L]`.
    Audio,
}

impl Modality {
    /// As in the names of layers.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Video => "video",
            Self::Audio => "audio",
        }
    }

    /// The dimension of the channels.
    pub(super) fn channel_axis(self) -> usize {
        match self {
            Self::Video => 2,
            Self::Audio => 1,
        }
    }
}

/// A convolution of one modality that keeps its size.
#[derive(Clone, Debug)]
pub enum Convolution {
    /// Of each frame, then of each pixel over time.
    FramesThenTime(Conv2d, Conv1d),
    /// Over frames and pixels, and where the kernel is 1 pixel of 1 frame.
    Video(Conv3d),
    /// Over time.
    Audio(Conv1d),
}

impl Convolution {
    /// The convolution of pictures with 3 x 3 pixels, then with 3 frames.
    pub fn frames_then_time(layers: &Layers, [inputs, outputs]: [usize; 2]) -> Result<Self> {
        let spatial = layers.at("video_conv_spatial").conv2d([inputs, outputs], 3, 1)?;
        let temporal = layers.at("video_conv_temporal").conv1d([outputs; 2], 3, 1)?;
        Ok(Self::FramesThenTime(spatial, temporal))
    }

    /// The convolution of pictures with a cube of `kernel` frames, lines and columns.
    pub fn video(layers: &Layers, channels: [usize; 2], kernel: usize) -> Result<Self> {
        Ok(Self::Video(layers.at("video_conv").conv3d(channels, kernel)?))
    }

    /// The convolution of sound.
    pub fn audio(
        layers: &Layers,
        channels: [usize; 2],
        kernel: usize,
        dilation: usize,
    ) -> Result<Self> {
        Ok(Self::Audio(layers.at("audio_conv").conv1d(channels, kernel, dilation)?))
    }

    /// The convolution of every position for itself.
    pub fn pointwise(layers: &Layers, modality: Modality, channels: [usize; 2]) -> Result<Self> {
        match modality {
            Modality::Video => Self::video(layers, channels, 1),
            Modality::Audio => Self::audio(layers, channels, 1, 1),
        }
    }

    /// See [`shared::nn::Conv::compact`].
    pub(super) fn compact(&mut self) -> Result<()> {
        match self {
            Self::FramesThenTime(spatial, temporal) => {
                spatial.compact()?;
                temporal.compact()
            }
            Self::Video(conv) => conv.compact(),
            Self::Audio(conv) => conv.compact(),
        }
    }

    /// The result, in the layout of `x`.
    ///
    /// # Errors
    /// When `x` has other channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::FramesThenTime(spatial, temporal) => {
                let spatial = spatial.forward_of_frames(&x.transpose(1, 2)?)?;
                Ok(temporal.forward_over_frames(&spatial)?.transpose(1, 2)?)
            }
            Self::Video(conv) if conv.kernel() == [1; 3] => {
                let (batch, frames, _, height, width) = x.dims5()?;
                let items = conv.forward(&frames_as_items(x)?)?;
                Ok(items.reshape((batch, frames, (), height, width))?)
            }
            Self::Video(conv) => Ok(conv.forward(&x.transpose(1, 2)?)?.transpose(1, 2)?),
            Self::Audio(conv) => conv.forward(x),
        }
    }

    /// The result plus `residual` of the same shape.
    ///
    /// # Errors
    /// As [`Convolution::forward`], and when the shapes differ.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match self {
            Self::Video(conv) if conv.kernel() == [1; 3] => {
                let items = conv.forward_add(&frames_as_items(x)?, &frames_as_items(residual)?)?;
                Ok(items.reshape(residual.shape())?)
            }
            Self::Audio(conv) => conv.forward_add(x, residual),
            _ => Ok((self.forward(x)? + residual)?),
        }
    }
}

/// A video `[B, F, C, H, W]` as `[B F, C, 1, H, W]`.
fn frames_as_items(x: &Tensor) -> Result<Tensor> {
    let (batch, frames, channels, height, width) = x.dims5()?;
    Ok(x.reshape((batch * frames, channels, 1, height, width))?)
}

/// Group norm of one modality. Pictures are normalised over all their frames.
///
/// As in the original, pictures with as many frames as channels are taken for `[B, C, F, H, W]`: their
/// frames are normalised in groups, and scaled.
#[derive(Clone, Debug)]
pub struct Norm(GroupNorm);

impl Norm {
    /// A norm of `channels` channels.
    pub fn new(layers: &Layers, channels: usize) -> Result<Self> {
        Ok(Self(layers.at("GroupNorm").norm(channels)?))
    }

    /// `activation(norm(x))`.
    pub fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let has_frames = x.rank() == 5 && !has_frames_for_channels(x);
        normalise(x, &self.0, has_frames, None, activation)
    }

    /// `silu` of the modulated norm.
    pub fn forward_modulated(&self, x: &Tensor, modulation: &Modulation) -> Result<Tensor> {
        let silu = Activation::Silu;
        let rank = x.rank();
        let has_frames = rank == 5;
        let axis = if has_frames { 2 } else { 1 };
        match modulation {
            Modulation::Shift(vectors) => {
                self.forward(&x.broadcast_add(&along(vectors, axis, rank)?)?, silu)
            }
            Modulation::ScaleShift([scale, shift]) if has_frames_for_channels(x) => {
                let y = self.forward(x, Activation::Identity)?;
                let [scale, shift] =
                    [along(&(scale + 1.0)?, axis, rank)?, along(shift, axis, rank)?];
                activate(&y.broadcast_mul(&scale)?.broadcast_add(&shift)?, silu)
            }
            Modulation::ScaleShift(vectors) => {
                normalise(x, &self.0, has_frames, Some(vectors), silu)
            }
        }
    }
}

/// Whether a picture is taken for one with channels first.
fn has_frames_for_channels(x: &Tensor) -> bool {
    matches!(x.dims(), [_, frames, channels, _, _] if frames == channels)
}

/// Halves or doubles height and width of pictures; takes a fourth or four times the samples of sound.
pub fn resample(x: &Tensor, modality: Modality, resampling: Resampling) -> Result<Tensor> {
    match (modality, resampling) {
        (_, Resampling::None) => Ok(x.clone()),
        (Modality::Audio, Resampling::Down) => avg_pool1d(x, AUDIO_FACTOR, AUDIO_FACTOR),
        (Modality::Audio, Resampling::Up) => upsample_nearest(x, &[AUDIO_FACTOR]),
        (Modality::Video, Resampling::Up) => upsample_nearest(x, &[VIDEO_FACTOR; 2]),
        (Modality::Video, Resampling::Down) if !x.is_contiguous() => {
            // A view of what a convolution left.
            Ok(pool_pictures(&x.transpose(1, 2)?)?.transpose(1, 2)?)
        }
        (Modality::Video, Resampling::Down) => pool_pictures(x),
    }
}

fn pool_pictures(x: &Tensor) -> Result<Tensor> {
    let (outer, inner, channels, height, width) = x.dims5()?;
    let pictures = x.reshape((outer * inner, channels, height, width))?;
    let pooled = avg_pool2d(&pictures, [VIDEO_FACTOR; 2], [VIDEO_FACTOR; 2])?;
    let (_, _, height, width) = pooled.dims4()?;
    Ok(pooled.reshape((outer, inner, channels, height, width))?)
}
