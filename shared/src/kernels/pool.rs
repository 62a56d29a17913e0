//! Average pooling.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};

use super::real::Real;
use super::rows::{Rows, contiguous_rows};
use super::{parallel, to_compute_dtype, to_dtype};
use crate::{Error, Result};

/// Means `[B, C, (T - kernel) / stride + 1]` over windows of `kernel` frames of `x [B, C, T]`, one
/// every `stride` frames. Frames that fill no window are left out.
///
/// # Errors
/// When `x` has another rank or is shorter than `kernel`, or `kernel` or `stride` is 0.
pub fn avg_pool1d(x: &Tensor, kernel: usize, stride: usize) -> Result<Tensor> {
    if x.rank() != 3 {
        return Err(Error::shape("input of average pooling", "[B, C, T]", x.dims()));
    }
    Ok(avg_pool2d(&x.unsqueeze(2)?, [1, kernel], [1, stride])?.squeeze(2)?)
}

/// Means over windows of `kernel` (height, width) pixels of `x [B, C, H, W]`, one every `stride`
/// pixels: `[B, C, (H - kernel) / stride + 1, ..]`. Pixels that fill no window are left out.
///
/// # Errors
/// When `x` has another rank or is smaller than `kernel`, or `kernel` or `stride` holds a 0.
pub fn avg_pool2d(x: &Tensor, kernel: [usize; 2], stride: [usize; 2]) -> Result<Tensor> {
    let what = "average pooling";
    if kernel.contains(&0) || stride.contains(&0) {
        let reason = format!("{what}: kernel {kernel:?} and stride {stride:?} must be at least 1");
        return Err(Error::Argument(reason));
    }
    let fits = matches!(x.dims(), &[_, _, h, w] if h >= kernel[0] && w >= kernel[1]);
    if !fits {
        let expected = format!("[B, C, H, W] of at least the kernel {kernel:?}");
        return Err(Error::shape(format!("input of {what}"), expected, x.dims()));
    }
    let planes = contiguous_rows(&to_compute_dtype(what, x)?, 2)?;
    to_dtype(planes.apply_op1(AveragePool { kernel, stride })?, x.dtype())
}

#[derive(Clone, Copy)]
struct AveragePool {
    kernel: [usize; 2],
    stride: [usize; 2],
}

impl CustomOp1 for AveragePool {
    fn name(&self) -> &'static str {
        "average-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let size = [height, width];
        let y = match x {
            CpuStorage::F64(_) => CpuStorage::F64(self.forward(&Rows::new(x, layout, 2)?, size)),
            _ => CpuStorage::F32(self.forward(&Rows::new(x, layout, 2)?, size)),
        };
        let [height, width] = self.pooled(size);
        Ok((y, Shape::from((batch, channels, height, width))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let dy = contiguous_rows(dy, 2)?;
        match x.dtype() {
            DType::F64 => self.backward::<f64>(x, &dy).map(Some),
            _ => self.backward::<f32>(x, &dy).map(Some),
        }
    }
}

impl AveragePool {
    /// Height and width of the result for an input of `size`.
    fn pooled(&self, size: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|axis| (size[axis] - self.kernel[axis]) / self.stride[axis] + 1)
    }

    /// For each output pixel of a plane, in order: the index where its window begins.
    fn windows(&self, size: [usize; 2]) -> impl Iterator<Item = usize> {
        let ([height, width], stride) = (self.pooled(size), self.stride);
        (0..height * width).map(move |i| i / width * stride[0] * size[1] + i % width * stride[1])
    }

    /// One over the number of pixels in a window.
    fn weight<T: Real>(&self) -> T {
        T::from_f64(1.0 / (self.kernel[0] * self.kernel[1]) as f64)
    }

    fn forward<T: Real>(&self, x: &Rows<'_, T>, size: [usize; 2]) -> Vec<T> {
        let [height, width] = self.pooled(size);
        let work = |plane, y: &mut [MaybeUninit<T>]| {
            let x = x.row(plane);
            for (y, window) in y.iter_mut().zip(self.windows(size)) {
                let mut sum = T::zero();
                for line in 0..self.kernel[0] {
                    let line = &x[window + line * size[1]..][..self.kernel[1]];
                    line.iter().for_each(|&x| sum += x);
                }
                y.write(sum * self.weight());
            }
        };
        // SAFETY: there are as many windows as elements in a plane of `y`.
        unsafe { parallel::write_rows(x.count(), height * width, work) }
    }

    /// Every input pixel gets a share of the gradients of the windows that it is in.
    fn backward<T: Real>(&self, x: &Tensor, dy: &Tensor) -> candle_core::Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let size = [height, width];
        let dx = Rows::<T>::of(dy, 2, |dy| {
            let work = |plane, dx: &mut [MaybeUninit<T>]| {
                dx.fill(MaybeUninit::new(T::zero()));
                // SAFETY: filled with zeros.
                let dx = unsafe { dx.assume_init_mut() };
                for (&dy, window) in dy.row(plane).iter().zip(self.windows(size)) {
                    let share = dy * self.weight();
                    for line in 0..self.kernel[0] {
                        let line = &mut dx[window + line * size[1]..][..self.kernel[1]];
                        line.iter_mut().for_each(|dx| *dx += share);
                    }
                }
            };
            // SAFETY: `work` fills its whole plane.
            Ok(unsafe { parallel::write_rows(dy.count(), height * width, work) })
        })?;
        Tensor::from_vec(dx, x.shape(), x.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::check;

    #[test]
    fn values_match_loops() {
        let cases = [
            ([1, 1, 1, 1], [1, 1], [1, 1]),
            ([3, 2, 5, 7], [2, 3], [1, 2]),
            ([2, 3, 9, 8], [3, 2], [3, 2]),
            ([1, 2, 4, 5], [2, 2], [3, 3]),
        ];
        for (dims, kernel, stride) in cases {
            let x = check::normal(0, &dims).transpose(2, 3).unwrap().contiguous().unwrap();
            let x = x.transpose(2, 3).unwrap();
            let y = avg_pool2d(&x, kernel, stride).unwrap();
            let (_, _, height, width) = y.dims4().unwrap();
            let size = [0, 1].map(|axis| (dims[axis + 2] - kernel[axis]) / stride[axis] + 1);
            assert_eq!([height, width], size);
            let (x, y) = (check::to_vec(&x), check::to_vec(&y));
            for (i, &y) in y.iter().enumerate() {
                let (plane, row, column) = (i / (height * width), i / width % height, i % width);
                let mut sum = 0.0;
                for (down, right) in
                    (0..kernel[0]).flat_map(|d| (0..kernel[1]).map(move |r| (d, r)))
                {
                    let (row, column) = (row * stride[0] + down, column * stride[1] + right);
                    sum += x[(plane * dims[2] + row) * dims[3] + column];
                }
                assert!((y - sum / (kernel[0] * kernel[1]) as f64).abs() < 1e-14, "{dims:?} {i}");
            }
        }
    }

    #[test]
    fn gradients_match_differences() {
        for (dims, kernel, stride) in [
            ([1, 2, 5, 6], [2, 3], [1, 2]),
            ([3, 1, 5, 5], [3, 2], [2, 1]),
            ([3, 2, 4, 4], [2, 2], [3, 3]),
        ] {
            check::gradients(&format!("pool {dims:?} {kernel:?} {stride:?}"), &[&dims], |inputs| {
                avg_pool2d(&inputs[0], kernel, stride)
            });
        }
        for (dims, kernel, stride) in [([1, 2, 7], 3, 1), ([3, 2, 8], 2, 3), ([3, 1, 1], 1, 1)] {
            check::gradients(&format!("pool {dims:?} {kernel} {stride}"), &[&dims], |inputs| {
                avg_pool1d(&inputs[0], kernel, stride)
            });
        }
    }

    #[test]
    fn impossible_windows_are_refused() {
        let x = check::normal(0, &[2, 3, 4]);
        for (kernel, stride) in [(5, 1), (0, 1), (2, 0)] {
            assert!(avg_pool1d(&x, kernel, stride).is_err(), "{kernel} {stride}");
        }
        assert!(avg_pool2d(&x, [1, 1], [1, 1]).is_err());
    }
}
