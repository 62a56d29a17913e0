//! The layers of the super-resolution network.

use candle_core::Tensor;
use shared::Result;
use shared::nn::functional::{
    Activation, AttentionOptions, Channels, TokenLayout, avg_pool2d, multi_head_attention,
    upsample_nearest,
};
use shared::nn::{Conv1d, Conv2d, Dropout, GroupNorm};

use super::plan::LayerPlan;
use crate::layers::{Layers, Modulation, Modulator, along, normalise};
use crate::unet::plan::Resampling;

/// Layers that run one after the other.
#[derive(Clone, Debug)]
pub(super) struct Block(Vec<Layer>);

#[derive(Clone, Debug)]
enum Layer {
    Residual(Box<ResidualBlock>),
    Attention(Attention),
    /// A convolution of strides.
    Down(Conv2d),
    /// A convolution of the enlarged picture.
    Up(Conv2d),
}

impl Block {
    /// The layers of a plan, with an embedding of `width` numbers.
    pub(super) fn new(layers: &Layers, plans: &[LayerPlan], width: usize) -> Result<Self> {
        let layer = |(j, plan): (usize, &LayerPlan)| {
            let layers = layers.at(j);
            Ok(match *plan {
                LayerPlan::Residual { channels, resampling, scales } => {
                    let modulator =
                        Modulator::new(&layers.at("emb_layers").at(1), width, channels[1], scales)?;
                    let block = ResidualBlock::new(&layers, channels, resampling, modulator)?;
                    Layer::Residual(Box::new(block))
                }
                LayerPlan::Attention { channels, heads } => {
                    Layer::Attention(Attention::new(&layers, channels, heads)?)
                }
                LayerPlan::Resampling { channels, resampling: Resampling::Down } => {
                    Layer::Down(layers.at("op").conv2d([channels; 2], 3, 2)?)
                }
                LayerPlan::Resampling { channels, .. } => {
                    Layer::Up(layers.at("conv").conv2d([channels; 2], 3, 1)?)
                }
            })
        };
        plans.iter().enumerate().map(layer).collect::<Result<_>>().map(Self)
    }

    /// See [`Conv2d::compact`].
    pub(super) fn compact(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(|layer| match layer {
            Layer::Residual(block) => {
                let ResidualBlock { in_conv, out_conv, skip, .. } = &mut **block;
                [in_conv, out_conv].into_iter().chain(skip).try_for_each(Conv2d::compact)
            }
            Layer::Attention(Attention { qkv, projection, .. }) => {
                qkv.compact()?;
                projection.compact()
            }
            Layer::Down(conv) | Layer::Up(conv) => conv.compact(),
        })
    }

    /// The result for `x [B, C, H, W]` and the activated embedding `[B, width]`; training leaves out
    /// features.
    pub(super) fn forward(
        &self,
        x: Tensor,
        embedding: &Tensor,
        dropout: Option<&Dropout>,
    ) -> Result<Tensor> {
        self.0.iter().try_fold(x, |x, layer| match layer {
            Layer::Residual(block) => block.forward(x, embedding, dropout),
            Layer::Attention(attention) => attention.forward(&x),
            Layer::Down(conv) => conv.forward(&x),
            Layer::Up(conv) => conv.forward(&resample(&x, Resampling::Up)?),
        })
    }
}

/// Halves or doubles height and width.
fn resample(x: &Tensor, resampling: Resampling) -> Result<Tensor> {
    match resampling {
        Resampling::None => Ok(x.clone()),
        Resampling::Down => avg_pool2d(x, [2, 2], [2, 2]),
        Resampling::Up => upsample_nearest(x, &[2, 2]),
    }
}

/// Norm, convolution, modulated norm and convolution, beside a short cut.
#[derive(Clone, Debug)]
struct ResidualBlock {
    /// By which dropout tells it from others.
    name: String,
    resampling: Resampling,
    modulator: Modulator,
    in_norm: GroupNorm,
    in_conv: Conv2d,
    out_norm: GroupNorm,
    out_conv: Conv2d,
    /// Where the channels change.
    skip: Option<Conv2d>,
}

impl ResidualBlock {
    fn new(
        layers: &Layers,
        channels: [usize; 2],
        resampling: Resampling,
        modulator: Modulator,
    ) -> Result<Self> {
        let [inputs, outputs] = channels;
        let (input, output) = (layers.at("in_layers"), layers.at("out_layers"));
        let skip = || layers.at("skip_connection").conv2d(channels, 1, 1);
        Ok(Self {
            name: layers.name().to_owned(),
            resampling,
            modulator,
            in_norm: input.at(0).norm(inputs)?,
            in_conv: input.at(2).conv2d(channels, 3, 1)?,
            out_norm: output.at(0).norm(outputs)?,
            out_conv: output.at(3).zero().conv2d([outputs; 2], 3, 1)?,
            skip: (inputs != outputs).then(skip).transpose()?,
        })
    }

    fn forward(&self, x: Tensor, embedding: &Tensor, dropout: Option<&Dropout>) -> Result<Tensor> {
        let silu = Activation::Silu;
        // In an order in which large tensors live short.
        let mut hidden = normalise(&x, &self.in_norm, false, None, silu)?;
        let mut short_cut = resample(&x, self.resampling)?;
        drop(x);
        if let Some(skip) = &self.skip {
            short_cut = skip.forward(&short_cut)?;
        }
        hidden = self.in_conv.forward(&resample(&hidden, self.resampling)?)?;
        let scale_shift = match self.modulator.forward(embedding)? {
            Modulation::ScaleShift(vectors) => Some(vectors),
            Modulation::Shift(vectors) => {
                hidden = hidden.broadcast_add(&along(&vectors, 1, 4)?)?;
                None
            }
        };
        hidden = normalise(&hidden, &self.out_norm, false, scale_shift.as_ref(), silu)?;
        if let Some(dropout) = dropout {
            hidden = dropout.forward(&hidden, &self.name)?;
        }
        self.out_conv.forward_add(&hidden, &short_cut)
    }
}

/// `x + projection(attention(norm(x)))` over all pixels.
#[derive(Clone, Debug)]
struct Attention {
    norm: GroupNorm,
    /// To the queries, keys and values of the first head, then of the second, and so on.
    qkv: Conv1d,
    projection: Conv1d,
    heads: usize,
}

impl Attention {
    fn new(layers: &Layers, channels: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            norm: layers.at("norm").norm(channels)?,
            qkv: layers.at("qkv").conv1d([channels, 3 * channels], 1, 1)?,
            projection: layers.at("proj_out").zero().conv1d([channels; 2], 1, 1)?,
            heads,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let pixels = height * width;
        let flat = x.reshape((batch, channels, pixels))?;
        let normal = normalise(&flat, &self.norm, false, None, Activation::Identity)?;
        // The heads are items of a batch.
        let size = channels / self.heads;
        let qkv = self.qkv.forward(&normal)?.reshape((batch * self.heads, 3 * size, pixels))?;
        let options = AttentionOptions {
            layout: TokenLayout::ChannelsFirst,
            heads: 1,
            scale: (size as f64).powf(-0.5),
            key_padding: None,
            windows: None,
        };
        let [q, k, v] =
            [0, 1, 2].map(|part| Channels { of: &qkv, range: part * size..(part + 1) * size });
        let attended = multi_head_attention(&q, &k, &v, &options)?;
        let attended = attended.reshape((batch, channels, pixels))?;
        Ok(self.projection.forward_add(&attended, &flat)?.reshape(x.shape())?)
    }
}
