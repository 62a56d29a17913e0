//! What batch norm and group norm share: sets of rows normalised with common statistics.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::ChannelNorm;
use super::moments::Moments;
use crate::kernels::activation::{Activation, Smooth, activate_normalised, differentiate_in_place};
use crate::kernels::parallel::{self, RowBuffer};
use crate::kernels::real::Real;
use crate::kernels::rows::{OnRows, Rows, contiguous_rows};
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

    /// The rows of a set, in order: the run of each frame.
    fn runs_of(&self, set: usize) -> impl Iterator<Item = Range<usize>> + Clone + use<> {
        let Self { frames, channels, size, .. } = *self;
        let (item, group) = (set / (channels / size), set % (channels / size));
        let first = item * frames * channels + group * size;
        (0..frames).map(move |frame| {
            let first = first + frame * channels;
            first..first + size
        })
    }

    /// The rows of a set, in order.
    pub(super) fn rows_of(&self, set: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        self.runs_of(set).flatten()
    }

    /// Index of a row's element in vectors `[C]`, or `[B, C]`, that have `len` elements.
    fn vector_index(&self, row: usize, len: usize) -> usize {
        let item = if len == self.channels { 0 } else { row / (self.frames * self.channels) };
        item * self.channels + row % self.channels
    }

    /// The rows that `second` writes, and what it follows from for each set: what `first` makes of
    /// runs of neighbouring rows, added to a list, and what `combine` makes of these. `first` may leave
    /// something in the rows that are to be written.
    ///
    /// Where there are many sets of neighbouring rows, both passes over a set follow each other, so
    /// that its rows come from memory once.
    ///
    /// # Safety
    /// `second` must write every element of its row, but for what `first` has written.
    unsafe fn two_passes<T: Real, R: Copy + Send + Sync, S: Send + Sync>(
        &self,
        len: usize,
        first: impl Fn(Range<usize>, &mut [MaybeUninit<T>], &mut Vec<R>) + Sync,
        combine: impl Fn(usize, &[R]) -> S + Sync,
        second: impl Fn(usize, &S, &mut [MaybeUninit<T>]) + Sync,
    ) -> (Vec<T>, Vec<(Vec<R>, S)>) {
        let (count, sets) = (self.items * self.frames * self.channels, self.count());
        let rows = RowBuffer::new(count, len);
        // SAFETY (both): in both schedules, nobody else has these rows at this time.
        let first = |run: Range<usize>, results: &mut Vec<R>| {
            first(run.clone(), unsafe { rows.rows(run) }, results);
        };
        let second = |row: usize, combined: &S| second(row, combined, unsafe { rows.row(row) });
        let of_sets = if self.size > 1 && sets >= 2 * rayon::current_num_threads() {
            parallel::map_rows(sets, count * len / sets, |set| {
                let mut results = vec![];
                self.runs_of(set).for_each(|run| first(run, &mut results));
                let combined = combine(set, &results);
                self.rows_of(set).for_each(|row| second(row, &combined));
                (results, combined)
            })
        } else {
            let results = parallel::map_rows(count, len, |row| {
                let mut results = vec![];
                first(row..row + 1, &mut results);
                results
            });
            let of_set = |set| {
                let results: Vec<R> =
                    self.rows_of(set).flat_map(|row| results[row].iter().copied()).collect();
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
        let [y] = self.run([
            (x, x_layout, self.leading),
            (weight, weight_layout, 0),
            (bias, bias_layout, 0),
        ])?;
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

impl OnRows<3, 1> for Normalise {
    fn on_rows<T: Smooth>(&self, [x, weight, bias]: [Rows<'_, T>; 3]) -> [Vec<T>; 1] {
        let (weight, bias) = (weight.row(0), bias.row(0));
        let write = |row: usize, mean: f64, inverse_std: f64, y: &mut [MaybeUninit<T>]| {
            let at = self.sets.vector_index(row, weight.len());
            let (weight, bias) = (weight[at].to_f64(), bias[at].to_f64());
            let norm = ChannelNorm::new(mean, inverse_std, weight, bias);
            activate_normalised(self.activation, x.row(row), norm, y);
        };
        match &self.source {
            Source::Given(statistics) => {
                let inverse_std = self.inverse_std(statistics);
                let work = |row, y: &mut [_]| {
                    let set = self.sets.set_of(row);
                    write(row, statistics.mean[set], inverse_std[set], y);
                };
                // SAFETY: `write` writes its whole row.
                [unsafe { parallel::write_rows(x.count(), x.len(), work) }]
            }
            Source::Input(cell) => {
                let moments =
                    |rows: Range<usize>, results: &mut Vec<Moments>| match x.run(rows.clone()) {
                        Some(run) => results.push(Moments::of(run)),
                        None => results.extend(rows.map(|row| Moments::of(x.row(row)))),
                    };
                let combine = |_: usize, runs: &[Moments]| {
                    let moments = runs.iter().copied().fold(Moments::default(), Moments::merge);
                    let variance = moments.variance();
                    (moments.mean, variance, (variance + self.eps).sqrt().recip())
                };
                // SAFETY: `write` writes its whole row.
                let (y, sets) = unsafe {
                    self.sets.two_passes(
                        x.len(),
                        |rows, _: &mut [MaybeUninit<T>], results| moments(rows, results),
                        combine,
                        |row, &(mean, _, inverse_std), y| write(row, mean, inverse_std, y),
                    )
                };
                cell.get_or_init(|| {
                    let sets = sets.into_iter().map(|(_, (mean, variance, _))| (mean, variance));
                    let (mean, variance) = sets.unzip();
                    Statistics { mean, variance }
                });
                [y]
            }
        }
    }
}

/// How a row was normalised: what the pivot lacks of the mean is the `rest`.
#[derive(Clone, Copy)]
struct Scaling<T> {
    norm: ChannelNorm<T>,
    rest: f64,
    inverse_std: f64,
}

impl Normalise {
    /// The reciprocals of the sets' standard deviations.
    fn inverse_std(&self, statistics: &Statistics) -> Vec<f64> {
        statistics.variance.iter().map(|variance| (variance + self.eps).sqrt().recip()).collect()
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
        let arguments = [(x, self.leading), (dy, self.leading), (weight, 0), (bias, 0)];
        let (dx, sets) = Rows::<T>::of_all(arguments, |[x, dy, weight, bias]| {
            Ok(self.row_gradients(&x, &dy, weight.row(0), bias.row(0), statistics))
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
        let inverse_std = self.inverse_std(statistics);
        let scaling = |row: usize| {
            let set = self.sets.set_of(row);
            let at = self.sets.vector_index(row, weight.len());
            let (mean, inverse_std) = (statistics.mean[set], inverse_std[set]);
            let (weight, bias) = (weight[at].to_f64(), bias[at].to_f64());
            let norm: ChannelNorm<T> = ChannelNorm::new(mean, inverse_std, weight, bias);
            Scaling { norm, rest: mean - norm.pivot.to_f64(), inverse_std }
        };
        let is_activated = self.activation != Activation::Identity;
        // With an activation, leaves `du` in the row.
        let sums_of_row = |row: usize, du: &mut [MaybeUninit<T>]| {
            let Scaling { norm, rest, inverse_std } = scaling(row);
            let (x, dy, pivot) = (x.row(row), dy.row(row), norm.pivot);
            let [sum, product] = if is_activated {
                let pieces = x.chunks(PIECE).zip(dy.chunks(PIECE)).zip(du.chunks_mut(PIECE));
                pieces.fold([0.0; 2], |total, ((x, dy), du)| {
                    let du = scale_row(x, norm, du);
                    differentiate_in_place(self.activation, du, dy);
                    let sums = T::sums(x, pivot, du, T::zero());
                    [total[0] + sums[0], total[1] + sums[1]]
                })
            } else {
                T::sums(x, pivot, dy, T::zero())
            };
            [sum, (product - rest * sum) * inverse_std]
        };
        let sums = |rows: Range<usize>, du: &mut [MaybeUninit<T>], sums: &mut Vec<[f64; 2]>| {
            let of_rows = rows.zip(du.chunks_exact_mut(x.len()));
            sums.extend(of_rows.map(|(row, du)| sums_of_row(row, du)));
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
            let Scaling { norm: ChannelNorm { pivot, scale, .. }, rest, inverse_std } =
                scaling(row);
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
        norm: ChannelNorm<T>,
        y: &'y mut [MaybeUninit<T>],
    ) -> &'y mut [T] {
        let ChannelNorm { pivot, scale, shift } = norm;
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
