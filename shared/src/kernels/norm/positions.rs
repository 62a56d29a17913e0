//! Group normalisation of every position for itself.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Shape, Tensor};

use super::row_sets::RowSets;
use crate::kernels::activation::Smooth;
use crate::kernels::parallel::{self, RowBuffer};
use crate::kernels::real::Real;
use crate::kernels::rows::{OnRows, Rows, contiguous_rows};
use crate::kernels::vectorised::vectorised;
use crate::kernels::{to_compute_dtype, to_dtype};
use crate::{Error, Result};

/// Positions that go through all steps together: the rows of a group of some hundred channels and
/// frames stay in the second-level cache.
const PIECE: usize = 256;

/// Group norm of every position of `x [B, F, C, ..]` for itself: the group norm of `[C, F]` for each
/// item and position, computed where the numbers lie. `weight [C]` and `bias [C]` are 1 and 0 where
/// there is none.
///
/// # Errors
/// When the shapes do not fit, or the groups do not divide the channels.
pub fn group_norm_of_positions(
    x: &Tensor,
    groups: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let &[batch, frames, channels, ..] = x.dims() else {
        return Err(Error::shape("input of group norm", "[B, F, C, ..]", x.dims()));
    };
    if groups == 0 || !channels.is_multiple_of(groups) {
        let expected = format!("[B, F, C, ..], C divisible by {groups} groups");
        return Err(Error::shape("input of group norm", expected, x.dims()));
    }
    let dtype = x.dtype();
    let compute = to_compute_dtype("group norm", x)?;
    let weight = super::vector("weight of group norm", weight, 1.0, channels, &compute)?;
    let bias = super::vector("bias of group norm", bias, 0.0, channels, &compute)?;
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let sets = RowSets::groups([batch, frames, channels], groups);
    let rows = contiguous_rows(&compute, 3)?;
    to_dtype(rows.apply_op3(&weight, &bias, NormaliseColumns { sets, eps })?, dtype)
}

/// Normalises every column of each set of rows.
struct NormaliseColumns {
    sets: RowSets,
    eps: f64,
}

impl CustomOp3 for NormaliseColumns {
    fn name(&self) -> &'static str {
        "normalise-columns"
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
        let [y] =
            self.run([(x, x_layout, 3), (weight, weight_layout, 0), (bias, bias_layout, 0)])?;
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
        let dy = contiguous_rows(dy, 3)?;
        match x.dtype() {
            DType::F64 => self.backward::<f64>(x, weight, bias, &dy),
            _ => self.backward::<f32>(x, weight, bias, &dy),
        }
    }
}

impl OnRows<3, 1> for NormaliseColumns {
    fn on_rows<T: Smooth>(&self, [x, weight, bias]: [Rows<'_, T>; 3]) -> [Vec<T>; 1] {
        let (weight, bias) = (weight.row(0), bias.row(0));
        let y = RowBuffer::new(x.count(), x.len());
        self.for_pieces(&x, |set, start, statistics| {
            for row in self.sets.rows_of(set) {
                let channel = row % weight.len();
                // SAFETY: every row belongs to one set.
                let y = &mut unsafe { y.row(row) }[start..][..statistics.mean.len()];
                let x = &x.row(row)[start..];
                let Columns { mean, inverse_std } = statistics;
                scale_row(x, mean, inverse_std, [weight[channel], bias[channel]], y);
            }
        });
        // SAFETY: the sets hold all rows, the pieces all positions.
        [unsafe { y.finish() }]
    }
}

impl NormaliseColumns {
    /// With `x^ = (x - mean) / std` and `g = weight dy`, over the `N` elements of a column of a set:
    /// `dx = (g - sum(g) / N - x^ sum(g x^) / N) / std`; over the elements of a channel: `d weight =
    /// sum(dy x^)`, `d bias = sum(dy)`.
    fn backward<T: Real>(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, sums) = Rows::<T>::of_all([(x, 3), (dy, 3), (weight, 0)], |[x, dy, weight]| {
            Ok(self.gradients(&x, &dy, weight.row(0)))
        })?;
        let vector = |of: &Tensor, which: usize| -> candle_core::Result<Option<Tensor>> {
            let mut total = vec![0.0; of.elem_count()];
            for (set, sums) in sums.iter().enumerate() {
                for (row, sums) in self.sets.rows_of(set).zip(sums) {
                    total[row % of.elem_count()] += sums[which];
                }
            }
            let total: Vec<T> = total.into_iter().map(T::from_f64).collect();
            of.track_op().then(|| Tensor::from_vec(total, of.shape(), of.device())).transpose()
        };
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), vector(weight, 1)?, vector(bias, 0)?))
    }

    /// The gradient at the input, and for the rows of each set `[sum(dy), sum(dy x^)]`.
    fn gradients<T: Real>(
        &self,
        x: &Rows<'_, T>,
        dy: &Rows<'_, T>,
        weight: &[T],
    ) -> (Vec<T>, Vec<Vec<[f64; 2]>>) {
        let dx = RowBuffer::new(x.count(), x.len());
        let pieces = self.for_pieces(x, |set, start, Columns { mean, inverse_std }| {
            let len = mean.len();
            let rows: Vec<usize> = self.sets.rows_of(set).collect();
            let [mut sums, mut products] = [0, 1].map(|_| vec![T::zero(); len]);
            let mut of_rows = vec![];
            for &row in &rows {
                let dy = &dy.row(row)[start..][..len];
                // SAFETY (both): every row belongs to one set.
                let normalised = &mut unsafe { dx.row(row) }[start..][..len];
                let x = &x.row(row)[start..];
                let normalised = scale_row(x, mean, inverse_std, [T::one(), T::zero()], normalised);
                of_rows.push(T::sums(normalised, T::zero(), dy, T::zero()));
                let weight = weight[row % weight.len()];
                add_products(normalised, dy, weight, &mut sums, &mut products);
            }
            let scale = T::from_f64(1.0 / rows.len() as f64);
            for &row in &rows {
                let dy = &dy.row(row)[start..][..len];
                // SAFETY: `scale_row` wrote these elements.
                let dx = unsafe { dx.row(row)[start..][..len].assume_init_mut() };
                let factors = [weight[row % weight.len()], scale];
                finish_row(dy, inverse_std, [&sums, &products], factors, dx);
            }
            of_rows
        });
        let of_sets = pieces.into_iter().map(|pieces| {
            let add = |total: Vec<[f64; 2]>, piece: Vec<[f64; 2]>| {
                total.iter().zip(piece).map(|(a, b)| [a[0] + b[0], a[1] + b[1]]).collect()
            };
            pieces.into_iter().reduce(add).unwrap_or_default()
        });
        let of_sets = of_sets.collect();
        // SAFETY: the sets hold all rows, the pieces all positions.
        (unsafe { dx.finish() }, of_sets)
    }

    /// The results of `work(set, first position, statistics)` for every piece of every set.
    fn for_pieces<T: Real, R: Send>(
        &self,
        x: &Rows<'_, T>,
        work: impl Fn(usize, usize, &Columns<T>) -> R + Sync,
    ) -> Vec<Vec<R>> {
        let elements = x.count() * x.len() / self.sets.count();
        parallel::map_rows(self.sets.count(), elements, |set| {
            let pieces = (0..x.len()).step_by(PIECE);
            pieces
                .map(|start| {
                    let len = PIECE.min(x.len() - start);
                    let rows = self.sets.rows_of(set).map(|row| &x.row(row)[start..][..len]);
                    work(set, start, &Columns::of(rows, len, self.eps))
                })
                .collect()
        })
    }
}

/// The means of columns, and the reciprocals of their standard deviations.
struct Columns<T> {
    mean: Vec<T>,
    inverse_std: Vec<T>,
}

impl<T: Real> Columns<T> {
    /// Those of rows of `len` elements.
    fn of<'a>(rows: impl Iterator<Item = &'a [T]> + Clone, len: usize, eps: f64) -> Self
    where
        T: 'a,
    {
        let [mut mean, mut squares] = [0, 1].map(|_| vec![T::zero(); len]);
        let count = T::from_f64(1.0 / rows.clone().count() as f64);
        rows.clone().for_each(|row| add_row(row, &mut mean));
        mean.iter_mut().for_each(|mean| *mean *= count);
        rows.for_each(|row| add_squares(row, &mean, &mut squares));
        let inverse_std =
            |squares: T| T::from_f64(1.0 / (squares * count + T::from_f64(eps)).to_f64().sqrt());
        let inverse_std = squares.into_iter().map(inverse_std).collect();
        Self { mean, inverse_std }
    }
}

vectorised! {
    /// Adds `x` to `sums`.
    fn add_row<T: Real>(x: &[T], sums: &mut [T]) {
        sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += x);
    }

    /// Adds `(x - mean)^2` to `sums`.
    fn add_squares<T: Real>(x: &[T], mean: &[T], sums: &mut [T]) {
        for ((sum, &x), &mean) in sums.iter_mut().zip(x).zip(mean) {
            *sum += (x - mean) * (x - mean);
        }
    }

    /// Writes all of `y = (x - mean) inverse_std weight + bias`, and returns it.
    fn scale_row<'y, T: Real>(
        x: &[T],
        mean: &[T],
        inverse_std: &[T],
        weight_and_bias: [T; 2],
        y: &'y mut [MaybeUninit<T>],
    ) -> &'y mut [T] {
        let [weight, bias] = weight_and_bias;
        let columns = mean.iter().zip(inverse_std);
        for ((y, &x), (&mean, &inverse_std)) in y.iter_mut().zip(x).zip(columns) {
            y.write((x - mean) * inverse_std * weight + bias);
        }
        // SAFETY: the loop above wrote every element.
        unsafe { y.assume_init_mut() }
    }

    /// Adds `g = weight dy` to `sums` and `g x` to `products`.
    fn add_products<T: Real>(x: &[T], dy: &[T], weight: T, sums: &mut [T], products: &mut [T]) {
        let sums = sums.iter_mut().zip(products);
        for ((&x, &dy), (sum, product)) in x.iter().zip(dy).zip(sums) {
            *sum += weight * dy;
            *product += weight * dy * x;
        }
    }

    /// `dx = (weight dy - scale sum - x scale product) inverse_std`, in which `dx` holds `x` and the
    /// factors are weight and scale.
    fn finish_row<T: Real>(
        dy: &[T],
        inverse_std: &[T],
        sums: [&[T]; 2],
        factors: [T; 2],
        dx: &mut [T],
    ) {
        let [weight, scale] = factors;
        let columns = sums[0].iter().zip(sums[1]).zip(inverse_std);
        for ((dx, &dy), ((&sum, &product), &inverse_std)) in dx.iter_mut().zip(dy).zip(columns) {
            *dx = (weight * dy - scale * (sum + *dx * product)) * inverse_std;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::check;
    use crate::kernels::norm::group_norm;

    #[test]
    fn values_and_gradients_are_those_of_every_position_alone() {
        let cases: [(&[usize], usize); 4] =
            [(&[1, 2, 4, 1], 2), (&[2, 3, 6, 5], 3), (&[1, 4, 2, 600], 1), (&[2, 2, 64, 3, 7], 32)];
        for (dims, groups) in cases {
            let &[batch, frames, channels, ..] = dims else { unreachable!() };
            let positions = dims[3..].iter().product::<usize>();
            let weights: &[usize] = &[channels];
            let shapes = [dims, weights, weights];
            let name = format!("group norm of positions {dims:?} {groups}");
            let norm = |inputs: &[Tensor]| {
                let (weight, bias) = (Some(&inputs[1]), Some(&inputs[2]));
                group_norm_of_positions(&inputs[0], groups, weight, bias, 0.1)
            };
            let inputs: Vec<Tensor> =
                shapes.iter().zip(0..).map(|(dims, i)| check::normal(i, dims)).collect();
            let alone = inputs[0]
                .reshape((batch, frames, channels, positions))
                .and_then(|x| x.permute((0, 3, 2, 1)))
                .and_then(|x| x.contiguous()?.reshape((batch * positions, channels, frames)))
                .unwrap();
            let expected =
                group_norm(&alone, groups, Some(&inputs[1]), Some(&inputs[2]), 0.1).unwrap();
            let expected = expected
                .reshape((batch, positions, channels, frames))
                .and_then(|x| x.permute((0, 3, 2, 1)))
                .unwrap();
            let found = check::to_vec(&norm(&inputs).unwrap());
            for (found, expected) in found.iter().zip(check::to_vec(&expected)) {
                assert!((found - expected).abs() < 1e-12, "{name}: {found} {expected}");
            }
            if found.len() < 500 {
                check::gradients(&name, &shapes, norm);
            }
            check::f32_agrees_with_f64(&name, &shapes, norm);
        }
    }

    #[test]
    fn unusable_input_is_refused() {
        let x = check::normal(0, &[2, 3, 4, 5]);
        assert!(group_norm_of_positions(&x, 2, None, None, 1e-5).is_ok());
        assert!(group_norm_of_positions(&x, 3, None, None, 1e-5).is_err());
        assert!(group_norm_of_positions(&x, 0, None, None, 1e-5).is_err());
        let short = check::normal(0, &[2, 3]);
        assert!(group_norm_of_positions(&short, 3, None, None, 1e-5).is_err());
        assert!(group_norm_of_positions(&x, 2, Some(&short), None, 1e-5).is_err());
    }
}
