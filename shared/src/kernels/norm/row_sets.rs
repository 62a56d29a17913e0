//! What batch norm and group norm share: sets of rows normalised with common statistics.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::moments::Moments;
use crate::kernels::activation::{Activation, Smooth, activate_in_place, differentiate_in_place};
use crate::kernels::parallel::{self, RowBuffer};
use crate::kernels::real::Real;
use crate::kernels::rows::{Rows, contiguous_rows};
use crate::kernels::vectorised::vectorised;

/// Elements of a row that go through all steps together, in the first-level cache.
const PIECE: usize = 2048;

/// Which rows of a tensor are normalised together. Rows are the channels of each frame of each item,
/// in this order; the rows of a set are runs of neighbouring channels, one in each frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowSets {
    items: usize,
    /// Frames of each item.
    frames: usize,
    channels: usize,
    /// Channels of each set.
    size: usize,
}

impl RowSets {
    /// A set for each channel of `[B, C, ..]`: the items of the batch are frames of one item.
    pub(super) fn channels(batch: usize, channels: usize) -> Self {
        Self { items: 1, frames: batch, channels, size: 1 }
    }

    /// A set for each of `groups` groups of channels of each item of `[B, F, C, ..]`.
    pub(super) fn groups([items, frames, channels]: [usize; 3], groups: usize) -> Self {
        Self { items, frames, channels, size: channels / groups }
    }

    /// Number of sets.
    pub(super) fn count(&self) -> usize {
        self.items * self.channels / self.size
    }

    fn set_of(&self, row: usize) -> usize {
        let item = row / (self.frames * self.channels);
        item * (self.channels / self.size) + row % self.channels / self.size
    }

    /// The rows of a set, in order.
    pub(super) fn rows_of(&self, set: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        let Self { frames, channels, size, .. } = *self;
        let (item, group) = (set / (channels / size), set % (channels / size));
        let first = item * frames * channels + group * size;
        (0..frames).flat_map(move |frame| {
            let first = first + frame * channels;
            first..first + size
        })
    }

    /// Index of a row's element in vectors `[C]`, or `[B, C]`, that have `len` elements.
    fn vector_index(&self, row: usize, len: usize) -> usize {
        let item = if len == self.channels { 0 } else { row / (self.frames * self.channels) };
        item * self.channels + row % self.channels
    }

    /// The rows that `second` writes, and what it follows from for each set: what `first` makes of
    /// each row, and what `combine` makes of these. `first` may leave something in the row that is to
    /// be written.
    ///
    /// Where there are many sets of neighbouring rows, both passes over a set follow each other, so
    /// that its rows come from memory once.
    ///
    /// # Safety
    /// `second` must write every element of its row, but for what `first` has written.
    unsafe fn two_passes<T: Real, R: Copy + Send + Sync, S: Send + Sync>(
        &self,
        len: usize,
        first: impl Fn(usize, &mut [MaybeUninit<T>]) -> R + Sync,
        combine: impl Fn(usize, &[R]) -> S + Sync,
        second: impl Fn(usize, &S, &mut [MaybeUninit<T>]) + Sync,
    ) -> (Vec<T>, Vec<(Vec<R>, S)>) {
        let (count, sets) = (self.items * self.frames * self.channels, self.count());
        let rows = RowBuffer::new(count, len);
        // SAFETY (both): in both schedules, nobody else has this row at this time.
        let first = |row: usize| first(row, unsafe { rows.row(row) });
        let second = |row: usize, combined: &S| second(row, combined, unsafe { rows.row(row) });
        let of_sets = if self.size > 1 && sets >= 2 * rayon::current_num_threads() {
            parallel::map_rows(sets, count * len / sets, |set| {
                let results: Vec<R> = self.rows_of(set).map(first).collect();
                let combined = combine(set, &results);
                self.rows_of(set).for_each(|row| second(row, &combined));
                (results, combined)
            })
        } else {
            let results = parallel::map_rows(count, len, first);
            let of_set = |set| {
                let results: Vec<R> = self.rows_of(set).map(|row| results[row]).collect();
                let combined = combine(set, &results);
                (results, combined)
            };
            let of_sets: Vec<(Vec<R>, S)> = (0..sets).map(of_set).collect();
            parallel::map_rows(count, len, |row| second(row, &of_sets[self.set_of(row)].1));
            of_sets
        };
        // SAFETY: both passes have been over every row.
        (unsafe { rows.finish() }, of_sets)
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

/// The operation that normalises sets of rows of `x [B, C, ..]` or `[B, F, C, ..]`, applies `weight`
/// and `bias`, both `[C]` or both `[B, C]`, then `activation`.
pub(super) struct Normalise {
    pub(super) sets: RowSets,
    /// Dimensions that number the rows: those up to the channels.
    pub(super) leading: usize,
    pub(super) eps: f64,
    pub(super) source: Source,
    pub(super) activation: Activation,
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
                &Rows::new(x, x_layout, self.leading)?,
                Rows::new(weight, weight_layout, 0)?.row(0),
                Rows::new(bias, bias_layout, 0)?.row(0),
            )),
            _ => CpuStorage::F32(self.forward(
                &Rows::new(x, x_layout, self.leading)?,
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
        let dy = contiguous_rows(dy, self.leading)?;
        match x.dtype() {
            DType::F64 => self.backward::<f64>(x, weight, bias, &dy),
            _ => self.backward::<f32>(x, weight, bias, &dy),
        }
    }
}

/// How a row is normalised: `y = (x - pivot) scale + shift`, and `rest` is what the pivot lacks of the
/// mean.
#[derive(Clone, Copy)]
struct Scaling<T> {
    pivot: T,
    rest: f64,
    inverse_std: f64,
    scale: T,
    shift: T,
}

impl Normalise {
    fn forward<T: Smooth>(&self, x: &Rows<'_, T>, weight: &[T], bias: &[T]) -> Vec<T> {
        let write = |row: usize, (mean, variance): (f64, f64), y: &mut [MaybeUninit<T>]| {
            let scaling = self.scaling(row, mean, variance, weight, bias);
            for (x, y) in x.row(row).chunks(PIECE).zip(y.chunks_mut(PIECE)) {
                let y = scale_row(x, scaling.pivot, scaling.scale, scaling.shift, y);
                activate_in_place(self.activation, y);
            }
        };
        match &self.source {
            Source::Given(Statistics { mean, variance }) => {
                let work = |row, y: &mut [_]| {
                    let set = self.sets.set_of(row);
                    write(row, (mean[set], variance[set]), y);
                };
                // SAFETY: `write` writes its whole row.
                unsafe { parallel::write_rows(x.count(), x.len(), work) }
            }
            Source::Input(cell) => {
                let combine = |_: usize, rows: &[Moments]| {
                    let moments = rows.iter().copied().fold(Moments::default(), Moments::merge);
                    (moments.mean, moments.variance())
                };
                // SAFETY: `write` writes its whole row.
                let (y, sets) = unsafe {
                    self.sets.two_passes(
                        x.len(),
                        |row, _| Moments::of(x.row(row)),
                        combine,
                        |row, &statistics, y| write(row, statistics, y),
                    )
                };
                cell.get_or_init(|| {
                    let (mean, variance) = sets.into_iter().map(|(_, set)| set).unzip();
                    Statistics { mean, variance }
                });
                y
            }
        }
    }

    fn scaling<T: Real>(
        &self,
        row: usize,
        mean: f64,
        variance: f64,
        weight: &[T],
        bias: &[T],
    ) -> Scaling<T> {
        let at = self.sets.vector_index(row, weight.len());
        let inverse_std = 1.0 / (variance + self.eps).sqrt();
        // What rounding the mean takes away matters next to a small deviation.
        let pivot = T::from_f64(mean);
        let rest = mean - pivot.to_f64();
        let scale = weight[at].to_f64() * inverse_std;
        let shift = bias[at].to_f64() - rest * scale;
        Scaling { pivot, rest, inverse_std, scale: T::from_f64(scale), shift: T::from_f64(shift) }
    }

    /// With `x^ = (x - mean) / std`, `u = weight x^ + bias`, `du = activation'(u) dy` and `g = weight
    /// du`, over the `N` elements of a set: `dx = (g - sum(g) / N - x^ sum(g x^) / N) / std`, without
    /// the sums for given statistics; over the elements of a channel: `d weight = sum(du x^)`, `d bias
    /// = sum(du)`.
    fn backward<T: Smooth>(
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
        let vectors = weight.elem_count();
        let (dx, sets) = Rows::<T>::of(x, self.leading, |x| {
            Rows::<T>::of(dy, self.leading, |dy| {
                Rows::<T>::of(weight, 0, |weight| {
                    Rows::<T>::of(bias, 0, |bias| {
                        Ok(self.row_gradients(&x, &dy, weight.row(0), bias.row(0), statistics))
                    })
                })
            })
        })?;
        let vector = |of: &Tensor, which: usize| -> Result<Option<Tensor>> {
            let mut total = vec![0.0; vectors];
            for (set, (sums, _)) in sets.iter().enumerate() {
                for (row, sums) in self.sets.rows_of(set).zip(sums) {
                    total[self.sets.vector_index(row, vectors)] += sums[which];
                }
            }
            let total: Vec<T> = total.into_iter().map(T::from_f64).collect();
            of.track_op().then(|| Tensor::from_vec(total, of.shape(), of.device())).transpose()
        };
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), vector(weight, 1)?, vector(bias, 0)?))
    }

    /// The gradient at the input, and for the rows of each set `[sum(du), sum(du x^)]`.
    #[allow(clippy::type_complexity)]
    fn row_gradients<T: Smooth>(
        &self,
        x: &Rows<'_, T>,
        dy: &Rows<'_, T>,
        weight: &[T],
        bias: &[T],
        statistics: &Statistics,
    ) -> (Vec<T>, Vec<(Vec<[f64; 2]>, [f64; 2])>) {
        let scaling = |row: usize| {
            let set = self.sets.set_of(row);
            self.scaling(row, statistics.mean[set], statistics.variance[set], weight, bias)
        };
        let is_activated = self.activation != Activation::Identity;
        // With an activation, leaves `du` in the row.
        let sums = |row: usize, du: &mut [MaybeUninit<T>]| {
            let Scaling { pivot, rest, inverse_std, scale, shift } = scaling(row);
            let (x, dy) = (x.row(row), dy.row(row));
            let [sum, product] = if is_activated {
                let pieces = x.chunks(PIECE).zip(dy.chunks(PIECE)).zip(du.chunks_mut(PIECE));
                pieces.fold([0.0; 2], |total, ((x, dy), du)| {
                    let du = scale_row(x, pivot, scale, shift, du);
                    differentiate_in_place(self.activation, du, dy);
                    let sums = T::sums(x, pivot, du, T::zero());
                    [total[0] + sums[0], total[1] + sums[1]]
                })
            } else {
                T::sums(x, pivot, dy, T::zero())
            };
            [sum, (product - rest * sum) * inverse_std]
        };
        // Means over a set of `g` and of `g x^`.
        let means = |set: usize, sums: &[[f64; 2]]| {
            let count = (sums.len() * x.len()) as f64;
            let mut means = [0.0; 2];
            if let Source::Input(_) = self.source {
                for (row, sums) in self.sets.rows_of(set).zip(sums) {
                    let weight = weight[self.sets.vector_index(row, weight.len())].to_f64();
                    means = [0, 1].map(|i| means[i] + weight * sums[i] / count);
                }
            }
            means
        };
        let write = |row: usize, means: &[f64; 2], dx: &mut [MaybeUninit<T>]| {
            let Scaling { pivot, rest, inverse_std, scale, .. } = scaling(row);
            let slope = means[1] * inverse_std * inverse_std;
            let shift = means[0] * inverse_std - rest * slope;
            let factors = [scale, T::from_f64(shift), T::from_f64(slope)];
            if is_activated {
                // SAFETY: `sums` wrote the whole row.
                finish_row(x.row(row), pivot, factors, unsafe { dx.assume_init_mut() });
            } else {
                gradient_row(x.row(row), pivot, dy.row(row), factors, dx);
            }
        };
        // SAFETY: `gradient_row`, or in its place `sums`, writes the whole row.
        unsafe { self.sets.two_passes(x.len(), sums, means, write) }
    }
}

vectorised! {
    /// Writes all of `y = (x - pivot) scale + shift`, and returns it.
    fn scale_row<'y, T: Real>(
        x: &[T],
        pivot: T,
        scale: T,
        shift: T,
        y: &'y mut [MaybeUninit<T>],
    ) -> &'y mut [T] {
        for (y, &x) in y.iter_mut().zip(x) {
            y.write((x - pivot) * scale + shift);
        }
        // SAFETY: the loop above wrote every element.
        unsafe { y.assume_init_mut() }
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

    /// As [`gradient_row`], in which `dx` holds `dy`.
    fn finish_row<T: Real>(x: &[T], pivot: T, factors: [T; 3], dx: &mut [T]) {
        let [scale, shift, slope] = factors;
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = *dx * scale - shift - (x - pivot) * slope;
        }
    }
}
