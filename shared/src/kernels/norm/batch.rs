//! Batch normalisation.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Shape, Tensor};

use super::ChannelNorm;
use super::row_sets::{Normalise, RowSets, Source, Statistics};
use crate::kernels::activation::Activation;
use crate::kernels::real::Real;
use crate::kernels::rows::{Rows, contiguous_rows};
use crate::kernels::{to_compute_dtype, to_dtype};
use crate::{Error, Result};

/// Shorter rows are laid out again with the batch inside the channels.
const SHORT_ROW: usize = 16;

/// Mean and variance of each channel of a batch. They carry no gradient.
#[derive(Clone, Debug)]
pub struct BatchStatistics {
    /// Mean, `[C]`, in f64 for f64 inputs and f32 for all others.
    pub mean: Tensor,
    /// Biased variance (divided by `count`), `[C]`, likewise.
    pub variance: Tensor,
    /// Elements that each channel had: batch size times positions.
    pub count: usize,
}

impl BatchStatistics {
    /// Running mean and variance after this batch, in the dtype of the running ones:
    /// `(1 - momentum) running + momentum batch`, with the unbiased batch variance (divided by
    /// `count - 1`), as PyTorch does.
    ///
    /// # Errors
    /// When the numbers of channels differ.
    pub fn update(
        &self,
        running_mean: &Tensor,
        running_variance: &Tensor,
        momentum: f64,
    ) -> Result<(Tensor, Tensor)> {
        let blend = |running: &Tensor, batch: &Tensor, factor: f64| -> Result<Tensor> {
            let batch = batch.to_dtype(running.dtype())?.affine(momentum * factor, 0.0)?;
            Ok((running.detach().affine(1.0 - momentum, 0.0)? + batch)?)
        };
        let unbiased = self.count as f64 / (self.count as f64 - 1.0);
        Ok((
            blend(running_mean, &self.mean, 1.0)?,
            blend(running_variance, &self.variance, unbiased)?,
        ))
    }
}

/// Batch norm of `x [B, C, ..]` with the statistics of `x` itself, and these statistics:
/// `(x - mean) / sqrt(variance + eps) * weight + bias` with `weight [C]` and `bias [C]`.
///
/// The gradient flows through the statistics too (Ioffe and Szegedy 2015, section 3).
///
/// # Errors
/// When the shapes do not fit or a channel has fewer than two elements.
pub fn batch_norm_train(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<(Tensor, BatchStatistics)> {
    let channels = check(x.dims(), &[("weight", weight), ("bias", bias)])?;
    let count = x.elem_count() / channels.max(1);
    if count < 2 {
        let expected = "more than one element in each channel to train on".to_string();
        return Err(Error::shape("input of batch norm", expected, x.dims()));
    }
    let cell = Arc::new(OnceLock::new());
    let y = normalise(x, weight, bias, eps, Source::Input(cell.clone()))?;
    let Some(Statistics { mean, variance }) = cell.get() else {
        return Err(Error::Argument("batch norm computes on the CPU only".into()));
    };
    let dtype = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let vector = |values: &[f64]| -> Result<Tensor> {
        Ok(Tensor::from_slice(values, channels, &Device::Cpu)?.to_dtype(dtype)?)
    };
    Ok((y, BatchStatistics { mean: vector(mean)?, variance: vector(variance)?, count }))
}

/// Batch norm of `x [B, C, ..]` with given statistics, all of shape `[C]`:
/// `(x - mean) / sqrt(variance + eps) * weight + bias`. Gradients flow to `x`, `weight` and `bias`;
/// the statistics are constants.
///
/// # Errors
/// When the shapes do not fit.
pub fn batch_norm_eval(
    x: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    GivenNorm { mean, variance, weight, bias, eps }.apply(x)
}

/// A batch norm with given statistics, see [`batch_norm_eval`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct GivenNorm<'a> {
    pub mean: &'a Tensor,
    pub variance: &'a Tensor,
    pub weight: &'a Tensor,
    pub bias: &'a Tensor,
    pub eps: f64,
}

impl GivenNorm<'_> {
    /// Fails unless the input may have the shape `dims`.
    pub fn check(&self, dims: &[usize]) -> Result<()> {
        let vectors = [
            ("weight", self.weight),
            ("bias", self.bias),
            ("running mean", self.mean),
            ("running variance", self.variance),
        ];
        check(dims, &vectors).map(|_| ())
    }

    /// Whether a gradient flows to weight or bias.
    pub fn is_tracked(&self) -> bool {
        self.weight.track_op() || self.bias.track_op()
    }

    /// The normalised `x`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.check(x.dims())?;
        if x.elem_count() == 0 {
            return Ok(x.clone());
        }
        let statistics = Statistics { mean: to_f64(self.mean)?, variance: to_f64(self.variance)? };
        normalise(x, self.weight, self.bias, self.eps, Source::Given(statistics))
    }

    /// How each channel is normalised.
    pub fn of_channels(&self) -> Result<Vec<ChannelNorm<f32>>> {
        let [mean, variance] = [to_f64(self.mean)?, to_f64(self.variance)?];
        let [weight, bias] = [to_f64(self.weight)?, to_f64(self.bias)?];
        let statistics = mean.into_iter().zip(variance);
        let channels = statistics.zip(weight.into_iter().zip(bias));
        Ok(channels
            .map(|((mean, variance), (weight, bias))| {
                ChannelNorm::new(mean, (variance + self.eps).sqrt().recip(), weight, bias)
            })
            .collect())
    }
}

fn to_f64(vector: &Tensor) -> Result<Vec<f64>> {
    Ok(vector.to_dtype(DType::F64)?.to_vec1()?)
}

/// The number of channels of an input of shape `dims`, which the vectors must have too.
fn check(dims: &[usize], vectors: &[(&str, &Tensor)]) -> Result<usize> {
    let &[_, channels, ..] = dims else {
        return Err(Error::shape("input of batch norm", "[B, C, ..]", dims));
    };
    for (name, vector) in vectors {
        if vector.dims() != [channels] {
            let name = format!("{name} of batch norm");
            return Err(Error::shape(name, format!("[{channels}]"), vector.dims()));
        }
    }
    Ok(channels)
}

fn normalise(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    source: Source,
) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = to_compute_dtype("batch norm", x)?;
    let weight = weight.to_dtype(x.dtype())?.contiguous()?;
    let bias = bias.to_dtype(x.dtype())?.contiguous()?;
    let apply = |x: &Tensor| -> Result<Tensor> {
        let x = contiguous_rows(x, 2)?;
        let sets = RowSets::channels(x.dim(0)?, x.dim(1)?);
        let activation = Activation::Identity;
        Ok(x.apply_op3(&weight, &bias, Normalise { sets, leading: 2, eps, source, activation })?)
    };
    let y = if x.dims()[2..].iter().product::<usize>() < SHORT_ROW {
        let channels_first =
            contiguous_rows(&x, 2)?.apply_op1(SwapFirstDimensions)?.unsqueeze(0)?;
        apply(&channels_first)?.squeeze(0)?.apply_op1(SwapFirstDimensions)?
    } else {
        apply(&x)?
    };
    to_dtype(y, dtype)
}

/// `[C, B, ..]` for `[B, C, ..]`, contiguous in both directions: candle's own gradient of a transposed
/// copy walks through memory with strides.
struct SwapFirstDimensions;

impl CustomOp1 for SwapFirstDimensions {
    fn name(&self) -> &'static str {
        "swap-first-dimensions"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        fn swap<T: Real>(x: &CpuStorage, layout: &Layout) -> candle_core::Result<Vec<T>> {
            let rows = Rows::new(x, layout, 2)?;
            Ok((0..rows.count()).flat_map(|row| rows.row(row)).copied().collect())
        }
        let swapped = layout.transpose(0, 1)?;
        let y = match x {
            CpuStorage::F64(_) => CpuStorage::F64(swap(x, &swapped)?),
            _ => CpuStorage::F32(swap(x, &swapped)?),
        };
        Ok((y, swapped.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        contiguous_rows(dy, 2)?.apply_op1_no_bwd(self).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::check;

    const EPS: f64 = 1e-5;

    /// Output, mean and variance by f64 loops over row-major `[batch, channels, positions]`.
    fn reference(
        x: &[f64],
        [batch, channels, positions]: [usize; 3],
        weight: &[f64],
        bias: &[f64],
    ) -> [Vec<f64>; 3] {
        let channel_of = |i: usize| i / positions % channels;
        let count = (batch * positions) as f64;
        let (mut mean, mut variance) = (vec![0.0; channels], vec![0.0; channels]);
        x.iter().enumerate().for_each(|(i, x)| mean[channel_of(i)] += x / count);
        for (i, x) in x.iter().enumerate() {
            variance[channel_of(i)] += (x - mean[channel_of(i)]).powi(2) / count;
        }
        let y = x.iter().enumerate().map(|(i, x)| {
            let c = channel_of(i);
            (x - mean[c]) / (variance[c] + EPS).sqrt() * weight[c] + bias[c]
        });
        [y.collect(), mean, variance]
    }

    fn assert_close(name: &str, found: &Tensor, expected: &[f64], tolerance: f64) {
        let found = check::to_vec(found);
        assert_eq!(found.len(), expected.len(), "{name}");
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let error = (found - expected).abs() / expected.abs().max(1.0);
            assert!(error < tolerance, "{name} [{i}]: found {found}, expected {expected}");
        }
    }

    #[test]
    fn values_match_loops_on_any_layout() {
        for dims @ [batch, channels, positions] in
            [[1, 1, 2], [3, 5, 7], [2, 3, 300], [1, 4, 33], [3, 2, 1], [64, 3, 200]]
        {
            let whole =
                (check::normal(0, &[batch + 1, channels + 2, positions + 3]) + 5.0).unwrap();
            let narrowed = [batch, channels, positions]
                .into_iter()
                .enumerate()
                .fold(whole, |x, (axis, len)| x.narrow(axis, 1, len).unwrap());
            let transposed = narrowed.t().unwrap().contiguous().unwrap().t().unwrap();
            let (weight, bias) = (check::normal(1, &[channels]), check::normal(2, &[channels]));
            let vectors = [check::to_vec(&weight), check::to_vec(&bias)];
            let expected = reference(&check::to_vec(&narrowed), dims, &vectors[0], &vectors[1]);
            let layouts = [("narrowed", &narrowed), ("transposed", &transposed)];
            for ((layout, x), (dtype, tolerance)) in layouts
                .into_iter()
                .flat_map(|l| [(DType::F64, 1e-12), (DType::F32, 3e-6)].map(|d| (l, d)))
            {
                let name = format!("{dims:?} {layout} {dtype:?}");
                let to = |x: &Tensor| x.to_dtype(dtype).unwrap();
                let x = if dtype == DType::F64 { x.clone() } else { to(x) };
                let (weight, bias) = (to(&weight), to(&bias));
                let (y, statistics) = batch_norm_train(&x, &weight, &bias, EPS).unwrap();
                let BatchStatistics { mean, variance, count } = statistics;
                assert_eq!(count, batch * positions);
                assert_close(&format!("{name} mean"), &mean, &expected[1], tolerance);
                assert_close(&format!("{name} variance"), &variance, &expected[2], tolerance);
                assert_close(&format!("{name} train"), &y, &expected[0], tolerance);
                let y = batch_norm_eval(&x, &mean, &variance, &weight, &bias, EPS).unwrap();
                assert_close(&format!("{name} eval"), &y, &expected[0], tolerance);
            }
        }
    }

    #[test]
    fn gradients_match_differences() {
        let cases: [&[usize]; 6] =
            [&[1, 2, 5], &[3, 4, 5], &[3, 2, 17], &[4, 3], &[3, 1, 1], &[2, 3, 2, 9]];
        for dims in cases {
            let shapes = [dims, &[dims[1]], &[dims[1]]];
            check::gradients(&format!("batch norm, training, {dims:?}"), &shapes, |inputs| {
                Ok(batch_norm_train(&inputs[0], &inputs[1], &inputs[2], 0.1)?.0)
            });
            let mean = check::normal(10, &[dims[1]]);
            let variance = check::normal(11, &[dims[1]]).sqr().unwrap();
            check::gradients(
                &format!("batch norm, given statistics, {dims:?}"),
                &shapes,
                |inputs| batch_norm_eval(&inputs[0], &mean, &variance, &inputs[1], &inputs[2], 0.1),
            );
        }
    }

    #[test]
    fn results_do_not_depend_on_the_thread_count() {
        let dims: [&[usize]; 3] = [&[9, 33, 101], &[33], &[33]];
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let var = |i: usize| {
                    let values = check::normal(i as u64, dims[i]).to_dtype(DType::F32).unwrap();
                    candle_core::Var::from_tensor(&values).unwrap()
                };
                let [x, weight, bias] = [0, 1, 2].map(var);
                let (y, _) = batch_norm_train(&x, &weight, &bias, EPS).unwrap();
                let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
                let gradient = |var: &candle_core::Var| check::to_vec(gradients.get(var).unwrap());
                [check::to_vec(&y), gradient(&x), gradient(&weight), gradient(&bias)]
            })
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn a_mean_far_from_zero_costs_no_accuracy() {
        // The reference is f64 arithmetic on the rounded numbers.
        let x = (check::normal(0, &[5, 2, 999]) + 4096.0).unwrap().to_dtype(DType::F32).unwrap();
        let (one, zero) = (check::normal(1, &[2]).ones_like(), check::normal(1, &[2]).zeros_like());
        let (one, zero) = (one.unwrap(), zero.unwrap());
        let (y, _) = batch_norm_train(&x, &one, &zero, EPS).unwrap();
        let x = check::to_vec(&x);
        let [expected, ..] = reference(&x, [5, 2, 999], &[1.0; 2], &[0.0; 2]);
        assert_close("output", &y, &expected, 1e-6);
    }

    #[test]
    fn unusable_input_is_refused() {
        let vector = |n| check::normal(0, &[n]);
        let train = |dims: &[usize], n, m| {
            batch_norm_train(&check::normal(0, dims), &vector(n), &vector(m), EPS).map(|_| ())
        };
        assert!(train(&[3, 4, 5], 4, 4).is_ok());
        for (dims, n, m) in
            [(&[1, 4, 1][..], 4, 4), (&[1, 4], 4, 4), (&[0, 4, 5], 4, 4), (&[4], 4, 4)]
        {
            assert!(train(dims, n, m).is_err(), "{dims:?}");
        }
        for (n, m) in [(3, 4), (4, 1)] {
            assert!(train(&[3, 4, 5], n, m).is_err());
        }
    }
}
