//! Layer normalisation.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Shape, Tensor};

use super::moments::Moments;
use crate::kernels::parallel;
use crate::kernels::real::Real;
use crate::kernels::rows::{Rows, contiguous_rows};
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
    let Some(&channels) = x.dims().last() else {
        return Err(Error::shape("input of layer norm", "[.., C]", x.dims()));
    };
    let dtype = x.dtype();
    let compute = to_compute_dtype("layer norm", x)?;
    let weight = super::vector("weight of layer norm", weight, 1.0, channels, &compute)?;
    let bias = super::vector("bias of layer norm", bias, 0.0, channels, &compute)?;
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let rows = contiguous_rows(&compute, x.rank() - 1)?;
    to_dtype(rows.apply_op3(&weight, &bias, LayerNorm { eps })?, dtype)
}

struct LayerNorm {
    eps: f64,
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
        let leading = x_layout.dims().len() - 1;
        let y = match x {
            CpuStorage::F64(_) => CpuStorage::F64(self.forward(
                &Rows::new(x, x_layout, leading)?,
                Rows::new(weight, weight_layout, 0)?.row(0),
                Rows::new(bias, bias_layout, 0)?.row(0),
            )),
            _ => CpuStorage::F32(self.forward(
                &Rows::new(x, x_layout, leading)?,
                Rows::new(weight, weight_layout, 0)?.row(0),
                Rows::new(bias, bias_layout, 0)?.row(0),
            )),
        };
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

impl LayerNorm {
    fn forward<T: Real>(&self, x: &Rows<'_, T>, weight: &[T], bias: &[T]) -> Vec<T> {
        let work = |row, y: &mut [_]| {
            let x = x.row(row);
            let (pivot, inverse_std) = self.statistics(x);
            scale_row(x, pivot, inverse_std, weight, bias, y);
        };
        // SAFETY: `scale_row` writes its whole row.
        unsafe { parallel::write_rows(x.count(), x.len(), work) }
    }

    /// The mean and the reciprocal of the standard deviation of a row.
    fn statistics<T: Real>(&self, x: &[T]) -> (T, T) {
        let moments = Moments::of(x);
        let inverse_std = 1.0 / (moments.variance() + self.eps).sqrt();
        (T::from_f64(moments.mean), T::from_f64(inverse_std))
    }

    /// With `x^ = (x - mean) / std` and `g = weight dy`, over the `C` elements of a row:
    /// `dx = (g - sum(g) / C - x^ sum(g x^) / C) / std`; over the rows: `d weight = sum(dy x^)`,
    /// `d bias = sum(dy)`.
    fn backward<T: Real>(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let leading = x.rank() - 1;
        let (dx, [dweight, dbias]) = Rows::<T>::of(x, leading, |x| {
            Rows::<T>::of(dy, leading, |dy| {
                Rows::<T>::of(weight, 0, |weight| {
                    let dx = self.input_gradient(&x, &dy, weight.row(0));
                    Ok((dx, self.vector_gradients(&x, &dy)))
                })
            })
        })?;
        let vector = |of: &Tensor, values: Vec<f64>| -> candle_core::Result<Option<Tensor>> {
            let values: Vec<T> = values.into_iter().map(T::from_f64).collect();
            of.track_op().then(|| Tensor::from_vec(values, of.shape(), of.device())).transpose()
        };
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), vector(weight, dweight)?, vector(bias, dbias)?))
    }

    fn input_gradient<T: Real>(&self, x: &Rows<'_, T>, dy: &Rows<'_, T>, weight: &[T]) -> Vec<T> {
        let work = |row, dx: &mut [MaybeUninit<T>]| {
            let (x, dy) = (x.row(row), dy.row(row));
            let (pivot, inverse_std) = self.statistics(x);
            let dx = product_row(weight, dy, T::zero(), dx);
            let scale = inverse_std.to_f64();
            let [sum, product] = T::sums(x, pivot, dx, T::zero());
            let mean = T::from_f64(sum / x.len() as f64);
            let slope = T::from_f64(product * scale * scale / x.len() as f64);
            finish_row(x, pivot, [inverse_std, mean, slope], dx);
        };
        // SAFETY: `product_row` writes its whole row.
        unsafe { parallel::write_rows(x.count(), x.len(), work) }
    }

    /// The gradients of weight and bias.
    fn vector_gradients<T: Real>(&self, x: &Rows<'_, T>, dy: &Rows<'_, T>) -> [Vec<f64>; 2] {
        let blocks = x.count().div_ceil(BLOCK_ROWS);
        let partial = parallel::map_rows(blocks, BLOCK_ROWS * x.len(), |block| {
            let [mut products, mut sums] = [0, 1].map(|_| vec![T::zero(); x.len()]);
            for row in block * BLOCK_ROWS..x.count().min((block + 1) * BLOCK_ROWS) {
                let (x, dy) = (x.row(row), dy.row(row));
                let (pivot, inverse_std) = self.statistics(x);
                add_row(x, pivot, inverse_std, dy, &mut products, &mut sums);
            }
            [products, sums]
        });
        let mut total = [0, 1].map(|_| vec![0.0; x.len()]);
        for block in partial {
            for (total, block) in total.iter_mut().zip(block) {
                total.iter_mut().zip(block).for_each(|(total, sum)| *total += sum.to_f64());
            }
        }
        total
    }
}

vectorised! {
    /// Writes all of `y = (x - pivot) scale weight + bias`.
    fn scale_row<T: Real>(
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
    fn add_row<T: Real>(
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
