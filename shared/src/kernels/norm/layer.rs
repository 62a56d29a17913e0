//! Layer normalisation.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Shape, Tensor};

use super::moments::Moments;
use crate::kernels::activation::Smooth;
use crate::kernels::parallel::{self, RowBuffer};
use crate::kernels::real::Real;
use crate::kernels::rows::{OnRows, Rows, contiguous_rows};
use crate::kernels::softmax::product_row;
use crate::kernels::vectorised::vectorised;
use crate::kernels::{to_compute_dtype, to_dtype};
use crate::{Error, Result};

/// Rows whose contributions to the gradients of weight and bias are summed in their own precision,
/// before they are passed on in f64.
const BLOCK_ROWS: usize = 64;

/// Layer norm of `x [.., C]` over its last dimension: `(x - mean) / sqrt(variance + eps) * weight +
/// bias` with `weight [C]` and `bias [C]`, 1 and 0 where there is none.
///
/// # Errors
/// When the shapes do not fit.
pub fn layer_norm(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = to_compute_dtype("layer norm", x)?;
    let [weight, bias] = vectors(&x, weight, bias)?;
    if x.elem_count() == 0 {
        return to_dtype(x, dtype);
    }
    let rows = contiguous_rows(&x, x.rank() - 1)?;
    to_dtype(rows.apply_op3(&weight, &bias, LayerNorm { eps, ready: None })?, dtype)
}

/// Weight and bias for `x [.., C]`.
pub(super) fn vectors(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
) -> Result<[Tensor; 2]> {
    let Some(&channels) = x.dims().last() else {
        return Err(Error::shape("input of layer norm", "[.., C]", x.dims()));
    };
    let weight = super::vector("weight of layer norm", weight, 1.0, channels, x)?;
    let bias = super::vector("bias of layer norm", bias, 0.0, channels, x)?;
    Ok([weight, bias])
}

/// A norm that was computed together with its input.
pub(super) type Ready = Arc<Mutex<Option<CpuStorage>>>;

/// The mean of a row and the reciprocal of its standard deviation.
pub(super) fn statistics<T: Real>(x: &[T], eps: f64) -> (T, T) {
    let moments = Moments::of(x);
    let inverse_std = 1.0 / (moments.variance() + eps).sqrt();
    (T::from_f64(moments.mean), T::from_f64(inverse_std))
}

/// The operation that normalises rows of `x [.., C]`, then applies `weight [C]` and `bias [C]`.
pub(super) struct LayerNorm {
    pub(super) eps: f64,
    /// Where the result was left, if it was computed together with the input.
    pub(super) ready: Option<Ready>,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let ready = self
            .ready
            .as_ref()
            .and_then(|ready| ready.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(y) = ready {
            return Ok((y, x_layout.shape().clone()));
        }
        let leading = x_layout.dims().len() - 1;
        let [y] =
            self.run([(x, x_layout, leading), (weight, weight_layout, 0), (bias, bias_layout, 0)])?;
        Ok((y, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = contiguous_rows(dy, x.rank() - 1)?;
        match x.dtype() {
            DType::F64 => self.backward::<f64>(x, weight, bias, &dy),
            _ => self.backward::<f32>(x, weight, bias, &dy),
        }
    }
}

impl OnRows<3, 1> for LayerNorm {
    fn on_rows<T: Smooth>(&self, [x, weight, bias]: [Rows<'_, T>; 3]) -> [Vec<T>; 1] {
        let work = |row, y: &mut [_]| {
            let x = x.row(row);
            let (pivot, inverse_std) = statistics(x, self.eps);
            scale_row(x, pivot, inverse_std, weight.row(0), bias.row(0), y);
        };
        // SAFETY: `scale_row` writes its whole row.
        [unsafe { parallel::write_rows(x.count(), x.len(), work) }]
    }
}

impl LayerNorm {
    /// The gradients of `x`, `weight` and `bias`.
    fn backward<T: Real>(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let leading = x.rank() - 1;
        let wants_vectors = weight.track_op() || bias.track_op();
        let arguments = [(x, leading), (dy, leading), (weight, 0)];
        let (dx, [dweight, dbias]) = Rows::<T>::of_all(arguments, |[x, dy, weight]| {
            Ok(gradients(&x, None, &dy, weight.row(0), self.eps, wants_vectors))
        })?;
        let vector = |of: &Tensor, values: Vec<f64>| -> candle_core::Result<Option<Tensor>> {
            let values: Vec<T> = values.into_iter().map(T::from_f64).collect();
            of.track_op().then(|| Tensor::from_vec(values, of.shape(), of.device())).transpose()
        };
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), vector(weight, dweight)?, vector(bias, dbias)?))
    }
}

/// The gradients of the input, and, if they are wanted, of weight and bias, for the norm of `x`, or
/// of the sum with a residual.
///
/// With `x^ = (x - mean) / std` and `g = weight dy`, over the `C` elements of a row:
/// `dx = (g - sum(g) / C - x^ sum(g x^) / C) / std`; over the rows: `d weight = sum(dy x^)`,
/// `d bias = sum(dy)`.
pub(super) fn gradients<T: Real>(
    x: &Rows<'_, T>,
    residual: Option<&Rows<'_, T>>,
    dy: &Rows<'_, T>,
    weight: &[T],
    eps: f64,
    wants_vectors: bool,
) -> (Vec<T>, [Vec<f64>; 2]) {
    let (count, len) = (x.count(), x.len());
    let rows = RowBuffer::new(count, len);
    let blocks = parallel::map_rows(count.div_ceil(BLOCK_ROWS), BLOCK_ROWS * len, |block| {
        let [mut products, mut sums] = [0, 1].map(|_| vec![T::zero(); len]);
        let mut sum = vec![MaybeUninit::uninit(); len];
        for row in block * BLOCK_ROWS..count.min((block + 1) * BLOCK_ROWS) {
            let (x, dy) = (x.row(row), dy.row(row));
            let x = match residual {
                Some(residual) => add_row(x, residual.row(row), &mut sum),
                None => x,
            };
            let (pivot, inverse_std) = statistics(x, eps);
            if wants_vectors {
                accumulate_row(x, pivot, inverse_std, dy, &mut products, &mut sums);
            }
            // SAFETY: each row is in one block.
            let dx = product_row(weight, dy, T::zero(), unsafe { rows.row(row) });
            let [sum, product] = T::sums(x, pivot, dx, T::zero());
            let scale = inverse_std.to_f64();
            let mean = T::from_f64(sum / len as f64);
            let slope = T::from_f64(product * scale * scale / len as f64);
            finish_row(x, pivot, [inverse_std, mean, slope], dx);
        }
        [products, sums]
    });
    let mut total = [0, 1].map(|_| vec![0.0; len]);
    for block in blocks {
        for (total, block) in total.iter_mut().zip(block) {
            total.iter_mut().zip(block).for_each(|(total, sum)| *total += sum.to_f64());
        }
    }
    // SAFETY: `product_row` wrote every row.
    (unsafe { rows.finish() }, total)
}

vectorised! {
    /// Writes all of `y = a + b`, and returns it.
    pub(super) fn add_row<'y, T: Real>(
        a: &[T],
        b: &[T],
        y: &'y mut [MaybeUninit<T>],
    ) -> &'y mut [T] {
        for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
            y.write(a + b);
        }
        // SAFETY: the loop above wrote every element.
        unsafe { y.assume_init_mut() }
    }

    /// Writes all of `y = (x - pivot) scale weight + bias`.
    pub(super) fn scale_row<T: Real>(
        x: &[T],
        pivot: T,
        scale: T,
        weight: &[T],
        bias: &[T],
        y: &mut [MaybeUninit<T>],
    ) {
        for (((y, &x), &weight), &bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            y.write((x - pivot) * scale * weight + bias);
        }
    }

    /// `dx = (g - mean) scale - (x - pivot) slope scale`, in which `dx` holds `g`.
    fn finish_row<T: Real>(x: &[T], pivot: T, factors: [T; 3], dx: &mut [T]) {
        let [scale, mean, slope] = factors;
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = (*dx - mean - (x - pivot) * slope) * scale;
        }
    }

    /// Adds `dy (x - pivot) scale` to `products` and `dy` to `sums`.
    fn accumulate_row<T: Real>(
        x: &[T],
        pivot: T,
        scale: T,
        dy: &[T],
        products: &mut [T],
        sums: &mut [T],
    ) {
        let sums = products.iter_mut().zip(sums);
        for (((product, sum), &x), &dy) in sums.zip(x).zip(dy) {
            *product += dy * ((x - pivot) * scale);
            *sum += dy;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::check;

    #[test]
    fn values_match_loops() {
        for dims in [[1, 1], [3, 7], [1, 33], [130, 300], [2, 1024]] {
            let x = (check::normal(0, &dims) * 3.0).unwrap();
            let (weight, bias) = (check::normal(1, &dims[1..]), check::normal(2, &dims[1..]));
            for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 3e-6)] {
                let [x, weight, bias] = [&x, &weight, &bias].map(|t| t.to_dtype(dtype).unwrap());
                let y = layer_norm(&x, Some(&weight), Some(&bias), 1e-5).unwrap();
                let [x, weight, bias, y] = [&x, &weight, &bias, &y].map(check::to_vec);
                for (x, y) in x.chunks(dims[1]).zip(y.chunks(dims[1])) {
                    let n = dims[1] as f64;
                    let mean = x.iter().sum::<f64>() / n;
                    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                    for i in 0..dims[1] {
                        let scaled = (x[i] - mean) / (variance + 1e-5).sqrt();
                        let error = (y[i] - (scaled * weight[i] + bias[i])).abs();
                        assert!(error < tolerance, "{dims:?} {dtype:?} {i}: {error:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_match_differences() {
        let cases: [&[usize]; 5] = [&[1, 5], &[3, 4, 5], &[7], &[2, 1], &[67, 3]];
        for dims in cases {
            let channels = &dims[dims.len() - 1..];
            let name = format!("layer norm {dims:?}");
            check::gradients(&name, &[dims, channels, channels], |inputs| {
                layer_norm(&inputs[0], Some(&inputs[1]), Some(&inputs[2]), 0.1)
            });
            check::gradients(&format!("{name} without bias"), &[dims, channels], |inputs| {
                layer_norm(&inputs[0], Some(&inputs[1]), None, 0.1)
            });
            check::gradients(&format!("{name} alone"), &[dims], |inputs| {
                layer_norm(&inputs[0], None, None, 0.1)
            });
        }
    }

    #[test]
    fn unusable_input_is_refused() {
        let tensor = |dims: &[usize]| check::normal(0, dims);
        assert!(layer_norm(&tensor(&[]), None, None, 1e-5).is_err());
        assert!(layer_norm(&tensor(&[2, 3]), Some(&tensor(&[2])), None, 1e-5).is_err());
        assert!(layer_norm(&tensor(&[2, 3]), None, Some(&tensor(&[1])), 1e-5).is_err());
        assert!(layer_norm(&tensor(&[0, 3]), None, None, 1e-5).is_ok());
    }
}
