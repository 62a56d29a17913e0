//! The coupled network: two U-Nets, for picture and sound, that attend to each other (Ruan et al. 2023,
//! section 3.2). Layers have the names of the published weights.

mod attention;
mod cross_attention;
mod denoiser;
mod modality;
pub mod plan;
mod residual;

use std::cell::Cell;

use candle_core::Tensor;
use shared::nn::functional::Activation;
use shared::nn::{Precision, Weights};
use shared::{Error, Result};

pub use attention::{SelfAttention, VideoAttention};
pub use cross_attention::CrossAttention;
pub use denoiser::{CoupledDenoiser, Shifts};
pub use modality::{Convolution, Modality, Norm, resample};
pub use residual::ResidualBlock;

use crate::Pair;
use crate::config::UnetConfig;
use crate::layers::{Layers, Modulator};
use crate::time_embedding::TimeEmbedding;
use modality::{AUDIO_FACTOR, VIDEO_FACTOR};
use plan::{BlockPlan, LayerPlan, Plan};

/// The coupled network.
#[derive(Clone, Debug)]
pub struct CoupledUnet {
    config: UnetConfig,
    plan: Plan,
    time: TimeEmbedding,
    stem: [Convolution; 2],
    input: Vec<Block>,
    middle: Block,
    output: Vec<Block>,
    heads: [Head; 2],
}

/// Layers that run one after the other.
#[derive(Clone, Debug)]
struct Block(Vec<Layer>);

#[derive(Clone, Debug)]
enum Layer {
    Residual(Box<ResidualBlock>),
    Cross(Box<CrossAttention>),
}

/// The end of one modality.
#[derive(Clone, Debug)]
struct Head {
    norm: Norm,
    conv: Convolution,
}

/// The shifts of windows, of which each block takes one.
struct ShiftQueue<'a> {
    shifts: &'a [usize],
    taken: Cell<usize>,
}

impl ShiftQueue<'_> {
    fn take(&self) -> usize {
        let at = self.taken.replace(self.taken.get() + 1);
        self.shifts.get(at).copied().unwrap_or_default()
    }
}

impl CoupledUnet {
    /// The network with these settings, whose convolutions compute in `precision`.
    ///
    /// # Errors
    /// As [`UnetConfig::check`]; in narrow precision, when the weights can be trained. Whether
    /// `weights` had them all, [`Weights::check`] tells.
    pub fn new(config: &UnetConfig, weights: &Weights, precision: Precision) -> Result<Self> {
        let plan = Plan::new(config)?;
        let layers = Layers::new(weights, precision);
        let width = config.num_channels;
        let block = |layers: Layers, plan: &BlockPlan| Block::new(&layers, plan, width);
        let blocks = |name: &str, first: usize, plans: &[BlockPlan]| -> Result<Vec<Block>> {
            let layers = layers.at(name);
            let numbered = plans.iter().enumerate();
            numbered.map(|(i, plan)| block(layers.at(first + i), plan)).collect()
        };
        let stem = layers.at("input_blocks").at(0).at(0);
        let [video, audio] = config.in_channels();
        let [video_out, audio_out] = config.out_channels();
        Ok(Self {
            config: config.clone(),
            time: TimeEmbedding::new(&layers.at("time_embed"), width, width)?,
            stem: [
                Convolution::frames_then_time(&stem.at("video_conv"), [video, plan.stem])?,
                Convolution::audio(&stem.at("audio_conv"), [audio, plan.stem], 3, 1)?,
            ],
            input: blocks("input_blocks", 1, &plan.input)?,
            middle: block(layers.at("middle_blocks"), &plan.middle)?,
            output: blocks("output_blocks", 0, &plan.output)?,
            heads: [
                Head::new(&layers, Modality::Video, [plan.stem, video_out])?,
                Head::new(&layers, Modality::Audio, [plan.stem, audio_out])?,
            ],
            plan,
        })
    }

    /// The network's settings.
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// The largest shift of each block that shifts its windows, in the order of execution, for videos
    /// of so many frames.
    pub fn largest_shifts(&self, frames: usize) -> Vec<usize> {
        let windows = self.plan.shifting_windows().into_iter();
        windows.map(|window| frames.saturating_sub(window)).collect()
    }

    /// The network's output for noisy clips `x` at `model_time [B]`: the shape of `x`, with twice the
    /// channels where variances are learned. `shifts` are those of the windows of attention, one for
    /// each block that has any, in the order of execution (see [`CoupledUnet::largest_shifts`]).
    ///
    /// # Errors
    /// When shapes or shifts do not fit the network.
    pub fn forward(&self, x: &Pair, model_time: &Tensor, shifts: &[usize]) -> Result<Pair> {
        self.forward_observed(x, model_time, shifts, &|_, _| {})
    }

    /// [`CoupledUnet::forward`], in which `observe` sees what each block leaves, under its name.
    ///
    /// # Errors
    /// As [`CoupledUnet::forward`].
    pub fn forward_observed(
        &self,
        x: &Pair,
        model_time: &Tensor,
        shifts: &[usize],
        observe: &dyn Fn(&str, &Pair),
    ) -> Result<Pair> {
        self.check(x, model_time, shifts)?;
        let shifts = ShiftQueue { shifts, taken: Cell::new(0) };
        let embedding = Modulator::activate(&self.time.forward(model_time)?)?;
        let [video, audio] = &self.stem;
        let mut x = Pair { video: video.forward(&x.video)?, audio: audio.forward(&x.audio)? };
        observe("input_blocks.0", &x);
        let mut skips = vec![x.clone()];
        for (i, block) in self.input.iter().enumerate() {
            x = block.forward(x, &embedding, &shifts)?;
            observe(&format!("input_blocks.{}", i + 1), &x);
            skips.push(x.clone());
        }
        x = self.middle.forward(x, &embedding, &shifts)?;
        observe("middle_blocks", &x);
        for (i, block) in self.output.iter().enumerate() {
            if let Some(skip) = skips.pop() {
                x = joined(x, skip)?;
            }
            x = block.forward(x, &embedding, &shifts)?;
            observe(&format!("output_blocks.{i}"), &x);
        }
        let [video, audio] = &self.heads;
        Ok(Pair { video: video.forward(&x.video)?, audio: audio.forward(&x.audio)? })
    }

    /// The embedding `[B, C]` of `model_time [B]`.
    ///
    /// # Errors
    /// When `model_time` has another shape.
    pub fn time_embedding(&self, model_time: &Tensor) -> Result<Tensor> {
        self.time.forward(model_time)
    }

    fn check(&self, x: &Pair, model_time: &Tensor, shifts: &[usize]) -> Result<()> {
        let [video_channels, audio_channels] = self.config.in_channels();
        let halvings = self.plan.middle.level as u32;
        let (side, samples) = (VIDEO_FACTOR.pow(halvings), AUDIO_FACTOR.pow(halvings));
        let fits = |size: usize, of: usize| size > 0 && size.is_multiple_of(of);
        let (batch, frames) = match *x.video.dims() {
            [batch, frames, channels, height, width]
                if channels == video_channels
                    && frames > 0
                    && fits(height, side)
                    && fits(width, side) =>
            {
                (batch, frames)
            }
            ref dims => {
                let expected =
                    format!("[B, F, {video_channels}, H, W], H and W multiples of {side}");
                return Err(Error::shape("video of the network", expected, dims));
            }
        };
        match *x.audio.dims() {
            [items, channels, length]
                if (items, channels) == (batch, audio_channels) && fits(length, samples) => {}
            ref dims => {
                let expected = format!("[{batch}, {audio_channels}, L], L a multiple of {samples}");
                return Err(Error::shape("audio of the network", expected, dims));
            }
        }
        if model_time.dims() != [batch] {
            let expected = format!("[{batch}]");
            return Err(Error::shape("time of the network", expected, model_time.dims()));
        }
        let most = self.largest_shifts(frames);
        if shifts.len() != most.len() || shifts.iter().zip(&most).any(|(shift, most)| shift > most)
        {
            return Err(Error::Argument(format!(
                "window shifts: expected at most {most:?} for {frames} frames, found {shifts:?}"
            )));
        }
        Ok(())
    }
}

impl Block {
    fn new(layers: &Layers, plan: &BlockPlan, width: usize) -> Result<Self> {
        let layer = |(j, plan): (usize, &LayerPlan)| match plan {
            LayerPlan::Residual(plan) => {
                let block = ResidualBlock::new(&layers.at(j), plan, width)?;
                Ok(Layer::Residual(Box::new(block)))
            }
            LayerPlan::Cross(plan) => {
                Ok(Layer::Cross(Box::new(CrossAttention::new(&layers.at(j), plan)?)))
            }
        };
        plan.layers.iter().enumerate().map(layer).collect::<Result<_>>().map(Self)
    }

    fn forward(&self, x: Pair, embedding: &Tensor, shifts: &ShiftQueue) -> Result<Pair> {
        self.0.iter().try_fold(x, |x, layer| match layer {
            Layer::Residual(block) => block.forward(x, embedding),
            Layer::Cross(attention) if attention.shifts() => attention.forward(x, shifts.take()),
            Layer::Cross(attention) => attention.forward(x, 0),
        })
    }
}

impl Head {
    fn new(layers: &Layers, modality: Modality, channels: [usize; 2]) -> Result<Self> {
        let layers = layers.at(format!("{}_out", modality.name()));
        let conv = layers.at(2).zero();
        Ok(Self {
            norm: Norm::new(&layers.at(0), channels[0])?,
            conv: match modality {
                Modality::Video => Convolution::video(&conv, channels, 3)?,
                Modality::Audio => Convolution::audio(&conv, channels, 3, 1)?,
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.conv.forward(&self.norm.forward(x, Activation::Silu)?)?.contiguous()?)
    }
}

/// The channels of `x`, then those of `skip`.
fn joined(x: Pair, skip: Pair) -> Result<Pair> {
    Ok(Pair {
        video: Tensor::cat(&[x.video, skip.video], Modality::Video.channel_axis())?,
        audio: Tensor::cat(&[x.audio, skip.audio], Modality::Audio.channel_axis())?,
    })
}
