//! Point-wise activations, on their own or fused into the end of another kernel.

mod cpu;
mod functions;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};

pub(crate) use cpu::{activate_in_place, activate_normalised, differentiate_in_place};
pub(crate) use functions::Smooth;

use super::rows::{Rows, contiguous_rows};
use super::{to_compute_dtype, to_dtype};
use crate::Result;

/// A point-wise activation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `x`.
    #[default]
    Identity,
    /// `max(x, 0)`.
    Relu,
    /// `x * sigmoid(x)`, also called swish.
    Silu,
    /// `x * Phi(x)` with the normal distribution function `Phi`, exactly (by erf).
    Gelu,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
}

impl Activation {
    /// Whether the derivative can be computed from the output alone, so that a kernel may fuse the
    /// activation and still be differentiated.
    pub(crate) fn is_output_differentiable(self) -> bool {
        !matches!(self, Self::Silu | Self::Gelu)
    }
}

/// `activation` of every element of `x`, in the shape and dtype of `x`.
///
/// # Errors
/// When `x` is not of a floating dtype.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if activation == Activation::Identity || x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let input = contiguous_rows(&to_compute_dtype("activation input", x)?, leading(x.rank()))?;
    to_dtype(input.apply_op1(Activate(activation))?, x.dtype())
}

/// Gradient at the input of `activation`, from its `output` and the gradient there. Only for
/// activations that are [`Activation::is_output_differentiable`].
pub(crate) fn gradient_from_output(
    output: &Tensor,
    gradient: &Tensor,
    activation: Activation,
) -> candle_core::Result<Tensor> {
    match activation {
        Activation::Identity => Ok(gradient.clone()),
        _ => product_with_derivative(output, gradient, activation),
    }
}

/// Dimensions that number the rows which are processed one by one: enough of them to keep all
/// threads busy.
fn leading(rank: usize) -> usize {
    rank.saturating_sub(1).min(2)
}

fn product_with_derivative(
    point: &Tensor,
    gradient: &Tensor,
    activation: Activation,
) -> candle_core::Result<Tensor> {
    let gradient = contiguous_rows(gradient, leading(gradient.rank()))?;
    point.apply_op2_no_bwd(&gradient, &Gradient(activation))
}

struct Activate(Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let leading = leading(layout.dims().len());
        let y = match x {
            CpuStorage::F64(_) => {
                CpuStorage::F64(cpu::forward(&Rows::new(x, layout, leading)?, self.0))
            }
            _ => CpuStorage::F32(cpu::forward(&Rows::new(x, layout, leading)?, self.0)),
        };
        Ok((y, layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let point = if self.0.is_output_differentiable() { y } else { x };
        product_with_derivative(point, gradient, self.0).map(Some)
    }
}

/// A gradient (second argument) times the derivative at a point (first argument): the output or
/// input of the activation, see [`cpu::gradient`].
struct Gradient(Activation);

impl CustomOp2 for Gradient {
    fn name(&self) -> &'static str {
        "activation-gradient"
    }

    fn cpu_fwd(
        &self,
        point: &CpuStorage,
        layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let leading = leading(layout.dims().len());
        let dx = match point {
            CpuStorage::F64(_) => CpuStorage::F64(cpu::gradient(
                &Rows::new(point, layout, leading)?,
                &Rows::new(dy, dy_layout, leading)?,
                self.0,
            )),
            _ => CpuStorage::F32(cpu::gradient(
                &Rows::new(point, layout, leading)?,
                &Rows::new(dy, dy_layout, leading)?,
                self.0,
            )),
        };
        Ok((dx, layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::check;

    #[test]
    fn gradients_match_finite_differences() {
        for activation in [
            Activation::Identity,
            Activation::Relu,
            Activation::Silu,
            Activation::Gelu,
            Activation::Tanh,
            Activation::Sigmoid,
        ] {
            check::gradients(&format!("{activation:?}"), &[&[3, 5, 7]], |inputs| {
                activate(&inputs[0], activation)
            });
        }
    }
}
