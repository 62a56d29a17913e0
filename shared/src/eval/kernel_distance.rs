//! Kernel distance between two sets of features: the maximum mean discrepancy.

use nalgebra::DMatrix;

use super::Features;
use crate::{Error, Result};

/// The kernel between all items of two sets, from which the distance of any parts of them follows.
///
/// The kernel is `(x . y / D + 1)^3` with `D` the number of dimensions, as for KID (Binkowski et al.,
/// "Demystifying MMD GANs", 2018) and KVD.
#[derive(Clone, Debug)]
pub struct KernelDistance {
    within: [DMatrix<f64>; 2],
    across: DMatrix<f64>,
}

impl KernelDistance {
    /// The kernels of the sets `a` and `b`. Takes 8 bytes for each pair of items.
    ///
    /// # Errors
    /// [`Error::Argument`] for sets of fewer than two items; [`Error::Shape`] when their dimensions
    /// differ.
    pub fn new(a: &Features, b: &Features) -> Result<Self> {
        a.check_comparable(b)?;
        if a.count() < 2 || b.count() < 2 {
            return Err(Error::Argument(format!(
                "a kernel distance needs at least 2 items a set, there are {} and {}",
                a.count(),
                b.count()
            )));
        }
        let scale = 1.0 / a.dimensions() as f64;
        let (a, b) = (a.matrix(), b.matrix());
        let kernel = |x: &DMatrix<f64>, y: &DMatrix<f64>| {
            let mut products = x * y.transpose();
            products.apply(|product| *product = (*product * scale + 1.0).powi(3));
            products
        };
        Ok(Self { within: [kernel(&a, &a), kernel(&b, &b)], across: kernel(&a, &b) })
    }

    /// The unbiased estimate of the squared maximum mean discrepancy (Gretton et al., "A kernel
    /// two-sample test", 2012, equation 3): no item is compared with itself. May be below 0.
    pub fn value(&self) -> f64 {
        let ones = |set: usize| vec![1.0; self.within[set].nrows()];
        self.weighted([&ones(0), &ones(1)])
    }

    /// The estimate where item i counts as often as `weights[set][i]` says, 0 where that is missing.
    /// Copies of an item are not compared with one another, so that repeating items does not raise the
    /// distance. NaN when a set has fewer than two different items.
    pub fn weighted(&self, weights: [&[f64]; 2]) -> f64 {
        let within = |set: usize| {
            let (kernel, weights) = (&self.within[set], weights[set]);
            let own = weights
                .iter()
                .zip(kernel.diagonal().iter())
                .fold(0.0, |sum, (w, k)| sum + w * w * k);
            let pairs = weights.iter().sum::<f64>().powi(2)
                - weights.iter().map(|weight| weight * weight).sum::<f64>();
            match pairs > 0.0 {
                true => (quadratic_form(kernel, weights, weights) - own) / pairs,
                false => f64::NAN,
            }
        };
        let pairs = weights[0].iter().sum::<f64>() * weights[1].iter().sum::<f64>();
        let across = quadratic_form(&self.across, weights[0], weights[1]) / pairs;
        within(0) + within(1) - 2.0 * across
    }
}

/// `left^T kernel right`.
fn quadratic_form(kernel: &DMatrix<f64>, left: &[f64], right: &[f64]) -> f64 {
    let column = |(column, weight): (nalgebra::DVectorView<f64>, &f64)| match *weight {
        0.0 => 0.0,
        weight => weight * column.iter().zip(left).map(|(k, w)| k * w).sum::<f64>(),
    };
    kernel.column_iter().zip(right).map(column).sum()
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;

    #[test]
    fn agrees_with_scikit_learn() {
        for case in reference::cases() {
            let [a, b] = case.features();
            let distance = KernelDistance::new(&a, &b).unwrap().value();
            let error = (distance - case.kernel).abs() / case.kernel.abs();
            assert!(error < 1e-6, "{}: {distance} instead of {}", case.name, case.kernel);
        }
    }

    #[test]
    fn repeated_items_weigh_more_but_are_not_compared_with_themselves() {
        let rows = [[1.0, 0.5], [0.0, 2.0], [-1.0, 1.0]];
        let others = Features::new("b", &[[0.3, 0.1], [1.0, -1.0]]).unwrap();
        let set = Features::new("a", &rows).unwrap();
        let whole = KernelDistance::new(&set, &others).unwrap();
        // A weight of 0 leaves an item out, equal weights change nothing.
        let part = KernelDistance::new(&set.selected(&[0, 2]), &others).unwrap();
        let weighted = whole.weighted([&[1.0, 0.0, 1.0], &[2.0, 2.0]]);
        assert!((weighted - part.value()).abs() < 1e-12);
        assert!(whole.weighted([&[3.0, 0.0, 0.0], &[1.0, 1.0]]).is_nan());
        let kernel = |x: [f64; 2], y: [f64; 2]| ((x[0] * y[0] + x[1] * y[1]) / 2.0 + 1.0).powi(3);
        let weights = [2.0, 1.0, 0.0];
        let mut expected = [0.0; 2];
        for i in 0..3 {
            for j in (0..3).filter(|j| *j != i) {
                expected[0] += weights[i] * weights[j] * kernel(rows[i], rows[j]);
                expected[1] += weights[i] * weights[j];
            }
        }
        let others = [[0.3, 0.1], [1.0, -1.0]];
        let across: f64 =
            (0..3).flat_map(|i| others.map(|y| weights[i] * kernel(rows[i], y) / 6.0)).sum();
        let expected = expected[0] / expected[1] + kernel(others[0], others[1]) - 2.0 * across;
        let found = whole.weighted([&weights, &[1.0, 1.0]]);
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }

    #[test]
    fn impossible_sets_are_refused() {
        let set = |rows: &[[f64; 2]]| Features::new("a", rows).unwrap();
        let (one, two) = (set(&[[0.0; 2]]), set(&[[0.0; 2], [1.0; 2]]));
        assert!(KernelDistance::new(&one, &two).is_err());
        let other = Features::new("b", &[[0.0; 3], [1.0; 3]]).unwrap();
        assert!(KernelDistance::new(&two, &other).is_err());
    }
}
