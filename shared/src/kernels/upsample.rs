//! Upsampling by repetition.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};

use super::real::Real;
use super::rows::{Rows, contiguous_rows};
use super::{parallel, to_compute_dtype, to_dtype};
use crate::{Error, Result};

/// `x` with every element repeated `scale[i]` times along the i-th of the last `scale.len()`
/// dimensions, at most three: `[.., D * scale[0], H * scale[1], W * scale[2]]`.
///
/// # Errors
/// When there are no scales or more than `x` has dimensions or than three, or one is 0.
pub fn upsample_nearest(x: &Tensor, scale: &[usize]) -> Result<Tensor> {
    let what = "nearest upsampling";
    if scale.is_empty() || scale.len() > 3 || scale.contains(&0) {
        let reason = format!("{what}: expected one to three scales of at least 1, found {scale:?}");
        return Err(Error::Argument(reason));
    }
    if scale.len() > x.rank() {
        let expected = format!("at least {} dimensions", scale.len());
        return Err(Error::shape(format!("input of {what}"), expected, x.dims()));
    }
    let leading = x.rank() - scale.len();
    let blocks = contiguous_rows(&to_compute_dtype(what, x)?, leading)?;
    to_dtype(blocks.apply_op1(Upsample { scale: scale.to_vec() })?, x.dtype())
}

struct Upsample {
    scale: Vec<usize>,
}

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample-nearest"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let dims = layout.dims();
        let leading = dims.len() - self.scale.len();
        let grid = Grid::new(&dims[leading..], &self.scale);
        let y = match x {
            CpuStorage::F64(_) => CpuStorage::F64(forward(&Rows::new(x, layout, leading)?, &grid)),
            _ => CpuStorage::F32(forward(&Rows::new(x, layout, leading)?, &grid)),
        };
        let mut dims = dims.to_vec();
        dims[leading..].iter_mut().zip(&self.scale).for_each(|(dim, scale)| *dim *= scale);
        Ok((y, Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let leading = x.rank() - self.scale.len();
        let grid = Grid::new(&x.dims()[leading..], &self.scale);
        let dy = contiguous_rows(dy, leading)?;
        match x.dtype() {
            DType::F64 => backward::<f64>(x, &dy, leading, &grid).map(Some),
            _ => backward::<f32>(x, &dy, leading, &grid).map(Some),
        }
    }
}

/// A block of lines (depth, height) of elements, and how often each is repeated in each direction.
struct Grid {
    dims: [usize; 3],
    scale: [usize; 3],
}

impl Grid {
    fn new(dims: &[usize], scale: &[usize]) -> Self {
        let three = |values: &[usize]| {
            let mut three = [1; 3];
            three[3 - values.len()..].copy_from_slice(values);
            three
        };
        Self { dims: three(dims), scale: three(scale) }
    }

    /// The input line that each line of the output repeats, in order.
    fn lines(&self) -> impl Iterator<Item = usize> {
        let ([depth, height, _], [deep, high, _]) = (self.dims, self.scale);
        (0..depth * deep)
            .flat_map(move |d| (0..height * high).map(move |h| d / deep * height + h / high))
    }

    /// Elements in an input block.
    fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Elements in an output block.
    fn scaled_len(&self) -> usize {
        self.len() * self.scale.iter().product::<usize>()
    }
}

fn forward<T: Real>(x: &Rows<'_, T>, grid: &Grid) -> Vec<T> {
    let (width, wide) = (grid.dims[2], grid.scale[2]);
    let work = |block, y: &mut [MaybeUninit<T>]| {
        let x = x.row(block);
        for (line, y) in grid.lines().zip(y.chunks_exact_mut((width * wide).max(1))) {
            for (&x, y) in x[line * width..].iter().zip(y.chunks_exact_mut(wide)) {
                y.fill(MaybeUninit::new(x));
            }
        }
    };
    // SAFETY: the lines of the grid, each repeated, are the whole output block.
    unsafe { parallel::write_rows(x.count(), grid.scaled_len(), work) }
}

/// The gradient of an element is the sum of those of its repetitions.
fn backward<T: Real>(
    x: &Tensor,
    dy: &Tensor,
    leading: usize,
    grid: &Grid,
) -> candle_core::Result<Tensor> {
    let (width, wide) = (grid.dims[2], grid.scale[2]);
    let dx = Rows::<T>::of(dy, leading, |dy| {
        let work = |block, dx: &mut [MaybeUninit<T>]| {
            dx.fill(MaybeUninit::new(T::zero()));
            // SAFETY: filled with zeros.
            let dx = unsafe { dx.assume_init_mut() };
            let lines = dy.row(block).chunks_exact((width * wide).max(1));
            for (line, dy) in grid.lines().zip(lines) {
                for (dx, dy) in dx[line * width..].iter_mut().zip(dy.chunks_exact(wide)) {
                    dy.iter().for_each(|&dy| *dx += dy);
                }
            }
        };
        // SAFETY: `work` fills its whole block.
        Ok(unsafe { parallel::write_rows(dy.count(), grid.len(), work) })
    })?;
    Tensor::from_vec(dx, x.shape(), x.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::check;

    const CASES: [(&[usize], &[usize]); 6] = [
        (&[1, 2, 5], &[3]),
        (&[3, 2, 3, 4], &[2, 3]),
        (&[3, 2, 3, 4], &[1, 2]),
        (&[2, 1, 2, 3, 2], &[1, 2, 2]),
        (&[2, 2, 2, 3, 2], &[3, 1, 2]),
        (&[4], &[2]),
    ];

    #[test]
    fn values_match_the_definition() {
        for (dims, scale) in CASES {
            let x = check::normal(0, dims);
            let y = upsample_nearest(&x.t().unwrap_or(x.clone()), scale);
            let x = x.t().unwrap_or(x.clone());
            let y = y.unwrap();
            let leading = x.rank() - scale.len();
            // Index by index: every repeated dimension selects its element i / scale.
            let mut expected = x.clone();
            for (axis, &scale) in scale.iter().enumerate() {
                let indices: Vec<u32> = (0..expected.dim(leading + axis).unwrap() * scale)
                    .map(|i| (i / scale) as u32)
                    .collect();
                let indices = Tensor::new(indices, x.device()).unwrap();
                expected =
                    expected.contiguous().unwrap().index_select(&indices, leading + axis).unwrap();
            }
            assert_eq!(y.dims(), expected.dims());
            assert_eq!(check::to_vec(&y), check::to_vec(&expected), "{dims:?} {scale:?}");
        }
    }

    #[test]
    fn gradients_match_differences_when_the_result_is_used_twice() {
        for (dims, scale) in CASES {
            check::gradients(&format!("upsample {dims:?} {scale:?}"), &[dims], |inputs| {
                let y = upsample_nearest(&inputs[0], scale)?;
                Ok((&y + y.sqr()?)?)
            });
        }
    }

    #[test]
    fn impossible_scales_are_refused() {
        let x = check::normal(0, &[2, 3]);
        for scale in [&[][..], &[0], &[1, 2, 3], &[1, 1, 1, 1]] {
            assert!(upsample_nearest(&x, scale).is_err(), "{scale:?}");
        }
    }
}
