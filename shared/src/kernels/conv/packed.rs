//! A convolution's weight, arranged once for many inputs.

use std::sync::Arc;

use candle_core::Tensor;

use super::fast::PackedForms;
use super::narrow::{self, NarrowWeight};
use super::view::View;
use super::{ConvOptions, Geometry, check_bias, convolve};
use crate::Result;
use crate::kernels::epilogue::After;
use crate::kernels::isa::instruction_set;
use crate::kernels::narrow::{Precision, check_no_gradient, to_f32, to_vec};
use crate::kernels::{on_cpu, to_dtype};

/// A convolution's weight, arranged for the kernels of a precision.
#[derive(Debug)]
pub(crate) struct Packed(Form);

#[derive(Debug)]
enum Form {
    /// For those in `f32`: made when it is needed first, as its form depends on the input's size.
    F32(Arc<PackedForms>),
    /// For those in narrow numbers.
    Narrow(NarrowWeight),
}

impl Packed {
    /// Arranges `weight` `[O, C/g, ..]`, which is on the CPU.
    ///
    /// # Errors
    /// When the shape is none of a weight with these groups; in 8-bit integers, when sums could
    /// overflow.
    pub fn new<const D: usize>(
        weight: &Tensor,
        options: &ConvOptions<D>,
        precision: Precision,
    ) -> Result<Self> {
        let Some(format) = precision.format() else { return Ok(Self(Form::F32(Arc::default()))) };
        // The sizes of a convolution of one position.
        let mut input = weight.dims().to_vec();
        if let [batch, channels, ..] = &mut input[..] {
            (*batch, *channels) = (1, channels.saturating_mul(options.groups));
        }
        let options = ConvOptions::<D> { groups: options.groups, ..Default::default() };
        let geometry = Geometry::new(&input, weight.dims(), &options)?;
        let weight = to_f32("convolution weight", weight)?.contiguous()?;
        let (storage, layout) = weight.storage_and_layout();
        let view = View::<f32>::new(on_cpu(&storage)?, layout)?;
        let packed = NarrowWeight::new(format, instruction_set(), view.data, &geometry)?;
        Ok(Self(Form::Narrow(packed)))
    }
}

/// The convolution of `x` with `weight`, in its packed form if there is one, and what follows.
///
/// # Errors
/// As [`super::conv1d`]; in narrow numbers, when a gradient is needed.
pub(crate) fn convolve_with<const D: usize>(
    x: &Tensor,
    weight: &Tensor,
    packed: Option<&Packed>,
    bias: Option<&Tensor>,
    options: &ConvOptions<D>,
    after: After,
) -> Result<Tensor> {
    match packed {
        None => convolve(x, weight, None, bias, options, after),
        Some(Packed(Form::F32(packed))) => convolve(x, weight, Some(packed), bias, options, after),
        Some(Packed(Form::Narrow(packed))) => {
            narrow(x, weight.dims(), packed, bias, options, after)
        }
    }
}

/// [`convolve_with`] in narrow numbers.
pub(super) fn narrow<const D: usize>(
    x: &Tensor,
    weight_dims: &[usize],
    packed: &NarrowWeight,
    bias: Option<&Tensor>,
    options: &ConvOptions<D>,
    after: After,
) -> Result<Tensor> {
    let geometry = Geometry::new(x.dims(), weight_dims, options)?;
    check_bias(bias, geometry.out_channels)?;
    after.check(&geometry.output_dims())?;
    check_no_gradient([Some(x), bias, after.residual])?;
    let input = to_f32("convolution input", x)?;
    let input = if input.stride().last() == Some(&1) { input } else { input.contiguous()? };
    let bias = bias.map(|bias| to_vec("convolution bias", bias)).transpose()?;
    let y = {
        let (storage, layout) = input.storage_and_layout();
        let view = View::new(on_cpu(&storage)?, layout)?;
        after.ending()?.with(options.activation, |epilogue| {
            Ok(narrow::forward(view, packed, bias.as_deref(), &geometry, epilogue))
        })?
    };
    let y = Tensor::from_vec(y, geometry.output_dims(), x.device())?;
    to_dtype(y, x.dtype())
}
