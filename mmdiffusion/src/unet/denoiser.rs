//! The coupled network as samplers use it.

use candle_core::Tensor;
use shared::Result;
use shared::rng::Stream;

use super::CoupledUnet;
use crate::pair::{Denoiser, Pair};

/// How far the windows of attention are shifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shifts {
    /// Not at all.
    Zero,
    /// At random, the same for all clips of a batch: by numbers that depend on the seed, the evaluation
    /// and the block alone.
    Random {
        /// Seed.
        seed: u64,
    },
}

impl Shifts {
    /// Shifts for blocks with these largest ones, in an evaluation of the network.
    pub fn draw(self, largest: &[usize], evaluation: usize) -> Vec<usize> {
        let draw = |(block, largest): (usize, &usize)| match self {
            Self::Zero => 0,
            Self::Random { seed } => {
                let purpose = format!("window shift of block {block}");
                Stream::new(seed, &purpose, evaluation as u64).below(largest + 1)
            }
        };
        largest.iter().enumerate().map(draw).collect()
    }
}

/// A coupled network and how its windows are shifted.
#[derive(Clone, Debug)]
pub struct CoupledDenoiser {
    /// The network.
    pub network: CoupledUnet,
    /// The shifts.
    pub shifts: Shifts,
}

impl Denoiser for CoupledDenoiser {
    fn predict(&self, x: &Pair, model_time: &Tensor, evaluation: usize) -> Result<Pair> {
        let frames = x.video.dims().get(1).copied().unwrap_or_default();
        let shifts = self.shifts.draw(&self.network.largest_shifts(frames), evaluation);
        self.network.forward(x, model_time, &shifts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts_depend_on_seed_evaluation_and_block_alone() {
        let largest = [15, 12, 0, 8];
        let shifts = Shifts::Random { seed: 3 };
        let drawn: Vec<Vec<usize>> = (0..50).map(|i| shifts.draw(&largest, i)).collect();
        assert_eq!(shifts.draw(&[15, 12], 7), drawn[7][..2]);
        assert_ne!(Shifts::Random { seed: 4 }.draw(&largest, 7), drawn[7]);
        for (block, &most) in largest.iter().enumerate() {
            let seen: Vec<usize> = drawn.iter().map(|shifts| shifts[block]).collect();
            assert!(seen.iter().all(|shift| *shift <= most));
            assert!(most == 0 || seen.iter().any(|shift| *shift != seen[0]));
        }
        assert_eq!(Shifts::Zero.draw(&largest, 1), [0; 4]);
    }
}
