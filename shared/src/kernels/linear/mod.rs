//! Matrix products: batched, and of a layer's input with its weight.

mod narrow;
mod op;
mod packed;

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Tensor};

pub(crate) use packed::{Packed, linear_with};

use super::activation::{Activation, activate};
use super::epilogue::{After, Ending};
use super::gemm::PackedRight;
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
    apply(x, weight, None, bias, activation, After::default())
}

/// [`linear`] plus `residual`, in the shape of the output. Where nothing needs a gradient, all in one
/// pass.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn linear_add(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: &Tensor,
    activation: Activation,
) -> Result<Tensor> {
    let after = After { residual: Some(residual), ..After::default() };
    apply(x, weight, None, bias, activation, after)
}

/// [`linear`] with a weight whose packed form may be kept, and what follows.
fn apply(
    x: &Tensor,
    weight: &Tensor,
    packed: Option<&Arc<OnceLock<PackedRight>>>,
    bias: Option<&Tensor>,
    activation: Activation,
    after: After,
) -> Result<Tensor> {
    let dims = output_dims(x, weight.dims(), bias)?;
    after.check(&dims)?;
    let dtype = x.dtype();
    let x = to_compute_dtype("linear input", x)?;
    let weight = to_compute_dtype("linear weight", weight)?;
    let bias = bias
        .map(|bias| Ok::<_, Error>(to_compute_dtype("linear bias", bias)?.contiguous()?))
        .transpose()?;
    let tracked = after.is_tracked()
        || [Some(&x), Some(&weight), bias.as_ref()].into_iter().flatten().any(Tensor::track_op);
    let is_fused = !tracked || activation.is_output_differentiable();
    let fused = if is_fused { activation } else { Activation::Identity };
    let ends_fused = !tracked && x.dtype() == DType::F32;
    let ending = if ends_fused { after.ending()? } else { Ending::default() };
    let op = op::Linear { activation: fused, ending, packed: packed.cloned() };
    let flat = flatten(&x)?;
    let y = match &bias {
        Some(bias) => flat.apply_op3(&weight, bias, op)?,
        None => flat.apply_op2(&weight, op)?,
    };
    let y = if is_fused { y } else { activate(&y, activation)? };
    let y = y.reshape(dims)?;
    to_dtype(if ends_fused { y } else { after.apply(y)? }, dtype)
}

/// Shape `[.., O]` of the output for an input `[.., I]`, a weight `[O, I]` and a bias `[O]`.
fn output_dims(x: &Tensor, weight: &[usize], bias: Option<&Tensor>) -> Result<Vec<usize>> {
    let &[outputs, inputs] = weight else {
        return Err(Error::shape("linear weight", "[O, I]", weight));
    };
    let Some((_, leading)) = x.dims().split_last().filter(|(last, _)| **last == inputs) else {
        return Err(Error::shape("linear input", format!("[.., {inputs}]"), x.dims()));
    };
    if let Some(bias) = bias.filter(|bias| bias.dims() != [outputs]) {
        return Err(Error::shape("linear bias", format!("[{outputs}]"), bias.dims()));
    }
    Ok([leading, &[outputs]].concat())
}

/// `x` `[.., I]` as a matrix.
fn flatten(x: &Tensor) -> Result<Tensor> {
    let (inputs, leading) =
        x.dims().split_last().map_or((1, &[][..]), |(&last, rest)| (last, rest));
    Ok(x.reshape((leading.iter().product::<usize>(), inputs))?)
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
mod narrow_tests;

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

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
    fn sums_with_residuals_are_those_of_their_parts() {
        let shapes: [&[usize]; 4] = [&[3, 5, 7], &[4, 7], &[4], &[3, 5, 4]];
        check::gradients("linear, sum", &shapes, |inputs| {
            linear_add(&inputs[0], &inputs[1], Some(&inputs[2]), &inputs[3], Activation::Gelu)
        });
        for rows in [1, 40] {
            let shapes = [[rows, 300], [70, 300], [rows, 70]];
            let inputs = [0, 1, 2].map(|i| check::normal(i as u64, &shapes[i]));
            let single = inputs.each_ref().map(|input| input.to_dtype(DType::F32).unwrap());
            let [found, expected] = [single, inputs].map(|[x, weight, residual]| {
                let y = linear_add(&x, &weight, None, &residual, Activation::Tanh);
                check::to_vec(&y.unwrap())
            });
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-5, "{rows} {found} {expected}");
            }
        }
        let [x, weight] = [check::normal(0, &[2, 3]), check::normal(1, &[4, 3])];
        assert!(linear_add(&x, &weight, None, &x, Activation::Identity).is_err());
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

    #[test]
    fn f32_agrees_with_f64_at_the_sizes_of_models() {
        for [rows, inputs, outputs] in
            [[1, 700, 300], [5, 40, 1000], [300, 1100, 70], [130, 64, 64]]
        {
            let shapes: [&[usize]; 3] = [&[2, rows, inputs], &[outputs, inputs], &[outputs]];
            check::f32_agrees_with_f64(&format!("linear {shapes:?}"), &shapes, |inputs| {
                linear(&inputs[0], &inputs[1], Some(&inputs[2]), Activation::Gelu)
            });
        }
        for [m, k, n] in [[200, 64, 200], [33, 600, 17], [1, 50, 130]] {
            let shapes: [&[usize]; 2] = [&[2, 3, m, k], &[2, 3, k, n]];
            check::f32_agrees_with_f64(&format!("matmul {shapes:?}"), &shapes, |inputs| {
                matmul(&inputs[0], &inputs[1])
            });
        }
    }

    #[test]
    fn repeated_inputs_and_gradients_are_read_like_copies() {
        let weight = check::normal(1, &[6, 7]).to_dtype(DType::F32).unwrap();
        check::repeated("linear", &[5, 7], |x| linear(x, &weight, None, Activation::Identity));
        let right = check::normal(1, &[3, 7, 4]).to_dtype(DType::F32).unwrap();
        check::repeated("matmul", &[3, 5, 7], |x| matmul(x, &right));
    }

    #[test]
    fn impossible_sizes_are_errors() {
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
        let weight = zeros(&[4, 7]);
        for x in [&[][..], &[6], &[7, 3]] {
            assert!(linear(&zeros(x), &weight, None, Activation::Identity).is_err(), "{x:?}");
        }
        let x = zeros(&[2, 7]);
        assert!(linear(&x, &zeros(&[7]), None, Activation::Identity).is_err());
        assert!(linear(&x, &weight, Some(&zeros(&[5])), Activation::Identity).is_err());
        for (a, b) in [(&[3, 4][..], &[5, 3][..]), (&[4], &[4]), (&[2, 3, 4], &[3, 4, 5])] {
            assert!(matmul(&zeros(a), &zeros(b)).is_err(), "{a:?} {b:?}");
        }
        // Nothing to sum and nothing to compute are no errors.
        let bias = Tensor::new(&[1f32, -2.0, 3.0], &Device::Cpu).unwrap();
        let y = linear(&zeros(&[2, 0]), &zeros(&[3, 0]), Some(&bias), Activation::Relu).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), [[1.0, 0.0, 3.0], [1.0, 0.0, 3.0]]);
        assert_eq!(matmul(&zeros(&[0, 2, 3]), &zeros(&[0, 3, 4])).unwrap().dims(), [0, 2, 4]);
    }
}
