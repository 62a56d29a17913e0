//! Convolution layers.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::functional::{self, ConvOptions, ConvTranspose1dOptions, Precision};
use super::kept::Kept;
use super::{BatchNorm1d, Init, Weights};
use crate::kernels::conv::{Packed, convolve_with};
use crate::kernels::epilogue::After;
use crate::kernels::narrow::check_no_gradient;
use crate::{Error, Result};

/// Convolution over `D` dimensions. Parameters: `weight` `[O, C/g, ..]`, `bias` `[O]`.
#[derive(Clone, Debug)]
pub struct Conv<const D: usize> {
    /// Of a compact layer, only the shape.
    weight: Tensor,
    is_compact: bool,
    bias: Option<Tensor>,
    options: ConvOptions<D>,
    /// Shared by the layer's clones.
    kept: Arc<Kept<Packed>>,
}

/// Convolution over time: `[B, C, T]` to `[B, O, T']`.
pub type Conv1d = Conv<1>;
/// Convolution over images: `[B, C, H, W]` to `[B, O, H', W']`.
pub type Conv2d = Conv<2>;
/// Convolution over volumes or videos: `[B, C, D, H, W]` to `[B, O, D', H', W']`.
pub type Conv3d = Conv<3>;

impl<const D: usize> Conv<D> {
    /// A layer from `in_channels` to `out_channels`, initialised as in PyTorch.
    ///
    /// # Errors
    /// When the groups do not divide the channels; as [`Weights::parameter`].
    pub fn new(
        weights: &Weights,
        in_channels: usize,
        out_channels: usize,
        kernel: [usize; D],
        bias: bool,
        options: ConvOptions<D>,
    ) -> Result<Self> {
        let in_group = check_groups(in_channels, out_channels, options.groups)?;
        let shape = [&[out_channels, in_group], &kernel[..]].concat();
        let init = Init::fan_in(shape[1..].iter().product());
        let weight = weights.parameter("weight", shape, init)?;
        let bias = bias.then(|| weights.parameter("bias", out_channels, init)).transpose()?;
        Ok(Self { weight, is_compact: false, bias, options, kept: Arc::default() })
    }

    /// The layer with its products computed in `precision`. Only layers that cannot be trained
    /// compute in less than `f32`; they give no gradient to their input either.
    ///
    /// # Errors
    /// When the precision is a narrow one and weight or bias are variables.
    pub fn with_precision(self, precision: Precision) -> Result<Self> {
        let kept = Arc::new(Kept::new(precision, &self.weight, self.bias.as_ref())?);
        Ok(Self { kept, ..self })
    }

    /// Makes the layer let go of its weight but for the one form that products read, which is packed
    /// now and serves inputs of all sizes: less memory, for layers that mostly see large inputs. A
    /// compact layer gives no gradient to its input.
    ///
    /// # Errors
    /// When the layer can be trained.
    pub fn compact(&mut self) -> Result<()> {
        check_no_gradient([Some(&self.weight), self.bias.as_ref()])?;
        let is_packed = self.weight.device().is_cpu() && self.weight.dtype() != DType::F64;
        if !is_packed || self.is_compact {
            return Ok(());
        }
        let packed = Packed::whole(&self.weight, &self.options, self.precision())?;
        self.kept = Arc::new(Kept::holding(self.precision(), packed));
        let zero = Tensor::zeros((), self.weight.dtype(), self.weight.device())?;
        self.weight = zero.broadcast_as(self.weight.shape())?;
        self.is_compact = true;
        Ok(())
    }

    /// What the products are computed in.
    pub fn precision(&self) -> Precision {
        self.kept.precision()
    }

    fn convolve(&self, x: &Tensor, after: After) -> Result<Tensor> {
        self.convolve_as(x, &self.weight, &self.options, after)
    }

    /// The convolution of `x` with `weight`, the layer's with further dimensions of size 1.
    fn convolve_as<const E: usize>(
        &self,
        x: &Tensor,
        weight: &Tensor,
        options: &ConvOptions<E>,
        after: After,
    ) -> Result<Tensor> {
        let packed = self.kept.get(weight, |precision| Packed::new(weight, options, precision))?;
        convolve_with(x, weight, packed, self.bias.as_ref(), options, after)
    }

    /// The output, see `forward`, plus `residual` of the same shape: where nothing needs a gradient, in
    /// one pass.
    ///
    /// # Errors
    /// As [`functional::conv_add`]; in narrow precision, when `x` or `residual` need a gradient.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.convolve(x, After { residual: Some(residual), ..After::default() })
    }

    /// The weight `[O, C/g, ..]`; none of a compact layer.
    pub fn weight(&self) -> Option<&Tensor> {
        (!self.is_compact).then_some(&self.weight)
    }

    /// Sizes of the kernel.
    pub fn kernel(&self) -> [usize; D] {
        std::array::from_fn(|axis| self.weight.dims()[2 + axis])
    }

    /// The bias `[O]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// How the kernel moves.
    pub fn options(&self) -> &ConvOptions<D> {
        &self.options
    }
}

impl Conv1d {
    /// The output `[B, O, T']` for `x` `[B, C, T]`.
    ///
    /// # Errors
    /// As [`functional::conv1d`]; in narrow precision, when `x` needs a gradient.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.convolve(x, After::default())
    }

    /// The output, normalised by `norm` with its running statistics: where nothing needs a gradient, in
    /// one pass.
    ///
    /// # Errors
    /// As [`Conv1d::forward`]; when the numbers of channels differ.
    pub fn forward_norm(&self, x: &Tensor, norm: &BatchNorm1d) -> Result<Tensor> {
        self.convolve(x, After { norm: Some(norm.given()), ..After::default() })
    }

    /// The layer along the frames `F` of videos `x` `[B, C, F, H, W]`, every pixel for itself:
    /// `[B, O, F', H, W]`.
    ///
    /// # Errors
    /// As [`Conv1d::forward`].
    pub fn forward_over_frames(&self, x: &Tensor) -> Result<Tensor> {
        self.convolve_over_frames(x, After::default())
    }

    /// [`Self::forward_over_frames`] plus `residual` of the same shape, see [`Self::forward_add`].
    ///
    /// # Errors
    /// As [`Conv1d::forward`], and when the shapes differ.
    pub fn forward_over_frames_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.convolve_over_frames(x, After { residual: Some(residual), ..After::default() })
    }

    fn convolve_over_frames(&self, x: &Tensor, after: After) -> Result<Tensor> {
        let ConvOptions { stride: [s], dilation: [d], padding: [p], groups, activation } =
            self.options;
        let options = ConvOptions {
            stride: [s, 1, 1],
            dilation: [d, 1, 1],
            padding: [p, (0, 0), (0, 0)],
            groups,
            activation,
        };
        // Where frames and pixels lie in order, the frames are a signal.
        let weight = self.weight.unsqueeze(3)?.unsqueeze(4)?;
        self.convolve_as(&x.contiguous()?, &weight, &options, after)
    }
}

impl Conv2d {
    /// The output `[B, O, H', W']` for `x` `[B, C, H, W]`.
    ///
    /// # Errors
    /// As [`functional::conv2d`]; in narrow precision, when `x` needs a gradient.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.convolve(x, After::default())
    }

    /// The layer on each frame of videos `x` `[B, C, F, H, W]`: `[B, O, F, H', W']`.
    ///
    /// # Errors
    /// As [`Conv2d::forward`].
    pub fn forward_of_frames(&self, x: &Tensor) -> Result<Tensor> {
        let ConvOptions { stride: [s, t], dilation: [d, e], padding: [p, q], groups, activation } =
            self.options;
        let options = ConvOptions {
            stride: [1, s, t],
            dilation: [1, d, e],
            padding: [(0, 0), p, q],
            groups,
            activation,
        };
        self.convolve_as(x, &self.weight.unsqueeze(2)?, &options, After::default())
    }
}

impl Conv3d {
    /// The output `[B, O, D', H', W']` for `x` `[B, C, D, H, W]`.
    ///
    /// # Errors
    /// As [`functional::conv3d`]; in narrow precision, when `x` needs a gradient.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.convolve(x, After::default())
    }
}

/// Transposed convolution over time. Parameters: `weight` `[C, O/g, K]`, `bias` `[O]`.
#[derive(Clone, Debug)]
pub struct ConvTranspose1d {
    weight: Tensor,
    bias: Option<Tensor>,
    options: ConvTranspose1dOptions,
}

impl ConvTranspose1d {
    /// A layer from `in_channels` to `out_channels`, initialised as in PyTorch.
    ///
    /// # Errors
    /// When the groups do not divide the channels; as [`Weights::parameter`].
    pub fn new(
        weights: &Weights,
        in_channels: usize,
        out_channels: usize,
        kernel: usize,
        bias: bool,
        options: ConvTranspose1dOptions,
    ) -> Result<Self> {
        let out_group = check_groups(out_channels, in_channels, options.groups)?;
        // PyTorch takes the second dimension for the fan-in here, too.
        let init = Init::fan_in(out_group * kernel);
        let weight = weights.parameter("weight", (in_channels, out_group, kernel), init)?;
        let bias = bias.then(|| weights.parameter("bias", out_channels, init)).transpose()?;
        Ok(Self { weight, bias, options })
    }

    /// The output `[B, O, T']` for `x` `[B, C, T]`.
    ///
    /// # Errors
    /// As [`functional::conv_transpose1d`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        functional::conv_transpose1d(x, &self.weight, self.bias.as_ref(), &self.options)
    }
}

/// Channels a group of those that are divided first.
fn check_groups(divided: usize, other: usize, groups: usize) -> Result<usize> {
    if groups > 0 && divided.is_multiple_of(groups) && other.is_multiple_of(groups) {
        return Ok(divided / groups);
    }
    Err(Error::Argument(format!(
        "convolution layer: {groups} groups do not divide {divided} and {other} channels"
    )))
}
