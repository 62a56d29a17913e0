//! Which steps of the diffusion are trained on.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use shared::rng::Stream;
use shared::{Error, Result};

/// Losses of each step that are remembered.
const HISTORY: usize = 10;
/// Share of the draws that is spread evenly over all steps.
const EVEN_SHARE: f64 = 0.001;

/// How steps are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepSampling {
    /// All alike.
    #[default]
    Uniform,
    /// Those with large losses more often, with less weight (Nichol and Dhariwal 2021, section 3.3).
    LossSecondMoment,
}

/// Draws steps.
#[derive(Clone, Debug)]
pub struct StepSampler {
    sampling: StepSampling,
    steps: usize,
    /// The last losses of each step.
    history: Vec<VecDeque<f64>>,
}

impl StepSampler {
    /// A sampler of `steps` steps that has seen no losses.
    pub fn new(sampling: StepSampling, steps: usize) -> Self {
        let remembered = if sampling == StepSampling::Uniform { 0 } else { steps };
        Self { sampling, steps, history: vec![VecDeque::new(); remembered] }
    }

    /// A step, and the weight of its loss, which makes the mean that of uniform draws.
    pub fn draw(&self, stream: &mut Stream) -> (usize, f64) {
        let Some(probabilities) = self.probabilities() else {
            return (stream.below(self.steps), 1.0);
        };
        let mut left = stream.uniform();
        let mut drawn = self.steps.saturating_sub(1);
        for (step, probability) in probabilities.iter().enumerate() {
            left -= probability;
            if left < 0.0 {
                drawn = step;
                break;
            }
        }
        let probability = probabilities.get(drawn).copied().unwrap_or(1.0);
        (drawn, 1.0 / (self.steps as f64 * probability))
    }

    /// Remembers the losses of steps, before they were weighted.
    pub fn update(&mut self, steps: &[usize], losses: &[f64]) {
        for (step, loss) in steps.iter().zip(losses) {
            if let Some(history) = self.history.get_mut(*step) {
                if history.len() == HISTORY {
                    history.pop_front();
                }
                history.push_back(*loss);
            }
        }
    }

    /// What [`StepSampler::restore`] needs to go on.
    pub fn state(&self) -> &[VecDeque<f64>] {
        &self.history
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// When it is that of another sampler.
    pub fn restore(&mut self, state: Vec<VecDeque<f64>>) -> Result<()> {
        if state.len() != self.history.len() || state.iter().any(|history| history.len() > HISTORY)
        {
            let expected = format!("[{}] of at most {HISTORY} losses", self.history.len());
            return Err(Error::shape("history of losses", expected, &[state.len()]));
        }
        self.history = state;
        Ok(())
    }

    /// The probability of each step; none while all are alike, which is until each has been drawn often
    /// enough.
    fn probabilities(&self) -> Option<Vec<f64>> {
        let full = self.history.iter().all(|history| history.len() == HISTORY);
        if self.sampling == StepSampling::Uniform || !full {
            return None;
        }
        let moment = |history: &VecDeque<f64>| {
            (history.iter().map(|loss| loss * loss).sum::<f64>() / HISTORY as f64).sqrt()
        };
        let moments: Vec<f64> = self.history.iter().map(moment).collect();
        let sum: f64 = moments.iter().sum();
        let even = 1.0 / self.steps as f64;
        let share = |moment: f64| if sum > 0.0 { moment / sum } else { even };
        let mixed = |moment| (1.0 - EVEN_SHARE) * share(moment) + EVEN_SHARE * even;
        Some(moments.into_iter().map(mixed).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampler: &StepSampler, count: usize) -> Vec<(usize, f64)> {
        let mut stream = Stream::new(1, "test", 0);
        (0..count).map(|_| sampler.draw(&mut stream)).collect()
    }

    #[test]
    fn without_a_full_history_all_steps_are_alike() {
        let mut sampler = StepSampler::new(StepSampling::LossSecondMoment, 4);
        for _ in 0..HISTORY {
            sampler.update(&[0, 1, 2], &[1.0, 5.0, 9.0]);
        }
        for sampler in [sampler, StepSampler::new(StepSampling::Uniform, 4)] {
            let drawn = draws(&sampler, 4_000);
            assert!(drawn.iter().all(|(_, weight)| *weight == 1.0));
            for step in 0..4 {
                let share = drawn.iter().filter(|draw| draw.0 == step).count();
                assert!((900..1_100).contains(&share), "{share}");
            }
        }
    }

    #[test]
    fn large_losses_are_drawn_more_often_and_weigh_less() {
        let mut sampler = StepSampler::new(StepSampling::LossSecondMoment, 3);
        for _ in 0..HISTORY + 3 {
            sampler.update(&[0, 1, 2], &[1.0, 2.0, 5.0]);
        }
        let drawn = draws(&sampler, 20_000);
        let losses = [1.0, 2.0, 5.0];
        for (step, loss) in losses.iter().enumerate() {
            let count = drawn.iter().filter(|draw| draw.0 == step).count() as f64;
            let expected = 0.999 * loss / 8.0 + 0.001 / 3.0;
            assert!((count / 20_000.0 - expected).abs() < 0.01, "{count} {expected}");
            let weights = drawn.iter().filter(|draw| draw.0 == step).map(|draw| draw.1);
            assert!(weights.into_iter().all(|weight| (weight * 3.0 * expected - 1.0).abs() < 1e-9));
        }
        // The weighted mean is that of uniform draws.
        let mean =
            drawn.iter().map(|(step, weight)| losses[*step] * weight).sum::<f64>() / 20_000.0;
        assert!((mean - 8.0 / 3.0).abs() < 0.01, "{mean}");
    }

    #[test]
    fn a_restored_sampler_draws_the_same() {
        let mut sampler = StepSampler::new(StepSampling::LossSecondMoment, 3);
        (0..12).for_each(|i| sampler.update(&[0, 1, 2], &[0.5, f64::from(i), 2.0]));
        let mut other = StepSampler::new(StepSampling::LossSecondMoment, 3);
        other.restore(sampler.state().to_vec()).unwrap();
        assert_eq!(draws(&other, 50), draws(&sampler, 50));
        let mut smaller = StepSampler::new(StepSampling::LossSecondMoment, 2);
        assert!(smaller.restore(sampler.state().to_vec()).is_err());
    }
}
