//! The residual block, with a branch for the picture and one for the sound.

use candle_core::Tensor;
use shared::Result;
use shared::nn::Dropout;
use shared::nn::functional::Activation;

use super::attention::{SelfAttention, VideoAttention};
use super::modality::{Convolution, Modality, Norm, resample};
use super::plan::{Resampling, ResidualPlan};
use crate::Pair;
use crate::layers::{Layers, Modulation, Modulator};

/// Norm, convolution, modulated norm and point-wise convolution, beside a short cut, for both
/// modalities; then the attention of each to itself.
#[derive(Clone, Debug)]
pub struct ResidualBlock {
    modulator: Modulator,
    video: Branch,
    audio: Branch,
    video_attention: Option<VideoAttention>,
    audio_attention: Option<SelfAttention>,
}

impl ResidualBlock {
    /// The block with an embedding of `width` numbers.
    pub fn new(layers: &Layers, plan: &ResidualPlan, width: usize) -> Result<Self> {
        let [_, outputs] = plan.channels;
        let video_attention = |heads| VideoAttention::new(layers, outputs, heads);
        let audio_attention =
            |heads| SelfAttention::new(&layers.at("audio_attention_block"), outputs, heads);
        Ok(Self {
            modulator: Modulator::new(&layers.at("emb_layers").at(1), width, outputs, plan.scales)?,
            video: Branch::new(layers, Modality::Video, plan)?,
            audio: Branch::new(layers, Modality::Audio, plan)?,
            video_attention: plan.video_heads.map(video_attention).transpose()?,
            audio_attention: plan.audio_heads.map(audio_attention).transpose()?,
        })
    }

    /// See [`shared::nn::Conv::compact`].
    pub(super) fn compact(&mut self) -> Result<()> {
        for branch in [&mut self.video, &mut self.audio] {
            let Branch { in_conv, out_conv, skip, .. } = branch;
            [in_conv, out_conv].into_iter().chain(skip).try_for_each(Convolution::compact)?;
        }
        self.video_attention.iter_mut().try_for_each(VideoAttention::compact)?;
        self.audio_attention.iter_mut().try_for_each(SelfAttention::compact)
    }

    /// The result for `x` and the activated embedding `[B, width]`; training leaves out features.
    pub fn forward(&self, x: Pair, embedding: &Tensor, dropout: Option<&Dropout>) -> Result<Pair> {
        let modulation = self.modulator.forward(embedding)?;
        let mut video = self.video.forward(x.video, &modulation, dropout)?;
        let mut audio = self.audio.forward(x.audio, &modulation, dropout)?;
        if let Some(attention) = &self.video_attention {
            video = attention.forward(video)?;
        }
        if let Some(attention) = &self.audio_attention {
            audio = attention.forward(&audio)?;
        }
        Ok(Pair { video, audio })
    }
}

/// The block for one modality.
#[derive(Clone, Debug)]
struct Branch {
    /// By which dropout tells it from others.
    name: String,
    modality: Modality,
    resampling: Resampling,
    in_norm: Norm,
    in_conv: Convolution,
    out_norm: Norm,
    out_conv: Convolution,
    /// Where the channels change.
    skip: Option<Convolution>,
}

impl Branch {
    fn new(layers: &Layers, modality: Modality, plan: &ResidualPlan) -> Result<Self> {
        let part = |name: &str| layers.at(format!("{}_{name}", modality.name()));
        let (input, output) = (part("in_layers"), part("out_layers"));
        let [inputs, outputs] = plan.channels;
        let in_conv = match modality {
            Modality::Video => Convolution::frames_then_time(&input.at(2), plan.channels),
            Modality::Audio => Convolution::audio(&input.at(2), plan.channels, 3, plan.dilation),
        };
        let skip = || Convolution::pointwise(&part("skip_connection"), modality, plan.channels);
        Ok(Self {
            name: format!("{}.{}", layers.name(), modality.name()),
            modality,
            resampling: plan.resampling,
            in_norm: Norm::new(&input.at(0), inputs)?,
            in_conv: in_conv?,
            out_norm: Norm::new(&output.at(0), outputs)?,
            out_conv: Convolution::pointwise(&output.at(3).zero(), modality, [outputs; 2])?,
            skip: (inputs != outputs).then(skip).transpose()?,
        })
    }

    /// The steps are in an order in which large tensors live short.
    fn forward(
        &self,
        x: Tensor,
        modulation: &Modulation,
        dropout: Option<&Dropout>,
    ) -> Result<Tensor> {
        let resample = |x: &Tensor| resample(x, self.modality, self.resampling);
        let mut hidden = self.in_norm.forward(&x, Activation::Silu)?;
        let mut short_cut = resample(&x)?;
        drop(x);
        if let Some(skip) = &self.skip {
            short_cut = skip.forward(&short_cut)?;
        }
        hidden = resample(&self.in_conv.forward(&hidden)?)?;
        hidden = self.out_norm.forward_modulated(&hidden, modulation)?;
        if let Some(dropout) = dropout {
            hidden = dropout.forward(&hidden, &self.name)?;
        }
        self.out_conv.forward_add(&hidden, &short_cut)
    }
}
