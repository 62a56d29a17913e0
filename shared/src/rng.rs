//! Seeded random numbers: one independent stream per (seed, purpose, index).
//!
//! A draw depends on nothing but its stream and its place in it, so results do not change with
//! batch size, thread count or device.

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Stream(ChaCha8Rng);

/// Where a [`Stream`] stands; restores it exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamState {
    key: [u8; 32],
    stream: u64,
    /// Position in 32-bit words, as a decimal string: JSON numbers stop at 64 bits.
    word: String,
}

impl Stream {
    /// Stream `index` for `purpose` under `seed`. Streams that differ in any of the three are
    /// independent.
    pub fn new(seed: u64, purpose: &str, index: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(purpose.as_bytes());
        let mut generator = ChaCha8Rng::from_seed(hash.finalize().into());
        generator.set_stream(index);
        Self(generator)
    }

    /// A number uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        self.0.random()
    }

    /// A number uniform in `[low, high)`.
    pub fn uniform_in(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// An integer uniform in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { self.0.random_range(0..n as u64) as usize }
    }

    /// A number from the normal distribution of mean 0 and variance 1.
    pub fn normal(&mut self) -> f64 {
        self.0.sample(StandardNormal)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Fills `out` with standard normal numbers.
    pub fn fill_normal(&mut self, out: &mut [f32]) {
        out.iter_mut().for_each(|value| *value = self.normal() as f32);
    }

    /// Shuffles `items` uniformly (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// The state to store in a checkpoint.
    pub fn state(&self) -> StreamState {
        StreamState {
            key: self.0.get_seed(),
            stream: self.0.get_stream(),
            word: self.0.get_word_pos().to_string(),
        }
    }

    /// The stream as [`Stream::state`] left it; `None` if the state is malformed.
    pub fn from_state(state: &StreamState) -> Option<Self> {
        let mut generator = ChaCha8Rng::from_seed(state.key);
        generator.set_stream(state.stream);
        generator.set_word_pos(state.word.parse().ok()?);
        Some(Self(generator))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let draws = |seed, purpose, index| {
            let mut stream = Stream::new(seed, purpose, index);
            (0..8).map(|_| stream.bits()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1, "crop", 2), draws(1, "crop", 2));
        assert_ne!(draws(1, "crop", 2), draws(2, "crop", 2));
        assert_ne!(draws(1, "crop", 2), draws(1, "noise", 2));
        assert_ne!(draws(1, "crop", 2), draws(1, "crop", 3));
    }

    #[test]
    fn state_restores_the_exact_place() {
        let mut stream = Stream::new(7, "test", 0);
        for _ in 0..13 {
            stream.normal();
        }
        let json = serde_json::to_string(&stream.state()).unwrap();
        let mut restored = Stream::from_state(&serde_json::from_str(&json).unwrap()).unwrap();
        assert_eq!(stream.bits(), restored.bits());
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let mut stream = Stream::new(3, "normal", 0);
        let n = 100_000;
        let draws: Vec<f64> = (0..n).map(|_| stream.normal()).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
