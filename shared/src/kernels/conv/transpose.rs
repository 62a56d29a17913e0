//! Transposed convolution over time.

use candle_core::Tensor;

use super::{check_bias, geometry, op};
use crate::Result;
use crate::kernels::rows::contiguous_rows;
use crate::kernels::{to_compute_dtype, to_dtype};

/// How a transposed convolution spreads its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvTranspose1dOptions {
    /// Distance between the inputs in the output.
    pub stride: usize,
    /// Elements cut off before and after the output.
    pub padding: (usize, usize),
    /// Elements added at the end of the output.
    pub output_padding: usize,
    /// Distance between the kernel's taps.
    pub dilation: usize,
    /// Groups of channels that are convolved independently.
    pub groups: usize,
}

impl Default for ConvTranspose1dOptions {
    fn default() -> Self {
        Self { stride: 1, padding: (0, 0), output_padding: 0, dilation: 1, groups: 1 }
    }
}

/// The transposed convolution `[B, O, T']` of `x` `[B, C, T]` with `weight` `[C, O/g, K]`, plus
/// `bias` `[O]`, with
/// `T' = (T - 1) * stride - before - after + dilation * (K - 1) + output_padding + 1`.
///
/// # Errors
/// When the shapes do not fit each other, or nothing is left of the output after the padding.
pub fn conv_transpose1d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvTranspose1dOptions,
) -> Result<Tensor> {
    let geometry = geometry::transposed(x.dims(), weight.dims(), options)?;
    check_bias(bias, geometry.in_channels)?;
    let dtype = x.dtype();
    let x = contiguous_rows(&to_compute_dtype("transposed convolution input", x)?, 2)?;
    let weight = to_compute_dtype("transposed convolution weight", weight)?;
    let y = x.apply_op2(&weight, op::Transposed(geometry))?;
    let y = match bias {
        Some(bias) => {
            let bias = to_compute_dtype("transposed convolution bias", bias)?;
            y.broadcast_add(&bias.unsqueeze(1)?)?
        }
        None => y,
    };
    to_dtype(y, dtype)
}
