//! Window functions.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

/// The curve of a [`Window`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowShape {
    /// `0.54 - 0.46 cos`.
    Hamming,
    /// `0.5 - 0.5 cos`.
    Hann,
    /// Kaldi's: the Hann window to the power 0.85.
    Povey,
    /// All ones.
    Rectangular,
}

/// A window function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The curve.
    pub shape: WindowShape,
    /// One period of the curve over `n` samples, as PyTorch's default and right for spectra; if
    /// false, symmetric over `n` samples, as Kaldi's.
    pub periodic: bool,
}

impl Window {
    /// The periodic window of this shape.
    pub const fn periodic(shape: WindowShape) -> Self {
        Self { shape, periodic: true }
    }

    /// The symmetric window of this shape.
    pub const fn symmetric(shape: WindowShape) -> Self {
        Self { shape, periodic: false }
    }

    /// The window's `n` values; `[1.0]` for `n` = 1, whatever the shape.
    pub fn values(self, n: usize) -> Vec<f64> {
        if n == 1 {
            return vec![1.0];
        }
        let period = if self.periodic { n } else { n.saturating_sub(1) } as f64;
        (0..n)
            .map(|i| {
                let cosine = (TAU * i as f64 / period).cos();
                match self.shape {
                    WindowShape::Hamming => 0.54 - 0.46 * cosine,
                    WindowShape::Hann => 0.5 - 0.5 * cosine,
                    WindowShape::Povey => (0.5 - 0.5 * cosine).powf(0.85),
                    WindowShape::Rectangular => 1.0,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_definitions() {
        use WindowShape::*;
        // Hann and Hamming over 4 and 5 samples have cosines 1, 0, -1, 0, (1).
        let cases = [
            (Window::periodic(Hann), 4, vec![0.0, 0.5, 1.0, 0.5]),
            (Window::symmetric(Hann), 5, vec![0.0, 0.5, 1.0, 0.5, 0.0]),
            (Window::periodic(Hamming), 4, vec![0.08, 0.54, 1.0, 0.54]),
            (Window::symmetric(Hamming), 5, vec![0.08, 0.54, 1.0, 0.54, 0.08]),
            (
                Window::symmetric(Povey),
                5,
                vec![0.0, 0.5f64.powf(0.85), 1.0, 0.5f64.powf(0.85), 0.0],
            ),
            (Window::periodic(Rectangular), 3, vec![1.0; 3]),
            (Window::symmetric(Hann), 1, vec![1.0]),
            (Window::symmetric(Hann), 0, vec![]),
        ];
        for (window, n, expected) in cases {
            let values = window.values(n);
            assert_eq!(values.len(), n);
            for (value, want) in values.iter().zip(&expected) {
                assert!((value - want).abs() < 1e-15, "{window:?} {values:?}");
            }
        }
    }
}
