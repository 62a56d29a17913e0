//! All ways of spreading the labels of one utterance over its frames.

use std::ops::Range;

use crate::kernels::real::Real;

/// The lattice of an utterance: at each frame it is in one of `2 L + 1` states, the labels with blanks
/// before, between and after.
pub(super) struct Lattice {
    /// Logarithms of the softmax, `[T, C]`.
    log_probabilities: Vec<f64>,
    classes: usize,
    /// The class of each state.
    states: Vec<usize>,
}

impl Lattice {
    /// The lattice for `logits [T, C]`.
    pub(super) fn new<T: Real>(logits: &[T], classes: usize, labels: &[u32], blank: u32) -> Self {
        let blank = blank as usize;
        let states = labels.iter().flat_map(|label| [blank, *label as usize]).chain([blank]);
        let mut log_probabilities: Vec<f64> = logits.iter().map(|logit| logit.to_f64()).collect();
        for frame in log_probabilities.chunks_exact_mut(classes) {
            let largest = f64::largest(frame);
            let sum: f64 = frame.iter().map(|logit| (logit - largest).exp()).sum();
            let shift = largest + sum.ln();
            frame.iter_mut().for_each(|logit| *logit -= shift);
        }
        Self { log_probabilities, classes, states: states.collect() }
    }

    fn frames(&self) -> usize {
        self.log_probabilities.len() / self.classes
    }

    fn log_probability(&self, frame: usize, state: usize) -> f64 {
        self.log_probabilities[frame * self.classes + self.states[state]]
    }

    /// Whether a path may come to `state` from two states before: past a blank between two different
    /// labels.
    fn may_skip(&self, state: usize) -> bool {
        state >= 2 && state % 2 == 1 && self.states[state] != self.states[state - 2]
    }

    /// The states from which the end can be reached that can be reached at `frame`, from the start.
    fn reachable(&self, frame: usize) -> Range<usize> {
        let count = self.states.len();
        let first = count.saturating_sub(2 * (self.frames() - frame));
        first..count.min(2 * (frame + 1))
    }

    /// Logarithm of the probability of all paths to each state at `frame`, that frame included, from
    /// those at the frame before (equation 6).
    fn forward(&self, frame: usize, before: Option<&[f64]>, after: &mut [f64]) {
        after.fill(f64::NEG_INFINITY);
        for state in self.reachable(frame) {
            let paths = match before {
                None => 0.0,
                Some(before) => {
                    let step = if state >= 1 { before[state - 1] } else { f64::NEG_INFINITY };
                    let skip =
                        if self.may_skip(state) { before[state - 2] } else { f64::NEG_INFINITY };
                    log_sum([before[state], step, skip])
                }
            };
            after[state] = paths + self.log_probability(frame, state);
        }
    }

    /// Logarithm of the probability of all paths from each state at `frame` to the end, that frame not
    /// included, from those at the next frame (equation 10).
    fn backward(&self, frame: usize, next: &[f64], before: &mut [f64]) {
        before.fill(f64::NEG_INFINITY);
        let count = self.states.len();
        let onwards = |state: usize| next[state] + self.log_probability(frame + 1, state);
        for state in self.reachable(frame) {
            let step = if state + 1 < count { onwards(state + 1) } else { f64::NEG_INFINITY };
            let skip = if state + 2 < count && self.may_skip(state + 2) {
                onwards(state + 2)
            } else {
                f64::NEG_INFINITY
            };
            before[state] = log_sum([onwards(state), step, skip]);
        }
    }

    /// Logarithm of the probability of all paths: those to the last label or the blank after it.
    fn total(&self, last: &[f64]) -> f64 {
        match last {
            [.., label, blank] => log_sum([*label, *blank, f64::NEG_INFINITY]),
            [blank] => *blank,
            [] => 0.0,
        }
    }

    /// Minus the logarithm of the probability of the labels; infinite where there are too few frames.
    pub(super) fn loss(&self) -> f64 {
        if self.frames() == 0 {
            return if self.states.len() == 1 { 0.0 } else { f64::INFINITY };
        }
        let mut paths = vec![f64::NEG_INFINITY; self.states.len()];
        self.forward(0, None, &mut paths);
        let mut next = paths.clone();
        for frame in 1..self.frames() {
            self.forward(frame, Some(&paths), &mut next);
            std::mem::swap(&mut paths, &mut next);
        }
        -self.total(&paths)
    }

    /// The gradient of the loss at the logits, `[T, C]`: the softmax minus the share of the paths that
    /// are in a state of the class (equation 16). `None` where the loss is infinite.
    pub(super) fn gradient(&self) -> Option<Vec<f64>> {
        let (frames, count) = (self.frames(), self.states.len());
        if frames == 0 {
            return (count == 1).then(Vec::new);
        }
        let mut forward = vec![f64::NEG_INFINITY; frames * count];
        for frame in 0..frames {
            let (done, rest) = forward.split_at_mut(frame * count);
            let before = (frame > 0).then(|| &done[(frame - 1) * count..]);
            self.forward(frame, before, &mut rest[..count]);
        }
        let total = self.total(&forward[(frames - 1) * count..]);
        if total == f64::NEG_INFINITY {
            return None;
        }
        let mut gradient: Vec<f64> = self.log_probabilities.iter().map(|log| log.exp()).collect();
        // Paths may end in the last label or the blank after it.
        let mut backward = vec![f64::NEG_INFINITY; count];
        backward[count.saturating_sub(2)..].fill(0.0);
        let mut before = backward.clone();
        for frame in (0..frames).rev() {
            if frame + 1 < frames {
                self.backward(frame, &backward, &mut before);
                std::mem::swap(&mut backward, &mut before);
            }
            for state in self.reachable(frame) {
                let paths = forward[frame * count + state] + backward[state];
                gradient[frame * self.classes + self.states[state]] -= (paths - total).exp();
            }
        }
        Some(gradient)
    }
}

/// The logarithm of the sum of numbers that are given by their logarithms.
fn log_sum(logs: [f64; 3]) -> f64 {
    let largest = logs[0].max(logs[1]).max(logs[2]);
    if largest == f64::NEG_INFINITY {
        // Minus infinity, unless one of them is not a number.
        return logs.iter().sum();
    }
    largest + logs.iter().map(|log| (log - largest).exp()).sum::<f64>().ln()
}
