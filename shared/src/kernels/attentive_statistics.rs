//! Attentive statistics pooling (Okabe, Koshinaka and Shinoda 2018, equations 4 to 6).

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Shape, Tensor};

use super::real::Real;
use super::rows::{Rows, contiguous_rows};
use super::softmax::{exp_row, product_row};
use super::vectorised::vectorised;
use super::{parallel, to_compute_dtype, to_dtype};
use crate::{Error, Result};

/// Variances below this are taken for it; they have no gradient.
const LEAST_VARIANCE: f64 = 1e-9;

/// Mean and standard deviation of `x [B, C, T]` over time, weighted by the softmax of `logits
/// [B, C, T]` over time: `[B, 2 C]`, first the means, then the deviations.
///
/// With `a = softmax(logits)`: `mean = sum a x` and `deviation = sqrt(max(sum a (x - mean)^2, 1e-9))`.
///
/// # Errors
/// When the shapes are not equal or have no frames.
pub fn attentive_statistics(x: &Tensor, logits: &Tensor) -> Result<Tensor> {
    let what = "attentive statistics";
    if x.rank() != 3 || x.dim(2)? == 0 {
        return Err(Error::shape(format!("input of {what}"), "[B, C, T], T > 0", x.dims()));
    }
    if logits.dims() != x.dims() {
        let expected = format!("that of the input, {:?}", x.dims());
        return Err(Error::shape(format!("logits of {what}"), expected, logits.dims()));
    }
    let dtype = x.dtype();
    let x = contiguous_rows(&to_compute_dtype(what, x)?, 2)?;
    let logits = contiguous_rows(&to_dtype(logits.clone(), x.dtype())?, 2)?;
    to_dtype(x.apply_op2(&logits, AttentiveStatistics)?, dtype)
}

struct AttentiveStatistics;

impl CustomOp2 for AttentiveStatistics {
    fn name(&self) -> &'static str {
        "attentive-statistics"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        logits: &CpuStorage,
        logits_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, channels, _) = x_layout.shape().dims3()?;
        let statistics = match x {
            CpuStorage::F64(_) => CpuStorage::F64(forward(
                &Rows::new(x, x_layout, 2)?,
                &Rows::new(logits, logits_layout, 2)?,
                channels,
            )),
            _ => CpuStorage::F32(forward(
                &Rows::new(x, x_layout, 2)?,
                &Rows::new(logits, logits_layout, 2)?,
                channels,
            )),
        };
        Ok((statistics, Shape::from((batch, 2 * channels))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        logits: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let [dx, dlogits] = match x.dtype() {
            DType::F64 => backward::<f64>(x, logits, &gradient)?,
            _ => backward::<f32>(x, logits, &gradient)?,
        };
        Ok((Some(dx), Some(dlogits)))
    }
}

fn forward<T: Real>(x: &Rows<'_, T>, logits: &Rows<'_, T>, channels: usize) -> Vec<T> {
    let len = x.len();
    let statistics = parallel::map_rows(x.count(), len, |row| {
        let mut scratch = Vec::with_capacity(2 * len);
        let (powers, products) = scratch.spare_capacity_mut()[..2 * len].split_at_mut(len);
        let weighted = Weighted::new(x.row(row), logits.row(row), powers, products);
        [weighted.mean(), weighted.variance().max(LEAST_VARIANCE).sqrt()]
    });
    let items = statistics.chunks(channels.max(1));
    let vectors = items.flat_map(|item| [0, 1].map(|which| item.iter().map(move |s| s[which])));
    vectors.flatten().map(T::from_f64).collect()
}

fn backward<T: Real>(
    x: &Tensor,
    logits: &Tensor,
    gradient: &Tensor,
) -> candle_core::Result<[Tensor; 2]> {
    let channels = x.dim(1)?;
    let gradients = Rows::<T>::of(x, 2, |x| {
        Rows::<T>::of(logits, 2, |logits| {
            Rows::<T>::of(gradient, 1, |gradient| {
                let work = |row, dx: &mut [_], dlogits: &mut [_]| {
                    let (item, channel) = (gradient.row(row / channels), row % channels);
                    let gradients = [item[channel], item[channels + channel]];
                    gradient_row(x.row(row), logits.row(row), gradients, dx, dlogits);
                };
                // SAFETY: `gradient_row` writes every element of both rows.
                #[allow(unsafe_code)]
                Ok(unsafe { parallel::write_row_pairs(x.count(), x.len(), work) })
            })
        })
    })?;
    let [dx, dlogits] = gradients.map(|rows| Tensor::from_vec(rows, x.shape(), x.device()));
    Ok([dx?, dlogits?])
}

/// Weighted sums over a row, about a pivot close to the weighted mean. In what follows, `e =
/// exp(logits - max)` are the weights before they are divided by their sum.
struct Weighted<T> {
    pivot: T,
    /// `sum e`.
    sum: f64,
    /// `sum e (x - pivot)`.
    first: f64,
    /// `sum e (x - pivot)^2`.
    second: f64,
}

impl<T: Real> Weighted<T> {
    /// The sums for a row; writes all of `powers = e` and `products = e (x - pivot)`.
    fn new(
        x: &[T],
        logits: &[T],
        powers: &mut [MaybeUninit<T>],
        products: &mut [MaybeUninit<T>],
    ) -> Self {
        let powers = exp_row(logits, T::largest(logits), powers);
        let [sum, product] = T::sums(x, T::zero(), powers, T::zero());
        let pivot = T::from_f64(product / sum);
        let products = product_row(powers, x, pivot, products);
        let [first, second] = T::sums(x, pivot, products, T::zero());
        Self { pivot, sum, first, second }
    }

    fn mean(&self) -> f64 {
        self.pivot.to_f64() + self.first / self.sum
    }

    fn variance(&self) -> f64 {
        self.second / self.sum - (self.first / self.sum).powi(2)
    }
}

/// Writes all of `dx` and `dlogits`, given the gradients of the mean and of the deviation.
///
/// With `g` the gradient of the variance, which is that of the deviation divided by twice the
/// deviation, or 0 below the least variance, and `d = x - mean`:
/// `dx = a (dmean + 2 g d)`, and by the gradient of softmax `dlogits = a (h - sum a h)` with
/// `h = dmean d + g d^2`.
fn gradient_row<T: Real>(
    x: &[T],
    logits: &[T],
    gradients: [T; 2],
    dx: &mut [MaybeUninit<T>],
    dlogits: &mut [MaybeUninit<T>],
) {
    let weighted = Weighted::new(x, logits, dlogits, dx);
    let [of_mean, of_deviation] = gradients.map(T::to_f64);
    let variance = weighted.variance();
    let of_variance =
        if variance < LEAST_VARIANCE { 0.0 } else { 0.5 * of_deviation / variance.sqrt() };
    let mean_h = (of_mean * weighted.first + of_variance * weighted.second) / weighted.sum;
    let factors = [1.0 / weighted.sum, of_mean, of_variance, mean_h].map(T::from_f64);
    // SAFETY: `Weighted::new` wrote every element of both.
    #[allow(unsafe_code)]
    let (dx, dlogits) = unsafe { (dx.assume_init_mut(), dlogits.assume_init_mut()) };
    finish_row(x, weighted.pivot, factors, dx, dlogits);
}

vectorised! {
    /// `dx` and `dlogits`, in which `dlogits` holds `e`.
    fn finish_row<T: Real>(x: &[T], pivot: T, factors: [T; 4], dx: &mut [T], dlogits: &mut [T]) {
        let [scale, of_mean, of_variance, mean_h] = factors;
        for ((&x, dx), dlogits) in x.iter().zip(dx).zip(dlogits) {
            let (a, d) = (*dlogits * scale, x - pivot);
            let slope = of_variance * d;
            *dx = a * (of_mean + slope + slope);
            *dlogits = a * (d * (of_mean + slope) - mean_h);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::check;

    /// Means and deviations by f64 loops over row-major `[batch, channels, frames]`.
    fn reference(x: &Tensor, logits: &Tensor) -> Vec<f64> {
        let (batch, channels, frames) = x.dims3().unwrap();
        let (x, logits) = (check::to_vec(x), check::to_vec(logits));
        let mut statistics = vec![0.0; 2 * batch * channels];
        for row in 0..batch * channels {
            let (x, logits) = (&x[row * frames..][..frames], &logits[row * frames..][..frames]);
            let sum: f64 = logits.iter().map(|l| l.exp()).sum();
            let weigh = |f: &dyn Fn(f64) -> f64| -> f64 {
                x.iter().zip(logits).map(|(&x, l)| l.exp() / sum * f(x)).sum()
            };
            let mean = weigh(&|x| x);
            let at = row / channels * 2 * channels + row % channels;
            statistics[at] = mean;
            statistics[at + channels] = weigh(&|x| (x - mean).powi(2)).max(1e-9).sqrt();
        }
        statistics
    }

    #[test]
    fn values_match_loops() {
        for dims in [[1, 1, 1], [3, 5, 7], [2, 3, 300], [1, 4, 33], [5, 17, 201]] {
            let wide: Vec<usize> = dims.iter().map(|dim| dim + 2).collect();
            let tensor = |index| {
                let whole = check::normal(index, &wide);
                (0..3).fold(whole, |x, axis| x.narrow(axis, 1, dims[axis]).unwrap())
            };
            for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-6)] {
                let [x, logits] = [0, 1].map(|i| tensor(i).to_dtype(dtype).unwrap());
                let found = check::to_vec(&attentive_statistics(&x, &logits).unwrap());
                for (found, expected) in found.iter().zip(reference(&x, &logits)) {
                    let error = (found - expected).abs() / expected.abs().max(1.0);
                    assert!(error < tolerance, "{dims:?} {dtype:?}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn gradients_match_differences() {
        for dims in [[1, 2, 5], [3, 4, 6], [3, 2, 17]] {
            let shapes: [&[usize]; 2] = [&dims, &dims];
            check::gradients(&format!("attentive statistics {dims:?}"), &shapes, |inputs| {
                attentive_statistics(&inputs[0], &inputs[1])
            });
        }
    }

    #[test]
    fn a_constant_row_has_the_least_deviation_and_no_gradient_from_it() {
        let x = candle_core::Var::from_tensor(&check::normal(0, &[2, 3, 1])).unwrap();
        let x = x.broadcast_as((2, 3, 9)).unwrap();
        let logits = candle_core::Var::from_tensor(&check::normal(1, &[2, 3, 9])).unwrap();
        let deviations = attentive_statistics(&x, &logits).unwrap().narrow(1, 3, 3).unwrap();
        assert!(check::to_vec(&deviations).iter().all(|s| (s - 1e-9f64.sqrt()).abs() < 1e-12));
        let gradients = deviations.backward().unwrap();
        assert!(check::to_vec(gradients.get(&logits).unwrap()).iter().all(|&g| g == 0.0));
    }

    #[test]
    fn unequal_shapes_are_refused() {
        let tensor = |dims: &[usize]| check::normal(0, dims);
        for (x, logits) in
            [(&[2, 3, 4][..], &[2, 3, 5][..]), (&[2, 3, 0], &[2, 3, 0]), (&[2, 3], &[2, 3])]
        {
            assert!(attentive_statistics(&tensor(x), &tensor(logits)).is_err());
        }
    }
}
