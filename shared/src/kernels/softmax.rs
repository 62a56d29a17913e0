//! Softmax over any dimension.

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};

use super::parallel;
use super::real::Real;
use super::rows::{Rows, contiguous_rows};
use super::vectorised::vectorised;
use super::{to_compute_dtype, to_dtype};
use crate::{Error, Result};

/// Softmax of `x` over dimension `dim`: `exp(x - max) / sum exp(x - max)`.
///
/// NaN, and rows that hold an infinity or nothing but minus infinity, give NaN rows.
///
/// # Errors
/// When `x` has no dimension `dim` or holds integers.
pub fn softmax(x: &Tensor, dim: usize) -> Result<Tensor> {
    let rank = x.rank();
    if dim >= rank {
        let expected = format!("at least {} dimensions", dim + 1);
        return Err(Error::shape("input of softmax", expected, x.dims()));
    }
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let last = rank - 1;
    let rows = contiguous_rows(&to_compute_dtype("softmax", x)?.transpose(dim, last)?, last)?;
    let y = rows.apply_op1(Softmax)?.transpose(dim, last)?;
    to_dtype(y, x.dtype())
}

/// Logarithm of the softmax of `x` over dimension `dim`, without underflow.
///
/// # Errors
/// As [`softmax`].
pub fn log_softmax(x: &Tensor, dim: usize) -> Result<Tensor> {
    if dim >= x.rank() {
        let expected = format!("at least {} dimensions", dim + 1);
        return Err(Error::shape("input of log-softmax", expected, x.dims()));
    }
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let x = to_compute_dtype("log-softmax", x)?;
    let shifted = x.broadcast_sub(&x.detach().max_keepdim(dim)?)?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(dim)?.log()?)?)
}

/// Softmax over the last dimension.
struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let leading = layout.dims().len() - 1;
        let y = match x {
            CpuStorage::F64(_) => CpuStorage::F64(forward(&Rows::new(x, layout, leading)?)),
            _ => CpuStorage::F32(forward(&Rows::new(x, layout, leading)?)),
        };
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let leading = y.rank() - 1;
        let dy = contiguous_rows(dy, leading)?;
        let dx = match y.dtype() {
            DType::F64 => backward::<f64>(y, &dy, leading),
            _ => backward::<f32>(y, &dy, leading),
        };
        Ok(Some(dx?))
    }
}

fn forward<T: Real>(x: &Rows<'_, T>) -> Vec<T> {
    let work = |row, y: &mut [_]| softmax_row(x.row(row), y);
    // SAFETY: `softmax_row` writes every element of its row.
    #[allow(unsafe_code)]
    unsafe {
        parallel::write_rows(x.count(), x.len(), work)
    }
}

fn backward<T: Real>(y: &Tensor, dy: &Tensor, leading: usize) -> candle_core::Result<Tensor> {
    let dx = Rows::<T>::of(y, leading, |y| {
        Rows::<T>::of(dy, leading, |dy| {
            let work = |row, dx: &mut [_]| gradient_row(y.row(row), dy.row(row), dx);
            // SAFETY: `gradient_row` writes every element of its row.
            #[allow(unsafe_code)]
            Ok(unsafe { parallel::write_rows(y.count(), y.len(), work) })
        })
    })?;
    Tensor::from_vec(dx, y.shape(), y.device())
}

/// Writes all of `y = softmax(x)`.
fn softmax_row<T: Real>(x: &[T], y: &mut [MaybeUninit<T>]) {
    let y = exp_row(x, T::largest(x), y);
    scale_row(y, T::from_f64(1.0 / T::sum(y)));
}

/// Writes all of `dx = y (dy - sum(y dy))`.
fn gradient_row<T: Real>(y: &[T], dy: &[T], dx: &mut [MaybeUninit<T>]) {
    product_row(y, dy, T::from_f64(T::dot(y, dy)), dx);
}

vectorised! {
    /// Writes all of `y = exp(x - shift)`, and returns it.
    pub(super) fn exp_row<'y, T: Real>(x: &[T], shift: T, y: &'y mut [MaybeUninit<T>]) -> &'y mut [T] {
        for (y, &x) in y.iter_mut().zip(x) {
            y.write((x - shift).exp());
        }
        // SAFETY: the loop above wrote every element.
        #[allow(unsafe_code)]
        unsafe { y.assume_init_mut() }
    }

    /// `y` times `scale`, in place.
    fn scale_row<T: Real>(y: &mut [T], scale: T) {
        y.iter_mut().for_each(|y| *y *= scale);
    }

    /// Writes all of `z = x (y - shift)`, and returns it.
    pub(super) fn product_row<'z, T: Real>(
        x: &[T],
        y: &[T],
        shift: T,
        z: &'z mut [MaybeUninit<T>],
    ) -> &'z mut [T] {
        for ((z, &x), &y) in z.iter_mut().zip(x).zip(y) {
            z.write(x * (y - shift));
        }
        // SAFETY: the loop above wrote every element.
        #[allow(unsafe_code)]
        unsafe { z.assume_init_mut() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::check;

    /// Softmax by f64 loops over the row-major elements of `[outer, n, inner]`.
    fn reference(x: &[f64], [outer, n, inner]: [usize; 3]) -> Vec<f64> {
        let mut y = vec![0.0; x.len()];
        for row in (0..outer * inner).map(|i| i / inner * n * inner + i % inner) {
            let sum: f64 = (0..n).map(|i| x[row + i * inner].exp()).sum();
            (0..n).for_each(|i| y[row + i * inner] = x[row + i * inner].exp() / sum);
        }
        y
    }

    #[test]
    fn values_match_the_definition_over_any_dimension() {
        for dims in [[1, 1, 1], [3, 5, 7], [2, 300, 3], [1, 33, 16], [4, 1, 2]] {
            let x = check::normal(0, &dims);
            let split = [[1, dims[0], dims[1] * dims[2]], dims, [dims[0] * dims[1], dims[2], 1]];
            for (dim, split) in split.into_iter().enumerate() {
                // f32: |x - max| < 8 rounds to 2.4e-7, exp to 1.8e-7, the two factors to 1.2e-7.
                for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 5.4e-7)] {
                    let x = x.to_dtype(dtype).unwrap();
                    let expected = reference(&check::to_vec(&x), split);
                    let y = softmax(&x, dim).unwrap();
                    for (y, expected) in check::to_vec(&y).iter().zip(&expected) {
                        let error = (y - expected).abs() / expected;
                        assert!(error < tolerance, "{dims:?} {dim} {dtype:?}: {error:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_match_differences() {
        let cases: [(&[usize], usize); 5] =
            [(&[1, 4, 5], 2), (&[3, 4, 5], 1), (&[3, 2, 37], 2), (&[5], 0), (&[3, 1], 1)];
        for (dims, dim) in cases {
            check::gradients(&format!("softmax {dims:?} {dim}"), &[dims], |x| softmax(&x[0], dim));
        }
    }

    #[test]
    fn logarithms_are_those_of_the_softmax_and_do_not_underflow() {
        for dim in 0..3 {
            let x = check::normal(0, &[3, 5, 7]);
            let found = check::to_vec(&log_softmax(&x, dim).unwrap());
            let expected = check::to_vec(&softmax(&x, dim).unwrap().log().unwrap());
            let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-13;
            assert!(found.iter().zip(&expected).all(close));
            check::gradients(&format!("log-softmax {dim}"), &[&[2, 3, 4]], |x| {
                log_softmax(&x[0], dim)
            });
        }
        let x = Tensor::new(&[1e3f32, -1e3], &candle_core::Device::Cpu).unwrap();
        assert_eq!(log_softmax(&x, 0).unwrap().to_vec1::<f32>().unwrap(), [0.0, -2e3]);
        assert!(log_softmax(&x, 1).is_err());
    }

    #[test]
    fn large_numbers_do_not_overflow() {
        let x = Tensor::new(&[[1e4f32, 1e4, -1e4, f32::NEG_INFINITY]], &candle_core::Device::Cpu);
        let y = softmax(&x.unwrap(), 1).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(y, [[0.5, 0.5, 0.0, 0.0]]);
    }

    #[test]
    fn half_precision_keeps_its_dtype_and_integers_are_refused() {
        let x = check::normal(0, &[3, 5]);
        let half = x.to_dtype(DType::BF16).unwrap();
        let y = softmax(&half, 1).unwrap();
        assert_eq!(y.dtype(), DType::BF16);
        let exact = softmax(&half.to_dtype(DType::F64).unwrap(), 1).unwrap();
        let error = (y.to_dtype(DType::F64).unwrap() - exact).unwrap().abs().unwrap();
        assert!(check::to_vec(&error).into_iter().fold(0.0, f64::max) < 2e-3);
        assert!(softmax(&x.to_dtype(DType::U32).unwrap(), 1).is_err());
        assert!(softmax(&x, 2).is_err());
    }
}
