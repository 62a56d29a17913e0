//! Evaluation of a recogniser on a corpus.

use std::collections::{BTreeMap, HashMap};
use std::ops::AddAssign;

use rayon::prelude::*;
use serde::Serialize;

use super::align::{Step, align};
use super::normaliser::Normaliser;
use super::rates::Counts;
use super::transcripts::{Transcript, Transcripts};
use crate::eval::{Bootstrap, Interval};
use crate::{Error, Result};

/// Names that an error message lists at most.
const NAMED: usize = 3;

/// One utterance, its words aligned.
#[derive(Clone, Debug, PartialEq)]
pub struct Utterance {
    /// Its name.
    pub id: String,
    /// Who speaks, where known.
    pub speaker: Option<String>,
    /// Length of the recording, where known.
    pub duration_s: Option<f64>,
    /// Words of the reference.
    pub reference: Vec<String>,
    /// Words of the hypothesis.
    pub hypothesis: Vec<String>,
    /// How to get from one to the other.
    pub steps: Vec<Step>,
    /// Counts over words.
    pub words: Counts,
    /// Counts over characters, of an alignment of their own.
    pub characters: Counts,
}

impl Utterance {
    /// Aligns a reference with the text recognised.
    pub fn new(reference: &Transcript, hypothesis: &str, normaliser: Normaliser) -> Self {
        let words =
            |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        let texts = [reference.text.as_str(), hypothesis].map(|text| normaliser.apply(text));
        let characters: [Vec<char>; 2] = [0, 1].map(|side| texts[side].chars().collect());
        let [reference_words, hypothesis_words] = [0, 1].map(|side| words(&texts[side]));
        let steps = align(&reference_words, &hypothesis_words);
        Self {
            id: reference.id.clone(),
            speaker: reference.speaker.clone(),
            duration_s: reference.duration_s,
            words: Counts::of(&steps),
            characters: Counts::of(&align(&characters[0], &characters[1])),
            reference: reference_words,
            hypothesis: hypothesis_words,
            steps,
        }
    }

    /// The steps with the words of reference and hypothesis that they are about.
    pub fn aligned(&self) -> impl Iterator<Item = (Step, Option<&str>, Option<&str>)> {
        let mut reference = self.reference.iter().map(String::as_str);
        let mut hypothesis = self.hypothesis.iter().map(String::as_str);
        self.steps.iter().map(move |step| {
            let own = if *step == Step::Insertion { None } else { reference.next() };
            let other = if *step == Step::Deletion { None } else { hypothesis.next() };
            (*step, own, other)
        })
    }

    fn tally(&self) -> Tally {
        Tally {
            utterances: 1,
            wrong_utterances: u64::from(self.words.errors() > 0),
            words: self.words,
            characters: self.characters,
            duration_s: self.duration_s.unwrap_or(0.0),
        }
    }
}

/// Sums over utterances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    /// Number of utterances.
    pub utterances: u64,
    /// Those with at least one wrong word.
    pub wrong_utterances: u64,
    /// Counts over words.
    pub words: Counts,
    /// Counts over characters.
    pub characters: Counts,
    /// Length of the recordings, as far as known.
    pub duration_s: f64,
}

impl Tally {
    /// Share of utterances with at least one wrong word; 0 where there is none.
    pub fn sentence_error_rate(&self) -> f64 {
        match self.utterances {
            0 => 0.0,
            utterances => self.wrong_utterances as f64 / utterances as f64,
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.utterances += other.utterances;
        self.wrong_utterances += other.wrong_utterances;
        self.words += other.words;
        self.characters += other.characters;
        self.duration_s += other.duration_s;
    }
}

/// What to do about references that have no hypothesis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Refuse to evaluate.
    Refused,
    /// All of their words are deleted.
    Empty,
}

/// What is drawn with replacement for an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Single utterances. Those of one speaker go together, so that the intervals are too narrow where
    /// speakers have many.
    Utterances,
    /// Speakers with all of their utterances.
    Speakers,
}

/// Confidence intervals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Resampled {
    /// Of the word error rate.
    pub word_error_rate: Interval,
    /// Of the character error rate.
    pub character_error_rate: Interval,
    /// Of the sentence error rate.
    pub sentence_error_rate: Interval,
}

/// An error and how often it occurs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// Word of the reference; `None` for an insertion.
    pub reference: Option<String>,
    /// Word of the hypothesis; `None` for a deletion.
    pub hypothesis: Option<String>,
    /// How often.
    pub count: u64,
}

/// All utterances of a corpus, aligned.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// What was done to the texts.
    pub normaliser: Normaliser,
    /// The utterances, in the order of the references.
    pub utterances: Vec<Utterance>,
    /// References that had no hypothesis.
    pub missing: usize,
    /// Hypotheses without a reference, which do not count.
    pub unused: usize,
}

impl Evaluation {
    /// Aligns each reference with the hypothesis of the same name.
    ///
    /// # Errors
    /// [`Error::Argument`] when no name agrees, or hypotheses are missing and this is to be refused.
    pub fn new(
        references: &Transcripts,
        hypotheses: &Transcripts,
        normaliser: Normaliser,
        missing: Missing,
    ) -> Result<Self> {
        let texts: HashMap<&str, &str> =
            hypotheses.entries.iter().map(|it| (it.id.as_str(), it.text.as_str())).collect();
        let lacking: Vec<&str> = references
            .entries
            .iter()
            .map(|reference| reference.id.as_str())
            .filter(|id| !texts.contains_key(id))
            .collect();
        let matched = references.entries.len() - lacking.len();
        if matched == 0 || (missing == Missing::Refused && !lacking.is_empty()) {
            let named: Vec<String> =
                lacking.iter().take(NAMED).map(|id| format!("`{id}`")).collect();
            let more = if lacking.len() > NAMED { ", .." } else { "" };
            return Err(Error::Argument(format!(
                "{}: no hypothesis for {} of the {} references in {}: {}{more}",
                hypotheses.source.display(),
                lacking.len(),
                references.entries.len(),
                references.source.display(),
                named.join(", "),
            )));
        }
        let text_of = |id: &str| texts.get(id).copied().unwrap_or_default();
        let utterances = references
            .entries
            .par_iter()
            .map(|reference| Utterance::new(reference, text_of(&reference.id), normaliser))
            .collect();
        let (missing, unused) = (lacking.len(), texts.len() - matched);
        Ok(Self { normaliser, utterances, missing, unused })
    }

    /// The sums over all utterances.
    pub fn total(&self) -> Tally {
        sum(self.utterances.iter())
    }

    /// The sums over each speaker's utterances, by name. Utterances without a speaker are left out.
    pub fn by_speaker(&self) -> BTreeMap<&str, Tally> {
        let mut speakers = BTreeMap::new();
        for utterance in &self.utterances {
            if let Some(speaker) = &utterance.speaker {
                *speakers.entry(speaker.as_str()).or_insert_with(Tally::default) +=
                    utterance.tally();
            }
        }
        speakers
    }

    /// The sums over utterances shorter than the first of the ascending `edges` in seconds, from there
    /// to the second, and so on; the last is of those not shorter than the last edge. Utterances of
    /// unknown length are left out.
    pub fn by_duration(&self, edges: &[f64]) -> Vec<Tally> {
        let mut tallies = vec![Tally::default(); edges.len() + 1];
        for utterance in &self.utterances {
            if let Some(duration) = utterance.duration_s {
                tallies[edges.partition_point(|edge| *edge <= duration)] += utterance.tally();
            }
        }
        tallies
    }

    /// All substitutions, deletions and insertions, the most frequent first.
    pub fn confusions(&self) -> Vec<Confusion> {
        let mut counts: HashMap<(Option<&str>, Option<&str>), u64> = HashMap::new();
        for utterance in &self.utterances {
            let errors = utterance.aligned().filter(|(step, ..)| *step != Step::Hit);
            errors.for_each(|(_, own, other)| *counts.entry((own, other)).or_default() += 1);
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(words, count)| (std::cmp::Reverse(*count), *words));
        let owned = |word: Option<&str>| word.map(str::to_owned);
        let confusion = |((reference, hypothesis), count)| Confusion {
            reference: owned(reference),
            hypothesis: owned(hypothesis),
            count,
        };
        counts.into_iter().map(confusion).collect()
    }

    /// Confidence intervals by resampling `unit`.
    ///
    /// # Errors
    /// [`Error::Argument`] when an utterance has no speaker and speakers are to be drawn; those of
    /// [`Bootstrap::percentiles`].
    pub fn intervals(&self, bootstrap: &Bootstrap, unit: Unit) -> Result<Resampled> {
        let tallies: Vec<Tally> = match unit {
            Unit::Utterances => self.utterances.iter().map(Utterance::tally).collect(),
            Unit::Speakers => {
                if let Some(lacking) = self.utterances.iter().find(|it| it.speaker.is_none()) {
                    let id = &lacking.id;
                    return Err(Error::Argument(format!("utterance `{id}` has no speaker")));
                }
                self.by_speaker().into_values().collect()
            }
        };
        let [word_error_rate, character_error_rate, sentence_error_rate] =
            bootstrap.percentiles(|stream| {
                let mut drawn = Tally::default();
                for _ in &tallies {
                    drawn += tallies[stream.below(tallies.len())];
                }
                let (words, characters) = (drawn.words, drawn.characters);
                Ok([words.error_rate(), characters.error_rate(), drawn.sentence_error_rate()])
            })?;
        Ok(Resampled { word_error_rate, character_error_rate, sentence_error_rate })
    }
}

fn sum<'a>(utterances: impl Iterator<Item = &'a Utterance>) -> Tally {
    utterances.fold(Tally::default(), |mut sum, utterance| {
        sum += utterance.tally();
        sum
    })
}
