//! Fréchet distance between two sets, each taken as a normal distribution of its features.

use nalgebra::{DMatrix, DVector, linalg::SVD};

use super::Features;
use crate::{Error, Result};

/// Sweeps for each singular value after which the decomposition is given up.
const MOST_SWEEPS: usize = 1000;

/// Mean and covariance of the features of a set.
#[derive(Clone, Debug)]
pub struct Gaussian {
    mean: DVector<f64>,
    /// `A` with `A^T A` the covariance (over `n - 1`), `[r, D]` with r the smaller of the numbers of
    /// items and dimensions. Squaring, as for the covariance itself, would lose half of the digits of
    /// its small eigenvalues.
    factor: DMatrix<f64>,
}

impl Gaussian {
    /// The normal distribution with the mean and the unbiased covariance of `features`. There may be
    /// fewer items than dimensions.
    ///
    /// # Errors
    /// [`Error::Argument`] for fewer than two items.
    pub fn of(features: &Features) -> Result<Self> {
        let count = features.count();
        if count < 2 {
            return Err(Error::Argument(format!(
                "a covariance needs at least 2 items, there is {count}"
            )));
        }
        let mut matrix = features.matrix();
        let mean = matrix.row_mean();
        for mut row in matrix.row_iter_mut() {
            row -= &mean;
        }
        matrix /= ((count - 1) as f64).sqrt();
        let factor = if count > features.dimensions() { matrix.qr().unpack_r() } else { matrix };
        Ok(Self { mean: mean.transpose(), factor })
    }

    /// `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`, the squared 2-Wasserstein distance to `other`
    /// (Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982).
    ///
    /// With `S1 = A^T A` and `S2 = B^T B` the trace of the root is the sum of the singular values of
    /// `A B^T`, which exists for covariances of any rank and is never complex.
    ///
    /// # Errors
    /// When the dimensions differ; [`Error::NonFinite`] when the numbers overflow.
    pub fn frechet_distance(&self, other: &Self) -> Result<f64> {
        if self.mean.len() != other.mean.len() {
            let expected = format!("{} dimensions", self.mean.len());
            return Err(Error::shape("features to compare", expected, &[other.mean.len()]));
        }
        let not_finite = || Error::NonFinite { what: "a Fréchet distance".into() };
        let product = &self.factor * other.factor.transpose();
        if product.iter().any(|value| !value.is_finite()) {
            return Err(not_finite());
        }
        let sweeps = MOST_SWEEPS * product.nrows().min(product.ncols()).max(1);
        let roots = SVD::try_new_unordered(product, false, false, f64::EPSILON, sweeps)
            .ok_or_else(not_finite)?
            .singular_values
            .sum();
        let traces = self.factor.norm_squared() + other.factor.norm_squared();
        let distance = (&self.mean - &other.mean).norm_squared() + traces - 2.0 * roots;
        // Rounding may leave equal sets a little below 0.
        if distance.is_finite() { Ok(distance.max(0.0)) } else { Err(not_finite()) }
    }
}

/// The Fréchet distance between two sets of features, see [`Gaussian::frechet_distance`].
///
/// # Errors
/// As [`Gaussian::of`] and [`Gaussian::frechet_distance`].
pub fn frechet_distance(a: &Features, b: &Features) -> Result<f64> {
    Gaussian::of(a)?.frechet_distance(&Gaussian::of(b)?)
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn agrees_with_scipy() {
        for case in reference::cases() {
            let [a, b] = case.features();
            let distance = frechet_distance(&a, &b).unwrap();
            let relative = (distance - case.frechet).abs() / case.frechet;
            assert!(relative < 1e-6, "{}: {distance} instead of {}", case.name, case.frechet);
        }
    }

    fn normal(seed: u64, count: usize, dimensions: usize, rank: usize) -> Features {
        let mut stream = Stream::new(seed, "frechet", 0);
        let basis: Vec<f64> = (0..rank * dimensions).map(|_| stream.normal()).collect();
        let rows: Vec<Vec<f64>> = (0..count)
            .map(|_| {
                let parts: Vec<f64> = (0..rank).map(|_| stream.normal()).collect();
                let value = |column: usize| {
                    (0..rank).map(|part| parts[part] * basis[part * dimensions + column]).sum()
                };
                (0..dimensions).map(value).collect()
            })
            .collect();
        Features::new("test", &rows).unwrap()
    }

    #[test]
    fn a_set_has_no_distance_to_itself_whatever_its_rank() {
        for (count, dimensions, rank) in
            [(100, 8, 8), (5, 40, 40), (60, 40, 3), (2, 1, 1), (300, 96, 96), (41, 40, 40)]
        {
            let set = normal(1, count, dimensions, rank);
            let scale = Gaussian::of(&set).unwrap().factor.norm_squared();
            let distance = frechet_distance(&set, &set).unwrap();
            assert!(distance < 1e-12 * scale, "{count} {dimensions} {rank}: {distance}");
        }
    }

    #[test]
    fn is_symmetric_and_that_of_a_shift_is_its_square() {
        let (a, b) = (normal(1, 50, 20, 20), normal(2, 12, 20, 20));
        let there = frechet_distance(&a, &b).unwrap();
        let back = frechet_distance(&b, &a).unwrap();
        assert!((there - back).abs() < 1e-12 * there, "{there} {back}");
        let shifted: Vec<Vec<f64>> =
            a.rows().map(|row| row.iter().map(|value| value + 3.0).collect()).collect();
        let shifted = Features::new("test", &shifted).unwrap();
        let distance = frechet_distance(&a, &shifted).unwrap();
        assert!((distance - 20.0 * 9.0).abs() < 1e-9, "{distance}");
    }

    #[test]
    fn impossible_sets_are_refused() {
        let one = normal(1, 1, 4, 4);
        assert!(matches!(Gaussian::of(&one), Err(Error::Argument(_))));
        let wrong = frechet_distance(&normal(1, 5, 4, 4), &normal(1, 5, 3, 3));
        assert!(matches!(wrong, Err(Error::Shape { .. })));
        let huge = Features::new("test", &[[1e200], [-1e200]]).unwrap();
        assert!(matches!(frechet_distance(&huge, &huge), Err(Error::NonFinite { .. })));
    }
}
