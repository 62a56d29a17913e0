//! The network that enlarges pictures: the U-Net of guided diffusion (Dhariwal and Nichol 2021,
//! section 3), which also reads the small picture. Layers have the names of the published weights.

mod bilinear;
mod blocks;
pub mod plan;

use std::rc::Rc;

use candle_core::Tensor;
use shared::nn::functional::Activation;
use shared::nn::{Conv2d, GroupNorm, Precision, Weights};
use shared::{Error, Result};

pub use bilinear::resize_bilinear;

use crate::config::SuperResolutionConfig;
use crate::layers::{Layers, normalise};
use crate::segment::{Training, embed, segment};
use crate::time_embedding::TimeEmbedding;
use blocks::Block;
use plan::{LayerPlan, Plan};

/// Channels of a picture.
const COLOURS: usize = 3;
/// The embedding of the time is so many times as wide as the channels.
pub(crate) const EMBEDDING_FACTOR: usize = 4;

/// The super-resolution network.
#[derive(Clone, Debug)]
pub struct SuperResolutionUnet {
    config: SuperResolutionConfig,
    levels: usize,
    time: TimeEmbedding,
    stem: Conv2d,
    input: Vec<Block>,
    middle: Block,
    output: Vec<Block>,
    out_norm: GroupNorm,
    out_conv: Conv2d,
}

impl SuperResolutionUnet {
    /// The network with these settings, whose convolutions compute in `precision`.
    ///
    /// # Errors
    /// As [`SuperResolutionConfig::check`]; in narrow precision, when the weights can be trained.
    /// Whether `weights` had them all, [`Weights::check`] tells.
    pub fn new(
        config: &SuperResolutionConfig,
        weights: &Weights,
        precision: Precision,
    ) -> Result<Self> {
        let plan = Plan::new(config)?;
        let layers = Layers::new(weights, precision);
        let width = EMBEDDING_FACTOR * config.num_channels;
        let blocks = |name: &str, first: usize, plans: &[Vec<LayerPlan>]| -> Result<Vec<Block>> {
            let layers = layers.at(name);
            let numbered = plans.iter().enumerate();
            numbered.map(|(i, plan)| Block::new(&layers.at(first + i), plan, width)).collect()
        };
        let channels = [plan.stem, config.out_channels()];
        Ok(Self {
            config: config.clone(),
            levels: plan.levels,
            time: TimeEmbedding::new(&layers.at("time_embed"), config.num_channels, width)?,
            stem: layers.at("input_blocks.0.0").conv2d([2 * COLOURS, plan.stem], 3, 1)?,
            input: blocks("input_blocks", 1, &plan.input)?,
            middle: Block::new(&layers.at("middle_block"), &plan.middle, width)?,
            output: blocks("output_blocks", 0, &plan.output)?,
            out_norm: layers.at("out").at(0).norm(plan.stem)?,
            out_conv: layers.at("out").at(2).zero().conv2d(channels, 3, 1)?,
        })
    }

    /// The network with its weights in the one form that the products read: less memory, and no
    /// gradients.
    ///
    /// # Errors
    /// When the network can be trained.
    pub fn compact(mut self) -> Result<Self> {
        self.stem.compact()?;
        self.out_conv.compact()?;
        let middle = std::iter::once(&mut self.middle);
        let mut blocks = self.input.iter_mut().chain(middle).chain(&mut self.output);
        blocks.try_for_each(Block::compact)?;
        Ok(self)
    }

    /// The network's settings.
    pub fn config(&self) -> &SuperResolutionConfig {
        &self.config
    }

    /// The network's output for noisy pictures `x [B, 3, H, W]` at `model_time [B]`, which enlarge
    /// `low_res [B, 3, h, w]`: `[B, 3, H, W]`, with learned variances `[B, 6, H, W]`.
    ///
    /// # Errors
    /// When the shapes do not fit the network.
    pub fn forward(&self, x: &Tensor, model_time: &Tensor, low_res: &Tensor) -> Result<Tensor> {
        self.forward_observed(x, model_time, low_res, &|_, _| {})
    }

    /// [`SuperResolutionUnet::forward`], in which `observe` sees what each block leaves, under its
    /// name.
    ///
    /// # Errors
    /// As [`SuperResolutionUnet::forward`].
    pub fn forward_observed(
        &self,
        x: &Tensor,
        model_time: &Tensor,
        low_res: &Tensor,
        observe: &dyn Fn(&str, &Tensor),
    ) -> Result<Tensor> {
        self.run(x, model_time, low_res, Training::default(), observe)
    }

    /// [`SuperResolutionUnet::forward`] as training does it.
    ///
    /// # Errors
    /// As [`SuperResolutionUnet::forward`].
    pub fn forward_training<'a>(
        &'a self,
        x: &Tensor,
        model_time: &Tensor,
        low_res: &Tensor,
        training: Training<'_, 'a>,
    ) -> Result<Tensor> {
        self.run(x, model_time, low_res, training, &|_, _| {})
    }

    fn run<'a>(
        &'a self,
        x: &Tensor,
        model_time: &Tensor,
        low_res: &Tensor,
        Training { dropout, tape }: Training<'_, 'a>,
        observe: &dyn Fn(&str, &Tensor),
    ) -> Result<Tensor> {
        let size = self.check(x, model_time, low_res)?;
        let dropout = dropout.cloned().map(Rc::new);
        let embedding = embed(tape, model_time, |time| self.time.forward(time))?;
        let stem = move |_: &Tensor, x: Tensor, low_res: Option<Tensor>| {
            let enlarged = low_res.map(|low_res| resize_bilinear(&low_res, size)).transpose()?;
            let inputs: Vec<Tensor> = std::iter::once(x).chain(enlarged).collect();
            self.stem.forward(&Tensor::cat(&inputs, 1)?)
        };
        let mut x = segment(tape, &embedding, x.clone(), Some(low_res.clone()), stem)?;
        observe("input_blocks.0", &x);
        let mut skips = vec![x.clone()];
        let step = |block: &'a Block, x: Tensor, skip: Option<Tensor>| {
            let dropout = dropout.clone();
            segment(tape, &embedding, x, skip, move |embedding, x, skip| {
                let x = match skip {
                    Some(skip) => Tensor::cat(&[x, skip], 1)?,
                    None => x,
                };
                block.forward(x, embedding, dropout.as_deref())
            })
        };
        for (i, block) in self.input.iter().enumerate() {
            x = step(block, x, None)?;
            observe(&format!("input_blocks.{}", i + 1), &x);
            skips.push(x.clone());
        }
        x = step(&self.middle, x, None)?;
        observe("middle_block", &x);
        for (i, block) in self.output.iter().enumerate() {
            x = step(block, x, skips.pop())?;
            observe(&format!("output_blocks.{i}"), &x);
        }
        self.out_conv.forward(&normalise(&x, &self.out_norm, false, None, Activation::Silu)?)
    }

    /// Height and width of `x`.
    fn check(&self, x: &Tensor, model_time: &Tensor, low_res: &Tensor) -> Result<[usize; 2]> {
        let side = 1 << (self.levels - 1);
        let fits = |size: usize| size > 0 && size.is_multiple_of(side);
        let (batch, size) = match *x.dims() {
            [batch, COLOURS, height, width] if fits(height) && fits(width) => {
                (batch, [height, width])
            }
            ref dims => {
                let expected = format!("[B, {COLOURS}, H, W], H and W multiples of {side}");
                return Err(Error::shape("pictures of super-resolution", expected, dims));
            }
        };
        match *low_res.dims() {
            [items, COLOURS, height, width] if items == batch && height > 0 && width > 0 => {}
            ref dims => {
                let expected = format!("[{batch}, {COLOURS}, h, w]");
                return Err(Error::shape("small pictures of super-resolution", expected, dims));
            }
        }
        if model_time.dims() != [batch] {
            let expected = format!("[{batch}]");
            return Err(Error::shape("time of super-resolution", expected, model_time.dims()));
        }
        Ok(size)
    }
}
