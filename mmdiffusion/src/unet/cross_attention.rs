//! Random-shift multi-modal attention (Ruan et al. 2023, section 3.3).

use candle_core::Tensor;
use shared::nn::functional::{
    Activation, AttentionOptions, TokenLayout, Window, multi_head_attention,
};
use shared::nn::{Conv1d, GroupNorm};
use shared::{Error, Result};

use super::attention::channels;
use super::modality::{Convolution, Modality};
use super::plan::CrossPlan;
use crate::Pair;
use crate::layers::{Layers, normalise};

/// Picture and sound attend to each other: every frame of the one to a window of frames of the other,
/// which begins some frames later and goes round at the end.
#[derive(Clone, Debug)]
pub struct CrossAttention {
    plan: CrossPlan,
    video: Side,
    audio: Side,
}

/// The layers of one modality.
#[derive(Clone, Debug)]
struct Side {
    norm: GroupNorm,
    /// To queries, keys and values, each of all heads one after the other.
    qkv: Conv1d,
    projection: Convolution,
}

impl Side {
    fn new(layers: &Layers, modality: Modality, channels: usize) -> Result<Self> {
        let name = modality.name();
        let initial = &name[..1];
        let projection = layers.at(format!("{name}_proj_out")).zero();
        Ok(Self {
            norm: layers.at(format!("{initial}_norm")).at("GroupNorm").norm(channels)?,
            qkv: layers.at(format!("{initial}_qkv")).conv1d([channels, 3 * channels], 1, 1)?,
            projection: Convolution::pointwise(&projection, modality, [channels; 2])?,
        })
    }
}

impl CrossAttention {
    /// The attention of this plan.
    pub fn new(layers: &Layers, plan: &CrossPlan) -> Result<Self> {
        Ok(Self {
            plan: plan.clone(),
            video: Side::new(layers, Modality::Video, plan.channels)?,
            audio: Side::new(layers, Modality::Audio, plan.channels)?,
        })
    }

    /// Which of the windows that are shifted at random it has, if any.
    pub(super) fn shift(&self) -> Option<usize> {
        self.plan.shift
    }

    /// See [`shared::nn::Conv::compact`].
    pub(super) fn compact(&mut self) -> Result<()> {
        for side in [&mut self.video, &mut self.audio] {
            side.qkv.compact()?;
            side.projection.compact()?;
        }
        Ok(())
    }

    /// The result for `x`, with windows that begin `shift` frames after the frame that attends.
    pub fn forward(&self, x: Pair, shift: usize) -> Result<Pair> {
        let Pair { video, audio } = x;
        let (batch, frames, width, height, columns) = video.dims5()?;
        let pixels = height * columns;
        let samples = audio.dims3()?.2;
        let [to_audio, to_video] = self.windows(frames, pixels, samples, shift)?;

        let plain = Activation::Identity;
        let pictures = normalise(&video, &self.video.norm, true, None, plain)?;
        let pictures = pictures.reshape((batch * frames, width, pixels))?;
        let pictures = self.video.qkv.forward(&pictures)?;
        let pictures = pictures.reshape((batch, frames, 3 * width, pixels))?;
        let sounds = normalise(&audio, &self.audio.norm, false, None, plain)?;
        let sounds = self.audio.qkv.forward(&sounds)?;

        let seen = self.attend(&pictures, &sounds, &to_audio)?;
        let heard = self.attend(&sounds, &pictures, &to_video)?;
        drop((pictures, sounds));
        let seen = seen.reshape(video.shape())?;
        Ok(Pair {
            video: self.video.projection.forward_add(&seen, &video)?,
            audio: self.audio.projection.forward_add(&heard, &audio)?,
        })
    }

    /// What the frames of the picture attend to, and those of the sound.
    pub fn windows(
        &self,
        frames: usize,
        pixels: usize,
        samples: usize,
        shift: usize,
    ) -> Result<[Vec<Window>; 2]> {
        let window = self.plan.window;
        if window > frames || shift > frames - window {
            return Err(Error::Argument(format!(
                "cross attention: a window of {window} frames shifted by {shift} does not fit in a \
                 video of {frames} frames"
            )));
        }
        Ok([
            Window::of_frames(frames, frames * pixels, samples, window, shift)?,
            Window::of_frames(frames, samples, frames * pixels, window, shift)?,
        ])
    }

    fn attend(&self, queries: &Tensor, keys: &Tensor, windows: &[Window]) -> Result<Tensor> {
        let CrossPlan { channels: width, heads, .. } = self.plan;
        let options = AttentionOptions {
            layout: TokenLayout::ChannelsFirst,
            heads,
            scale: ((width / heads) as f64).powf(-0.5),
            key_padding: None,
            windows: Some(windows),
        };
        let part = |of, part| channels(of, part, width);
        multi_head_attention(&part(queries, 0), &part(keys, 1), &part(keys, 2), &options)
    }
}
