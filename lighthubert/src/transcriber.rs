//! From recordings to texts, for recordings of any length and number.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use shared::data::Utterance;
use shared::limits::Limits;
use shared::{Error, Result};

use crate::config::RATE_HZ;
use crate::decode::{
    BeamOptions, BeamSearch, Emissions, Fusion, Span, TimedWord, UnknownWord, align, greedy,
    timed_words,
};
use crate::recogniser::{Head, Recogniser};
use crate::recording;
use crate::speech_encoder::{ChunkConfig, SpeechEncoder};
use crate::vocabulary::Vocabulary;

/// Longer recordings are decoded in segments, which end where nothing is said.
const SEGMENT_S: f64 = 30.0;
/// Shortest segment, where there is a choice.
const SHORTEST_SEGMENT_S: f64 = 10.0;

/// How results are turned into text where a language model is used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodingConfig {
    /// The search.
    pub beam: BeamOptions,
    /// Weight of the language model.
    pub weight: f64,
    /// Bonus for each word.
    pub word_bonus: f64,
    /// What unknown words are worth.
    pub unknown: UnknownWord,
}

impl Default for DecodingConfig {
    fn default() -> Self {
        Self {
            beam: BeamOptions::default(),
            weight: 0.5,
            word_bonus: 1.0,
            unknown: UnknownWord::default(),
        }
    }
}

/// How a text is found in the probabilities of the frames.
#[derive(Clone, Debug)]
pub enum Decoder {
    /// The most probable class of each frame.
    Greedy,
    /// Beam search with a language model, a lexicon, hotwords.
    Beam(BeamOptions, Box<Fusion>),
}

/// What was said in a recording.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Transcription {
    /// The text.
    pub text: String,
    /// Its words.
    pub words: Vec<TimedWord>,
    /// Geometric mean of the words' confidences, from 0 to 1; 1 without words.
    pub confidence: f64,
}

/// The probabilities of a recording's frames.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Logarithms of the classes' probabilities.
    pub emissions: Emissions,
    /// Length of the recording.
    pub duration_s: f64,
    /// What is odd about the recording, a sentence each.
    pub notes: Vec<String>,
}

/// Turns recordings into texts. Those longer than [`ChunkConfig::window_frames`] are heard in overlapping
/// windows, in memory for one.
pub struct Transcriber {
    encoder: SpeechEncoder,
    head: Head,
    vocabulary: Vocabulary,
}

impl Transcriber {
    /// A transcriber by `recogniser`, whose weights are on `device`.
    ///
    /// # Errors
    /// As [`SpeechEncoder::new`].
    pub fn new(recogniser: Recogniser, chunks: ChunkConfig, device: Device) -> Result<Self> {
        let Recogniser { network, head, vocabulary } = recogniser;
        Ok(Self { encoder: SpeechEncoder::new(network, chunks, device)?, head, vocabulary })
    }

    /// What the classes stand for.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The encoder.
    pub fn encoder(&self) -> &SpeechEncoder {
        &self.encoder
    }

    /// Seconds between the starts of two frames.
    pub fn frame_s(&self) -> f64 {
        let hop_samples = self.encoder.network().config().encoder.extractor.hop_samples();
        hop_samples as f64 / f64::from(RATE_HZ)
    }

    /// Listens to an utterance, twice: once for its loudness.
    ///
    /// # Errors
    /// Those of [`recording::survey`]; [`Error::Recording`] with [`Error::TooShort`] or
    /// [`Error::NonFinite`].
    pub fn hear(&self, utterance: &Utterance, limits: &Limits) -> Result<Heard> {
        let survey = recording::survey(utterance, limits)?;
        let mut stream = self.encoder.start(&survey.statistics, &self.head);
        let mut parts = vec![];
        let mut keep = |part: Tensor| {
            parts.push(part.detach());
            Ok(())
        };
        let of_recording = |error| match error {
            error @ (Error::TooShort { .. } | Error::NonFinite { .. }) => {
                Error::Recording { path: utterance.path.clone(), source: Box::new(error) }
            }
            other => other,
        };
        recording::for_blocks(utterance, limits, |block| stream.push(block, &mut keep))
            .map_err(of_recording)?;
        stream.finish(&mut keep).map_err(of_recording)?;
        let emissions = Emissions::new(&Tensor::cat(&parts, 0)?)?;
        Ok(Heard { emissions, duration_s: survey.duration_s(), notes: survey.notes })
    }

    /// The probabilities of the frames of each recording, as [`Self::hear`] finds them, within rounding.
    ///
    /// # Errors
    /// As [`SpeechEncoder::encode_all`].
    pub fn hear_all<S: AsRef<[f32]>>(&self, recordings: &[S]) -> Result<Vec<Emissions>> {
        let found = self.encoder.encode_all(recordings, &self.head)?;
        found.iter().map(|it| Emissions::new(&it.detach())).collect()
    }

    /// What is said in a recording, by the probabilities of its frames.
    ///
    /// # Errors
    /// As [`BeamSearch::decode`].
    pub fn transcribe(&self, emissions: &Emissions, decoder: &Decoder) -> Result<Transcription> {
        let mut words = vec![];
        for segment in self.segments(emissions) {
            let offset_s = segment.start as f64 * self.frame_s();
            let spans = self.spans(&emissions.slice(segment), decoder)?;
            let found = timed_words(&spans, &self.vocabulary, self.frame_s());
            words.extend(found.into_iter().map(|word| TimedWord {
                start_s: word.start_s + offset_s,
                end_s: word.end_s + offset_s,
                ..word
            }));
        }
        let text: Vec<&str> = words.iter().map(|word| word.word.as_str()).collect();
        let text = text.join(" ");
        let logarithms: f64 = words.iter().map(|word| word.confidence.ln()).sum();
        let confidence = (logarithms / words.len().max(1) as f64).exp();
        Ok(Transcription { text, words, confidence })
    }

    /// The classes of a segment with their frames.
    fn spans(&self, emissions: &Emissions, decoder: &Decoder) -> Result<Vec<Span>> {
        let blank = self.vocabulary.blank();
        let Decoder::Beam(options, fusion) = decoder else { return Ok(greedy(emissions, blank)) };
        let found = BeamSearch::decode(&self.vocabulary, fusion, *options, emissions, 1)?;
        match found.first() {
            Some(best) => align(emissions, &best.classes, blank),
            None => Ok(vec![]),
        }
    }

    /// Where a recording is cut: in the middle of the longest silence between the shortest and the
    /// longest segment.
    fn segments(&self, emissions: &Emissions) -> Vec<std::ops::Range<usize>> {
        let frames = |seconds: f64| (seconds / self.frame_s()).ceil() as usize;
        let (shortest, longest) = (frames(SHORTEST_SEGMENT_S).max(1), frames(SEGMENT_S));
        let blank = self.vocabulary.blank();
        let silent: Vec<bool> =
            (0..emissions.frames()).map(|frame| emissions.at(frame, blank) > 0.5f64.ln()).collect();
        let mut segments = vec![];
        let mut first = 0;
        while emissions.frames() - first > longest {
            let range = first + shortest..first + longest;
            // Length and end of the longest silence; without one, the longest segment.
            let (mut best, mut run) = ((0, range.end), 0);
            for frame in range {
                run = if silent.get(frame) == Some(&true) { run + 1 } else { 0 };
                if run > best.0 {
                    best = (run, frame + 1);
                }
            }
            let cut = best.1 - best.0 / 2;
            segments.push(first..cut);
            first = cut;
        }
        segments.push(first..emissions.frames());
        segments
    }
}
