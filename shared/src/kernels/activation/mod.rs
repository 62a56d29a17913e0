//! Point-wise activations, on their own or fused into the end of another kernel.

mod cpu;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};

pub(crate) use cpu::scalar as apply;

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
    if activation == Activation::Identity {
        return Ok(x.clone());
    }
    let input = to_compute_dtype("activation input", x)?.contiguous()?;
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
        Activation::Identity => gradient.contiguous(),
        _ => output.contiguous()?.apply_op2_no_bwd(
            &gradient.contiguous()?,
            &Gradient { activation, from: From::Output },
        ),
    }
}

struct Activate(Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((cpu::activate(storage, layout, self.0)?, layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        _output: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let op = Gradient { activation: self.0, from: From::Input };
        Ok(Some(x.apply_op2_no_bwd(&gradient.contiguous()?, &op)?))
    }
}

/// What the derivative is computed from.
#[derive(Clone, Copy)]
enum From {
    Input,
    Output,
}

/// The gradient times the derivative; both arguments are contiguous.
struct Gradient {
    activation: Activation,
    from: From,
}

impl CustomOp2 for Gradient {
    fn name(&self) -> &'static str {
        "activation-gradient"
    }

    fn cpu_fwd(
        &self,
        point: &CpuStorage,
        point_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let storage = cpu::gradient(
            (point, point_layout),
            (gradient, gradient_layout),
            self.activation,
            matches!(self.from, From::Output),
        )?;
        Ok((storage, point_layout.shape().clone()))
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
