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
        let geometry = smallest(weight.dims(), options)?;
        let weight = to_f32("convolution weight", weight)?.contiguous()?;
        let (storage, layout) = weight.storage_and_layout();
        let view = View::<f32>::new(on_cpu(&storage)?, layout)?;
        let packed = NarrowWeight::new(format, instruction_set(), view.data, &geometry)?;
        Ok(Self(Form::Narrow(packed)))
    }

    /// As [`Packed::new`], now and in one form for inputs of all sizes, so that the weight itself is
    /// not needed any more but for its shape.
    ///
    /// # Errors
    /// As [`Packed::new`].
    pub fn whole<const D: usize>(
        weight: &Tensor,
        options: &ConvOptions<D>,
        precision: Precision,
    ) -> Result<Self> {
        if precision != Precision::F32 {
            return Self::new(weight, options, precision);
        }
        let geometry = smallest(weight.dims(), options)?;
        let weight = to_f32("convolution weight", weight)?;
        let (storage, layout) = weight.storage_and_layout();
        let view = View::<f32>::new(on_cpu(&storage)?, layout)?;
        Ok(Self(Form::F32(Arc::new(PackedForms::one(view, &geometry)))))
    }
}

/// The sizes of a convolution of as many elements as the kernel reaches over.
fn smallest<const D: usize>(weight: &[usize], options: &ConvOptions<D>) -> Result<Geometry> {
    let mut input = weight.to_vec();
    if let [batch, channels, sizes @ ..] = &mut input[..] {
        (*batch, *channels) = (1, channels.saturating_mul(options.groups));
        for (size, dilation) in sizes.iter_mut().zip(options.dilation) {
            *size = size.saturating_sub(1).saturating_mul(dilation).saturating_add(1);
        }
    }
    let padding = [(0, 0); D];
    Geometry::new(&input, weight, &ConvOptions { padding, ..options.clone() })
}

/// The convolution of `x` with `weight`, in its packed form if there is one, and what follows.
///
/// # Errors
/// As [`super::conv1d`]; in narrow numbers or without the weight, when a gradient is needed.
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
        Some(Packed(Form::F32(packed))) => {
            if packed.is_one() {
                check_no_gradient([Some(x), bias, after.residual])?;
            }
            convolve(x, weight, Some(packed), bias, options, after)
        }
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
