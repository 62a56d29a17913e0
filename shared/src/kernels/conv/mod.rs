//! Convolution over one, two or three spatial dimensions, and its transpose over one.

mod columns;
mod fast;
mod geometry;
mod narrow;
mod op;
mod packed;
mod reference;
mod scatter;
mod transpose;
mod view;
mod weight_gradient;
mod winograd;

use std::sync::Arc;

use candle_core::{DType, Tensor};

pub(crate) use geometry::Geometry;
pub(crate) use packed::{Packed, convolve_with};
pub use transpose::{ConvTranspose1dOptions, conv_transpose1d};

use fast::PackedForms;

use super::activation::{Activation, activate};
use super::epilogue::{After, Ending};
use super::{to_compute_dtype, to_dtype};
use crate::{Error, Result};

/// How a convolution moves over its input, per spatial dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvOptions<const D: usize> {
    /// Step of the kernel.
    pub stride: [usize; D],
    /// Distance between the kernel's taps.
    pub dilation: [usize; D],
    /// Zeros added before and after the input.
    pub padding: [(usize, usize); D],
    /// Groups of channels that are convolved independently.
    pub groups: usize,
    /// Applied to the result.
    pub activation: Activation,
}

impl<const D: usize> Default for ConvOptions<D> {
    fn default() -> Self {
        Self {
            stride: [1; D],
            dilation: [1; D],
            padding: [(0, 0); D],
            groups: 1,
            activation: Activation::Identity,
        }
    }
}

/// The convolution `[B, O, T']` of `x` `[B, C, T]` with `weight` `[O, C/g, K]`, plus `bias` `[O]`,
/// with `T' = (T + before + after - dilation * (K - 1) - 1) / stride + 1`.
///
/// # Errors
/// When the shapes do not fit each other, or the padded input is shorter than the kernel.
pub fn conv1d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvOptions<1>,
) -> Result<Tensor> {
    convolve(x, weight, None, bias, options, After::default())
}

/// The convolution `[B, O, H', W']` of `x` `[B, C, H, W]` with `weight` `[O, C/g, Kh, Kw]`, plus
/// `bias` `[O]`. See [`conv1d`].
///
/// # Errors
/// As [`conv1d`].
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvOptions<2>,
) -> Result<Tensor> {
    convolve(x, weight, None, bias, options, After::default())
}

/// The convolution `[B, O, D', H', W']` of `x` `[B, C, D, H, W]` with `weight`
/// `[O, C/g, Kd, Kh, Kw]`, plus `bias` `[O]`. See [`conv1d`].
///
/// # Errors
/// As [`conv1d`].
pub fn conv3d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvOptions<3>,
) -> Result<Tensor> {
    convolve(x, weight, None, bias, options, After::default())
}

/// The convolution of `x` `[B, C, ..]` with `weight` `[O, C/g, ..]` over `D` dimensions, plus `bias`
/// `[O]`, after the activation; plus `residual`, in the shape of that. Where nothing needs a gradient,
/// all in one pass. See [`conv1d`].
///
/// # Errors
/// As [`conv1d`].
pub fn conv_add<const D: usize>(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: &Tensor,
    options: &ConvOptions<D>,
) -> Result<Tensor> {
    let after = After { residual: Some(residual), ..After::default() };
    convolve(x, weight, None, bias, options, after)
}

/// The convolution of `x` with `weight`, whose packed forms may be kept, and what follows.
fn convolve<const D: usize>(
    x: &Tensor,
    weight: &Tensor,
    packed: Option<&Arc<PackedForms>>,
    bias: Option<&Tensor>,
    options: &ConvOptions<D>,
    after: After,
) -> Result<Tensor> {
    let geometry = Geometry::new(x.dims(), weight.dims(), options)?;
    check_bias(bias, geometry.out_channels)?;
    after.check(&geometry.output_dims())?;
    let dtype = x.dtype();
    let [x, weight] = [
        to_compute_dtype("convolution input", x)?,
        to_compute_dtype("convolution weight", weight)?,
    ];
    // The fast path gathers signals whose elements do not lie side by side one by one, again for
    // each tap: better once.
    let is_scattered = x.dtype() == DType::F32 && x.stride().last() != Some(&1);
    let x = if is_scattered { x.contiguous()? } else { x };
    let bias = bias
        .map(|bias| Ok::<_, Error>(to_compute_dtype("convolution bias", bias)?.contiguous()?))
        .transpose()?;
    let tracked = after.is_tracked()
        || [Some(&x), Some(&weight), bias.as_ref()].into_iter().flatten().any(Tensor::track_op);
    // An activation whose derivative needs its input stays a step of its own in training.
    let is_fused = !tracked || options.activation.is_output_differentiable();
    let activation = if is_fused { options.activation } else { Activation::Identity };
    let ends_fused = !tracked && x.dtype() == DType::F32;
    let ending = if ends_fused { after.ending()? } else { Ending::default() };
    let op = op::Convolution { geometry, activation, ending, packed: packed.cloned() };
    let y = match &bias {
        Some(bias) => x.apply_op3(&weight, bias, op)?,
        None => x.apply_op2(&weight, op)?,
    };
    let y = if is_fused { y } else { activate(&y, options.activation)? };
    let y = if ends_fused { y } else { after.apply(y)? };
    to_dtype(y, dtype)
}

fn check_bias(bias: Option<&Tensor>, channels: usize) -> Result<()> {
    match bias {
        Some(bias) if bias.dims() != [channels] => {
            Err(Error::shape("convolution bias", format!("[{channels}]"), bias.dims()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod narrow_tests;
#[cfg(test)]
mod tests;
