//! What batch norm and group norm share: sets of rows normalised with common statistics.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::moments::Moments;
use crate::kernels::parallel;
use crate::kernels::real::Real;
use crate::kernels::rows::{Rows, contiguous_rows};
use crate::kernels::vectorised::vectorised;

/// Which rows of a `[B, C, ..]` tensor are normalised together. Row `b C + c` holds channel `c` of
/// batch item `b`.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowSets {
    channels: usize,
    sets: usize,
    rows_per_set: usize,
    /// Distance between the first rows of neighbouring sets.
    set_stride: usize,
    /// Distance between neighbouring rows of a set.
    row_stride: usize,
}

impl RowSets {
    /// A set for each channel.
    pub(super) fn channels(batch: usize, channels: usize) -> Self {
        Self { channels, sets: channels, rows_per_set: batch, set_stride: 1, row_stride: channels }
    }

    /// A set for each of `groups` groups of channels of each batch item.
    pub(super) fn groups(batch: usize, channels: usize, groups: usize) -> Self {
        let size = channels / groups;
        let sets = batch * groups;
        Self { channels, sets, rows_per_set: size, set_stride: size, row_stride: 1 }
    }

    fn set_of(&self, row: usize) -> usize {
        row / self.set_stride % self.sets
    }

    fn channel_of(&self, row: usize) -> usize {
        row % self.channels
    }

    fn rows_of(&self, set: usize) -> impl Iterator<Item = usize> + use<> {
        let (first, step) = (set * self.set_stride, self.row_stride);
        (0..self.rows_per_set).map(move |row| first + row * step)
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

/// The operation that normalises sets of rows of `x [B, C, ..]`, then applies `weight [C]` and `bias [C]`.
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
        let statistics = match &self.source {
            Source::Given(statistics) => statistics,
            Source::Input(cell) => cell.get_or_init(|| self.statistics(x)),
        };
        let inverse_std = self.inverse_std(statistics);
        let work = |row, y: &mut [_]| {
            let (set, channel) = (self.sets.set_of(row), self.sets.channel_of(row));
            let (pivot, rest) = split(statistics.mean[set]);
            let scale = weight[channel].to_f64() * inverse_std[set];
            let shift = bias[channel].to_f64() - rest * scale;
            scale_row(x.row(row), pivot, T::from_f64(scale), T::from_f64(shift), y);
        };
        // SAFETY: `scale_row` writes its whole row.
        unsafe { parallel::write_rows(x.count(), x.len(), work) }
    }

    fn statistics<T: Real>(&self, x: &Rows<'_, T>) -> Statistics {
        let moments = parallel::map_rows(x.count(), x.len(), |row| Moments::of(x.row(row)));
        let sets = (0..self.sets.sets).map(|set| {
            let rows = self.sets.rows_of(set).map(|row| moments[row]);
            let moments = rows.fold(Moments::default(), Moments::merge);
            (moments.mean, moments.variance())
        });
        let (mean, variance) = sets.unzip();
        Statistics { mean, variance }
    }

    fn inverse_std(&self, statistics: &Statistics) -> Vec<f64> {
        statistics.variance.iter().map(|variance| 1.0 / (variance + self.eps).sqrt()).collect()
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
        let statistics = match &self.source {
            Source::Given(statistics) => statistics,
            Source::Input(cell) => match cell.get() {
                Some(statistics) => statistics,
                None => bail!("the backward pass of a normalisation came before its forward pass"),
            },
        };
        let (dx, sums) = Rows::<T>::of(x, 2, |x| {
            Rows::<T>::of(dy, 2, |dy| {
                Rows::<T>::of(weight, 0, |weight| {
                    let sums = self.row_sums(&x, &dy, statistics);
                    Ok((self.input_gradient(&x, &dy, weight.row(0), statistics, &sums), sums))
                })
            })
        })?;
        let vector = |of: &Tensor, which: usize| -> Result<Option<Tensor>> {
            let mut channels = vec![0.0; self.sets.channels];
            for (row, sums) in sums.iter().enumerate() {
                channels[self.sets.channel_of(row)] += sums[which];
            }
            let channels: Vec<T> = channels.into_iter().map(T::from_f64).collect();
            of.track_op().then(|| Tensor::from_vec(channels, of.shape(), of.device())).transpose()
        };
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), vector(weight, 1)?, vector(bias, 0)?))
    }

    /// `[sum(dy), sum(dy x^)]` of each row.
    fn row_sums<T: Real>(
        &self,
        x: &Rows<'_, T>,
        dy: &Rows<'_, T>,
        statistics: &Statistics,
    ) -> Vec<[f64; 2]> {
        let inverse_std = self.inverse_std(statistics);
        parallel::map_rows(x.count(), x.len(), |row| {
            let set = self.sets.set_of(row);
            let (pivot, rest) = split(statistics.mean[set]);
            let [sum, product] = T::sums(x.row(row), pivot, dy.row(row), T::zero());
            [sum, (product - rest * sum) * inverse_std[set]]
        })
    }

    fn input_gradient<T: Real>(
        &self,
        x: &Rows<'_, T>,
        dy: &Rows<'_, T>,
        weight: &[T],
        statistics: &Statistics,
        sums: &[[f64; 2]],
    ) -> Vec<T> {
        let inverse_std = self.inverse_std(statistics);
        let weight_of = |row| weight[self.sets.channel_of(row)].to_f64();
        // Means over each set of `g` and of `g x^`.
        let means: Vec<[f64; 2]> = match self.source {
            Source::Given(_) => vec![[0.0; 2]; self.sets.sets],
            Source::Input(_) => {
                let count = (self.sets.rows_per_set * x.len()) as f64;
                let mean = |set, which: usize| {
                    let rows = self.sets.rows_of(set);
                    rows.map(|row| weight_of(row) * sums[row][which]).sum::<f64>() / count
                };
                (0..self.sets.sets).map(|set| [mean(set, 0), mean(set, 1)]).collect()
            }
        };
        let work = |row, dx: &mut [_]| {
            let set = self.sets.set_of(row);
            let (pivot, rest) = split(statistics.mean[set]);
            let scale = weight_of(row) * inverse_std[set];
            let slope = means[set][1] * inverse_std[set] * inverse_std[set];
            let shift = means[set][0] * inverse_std[set] - rest * slope;
            let factors = [scale, shift, slope].map(T::from_f64);
            gradient_row(x.row(row), pivot, dy.row(row), factors, dx);
        };
        // SAFETY: `gradient_row` writes its whole row.
        unsafe { parallel::write_rows(x.count(), x.len(), work) }
    }
}

vectorised! {
    /// Writes all of `y = (x - pivot) scale + shift`.
    fn scale_row<T: Real>(x: &[T], pivot: T, scale: T, shift: T, y: &mut [MaybeUninit<T>]) {
        for (y, &x) in y.iter_mut().zip(x) {
            y.write((x - pivot) * scale + shift);
        }
    }

    /// Writes all of `dx = dy scale - shift - (x - pivot) slope`.
    fn gradient_row<T: Real>(
        x: &[T],
        pivot: T,
        dy: &[T],
        factors: [T; 3],
        dx: &mut [MaybeUninit<T>],
    ) {
        let [scale, shift, slope] = factors;
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            dx.write(dy * scale - shift - (x - pivot) * slope);
        }
    }
}

/// `mean` rounded to the number type of the input, and what the rounding took away: next to a small
/// deviation it matters.
fn split<T: Real>(mean: f64) -> (T, f64) {
    let rounded = T::from_f64(mean);
    (rounded, mean - rounded.to_f64())
}
