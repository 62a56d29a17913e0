//! The coupled network: two U-Nets, for picture and sound, that attend to each other (Ruan et al. 2023,
//! section 3.2). Layers have the names of the published weights.

mod attention;
mod cross_attention;
mod denoiser;
mod modality;
pub mod plan;
mod residual;

use std::rc::Rc;

use candle_core::Tensor;
use shared::nn::functional::Activation;
use shared::nn::{Dropout, Precision, Weights};
use shared::{Error, Result};

pub use attention::{SelfAttention, VideoAttention};
pub use cross_attention::CrossAttention;
pub use denoiser::{CoupledDenoiser, Shifts};
pub use modality::{Convolution, Modality, Norm, resample};
pub use residual::ResidualBlock;

use crate::Pair;
use crate::config::UnetConfig;
use crate::layers::Layers;
use crate::segment::{Training, embed, segment};
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

/// What blocks need beside features and time.
struct Draws {
    shifts: Vec<usize>,
    dropout: Option<Dropout>,
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

    /// The network with its weights in the one form that the products read: less memory, and no
    /// gradients.
    ///
    /// # Errors
    /// When the network can be trained.
    pub fn compact(mut self) -> Result<Self> {
        self.stem.iter_mut().try_for_each(Convolution::compact)?;
        self.heads.iter_mut().try_for_each(|head| head.conv.compact())?;
        let middle = std::iter::once(&mut self.middle);
        for block in self.input.iter_mut().chain(middle).chain(&mut self.output) {
            block.0.iter_mut().try_for_each(|layer| match layer {
                Layer::Residual(block) => block.compact(),
                Layer::Cross(attention) => attention.compact(),
            })?;
        }
        Ok(self)
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
        self.run(x, model_time, shifts, Training::default(), observe)
    }

    /// [`CoupledUnet::forward`] as training does it.
    ///
    /// # Errors
    /// As [`CoupledUnet::forward`].
    pub fn forward_training<'a>(
        &'a self,
        x: &Pair,
        model_time: &Tensor,
        shifts: &[usize],
        training: Training<'_, 'a>,
    ) -> Result<Pair> {
        self.run(x, model_time, shifts, training, &|_, _| {})
    }

    fn run<'a>(
        &'a self,
        x: &Pair,
        model_time: &Tensor,
        shifts: &[usize],
        Training { dropout, tape }: Training<'_, 'a>,
        observe: &dyn Fn(&str, &Pair),
    ) -> Result<Pair> {
        self.check(x, model_time, shifts)?;
        let draws = Rc::new(Draws { shifts: shifts.to_vec(), dropout: dropout.cloned() });
        let embedding = embed(tape, model_time, |time| self.time.forward(time))?;
        let [video, audio] = &self.stem;
        let stem = |_: &Tensor, x: Pair, _: Option<Pair>| {
            Ok(Pair { video: video.forward(&x.video)?, audio: audio.forward(&x.audio)? })
        };
        let mut x = segment(tape, &embedding, x.clone(), None, stem)?;
        observe("input_blocks.0", &x);
        let mut skips = vec![x.clone()];
        let step = |block: &'a Block, x: Pair, skip: Option<Pair>| {
            let draws = draws.clone();
            segment(tape, &embedding, x, skip, move |embedding, x, skip| {
                let x = match skip {
                    Some(skip) => joined(x, skip)?,
                    None => x,
                };
                block.forward(x, embedding, &draws)
            })
        };
        for (i, block) in self.input.iter().enumerate() {
            x = step(block, x, None)?;
            observe(&format!("input_blocks.{}", i + 1), &x);
            skips.push(x.clone());
        }
        x = step(&self.middle, x, None)?;
        observe("middle_blocks", &x);
        for (i, block) in self.output.iter().enumerate() {
            x = step(block, x, skips.pop())?;
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

    fn forward(&self, x: Pair, embedding: &Tensor, draws: &Draws) -> Result<Pair> {
        self.0.iter().try_fold(x, |x, layer| match layer {
            Layer::Residual(block) => block.forward(x, embedding, draws.dropout.as_ref()),
            Layer::Cross(attention) => {
                let shift = attention.shift().and_then(|number| draws.shifts.get(number));
                attention.forward(x, shift.copied().unwrap_or_default())
            }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use candle_core::{DType, Device, Var};
    use shared::rng::Stream;

    use super::*;

    fn config() -> UnetConfig {
        UnetConfig {
            video_size: [3, 3, 8, 4],
            audio_size: [1, 40],
            num_channels: 32,
            num_res_blocks: 1,
            num_head_channels: Some(16),
            channel_mult: vec![1, 1],
            cross_attention_resolutions: vec![1, 2],
            cross_attention_windows: vec![1, 2],
            video_attention_resolutions: vec![2],
            audio_attention_resolutions: vec![1],
            ..UnetConfig::published()
        }
    }

    fn normal(index: u64, dims: &[usize]) -> Tensor {
        let mut values = vec![0.0; dims.iter().product()];
        Stream::new(0, "test", index).fill_normal(&mut values);
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
    }

    /// A network in which no layer is 0.
    fn network() -> CoupledUnet {
        let fresh = Weights::fresh(1, DType::F32, &Device::Cpu);
        CoupledUnet::new(&config(), &fresh, Precision::F32).unwrap();
        let tensors: BTreeMap<String, Tensor> = fresh
            .state()
            .into_iter()
            .enumerate()
            .map(|(i, (name, tensor))| {
                let noise = (normal(i as u64, tensor.dims()) * 0.05).unwrap();
                (name, (tensor.detach() + noise).unwrap())
            })
            .collect();
        let path = Path::new("test");
        let weights = Weights::loaded(tensors, path, false, DType::F32, &Device::Cpu);
        CoupledUnet::new(&config(), &weights, Precision::F32).unwrap()
    }

    fn clips(batch: usize) -> Pair {
        Pair { video: normal(7, &[batch, 3, 3, 8, 4]), audio: normal(8, &[batch, 1, 40]) }
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn a_clip_does_not_depend_on_its_batch() {
        let network = network();
        let shifts = network.largest_shifts(3);
        let time = Tensor::new(&[3.0f32, 700.0], &Device::Cpu).unwrap();
        let both = network.forward(&clips(2), &time, &shifts).unwrap();
        for item in 0..2 {
            let part = |x: &Tensor| x.narrow(0, item, 1).unwrap();
            let x = clips(2);
            let x = Pair { video: part(&x.video), audio: part(&x.audio) };
            let alone = network.forward(&x, &part(&time), &shifts).unwrap();
            assert!(largest_difference(&alone.video, &part(&both.video)) < 1e-5);
            assert!(largest_difference(&alone.audio, &part(&both.audio)) < 1e-5);
        }
        let unshifted = network.forward(&clips(2), &time, &vec![0; shifts.len()]).unwrap();
        assert!(largest_difference(&unshifted.video, &both.video) > 1e-4);
    }

    #[test]
    fn gradients_reach_both_modalities_unless_the_network_is_compact() {
        let network = network();
        let x = clips(1);
        let [video, audio] = [x.video, x.audio].map(|x| Var::from_tensor(&x).unwrap());
        let x = Pair { video: video.as_tensor().clone(), audio: audio.as_tensor().clone() };
        let time = Tensor::new(&[3.0f32], &Device::Cpu).unwrap();
        let shifts = network.largest_shifts(3);
        let y = network.forward(&x, &time, &shifts).unwrap();
        // The sound depends on the picture by attention alone.
        let gradients = y.audio.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for of in [&video, &audio] {
            let gradient = gradients.get(of).unwrap();
            assert!(largest_difference(gradient, &gradient.zeros_like().unwrap()) > 1e-6);
        }
        let error = network.compact().unwrap().forward(&x, &time, &shifts).unwrap_err();
        assert!(error.to_string().contains("gradient"), "{error}");
    }

    #[test]
    fn unusable_inputs_are_refused() {
        let network = network();
        let time = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
        let refusal = |video: &[usize], audio: &[usize], shifts: &[usize]| {
            let x = Pair { video: normal(0, video), audio: normal(0, audio) };
            network.forward(&x, &time, shifts).unwrap_err().to_string()
        };
        let shifts = network.largest_shifts(3);
        let (video, audio): (&[usize], &[usize]) = (&[1, 3, 3, 8, 4], &[1, 1, 40]);
        for (video, audio, shifts, reason) in [
            (&[1, 3, 3, 7, 4][..], audio, &shifts[..], "multiples of 2"),
            (&[1, 0, 3, 8, 4], audio, &shifts, "video of the network"),
            (&[1, 3, 1, 8, 4], audio, &shifts, "[B, F, 3, H, W]"),
            (video, &[1, 1, 42], &shifts, "multiple of 4"),
            (video, &[2, 1, 40], &shifts, "[1, 1, L]"),
            (video, &[1, 1, 0], &shifts, "audio of the network"),
            (video, audio, &shifts[1..], "window shifts"),
            (video, audio, &[9; 6], "window shifts"),
            // One sample for each of three frames is needed at the lower level.
            (video, &[1, 1, 8], &shifts, "too few for 3 frames"),
            // The window of two frames does not fit in one.
            (&[1, 1, 3, 8, 4], audio, &[0; 6], "does not fit"),
        ] {
            let refusal = refusal(video, audio, shifts);
            assert!(refusal.contains(reason), "{video:?} {audio:?} {shifts:?}: {refusal}");
        }
    }
}
