//! Layer normalisation of a sum, as transformers have it after every residual connection.
#![allow(unsafe_code)]

use std::sync::PoisonError;

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Shape, Tensor};

use super::layer::{LayerNorm, Ready, add_row, gradients, scale_row, statistics, vectors};
use crate::kernels::activation::Smooth;
use crate::kernels::parallel;
use crate::kernels::real::Real;
use crate::kernels::rows::{OnRows, Rows, contiguous_rows};
use crate::kernels::vectorised::vectorised;
use crate::kernels::{to_compute_dtype, to_dtype};
use crate::{Error, Result};

/// Layer norm of `x + residual`, both `[.., C]`, as [`super::layer_norm`] computes it, in one pass.
///
/// # Errors
/// When the shapes do not fit.
pub fn layer_norm_of_sum(
    x: &Tensor,
    residual: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let dtype = x.dtype();
    let [x, residual] = summands(x, residual)?;
    let [weight, bias] = vectors(&x, weight, bias)?;
    if x.elem_count() == 0 {
        return to_dtype(x, dtype);
    }
    let vectors = Tensor::stack(&[weight, bias], 0)?;
    to_dtype(x.apply_op3(&residual, &vectors, AddLayerNorm { eps, ready: None })?, dtype)
}

/// `x + residual`, both `[.., C]`, and the [`super::layer_norm`] of it, in one pass.
///
/// # Errors
/// When the shapes do not fit.
pub fn add_layer_norm(
    x: &Tensor,
    residual: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let dtype = x.dtype();
    let [x, residual] = summands(x, residual)?;
    let [weight, bias] = vectors(&x, weight, bias)?;
    if x.elem_count() == 0 {
        let sum = to_dtype(x, dtype)?;
        return Ok((sum.clone(), sum));
    }
    let ready = Ready::default();
    let vectors = Tensor::stack(&[weight.detach(), bias.detach()], 0)?;
    let add = AddLayerNorm { eps, ready: Some(ready.clone()) };
    let sum = x.apply_op3(&residual, &vectors, add)?;
    let norm = sum.apply_op3(&weight, &bias, LayerNorm { eps, ready: Some(ready) })?;
    Ok((to_dtype(sum, dtype)?, to_dtype(norm, dtype)?))
}

/// The two, ready to be added row by row.
fn summands(x: &Tensor, residual: &Tensor) -> Result<[Tensor; 2]> {
    if residual.dims() != x.dims() {
        let expected = format!("that of the input, {:?}", x.dims());
        return Err(Error::shape("residual of layer norm", expected, residual.dims()));
    }
    let x = to_compute_dtype("layer norm", x)?;
    let residual = to_dtype(residual.clone(), x.dtype())?;
    let leading = x.rank().saturating_sub(1);
    Ok([contiguous_rows(&x, leading)?, contiguous_rows(&residual, leading)?])
}

/// The sum of `x` and a residual. Leaves the layer norm of it, for the weight and bias that the
/// third argument `[2, C]` holds, in `ready`; where there is no such place, that norm is the result.
struct AddLayerNorm {
    eps: f64,
    ready: Option<Ready>,
}

impl CustomOp3 for AddLayerNorm {
    fn name(&self) -> &'static str {
        "add-layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
        vectors: &CpuStorage,
        vectors_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let leading = x_layout.dims().len() - 1;
        let [sum, norm] = self.run([
            (x, x_layout, leading),
            (residual, residual_layout, leading),
            (vectors, vectors_layout, 1),
        ])?;
        let result = match &self.ready {
            Some(ready) => {
                *ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(norm);
                sum
            }
            None => norm,
        };
        Ok((result, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        residual: &Tensor,
        vectors: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (of_sum, of_vectors) = match (&self.ready, x.dtype()) {
            (Some(_), _) => (gradient.clone(), None),
            (None, DType::F64) => self.backward::<f64>(x, residual, vectors, gradient)?,
            (None, _) => self.backward::<f32>(x, residual, vectors, gradient)?,
        };
        let gradient_of = |summand: &Tensor| summand.track_op().then(|| of_sum.clone());
        Ok((gradient_of(x), gradient_of(residual), of_vectors))
    }
}

impl AddLayerNorm {
    /// The gradients of the sum, and, if it is wanted, of weight and bias, when the result is the norm.
    fn backward<T: Real>(
        &self,
        x: &Tensor,
        residual: &Tensor,
        vectors: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Tensor, Option<Tensor>)> {
        let leading = x.rank() - 1;
        let dy = contiguous_rows(dy, leading)?;
        let arguments = [(x, leading), (residual, leading), (&dy, leading), (vectors, 1)];
        let is_tracked = vectors.track_op();
        let (dx, dvectors) = Rows::<T>::of_all(arguments, |[x, residual, dy, vectors]| {
            Ok(gradients(&x, Some(&residual), &dy, vectors.row(0), self.eps, is_tracked))
        })?;
        let dvectors: Vec<T> = dvectors.concat().into_iter().map(T::from_f64).collect();
        let dvectors =
            is_tracked.then(|| Tensor::from_vec(dvectors, vectors.shape(), vectors.device()));
        Ok((Tensor::from_vec(dx, x.shape(), x.device())?, dvectors.transpose()?))
    }
}

impl OnRows<3, 2> for AddLayerNorm {
    /// The sum, if it is wanted, and its norm.
    fn on_rows<T: Smooth>(&self, [x, residual, vectors]: [Rows<'_, T>; 3]) -> [Vec<T>; 2] {
        let (weight, bias) = (vectors.row(0), vectors.row(1));
        if self.ready.is_none() {
            let work = |row, y: &mut [_]| {
                let y = add_row(x.row(row), residual.row(row), y);
                let (pivot, inverse_std) = statistics(y, self.eps);
                scale_row_in_place(y, pivot, inverse_std, weight, bias);
            };
            // SAFETY: `add_row` writes its whole row.
            return [vec![], unsafe { parallel::write_rows(x.count(), x.len(), work) }];
        }
        let work = |row, sum: &mut [_], y: &mut [_]| {
            let sum = add_row(x.row(row), residual.row(row), sum);
            let (pivot, inverse_std) = statistics(sum, self.eps);
            scale_row(sum, pivot, inverse_std, weight, bias, y);
        };
        // SAFETY: `add_row` and `scale_row` write their whole rows.
        unsafe { parallel::write_row_pairs(x.count(), x.len(), work) }
    }
}

vectorised! {
    /// `x = (x - pivot) scale weight + bias`.
    fn scale_row_in_place<T: Real>(x: &mut [T], pivot: T, scale: T, weight: &[T], bias: &[T]) {
        for ((x, &weight), &bias) in x.iter_mut().zip(weight).zip(bias) {
            *x = (*x - pivot) * scale * weight + bias;
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::kernels::check;
    use crate::kernels::norm::layer_norm;

    #[test]
    fn sums_are_normalised_in_one_pass() {
        for dims in [[1, 1], [3, 7], [130, 300]] {
            let [x, residual] = [0, 1].map(|i| check::normal(i, &dims));
            let [weight, bias] = [2, 3].map(|i| check::normal(i, &dims[1..]));
            for dtype in [DType::F64, DType::F32, DType::BF16] {
                let [x, residual, weight, bias] =
                    [&x, &residual, &weight, &bias].map(|t| t.to_dtype(dtype).unwrap());
                let expected_sum = if dtype == DType::BF16 {
                    let [x, residual] = [&x, &residual].map(|t| t.to_dtype(DType::F32).unwrap());
                    (x + residual).unwrap()
                } else {
                    (&x + &residual).unwrap()
                };
                let expected = layer_norm(&expected_sum, Some(&weight), Some(&bias), 1e-5).unwrap();
                let [expected, expected_sum] =
                    [expected, expected_sum].map(|t| check::to_vec(&t.to_dtype(dtype).unwrap()));
                let (sum, norm) =
                    add_layer_norm(&x, &residual, Some(&weight), Some(&bias), 1e-5).unwrap();
                let only =
                    layer_norm_of_sum(&x, &residual, Some(&weight), Some(&bias), 1e-5).unwrap();
                assert_eq!(sum.dtype(), dtype);
                assert_eq!(check::to_vec(&sum), expected_sum);
                assert_eq!(check::to_vec(&norm), expected);
                assert_eq!(check::to_vec(&only), expected);
            }
        }
    }

    #[test]
    fn gradients_of_sums_match_differences() {
        let shapes: [&[usize]; 4] = [&[2, 3, 5], &[2, 3, 5], &[5], &[5]];
        check::gradients("layer norm of a sum", &shapes, |inputs| {
            layer_norm_of_sum(&inputs[0], &inputs[1], Some(&inputs[2]), Some(&inputs[3]), 0.1)
        });
        check::gradients("sum and layer norm", &shapes, |inputs| {
            let (sum, norm) =
                add_layer_norm(&inputs[0], &inputs[1], Some(&inputs[2]), Some(&inputs[3]), 0.1)?;
            Ok((sum.sqr()? + norm)?)
        });
    }

    #[test]
    fn unusable_input_is_refused() {
        let tensor = |dims: &[usize]| check::normal(0, dims);
        assert!(add_layer_norm(&tensor(&[2, 3]), &tensor(&[3]), None, None, 1e-5).is_err());
        assert!(layer_norm_of_sum(&tensor(&[]), &tensor(&[]), None, None, 1e-5).is_err());
        assert!(layer_norm_of_sum(&tensor(&[0, 3]), &tensor(&[0, 3]), None, None, 1e-5).is_ok());
    }
}
