//! Tests against jiwer 4.0.0 with rapidfuzz 3.14.6, and against counts by hand.

use serde::Deserialize;

use super::*;
use crate::eval::Bootstrap;

/// Results of jiwer, of random pairs of texts.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    pairs: Vec<Pair>,
    corpus: Figures,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    reference: String,
    hypothesis: String,
    /// The alignment of the words, a letter a step: `=`, `s`, `d`, `i`.
    steps: String,
    figures: Figures,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Figures {
    /// Hits, substitutions, deletions, insertions.
    words: [u64; 4],
    characters: [u64; 4],
    wer: f64,
    mer: f64,
    wil: f64,
    cer: f64,
}

impl Figures {
    fn of(tally: &Tally) -> Self {
        let counts = |c: Counts| [c.hits, c.substitutions, c.deletions, c.insertions];
        Self {
            words: counts(tally.words),
            characters: counts(tally.characters),
            wer: tally.words.error_rate(),
            mer: tally.words.match_error_rate(),
            wil: tally.words.information_lost(),
            cer: tally.characters.error_rate(),
        }
    }
}

fn transcripts<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Transcripts {
    let transcript = |(index, (text, speaker)): (usize, (&str, &str))| Transcript {
        id: format!("u{index}"),
        text: text.to_owned(),
        speaker: Some(speaker.to_owned()),
        duration_s: Some(index as f64),
    };
    let entries = texts.into_iter().enumerate().map(transcript).collect();
    Transcripts { source: "list".into(), entries }
}

fn evaluation(pairs: &[(&str, &str, &str)]) -> Evaluation {
    let references = transcripts(pairs.iter().map(|(reference, _, who)| (*reference, *who)));
    let hypotheses = transcripts(pairs.iter().map(|(_, hypothesis, who)| (*hypothesis, *who)));
    Evaluation::new(&references, &hypotheses, Normaliser::None, Missing::Refused).unwrap()
}

#[test]
fn alignments_and_figures_are_those_of_jiwer() {
    let expected: Expected = serde_json::from_str(include_str!("jiwer.json")).unwrap();
    let pairs: Vec<(&str, &str, &str)> = expected
        .pairs
        .iter()
        .map(|it| (it.reference.as_str(), it.hypothesis.as_str(), ""))
        .collect();
    for (pair, texts) in expected.pairs.iter().zip(&pairs) {
        let found = evaluation(&[*texts]);
        let letter = |step: &Step| match step {
            Step::Hit => '=',
            Step::Substitution => 's',
            Step::Deletion => 'd',
            Step::Insertion => 'i',
        };
        let steps: String = found.utterances[0].steps.iter().map(letter).collect();
        assert_eq!(steps, pair.steps, "{texts:?}");
        assert_eq!(Figures::of(&found.total()), pair.figures, "{texts:?}");
    }
    assert_eq!(Figures::of(&evaluation(&pairs).total()), expected.corpus);
}

#[test]
fn tables_add_up() {
    let found = evaluation(&[
        ("the cat sat", "the cat sat", "ann"),
        ("the cat sat", "a cat sat", "bob"),
        ("a dog", "the dog ran", "bob"),
        ("yes", "", "ann"),
    ]);
    let total = found.total();
    assert_eq!((total.utterances, total.wrong_utterances, total.duration_s), (4, 3, 6.0));
    assert_eq!(total.sentence_error_rate(), 0.75);
    let speakers = found.by_speaker();
    assert_eq!(speakers["ann"].words, Counts { hits: 3, deletions: 1, ..Counts::default() });
    let bob = Counts { hits: 3, substitutions: 2, insertions: 1, ..Counts::default() };
    assert_eq!(speakers["bob"].words, bob);
    let durations = found.by_duration(&[1.0, 3.0]);
    assert_eq!(durations.iter().map(|it| it.utterances).collect::<Vec<_>>(), [1, 2, 1]);
    let confusions: Vec<_> = found
        .confusions()
        .into_iter()
        .map(|it| (it.reference.unwrap_or_default(), it.hypothesis.unwrap_or_default(), it.count))
        .collect();
    let expected = [("", "ran", 1), ("a", "the", 1), ("the", "a", 1), ("yes", "", 1)];
    assert_eq!(confusions, expected.map(|(a, b, count)| (a.to_owned(), b.to_owned(), count)));
}

#[test]
fn missing_and_surplus_hypotheses_are_told() {
    let references = transcripts([("a", ""), ("b", ""), ("c", "")]);
    let mut hypotheses = transcripts([("a", ""), ("b", "")]);
    hypotheses.entries[1].id = "other".into();
    let new = |missing| Evaluation::new(&references, &hypotheses, Normaliser::None, missing);
    let error = new(Missing::Refused).unwrap_err().to_string();
    assert!(error.contains("2 of the 3 references") && error.contains("`u1`, `u2`"), "{error}");
    let found = new(Missing::Empty).unwrap();
    assert_eq!((found.missing, found.unused, found.total().words.deletions), (2, 1, 2));
    hypotheses.entries.remove(0);
    assert!(Evaluation::new(&references, &hypotheses, Normaliser::None, Missing::Empty).is_err());
}

#[test]
fn intervals_have_the_width_of_their_distribution() {
    // 400 utterances of 4 words each, one of them wrong in every other utterance: the rate is 1/8, its
    // standard deviation 1/8 / sqrt(400) by the binomial distribution.
    let pairs: Vec<_> = (0..400)
        .map(|i| ("a b c d", if i % 2 == 0 { "a b c x" } else { "a b c d" }, ["ann", "bob"][i % 2]))
        .collect();
    let found = evaluation(&pairs);
    let bootstrap = Bootstrap { resamples: 4000, ..Bootstrap::default() };
    let interval = found.intervals(&bootstrap, Unit::Utterances).unwrap().word_error_rate;
    let deviation = 0.125 / 20.0;
    for (end, expected) in
        [(interval.low, 0.125 - 1.96 * deviation), (interval.high, 0.125 + 1.96 * deviation)]
    {
        assert!((end - expected).abs() < 0.1 * deviation, "{interval:?}");
    }
    // With two speakers, a quarter of the draws has only one of them, twice.
    let speakers = found.intervals(&bootstrap, Unit::Speakers).unwrap();
    assert_eq!((speakers.word_error_rate.low, speakers.word_error_rate.high), (0.0, 0.25));
    assert_eq!(speakers.sentence_error_rate.high, 1.0);
    let mut nameless = found.clone();
    nameless.utterances[7].speaker = None;
    let error = nameless.intervals(&bootstrap, Unit::Speakers).unwrap_err().to_string();
    assert!(error.contains("`u7`"), "{error}");
}
