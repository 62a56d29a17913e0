//! Rates from counts of hits and errors.

use std::iter::Sum;
use std::ops::AddAssign;

use serde::Serialize;

use super::align::Step;

/// How often each step occurs in alignments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Tokens of the reference that the hypothesis has.
    pub hits: u64,
    /// Tokens of the reference with another in their place.
    pub substitutions: u64,
    /// Tokens of the reference that the hypothesis lacks.
    pub deletions: u64,
    /// Further tokens of the hypothesis.
    pub insertions: u64,
}

impl Counts {
    /// The counts of an alignment.
    pub fn of(steps: &[Step]) -> Self {
        let mut counts = Self::default();
        for step in steps {
            *match step {
                Step::Hit => &mut counts.hits,
                Step::Substitution => &mut counts.substitutions,
                Step::Deletion => &mut counts.deletions,
                Step::Insertion => &mut counts.insertions,
            } += 1;
        }
        counts
    }

    /// Substitutions, deletions and insertions: the edit distance.
    pub fn errors(&self) -> u64 {
        self.substitutions + self.deletions + self.insertions
    }

    /// Tokens of the reference.
    pub fn reference(&self) -> u64 {
        self.hits + self.substitutions + self.deletions
    }

    /// Tokens of the hypothesis.
    pub fn hypothesis(&self) -> u64 {
        self.hits + self.substitutions + self.insertions
    }

    /// Errors over tokens of the reference (WER of words, CER of characters); the number of insertions
    /// where the reference is empty.
    pub fn error_rate(&self) -> f64 {
        match self.reference() {
            0 => self.insertions as f64,
            reference => self.errors() as f64 / reference as f64,
        }
    }

    /// Errors over all steps (MER; Morris, Maier and Green 2004); 0 where both sides are empty.
    pub fn match_error_rate(&self) -> f64 {
        match self.hits + self.errors() {
            0 => 0.0,
            steps => self.errors() as f64 / steps as f64,
        }
    }

    /// Share of the reference that was hit times share of the hypothesis that hits (WIP; the same
    /// authors); 1 where both sides are empty, 0 where one is.
    pub fn information_preserved(&self) -> f64 {
        match (self.reference(), self.hypothesis()) {
            (0, 0) => 1.0,
            (0, _) | (_, 0) => 0.0,
            (reference, hypothesis) => {
                (self.hits as f64 / reference as f64) * (self.hits as f64 / hypothesis as f64)
            }
        }
    }

    /// One minus [`Counts::information_preserved`] (WIL).
    pub fn information_lost(&self) -> f64 {
        1.0 - self.information_preserved()
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.substitutions += other.substitutions;
        self.deletions += other.deletions;
        self.insertions += other.insertions;
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut sum, counts| {
            sum += counts;
            sum
        })
    }
}
