//! A linear layer's weight, arranged once for many inputs.

use std::sync::{Arc, OnceLock};

use candle_core::Tensor;

use super::narrow::{self, NarrowWeight};
use super::{apply, flatten, output_dims};
use crate::kernels::activation::Activation;
use crate::kernels::epilogue::After;
use crate::kernels::gemm::PackedRight;
use crate::kernels::isa::instruction_set;
use crate::kernels::narrow::{Precision, check_no_gradient, to_f32, to_vec};
use crate::kernels::rows::{Rows, contiguous_rows};
use crate::kernels::to_dtype;
use crate::{Error, Result};

/// A linear layer's weight, arranged for the kernels of a precision.
#[derive(Debug)]
pub(crate) struct Packed(Form);

#[derive(Debug)]
enum Form {
    /// For those in `f32`: made when it is needed first, as few rows need none.
    F32(Arc<OnceLock<PackedRight>>),
    /// For those in narrow numbers.
    Narrow(NarrowWeight),
}

impl Packed {
    /// Arranges `weight` `[O, I]`, which is on the CPU.
    ///
    /// # Errors
    /// When it is no matrix; in 8-bit integers, when sums could overflow.
    pub fn new(weight: &Tensor, precision: Precision) -> Result<Self> {
        let Some(format) = precision.format() else { return Ok(Self(Form::F32(Arc::default()))) };
        let &[outputs, inputs] = weight.dims() else {
            return Err(Error::shape("linear weight", "[O, I]", weight.dims()));
        };
        let weight = to_f32("linear weight", weight)?.contiguous()?;
        let packed = Rows::of(&weight, 0, |rows| {
            Ok(NarrowWeight::new(format, instruction_set(), rows.row(0), [outputs, inputs]))
        })??;
        Ok(Self(Form::Narrow(packed)))
    }
}

/// [`super::linear`] with `weight` in its packed form, if there is one, and what follows.
///
/// # Errors
/// As [`super::linear`]; in narrow numbers, when a gradient is needed.
pub(crate) fn linear_with(
    x: &Tensor,
    weight: &Tensor,
    packed: Option<&Packed>,
    bias: Option<&Tensor>,
    activation: Activation,
    after: After,
) -> Result<Tensor> {
    match packed {
        None => apply(x, weight, None, bias, activation, after),
        Some(Packed(Form::F32(packed))) => apply(x, weight, Some(packed), bias, activation, after),
        Some(Packed(Form::Narrow(packed))) => {
            narrow(x, weight.dims(), packed, bias, activation, after)
        }
    }
}

/// [`linear_with`] in narrow numbers.
pub(super) fn narrow(
    x: &Tensor,
    weight_dims: &[usize],
    packed: &NarrowWeight,
    bias: Option<&Tensor>,
    activation: Activation,
    after: After,
) -> Result<Tensor> {
    let dims = output_dims(x, weight_dims, bias)?;
    after.check(&dims)?;
    check_no_gradient([Some(x), bias, after.residual])?;
    let input = contiguous_rows(&flatten(&to_f32("linear input", x)?)?, 1)?;
    let bias = bias.map(|bias| to_vec("linear bias", bias)).transpose()?;
    let y = Rows::of(&input, 1, |rows| {
        let ending = after.ending().map_err(candle_core::Error::wrap)?;
        ending.with(activation, |epilogue| {
            Ok(narrow::forward(&rows, packed, bias.as_deref(), epilogue))
        })
    })?;
    to_dtype(Tensor::from_vec(y, dims, x.device())?, x.dtype())
}
