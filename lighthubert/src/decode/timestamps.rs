//! When each word was said, and how sure that is.

use serde::Serialize;
use shared::{Error, Result};

use super::emissions::Emissions;
use crate::vocabulary::Vocabulary;

/// The frames of one class in an utterance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// The class.
    pub class: u32,
    /// Its first frame.
    pub first: usize,
    /// Its last frame.
    pub last: usize,
    /// Sum of its probabilities over the frames.
    sum: f64,
}

impl Span {
    /// One frame, in which the class has `probability`.
    pub(super) fn new(class: u32, frame: usize, probability: f64) -> Self {
        Self { class, first: frame, last: frame, sum: probability }
    }

    /// Adds the next frame.
    pub(super) fn extend(&mut self, frame: usize, probability: f64) {
        self.last = frame;
        self.sum += probability;
    }

    /// Mean probability of the class over its frames, from 0 to 1.
    pub fn confidence(&self) -> f64 {
        self.sum / (self.last - self.first + 1) as f64
    }
}

/// A word and when it was said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TimedWord {
    /// The word.
    pub word: String,
    /// Where its first character's frames begin.
    pub start_s: f64,
    /// Where its last character's frames end.
    pub end_s: f64,
    /// Geometric mean of its characters' confidences, from 0 to 1.
    pub confidence: f64,
}

/// The most probable way of spreading `classes` over the frames (Viterbi's algorithm over CTC's
/// lattice).
///
/// # Errors
/// [`Error::Argument`] when there are too few frames for the classes.
pub fn align(emissions: &Emissions, classes: &[u32], blank: u32) -> Result<Vec<Span>> {
    let repeated = classes.windows(2).filter(|pair| matches!(pair, [a, b] if a == b)).count();
    let need = classes.len() + repeated;
    if emissions.frames() < need {
        return Err(Error::Argument(format!(
            "{} classes cannot be spread over {} frames; {need} are needed",
            classes.len(),
            emissions.frames()
        )));
    }
    // States are the blanks and classes in turn; `steps` has by how many states the best path to each
    // came forward.
    let states: Vec<u32> =
        classes.iter().flat_map(|class| [blank, *class]).chain([blank]).collect();
    let count = states.len();
    let mut steps: Vec<u8> = Vec::with_capacity(count * emissions.frames());
    let mut paths = vec![f64::NEG_INFINITY; count];
    for (frame, probabilities) in emissions.iter().enumerate() {
        let probability = |class: u32| {
            probabilities.get(class as usize).map_or(f64::NEG_INFINITY, |it| f64::from(*it))
        };
        let mut next = Vec::with_capacity(count);
        for (state, class) in states.iter().enumerate() {
            let before = |step: usize| match (frame, state.checked_sub(step)) {
                // Paths start in the first blank or class.
                (0, Some(0)) => 0.0,
                (0, _) | (_, None) => f64::NEG_INFINITY,
                (_, Some(from)) => paths.get(from).copied().unwrap_or(f64::NEG_INFINITY),
            };
            let may_skip = *class != blank
                && state.checked_sub(2).and_then(|it| states.get(it)) != Some(class);
            let mut best = (0, before(0));
            for step in 1..=if may_skip { 2 } else { 1 } {
                let path = before(step);
                if path > best.1 {
                    best = (step as u8, path);
                }
            }
            steps.push(best.0);
            next.push(best.1 + probability(*class));
        }
        paths = next;
    }
    let end = |state: usize| paths.get(state).copied().unwrap_or(f64::NEG_INFINITY);
    let mut state = count - 1;
    if count >= 2 && end(count - 2) > end(count - 1) {
        state = count - 2;
    }
    let mut spans: Vec<Span> = Vec::with_capacity(classes.len());
    // The state that the last span in the list belongs to.
    let mut spanned = None;
    for frame in (0..emissions.frames()).rev() {
        let class = states.get(state).copied().unwrap_or(blank);
        if state % 2 == 1 {
            let probability = emissions.at(frame, class).exp();
            match spans.last_mut() {
                Some(span) if spanned == Some(state) => {
                    span.first = frame;
                    span.sum += probability;
                }
                _ => spans.push(Span::new(class, frame, probability)),
            }
            spanned = Some(state);
        }
        let step = steps.get(frame * count + state).copied().unwrap_or(0);
        state = state.saturating_sub(usize::from(step));
    }
    spans.reverse();
    Ok(spans)
}

/// The words of `spans` with their times, where a frame begins every `frame_s` seconds.
pub fn timed_words(spans: &[Span], vocabulary: &Vocabulary, frame_s: f64) -> Vec<TimedWord> {
    let mut words: Vec<(TimedWord, i32)> = Vec::new();
    let mut is_open = false;
    for span in spans {
        let piece = vocabulary.piece(span.class);
        is_open &= !piece.starts_with(' ');
        let piece = piece.trim();
        if piece.is_empty() {
            continue;
        }
        let (start_s, end_s) = (span.first as f64 * frame_s, (span.last + 1) as f64 * frame_s);
        match words.last_mut() {
            Some((word, characters)) if is_open => {
                word.word.push_str(piece);
                word.end_s = end_s;
                word.confidence *= span.confidence();
                *characters += 1;
            }
            _ => {
                let (word, confidence) = (piece.to_owned(), span.confidence());
                words.push((TimedWord { word, start_s, end_s, confidence }, 1));
            }
        }
        is_open = true;
    }
    let mean = |(word, characters): (TimedWord, i32)| TimedWord {
        confidence: word.confidence.powf(1.0 / f64::from(characters)),
        ..word
    };
    words.into_iter().map(mean).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use candle_core::{Device, Tensor};
    use shared::rng::Stream;

    use super::*;

    /// Random emissions of `frames` frames and `classes` classes.
    pub(crate) fn random(seed: u64, frames: usize, classes: usize) -> Emissions {
        let mut stream = Stream::new(seed, "emissions", 0);
        let rows: Vec<f32> = (0..frames)
            .flat_map(|_| {
                let row: Vec<f64> = (0..classes).map(|_| stream.normal().exp()).collect();
                let sum: f64 = row.iter().sum();
                row.into_iter().map(move |value| (value / sum).ln() as f32)
            })
            .collect();
        let tensor = Tensor::from_vec(rows, (frames, classes), &Device::Cpu).unwrap();
        Emissions::new(&tensor).unwrap()
    }

    /// The best path by trying all.
    fn exhaustive(emissions: &Emissions, classes: &[u32]) -> (f64, Vec<u32>) {
        let (frames, count) = (emissions.frames(), emissions.classes());
        let mut best = (f64::NEG_INFINITY, vec![]);
        for number in 0..count.pow(frames as u32) {
            let path: Vec<u32> =
                (0..frames).map(|t| (number / count.pow(t as u32) % count) as u32).collect();
            let mut collapsed = path.clone();
            collapsed.dedup();
            collapsed.retain(|class| *class != 0);
            let score: f64 =
                path.iter().enumerate().map(|(t, class)| emissions.at(t, *class)).sum();
            if collapsed == classes && score > best.0 {
                best = (score, path);
            }
        }
        best
    }

    #[test]
    fn alignments_are_the_best_of_all_paths() {
        let targets: [&[u32]; 6] = [&[], &[1], &[1, 1], &[2, 1, 2], &[1, 1, 2], &[1, 2, 2, 1]];
        for (seed, target) in (0..).zip(targets) {
            for frames in target.len()..7 {
                let emissions = random(seed, frames, 3);
                let (score, path) = exhaustive(&emissions, target);
                let found = align(&emissions, target, 0);
                if score == f64::NEG_INFINITY {
                    assert!(found.is_err(), "{target:?} {frames}");
                    continue;
                }
                let mut spread = vec![0; frames];
                for span in found.unwrap() {
                    spread[span.first..=span.last].fill(span.class);
                    let mean = (span.first..=span.last)
                        .map(|t| emissions.at(t, span.class).exp())
                        .sum::<f64>()
                        / (span.last - span.first + 1) as f64;
                    assert!((span.confidence() - mean).abs() < 1e-12);
                }
                assert_eq!(spread, path, "{target:?} {frames}");
            }
        }
    }

    #[test]
    fn words_have_the_times_of_their_characters() {
        let vocabulary = Vocabulary::superb();
        let span = |class, first: usize, last: usize, confidence| Span {
            class,
            first,
            last,
            sum: confidence * (last - first + 1) as f64,
        };
        // " AT E": a delimiter at the start, one between, and a symbol that is no text.
        let spans = [
            span(4, 0, 0, 1.0),
            span(7, 2, 3, 0.9),
            span(6, 5, 5, 0.4),
            span(4, 6, 6, 0.5),
            span(3, 7, 7, 0.5),
            span(5, 8, 9, 0.7),
        ];
        let words = timed_words(&spans, &vocabulary, 0.02);
        let found: Vec<_> =
            words.iter().map(|it| (it.word.as_str(), it.start_s, it.end_s)).collect();
        assert_eq!(found, [("AT", 0.04, 0.12), ("E", 0.16, 0.2)]);
        assert!((words[0].confidence - 0.6).abs() < 1e-12, "{words:?}");
        assert!((words[1].confidence - 0.7).abs() < 1e-12, "{words:?}");
    }
}
