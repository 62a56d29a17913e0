//! How alike two voices are: from pairs of embeddings to scores.

use std::collections::HashMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use shared::data::TrialList;
use shared::eval::verification::{CohortStatistics, adaptive_s_norm};
use shared::{Error, Result};

use crate::embeddings::Embeddings;

/// How the cosine of two embeddings becomes a score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Scoring {
    /// The cosine itself.
    #[default]
    Cosine,
    /// AS-norm (Matejka et al. 2017): the cosine in standard deviations from the mean of the
    /// `top` most similar cohort members, averaged over both sides.
    AdaptiveSNorm {
        /// Cohort members that count, by similarity to the recording.
        top: usize,
    },
}

/// Scores pairs of embeddings, normalised by a cohort of other speakers if there is one.
pub struct Scorer<'a> {
    cohort: Option<(&'a Embeddings, usize)>,
}

impl<'a> Scorer<'a> {
    /// A scorer for `scoring`, with the cohort that it needs.
    ///
    /// # Errors
    /// When AS-norm is asked for without a cohort of at least two.
    pub fn new(scoring: Scoring, cohort: Option<&'a Embeddings>) -> Result<Self> {
        let Scoring::AdaptiveSNorm { top } = scoring else { return Ok(Self { cohort: None }) };
        match cohort {
            Some(cohort) if cohort.len() >= 2 && top >= 2 => {
                Ok(Self { cohort: Some((cohort, top.min(cohort.len()))) })
            }
            _ => Err(Error::Argument(
                "AS-norm needs a cohort of at least two embeddings and a top of at least 2".into(),
            )),
        }
    }

    /// The score of two embeddings.
    ///
    /// # Errors
    /// When the cohort gives no finite statistics.
    pub fn score(&self, a: &[f32], b: &[f32]) -> Result<f64> {
        self.combine(inner_product(a, b), self.statistics(a)?, self.statistics(b)?)
    }

    /// The scores of all trials, in the order of the list. What depends on one recording only is
    /// computed once for each.
    ///
    /// # Errors
    /// [`Error::Argument`] naming a recording that has no embedding; as [`Scorer::score`].
    pub fn score_all(&self, trials: &TrialList, embeddings: &Embeddings) -> Result<Vec<f64>> {
        let sides: Vec<(&[f32], Option<CohortStatistics>)> = trials
            .recordings
            .par_iter()
            .map(|name| {
                let row = embeddings.get(name).ok_or_else(|| {
                    Error::Argument(format!("recording {name} of the trials has no embedding"))
                })?;
                Ok((row, self.statistics(row)?))
            })
            .collect::<Result<_>>()?;
        trials
            .trials
            .par_iter()
            .map(|trial| match (sides.get(trial.enrolment), sides.get(trial.test)) {
                (Some((a, of_a)), Some((b, of_b))) => {
                    self.combine(inner_product(a, b), *of_a, *of_b)
                }
                _ => Err(Error::Argument("a trial names no recording of its list".into())),
            })
            .collect()
    }

    fn statistics(&self, embedding: &[f32]) -> Result<Option<CohortStatistics>> {
        let Some((cohort, top)) = self.cohort else { return Ok(None) };
        let scores: Vec<f32> =
            cohort.rows().map(|row| inner_product(embedding, row) as f32).collect();
        Ok(Some(CohortStatistics::of(&scores, Some(top))?))
    }

    fn combine(
        &self,
        cosine: f64,
        a: Option<CohortStatistics>,
        b: Option<CohortStatistics>,
    ) -> Result<f64> {
        let score = match (a, b) {
            (Some(a), Some(b)) => adaptive_s_norm(cosine, a, b),
            _ => cosine,
        };
        if score.is_finite() { Ok(score) } else { Err(Error::NonFinite { what: "a score".into() }) }
    }
}

/// The mean embedding of each speaker, scaled to length 1; `speakers` names the speaker of each
/// of `embeddings` in their order. One member a speaker makes a balanced cohort.
///
/// # Errors
/// When the lengths differ.
pub fn speaker_means(embeddings: &Embeddings, speakers: &[&str]) -> Result<Embeddings> {
    if speakers.len() != embeddings.len() {
        return Err(Error::Argument(format!(
            "{} speakers for {} embeddings",
            speakers.len(),
            embeddings.len()
        )));
    }
    let mut order = vec![];
    let mut sums: HashMap<&str, Vec<f32>> = HashMap::new();
    for (speaker, row) in speakers.iter().zip(embeddings.rows()) {
        let sum = sums.entry(speaker).or_insert_with(|| {
            order.push(*speaker);
            vec![0.0; row.len()]
        });
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    let mut means = Embeddings::new(embeddings.origin(), embeddings.dimension());
    for speaker in order {
        if let Some(sum) = sums.get(speaker) {
            means.insert(speaker, &unit(sum))?;
        }
    }
    Ok(means)
}

/// `vector` scaled to length 1; zeros stay.
pub fn unit(vector: &[f32]) -> Vec<f32> {
    let norm = inner_product(vector, vector).sqrt().max(1e-12);
    vector.iter().map(|value| (f64::from(*value) / norm) as f32).collect()
}

/// The sum of the products of the elements: for two vectors of length 1, the cosine of the angle
/// between them.
pub fn inner_product(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

/// Cosine similarity of two vectors; 0 when one has no length.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    inner_product(a, b) / (inner_product(a, a) * inner_product(b, b)).sqrt().max(1e-8)
}

/// Mean cosine over all pairs of an embedding of one recording and one of the other.
pub fn mean_cosine<A: AsRef<[f32]>, B: AsRef<[f32]>>(a: &[A], b: &[B]) -> f64 {
    let pairs = a.iter().flat_map(|x| b.iter().map(move |y| cosine(x.as_ref(), y.as_ref())));
    pairs.sum::<f64>() / (a.len() * b.len()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_are_those_of_the_angle() {
        for (a, b, expected) in [
            ([1.0, 0.0], [2.0, 0.0], 1.0),
            ([1.0, 0.0], [0.0, 3.0], 0.0),
            ([1.0, 0.0], [-1.0, 0.0], -1.0),
            ([1.0, 0.0], [1.0, 1.0], 0.5f64.sqrt()),
            ([0.0, 0.0], [1.0, 1.0], 0.0),
        ] {
            assert!((cosine(&a, &b) - expected).abs() < 1e-7, "{a:?} {b:?}");
        }
        let mean = mean_cosine(&[[1.0, 0.0], [0.0, 1.0]], &[[1.0, 0.0], [0.0, 1.0]]);
        assert!((mean - 0.5).abs() < 1e-12);
    }

    fn embeddings(rows: &[(&str, [f32; 2])]) -> Embeddings {
        let mut embeddings = Embeddings::new("model", 2);
        rows.iter().for_each(|(name, row)| embeddings.insert(name, &unit(row)).unwrap());
        embeddings
    }

    #[test]
    fn s_norm_counts_deviations_from_the_nearest_of_the_cohort() {
        let cohort = embeddings(&[
            ("a", [1.0, 0.0]),
            ("b", [0.6, 0.8]),
            ("c", [0.0, 1.0]),
            ("d", [-1.0, 0.0]),
        ]);
        let scorer = Scorer::new(Scoring::AdaptiveSNorm { top: 2 }, Some(&cohort)).unwrap();
        let score = scorer.score(&[1.0, 0.0], &[0.0, 1.0]).unwrap();
        // Nearest to the first: 1 and 0.6, to the second: 1 and 0.8.
        let expected = 0.5 * ((0.0 - 0.8) / 0.2 + (0.0 - 0.9) / 0.1);
        assert!((score - expected).abs() < 1e-4, "{score} {expected}");
        for (scoring, cohort) in [
            (Scoring::AdaptiveSNorm { top: 2 }, None),
            (Scoring::AdaptiveSNorm { top: 1 }, Some(&cohort)),
        ] {
            assert!(Scorer::new(scoring, cohort).is_err());
        }
    }

    #[test]
    fn lists_are_scored_in_their_order() {
        let embeddings = embeddings(&[("a", [1.0, 0.0]), ("b", [0.6, 0.8]), ("c", [0.0, 1.0])]);
        let trial = |enrolment, test| shared::data::Trial { enrolment, test, target: None };
        let recordings = ["c", "a", "b"].map(str::to_owned).to_vec();
        let mut trials = TrialList { recordings, trials: vec![trial(0, 2), trial(1, 1)] };
        let scorer = Scorer::new(Scoring::Cosine, None).unwrap();
        let scores = scorer.score_all(&trials, &embeddings).unwrap();
        assert!((scores[0] - 0.8).abs() < 1e-6 && (scores[1] - 1.0).abs() < 1e-6, "{scores:?}");
        trials.recordings.push("d".into());
        let missing = scorer.score_all(&trials, &embeddings).unwrap_err();
        assert!(missing.to_string().contains("recording d"), "{missing}");
    }

    #[test]
    fn a_mean_is_that_of_its_speaker() {
        let embeddings = embeddings(&[("1", [1.0, 0.0]), ("2", [0.0, 1.0]), ("3", [0.0, 1.0])]);
        let means = speaker_means(&embeddings, &["x", "y", "x"]).unwrap();
        assert_eq!(means.names(), ["x", "y"]);
        assert_eq!(means.get("x").unwrap(), [0.5f32.sqrt(); 2]);
        assert!(speaker_means(&embeddings, &["x"]).is_err());
    }
}
