//! The elastic SE-Res2 block and its parts.

use candle_core::Tensor;
use shared::Result;
use shared::nn::Weights;
use shared::nn::functional::Activation;

use super::{Channels, ConvSelection, DynamicBatchNorm1d, DynamicConv1d, DynamicLinear};
use crate::architecture::{Block as BlockShape, RES2_SCALE, SE_REDUCTION};
use crate::layers::{res2, squeeze_excite};

/// Convolution, ReLU, batch norm, in this order.
pub struct DynamicConvReluNorm {
    /// The convolution.
    pub conv: DynamicConv1d,
    /// The batch norm, on the convolution's output channels.
    pub bn: DynamicBatchNorm1d,
}

impl DynamicConvReluNorm {
    /// The layer with the parameters `conv.*` and `bn.*`.
    ///
    /// # Errors
    /// As [`DynamicConv1d::new`].
    pub fn new(
        weights: &Weights,
        input: usize,
        output: usize,
        kernel: usize,
        dilation: usize,
    ) -> Result<Self> {
        Ok(Self {
            conv: DynamicConv1d::new(&weights.at("conv"), input, output, kernel, dilation)?,
            bn: DynamicBatchNorm1d::new(&weights.at("bn"), output)?,
        })
    }

    /// The selected part applied to `x` `[B, I, T]`: `[B, O, T]`.
    ///
    /// # Errors
    /// As [`DynamicConv1d::forward`] and [`DynamicBatchNorm1d::forward`].
    pub fn forward(&self, x: &Tensor, selection: &ConvSelection, train: bool) -> Result<Tensor> {
        let x = self.conv.forward(x, selection, Activation::Relu)?;
        self.bn.forward(&x, &selection.output, train)
    }
}

/// Cascade of convolutions over [`RES2_SCALE`] groups of channels.
pub struct DynamicRes2 {
    /// The convolutions of all groups but the last.
    pub convs: Vec<DynamicConvReluNorm>,
}

impl DynamicRes2 {
    /// The layer for `channels` channels, with the parameters `convs.{0..6}.*`.
    ///
    /// # Errors
    /// As [`DynamicConv1d::new`].
    pub fn new(weights: &Weights, channels: usize, kernel: usize, dilation: usize) -> Result<Self> {
        let split = channels / RES2_SCALE;
        let convs = (0..RES2_SCALE - 1).map(|j| {
            let weights = weights.at("convs").at(j);
            DynamicConvReluNorm::new(&weights, split, split, kernel, dilation)
        });
        Ok(Self { convs: convs.collect::<Result<_>>()? })
    }

    /// The part that each convolution contributes when a group has `split` channels.
    pub fn selection(split: usize, kernel: usize) -> ConvSelection {
        ConvSelection {
            input: Channels::First(split),
            output: Channels::First(split),
            kernel: Some(kernel),
        }
    }

    /// The cascade over `x` `[B, 8 * split, T]` with `kernel`: the same shape.
    ///
    /// # Errors
    /// As [`DynamicConvReluNorm::forward`].
    pub fn forward(&self, x: &Tensor, kernel: usize, train: bool) -> Result<Tensor> {
        let selection = Self::selection(x.dim(1)? / RES2_SCALE, kernel);
        res2(x, |j, x| self.convs[j].forward(x, &selection, train))
    }
}

/// Channel gates from the means over time.
pub struct DynamicSqueezeExcite {
    /// To a quarter of the channels.
    pub reduce: DynamicLinear,
    /// And back.
    pub expand: DynamicLinear,
}

impl DynamicSqueezeExcite {
    /// The layer for `channels` channels, with the parameters `reduce.*` and `expand.*`.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(weights: &Weights, channels: usize) -> Result<Self> {
        let reduced = channels / SE_REDUCTION;
        Ok(Self {
            reduce: DynamicLinear::new(&weights.at("reduce"), channels, reduced)?,
            expand: DynamicLinear::new(&weights.at("expand"), reduced, channels)?,
        })
    }

    /// `x` `[B, C, T]`, the leading channels, each times its gate.
    ///
    /// # Errors
    /// When `x` has more channels than the layer.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let channels = x.dim(1)?;
        let (all, reduced) = (Channels::First(channels), Channels::First(channels / SE_REDUCTION));
        squeeze_excite(x, |means| {
            let hidden = self.reduce.forward(means, &all, &reduced, Activation::Relu)?;
            self.expand.forward(&hidden, &reduced, &all, Activation::Sigmoid)
        })
    }
}

/// SE-Res2 block without its residual.
pub struct DynamicBlock {
    /// 1x1 convolution to the mid channels.
    pub first_conv: DynamicConvReluNorm,
    /// The cascade on them.
    pub resconv: DynamicRes2,
    /// 1x1 convolution back.
    pub last_conv: DynamicConvReluNorm,
    /// Gates.
    pub se: DynamicSqueezeExcite,
    largest: BlockShape,
}

impl DynamicBlock {
    /// The block for `trunk` channels, at most `largest` inside.
    ///
    /// # Errors
    /// As [`DynamicConv1d::new`].
    pub fn new(
        weights: &Weights,
        trunk: usize,
        largest: BlockShape,
        dilation: usize,
    ) -> Result<Self> {
        let BlockShape { mid, kernel } = largest;
        let pointwise =
            |name, input, output| DynamicConvReluNorm::new(&weights.at(name), input, output, 1, 1);
        Ok(Self {
            first_conv: pointwise("first_conv", trunk, mid)?,
            resconv: DynamicRes2::new(&weights.at("resconv"), mid, kernel, dilation)?,
            last_conv: pointwise("last_conv", mid, trunk)?,
            se: DynamicSqueezeExcite::new(&weights.at("se"), trunk)?,
            largest,
        })
    }

    /// The parts of the first and the last convolution when the trunk has `trunk` channels and
    /// the block `mid`.
    pub fn selections(&self, trunk: usize, mid: usize) -> [ConvSelection; 2] {
        let trunk = Channels::First(trunk);
        let mid = Channels::res2_groups(self.largest.mid, mid);
        [ConvSelection::pointwise(trunk.clone(), mid.clone()), ConvSelection::pointwise(mid, trunk)]
    }

    /// The block in `shape` on `x` `[B, C, T]`, the leading channels of the trunk.
    ///
    /// # Errors
    /// When the shape is not a part of the block.
    pub fn forward(&self, x: &Tensor, shape: BlockShape, train: bool) -> Result<Tensor> {
        let [first, last] = self.selections(x.dim(1)?, shape.mid);
        let x = self.first_conv.forward(x, &first, train)?;
        let x = self.resconv.forward(&x, shape.kernel, train)?;
        let x = self.last_conv.forward(&x, &last, train)?;
        self.se.forward(&x)
    }
}
