//! Mean and variance in one pass over memory.

use crate::kernels::real::Real;

/// Elements whose moments are taken at once: they stay in the first-level cache for the second look.
const PIECE: usize = 2048;

/// Count, mean and sum of squared deviations from the mean of some numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    pub(super) count: f64,
    pub(super) mean: f64,
    deviation: f64,
}

impl Moments {
    /// The moments of `row`.
    pub(super) fn of<T: Real>(row: &[T]) -> Self {
        row.chunks(PIECE).map(Self::of_piece).fold(Self::default(), Self::merge)
    }

    fn of_piece<T: Real>(piece: &[T]) -> Self {
        let count = piece.len() as f64;
        // The rounded mean is only a pivot: what it misses is added back.
        let pivot = T::from_f64(T::sum(piece) / count);
        let [sum, squares] = T::sums(piece, pivot, piece, pivot);
        let mean = pivot.to_f64() + sum / count;
        Self { count, mean, deviation: (squares - sum * sum / count).max(0.0) }
    }

    /// The moments of both sets of numbers together (Chan, Golub and LeVeque 1983, equation 2.1).
    pub(super) fn merge(self, other: Self) -> Self {
        if self.count == 0.0 {
            return other;
        }
        let count = self.count + other.count;
        let step = other.mean - self.mean;
        let share = other.count / count;
        Self {
            count,
            mean: self.mean + step * share,
            deviation: self.deviation + other.deviation + step * step * self.count * share,
        }
    }

    /// Mean square deviation from the mean (biased variance).
    pub(super) fn variance(&self) -> f64 {
        self.deviation / self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_mean_costs_no_accuracy() {
        // 3000 + sin(i): mean and variance by f64 loops about the f32 values.
        let x: Vec<f32> = (0..10_001).map(|i| 3000.0 + (i as f32).sin()).collect();
        let n = x.len() as f64;
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        let moments = Moments::of(&x);
        assert!((moments.mean - mean).abs() < 1e-7 * mean, "{} {mean}", moments.mean);
        assert!((moments.variance() - variance).abs() < 1e-6 * variance);
    }
}
