//! Matrix products: batched, and of a layer's input with its weight.

mod op;
mod reference;

use candle_core::Tensor;

use super::activation::{Activation, activate};
use super::{to_compute_dtype, to_dtype};
use crate::{Error, Result};

/// `x W^T + bias` `[.., O]` of `x` `[.., I]`, `weight` `[O, I]` and `bias` `[O]`, after
/// `activation`.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let &[outputs, inputs] = weight.dims() else {
        return Err(Error::shape("linear weight", "[O, I]", weight.dims()));
    };
    let Some((&last, leading)) = x.dims().split_last().filter(|(last, _)| **last == inputs) else {
        return Err(Error::shape("linear input", format!("[.., {inputs}]"), x.dims()));
    };
    if let Some(bias) = bias.filter(|bias| bias.dims() != [outputs]) {
        return Err(Error::shape("linear bias", format!("[{outputs}]"), bias.dims()));
    }
    let dtype = x.dtype();
    let rows = leading.iter().product::<usize>();
    let x = to_compute_dtype("linear input", x)?;
    let weight = to_compute_dtype("linear weight", weight)?;
    let bias = bias
        .map(|bias| Ok::<_, Error>(to_compute_dtype("linear bias", bias)?.contiguous()?))
        .transpose()?;
    let tracked =
        [Some(&x), Some(&weight), bias.as_ref()].into_iter().flatten().any(Tensor::track_op);
    let is_fused = !tracked || activation.is_output_differentiable();
    let op = op::Linear(if is_fused { activation } else { Activation::Identity });
    let flat = x.reshape((rows, last))?;
    let y = match &bias {
        Some(bias) => flat.apply_op3(&weight, bias, op)?,
        None => flat.apply_op2(&weight, op)?,
    };
    let y = if is_fused { y } else { activate(&y, activation)? };
    to_dtype(y.reshape([leading, &[outputs]].concat())?, dtype)
}

/// The matrix products `[.., M, N]` of `a` `[.., M, K]` and `b` `[.., K, N]`, whose leading
/// dimensions are equal.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let rank = a.rank();
    let fits = rank >= 2
        && b.rank() == rank
        && a.dims()[..rank - 2] == b.dims()[..rank - 2]
        && a.dims()[rank - 1] == b.dims()[rank - 2];
    if !fits {
        let expected = format!("[.., K, N] to fit the left matrix {:?}", a.dims());
        return Err(Error::shape("right matrix of a product", expected, b.dims()));
    }
    let dtype = a.dtype();
    let [left, right] = [to_compute_dtype("left matrix", a)?, to_compute_dtype("right matrix", b)?];
    let product = left.apply_op2(&right, op::MatMul)?;
    to_dtype(product, dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::check;

    #[test]
    fn linear_gradients_match_finite_differences() {
        for activation in [Activation::Identity, Activation::Relu, Activation::Gelu] {
            let shapes: [&[usize]; 3] = [&[3, 5, 7], &[4, 7], &[4]];
            check::gradients(&format!("linear {activation:?}"), &shapes, |inputs| {
                linear(&inputs[0], &inputs[1], Some(&inputs[2]), activation)
            });
        }
        check::gradients("linear, one row, no bias", &[&[7], &[4, 7]], |inputs| {
            linear(&inputs[0], &inputs[1], None, Activation::Tanh)
        });
    }

    #[test]
    fn matmul_gradients_match_finite_differences() {
        let cases: [[&[usize]; 2]; 3] =
            [[&[5, 3], &[3, 7]], [&[1, 5, 3], &[1, 3, 7]], [&[2, 3, 5, 3], &[2, 3, 3, 4]]];
        for shapes in cases {
            check::gradients(&format!("matmul {shapes:?}"), &shapes, |inputs| {
                matmul(&inputs[0], &inputs[1])
            });
        }
    }
}
