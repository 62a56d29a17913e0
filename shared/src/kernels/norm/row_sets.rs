//! What batch norm and group norm share: sets of rows normalised with common statistics.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::moments::Moments;
use crate::kernels::parallel;
use crate::kernels::real::{self, Real};
use crate::kernels::rows::{Rows, contiguous_rows};

/// Which rows of a `[B, C, ..]` tensor are normalised together. Row `b C + c` holds channel `c` of
/// batch item `b`.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowSets {
    channels: usize,
    rows: usize,
    sets: usize,
    /// Distance between the first rows of neighbouring sets.
    set_stride: usize,
    /// Distance between neighbouring rows of a set.
    row_stride: usize,
}

impl RowSets {
    /// A set for each channel.
    pub(super) fn channels(batch: usize, channels: usize) -> Self {
        let rows = batch * channels;
        Self { channels, rows, sets: channels, set_stride: 1, row_stride: channels }
    }

    fn set_of(&self, row: usize) -> usize {
        row / self.set_stride % self.sets
    }

    fn rows_of(&self, set: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        let (first, step) = (set * self.set_stride, self.row_stride);
        (0..self.rows / self.sets).map(move |row| first + row * step)
    }
}

/// Mean and biased variance of each set.
#[derive(Clone, Debug)]
pub(super) struct Statistics {
    pub(super) mean: Vec<f64>,
    pub(super) variance: Vec<f64>,
}

/// Where the statistics come from.
pub(super) enum Source {
    /// The input itself: the forward pass leaves them here, the gradient flows through them.
    Input(Arc<OnceLock<Statistics>>),
    /// Constants.
    Given(Statistics),
}

/// Normalises sets of rows of `x [B, C, ..]`, then applies `weight [C]` and `bias [C]`.
pub(super) struct Normalise {
    pub(super) sets: RowSets,
    pub(super) eps: f64,
    pub(super) source: Source,
}

impl CustomOp3 for Normalise {
    fn name(&self) -> &'static str {
        "normalise"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = match x {
            CpuStorage::F64(_) => CpuStorage::F64(self.forward(
                &Rows::new(x, x_layout, 2)?,
                Rows::new(weight, weight_layout, 0)?.row(0),
                Rows::new(bias, bias_layout, 0)?.row(0),
            )),
            _ => CpuStorage::F32(self.forward(
                &Rows::new(x, x_layout, 2)?,
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
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = contiguous_rows(dy, 2)?;
        match x.dtype() {
            DType::F64 => self.backward::<f64>(x, weight, bias, &dy),
            _ => self.backward::<f32>(x, weight, bias, &dy),
        }
    }
}

impl Normalise {
    fn forward<T: Real>(&self, x: &Rows<'_, T>, weight: &[T], bias: &[T]) -> Vec<T> {
        let work = |set, y: Vec<&mut [MaybeUninit<T>]>| {
            let rows = self.sets.rows_of(set);
            let (mean, variance) = match &self.source {
                Source::Given(statistics) => (statistics.mean[set], statistics.variance[set]),
                Source::Input(_) => {
                    let moments = rows.clone().map(|row| Moments::of(x.row(row)));
                    let moments = moments.fold(Moments::default(), Moments::merge);
                    (moments.mean, moments.variance())
                }
            };
            let inverse_std = 1.0 / (variance + self.eps).sqrt();
            let (pivot, rest) = split(mean);
            for (row, y) in rows.zip(y) {
                let channel = row % self.sets.channels;
                let scale = weight[channel].to_f64() * inverse_std;
                let shift = T::from_f64(bias[channel].to_f64() - rest * scale);
                let scale = T::from_f64(scale);
                for (y, &x) in y.iter_mut().zip(x.row(row)) {
                    y.write((x - pivot) * scale + shift);
                }
            }
            (mean, variance)
        };
        let RowSets { rows, sets, .. } = self.sets;
        // SAFETY: `work` writes every row of its set, and `y` and `x` have rows of one length.
        let (y, statistics) = unsafe {
            parallel::write_row_sets(rows, x.len(), sets, |row| self.sets.set_of(row), work)
        };
        if let Source::Input(cell) = &self.source {
            let (mean, variance) = statistics.into_iter().unzip();
            // An operation runs forward once; a second run would find the same numbers.
            let _ = cell.set(Statistics { mean, variance });
        }
        y
    }

    /// With `x^ = (x - mean) / std` and `g = weight dy`, over the `N` elements of a set:
    /// `dx = (g - sum(g) / N - x^ sum(g x^) / N) / std`, without the sums for given statistics;
    /// over the elements of a channel: `d weight = sum(dy x^)`, `d bias = sum(dy)`.
    fn backward<T: Real>(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (statistics, through) = match &self.source {
            Source::Given(statistics) => (statistics, false),
            Source::Input(cell) => match cell.get() {
                Some(statistics) => (statistics, true),
                None => bail!("the backward pass of a normalisation came before its forward pass"),
            },
        };
        let (dx, row_sums) = Rows::<T>::of(x, 2, |x| {
            Rows::<T>::of(dy, 2, |dy| {
                Rows::<T>::of(weight, 0, |weight| {
                    Ok(self.input_gradient(&x, &dy, weight.row(0), statistics, through))
                })
            })
        })?;
        let channels = self.sets.channels;
        let mut channel_sums = [vec![0.0; channels], vec![0.0; channels]];
        for (set, sums) in row_sums.iter().enumerate() {
            for (row, sums) in self.sets.rows_of(set).zip(sums) {
                channel_sums[0][row % channels] += sums[0];
                channel_sums[1][row % channels] += sums[1];
            }
        }
        let [sum, sum_of_products] = channel_sums;
        let vector = |of: &Tensor, sums: Vec<f64>| -> Result<Option<Tensor>> {
            let sums: Vec<T> = sums.into_iter().map(T::from_f64).collect();
            of.track_op().then(|| Tensor::from_vec(sums, channels, of.device())).transpose()
        };
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), vector(weight, sum_of_products)?, vector(bias, sum)?))
    }

    /// The gradient of the input, and for each row of each set `[sum(dy), sum(dy x^)]`.
    fn input_gradient<T: Real>(
        &self,
        x: &Rows<'_, T>,
        dy: &Rows<'_, T>,
        weight: &[T],
        statistics: &Statistics,
        through: bool,
    ) -> (Vec<T>, Vec<Vec<[f64; 2]>>) {
        let work = |set: usize, dx: Vec<&mut [MaybeUninit<T>]>| {
            let rows = self.sets.rows_of(set);
            let weight_of = |row: usize| weight[row % self.sets.channels].to_f64();
            let inverse_std = 1.0 / (statistics.variance[set] + self.eps).sqrt();
            let (pivot, rest) = split::<T>(statistics.mean[set]);
            let row_sums: Vec<[f64; 2]> = rows
                .clone()
                .map(|row| {
                    let [sum, product] = real::sums_of_pairs(x.row(row), dy.row(row), |x, dy| {
                        [dy, dy * (x - pivot)]
                    });
                    [sum, (product - rest * sum) * inverse_std]
                })
                .collect();
            let mut means = [0.0; 2];
            if through {
                for (row, sums) in rows.clone().zip(&row_sums) {
                    means[0] += weight_of(row) * sums[0];
                    means[1] += weight_of(row) * sums[1];
                }
                means = means.map(|sum| sum / (dx.len() * x.len()) as f64);
            }
            let slope = means[1] * inverse_std * inverse_std;
            let shift = T::from_f64(means[0] * inverse_std - rest * slope);
            let slope = T::from_f64(slope);
            for (row, dx) in rows.zip(dx) {
                let scale = T::from_f64(weight_of(row) * inverse_std);
                for ((dx, &x), &dy) in dx.iter_mut().zip(x.row(row)).zip(dy.row(row)) {
                    dx.write(dy * scale - shift - (x - pivot) * slope);
                }
            }
            row_sums
        };
        let RowSets { rows, sets, .. } = self.sets;
        // SAFETY: `work` writes every row of its set; `dx`, `x` and `dy` have rows of one length.
        unsafe { parallel::write_row_sets(rows, x.len(), sets, |row| self.sets.set_of(row), work) }
    }
}

/// `mean` rounded to the number type of the input, and what the rounding took away: next to a small
/// deviation it matters.
fn split<T: Real>(mean: f64) -> (T, f64) {
    let rounded = T::from_f64(mean);
    (rounded, mean - rounded.to_f64())
}
