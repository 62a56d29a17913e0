//! Normalising a signal.

/// Mean and variance of a signal that arrives in blocks, in f64.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SignalStatistics {
    count: u64,
    mean: f64,
    /// Sum of squared distances from the mean.
    squares: f64,
}

impl SignalStatistics {
    /// Those of `samples`.
    pub fn of(samples: &[f32]) -> Self {
        let mut statistics = Self::default();
        statistics.add(samples);
        statistics
    }

    /// Takes the next samples (Chan et al. 1983, equation 1.5).
    pub fn add(&mut self, samples: &[f32]) {
        if samples.is_empty() {
            return;
        }
        let count = samples.len() as f64;
        let mean = samples.iter().map(|sample| f64::from(*sample)).sum::<f64>() / count;
        let squares: f64 = samples.iter().map(|sample| (f64::from(*sample) - mean).powi(2)).sum();
        let (before, distance) = (self.count as f64, mean - self.mean);
        let total = before + count;
        self.mean += distance * count / total;
        self.squares += squares + distance * distance * before * count / total;
        self.count += samples.len() as u64;
    }

    /// Number of samples.
    pub fn samples(&self) -> u64 {
        self.count
    }

    /// Whether all samples are the same: there is nothing to hear.
    pub fn is_constant(&self) -> bool {
        self.squares == 0.0
    }

    /// What brings the signal to mean 0 and variance 1: `(x - mean) / sqrt(variance + 1e-5)`, the variance
    /// being biased.
    pub fn standardisation(&self) -> Standardisation {
        let variance = self.squares / (self.count as f64).max(1.0);
        Standardisation { mean: self.mean, inverse_std: 1.0 / (variance + 1e-5).sqrt() }
    }
}

/// `(x - mean) inverse_std`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standardisation {
    mean: f64,
    inverse_std: f64,
}

impl Standardisation {
    /// Leaves signals as they are.
    pub const NONE: Self = Self { mean: 0.0, inverse_std: 1.0 };

    /// The standardised samples.
    pub fn apply<'a>(&self, samples: &'a [f32]) -> impl Iterator<Item = f32> + use<'a> {
        let Self { mean, inverse_std } = *self;
        samples.iter().map(move |sample| ((f64::from(*sample) - mean) * inverse_std) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_make_no_difference() {
        let samples: Vec<f32> = (0..1000).map(|i| 0.5 + 0.1 * (0.37 * i as f32).sin()).collect();
        let whole = SignalStatistics::of(&samples);
        let mut parts = SignalStatistics::default();
        for block in samples.chunks(77) {
            parts.add(block);
            parts.add(&[]);
        }
        let (a, b) = (whole.standardisation(), parts.standardisation());
        assert!((a.mean - b.mean).abs() < 1e-12 && (a.inverse_std - b.inverse_std).abs() < 1e-9);
        let mean = samples.iter().map(|x| f64::from(*x)).sum::<f64>() / 1000.0;
        let variance = samples.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / 1000.0;
        assert!((a.mean - mean).abs() < 1e-12);
        assert!((a.inverse_std - 1.0 / (variance + 1e-5).sqrt()).abs() < 1e-9);
        assert!(!whole.is_constant() && SignalStatistics::of(&[0.25; 9]).is_constant());
        let silence = SignalStatistics::of(&[0.25; 9]).standardisation();
        assert!(silence.apply(&[0.25]).all(|sample| sample == 0.0));
    }
}
