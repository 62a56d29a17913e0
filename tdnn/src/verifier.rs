//! From files to scores and decisions: a model with all that it needs to be used.

use std::path::Path;

use candle_core::Device;
use shared::data::Utterance;
use shared::dsp::{SpeechDetector, SpeechDetectorConfig};
use shared::eval::verification::{Calibration, CostModel};
use shared::limits::Limits;
use shared::media::audio::AudioReader;
use shared::{Error, Result};

use crate::embed::{Embedder, StreamingEmbedding};
use crate::embeddings::Embeddings;
use crate::model_file::ModelFile;
use crate::score::{Scorer, Scoring};

/// A model ready to compare recordings.
pub struct Verifier {
    embedder: Embedder,
    calibration: Option<Calibration>,
    scoring: Scoring,
    cohort: Option<Embeddings>,
    detector: Option<SpeechDetectorConfig>,
    limits: Limits,
    origin: String,
}

/// What a recording was found to hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Voice {
    /// Embedding of length 1.
    pub embedding: Vec<f32>,
    /// Length of the recording.
    pub duration_s: f64,
    /// How much of it was used.
    pub speech_s: f64,
    /// What is odd about the recording, a sentence each that begins with its name.
    pub notes: Vec<String>,
}

impl Verifier {
    /// The model `model` on `device`; with `detect_speech`, only the parts of recordings in which
    /// somebody speaks are used.
    ///
    /// # Errors
    /// When the model is not whole.
    pub fn new(
        model: &ModelFile,
        detect_speech: bool,
        limits: Limits,
        device: &Device,
    ) -> Result<Self> {
        let speech = if detect_speech { "speech" } else { "everything" };
        Ok(Self {
            embedder: model.embedder(device)?,
            calibration: model.card.calibration,
            scoring: model.card.scoring,
            cohort: model.cohort.clone(),
            detector: detect_speech.then(SpeechDetectorConfig::default),
            limits,
            origin: format!("{} on {speech}", model.card.tensors_sha256()),
        })
    }

    /// What the model says of its scores.
    pub fn calibration(&self) -> Option<Calibration> {
        self.calibration
    }

    /// How scores are made.
    pub fn scoring(&self) -> Scoring {
        self.scoring
    }

    /// The cohort by which scores are normalised, if they are.
    pub fn cohort(&self) -> Option<&Embeddings> {
        self.cohort.as_ref()
    }

    /// The model's embedder.
    pub fn embedder(&self) -> &Embedder {
        &self.embedder
    }

    /// What tells embeddings of this verifier from all others.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// An empty set for embeddings of this verifier.
    pub fn embeddings(&self) -> Embeddings {
        Embeddings::new(&self.origin, self.embedder.dimension())
    }

    /// Scores with AS-norm over the `top` nearest of `cohort` instead of what the model says. The
    /// model's calibration does not hold for such scores and is dropped.
    pub fn normalise_by(&mut self, cohort: Embeddings, top: usize) {
        self.cohort = Some(cohort);
        self.scoring = Scoring::AdaptiveSNorm { top };
        self.calibration = None;
    }

    /// The voice in an audio file, read in bounded memory.
    ///
    /// # Errors
    /// Those of [`AudioReader`]; [`Error::Recording`] when there is no or too little speech.
    pub fn listen(&self, path: &Path) -> Result<Voice> {
        self.listen_between(path, 0.0, None)
    }

    /// The voice in an utterance, which may be a part of an audio file.
    ///
    /// # Errors
    /// As [`Verifier::listen`].
    pub fn listen_to(&self, utterance: &Utterance) -> Result<Voice> {
        let end_s = match (utterance.start_s, utterance.duration_s) {
            (Some(start_s), Some(duration_s)) => Some(start_s + duration_s),
            _ => None,
        };
        self.listen_between(&utterance.path, utterance.start_s.unwrap_or(0.0), end_s)
    }

    fn listen_between(&self, path: &Path, start_s: f64, end_s: Option<f64>) -> Result<Voice> {
        let unusable =
            |source| Error::Recording { path: path.to_path_buf(), source: Box::new(source) };
        let rate_hz = self.embedder.frontend().rate_hz();
        let place = |seconds: f64| (seconds * f64::from(rate_hz)).round() as usize;
        let (start, end) = (place(start_s), end_s.map_or(usize::MAX, place));
        let mut reader = AudioReader::open(path, &self.limits)?.into_mono(rate_hz)?;
        let mut ear = Ear::new(self, rate_hz)?;
        let mut position = 0;
        for block in reader.by_ref() {
            let block = block?;
            let from = start.saturating_sub(position).min(block.len());
            let to = end.saturating_sub(position).min(block.len());
            ear.hear(block.get(from..to).unwrap_or_default()).map_err(unusable)?;
            position += block.len();
        }
        let remarks = reader.source().notes().iter().cloned();
        let remarks = remarks.chain(self.bandwidth_remark(reader.source().rate_hz()));
        let notes = remarks.map(|remark| format!("{}: {remark}", path.display())).collect();
        let (embedding, samples, used) = ear.finish(rate_hz).map_err(unusable)?;
        let seconds = |samples: usize| samples as f64 / f64::from(rate_hz);
        Ok(Voice { embedding, duration_s: seconds(samples), speech_s: seconds(used), notes })
    }

    /// What there is to say of a recording whose rate is too low for all that the model listens to.
    fn bandwidth_remark(&self, rate_hz: u32) -> Option<String> {
        let high_hz = self.embedder.frontend().config().log_mel.mel.high_hz;
        let nyquist_hz = f64::from(rate_hz) / 2.0;
        (nyquist_hz < high_hz).then(|| {
            format!(
                "recorded at {rate_hz} Hz, so there is nothing above {nyquist_hz} Hz, where the \
                 model listens up to {high_hz} Hz; scores are less certain"
            )
        })
    }

    /// The scorer that the model was calibrated with, or the one of [`Verifier::normalise_by`].
    ///
    /// # Errors
    /// As [`Scorer::new`].
    pub fn scorer(&self) -> Result<Scorer<'_>> {
        Scorer::new(self.scoring, self.cohort.as_ref())
    }

    /// The score from which on two recordings count as of the same speaker: `chosen`, or the one at
    /// which a calibrated model makes the fewest errors when the same speaker has this `prior`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a prior outside 0 to 1, or when there is neither.
    pub fn threshold(&self, chosen: Option<f64>, prior: f64) -> Result<f64> {
        if !(prior > 0.0 && prior < 1.0) {
            return Err(Error::Argument(format!("the prior must be between 0 and 1, not {prior}")));
        }
        let calibrated = || self.calibration.map(|c| c.threshold(CostModel::prior(prior)));
        chosen.or_else(calibrated).ok_or_else(|| {
            Error::Argument(
                "the model is not calibrated for these scores: give a --threshold, or run \
                 `tdnn calibrate` first"
                    .into(),
            )
        })
    }

    /// The natural logarithm of the likelihood ratio of a score, same speaker over different ones;
    /// `None` without calibration.
    pub fn log_likelihood_ratio(&self, score: f64) -> Option<f64> {
        Some(self.calibration?.llr(score))
    }

    /// The probability of the same speaker after listening, when it was `prior` before; `None`
    /// without calibration.
    pub fn probability(&self, score: f64, prior: f64) -> Option<f64> {
        let log_odds = self.log_likelihood_ratio(score)? + (prior / (1.0 - prior)).ln();
        Some(1.0 / (1.0 + (-log_odds).exp()))
    }
}

/// Hears a recording block by block: picks out the speech, if asked to, and embeds it.
struct Ear<'a> {
    detector: Option<SpeechDetector>,
    embedding: StreamingEmbedding<'a>,
    /// Fewest samples that can be embedded.
    need_samples: usize,
    samples: usize,
    used: usize,
}

impl<'a> Ear<'a> {
    fn new(verifier: &'a Verifier, rate_hz: u32) -> Result<Self> {
        let detector = verifier.detector.clone();
        Ok(Self {
            detector: detector.map(|config| SpeechDetector::new(config, rate_hz)).transpose()?,
            embedding: verifier.embedder.start(),
            need_samples: verifier.embedder.windows().min_samples,
            samples: 0,
            used: 0,
        })
    }

    fn hear(&mut self, samples: &[f32]) -> Result<()> {
        self.samples += samples.len();
        let Self { detector, embedding, used, .. } = self;
        let mut take = |speech: &[f32]| {
            *used += speech.len();
            embedding.push(speech)
        };
        match detector {
            Some(detector) => detector.push(samples, take),
            None => take(samples),
        }
    }

    /// The embedding, the samples heard and the samples used.
    fn finish(self, rate_hz: u32) -> Result<(Vec<f32>, usize, usize)> {
        let Self { detector, mut embedding, need_samples, samples, mut used } = self;
        // Better said of the recording than of the speech in it, of which there may be none.
        if samples < need_samples {
            return Err(Error::TooShort { have_samples: samples, need_samples });
        }
        if let Some(detector) = detector {
            detector.finish(|speech| {
                used += speech.len();
                embedding.push(speech)
            })?;
            if used == 0 && samples > 0 {
                let duration_s = samples as f64 / f64::from(rate_hz);
                return Err(Error::NoSpeech { duration_s });
            }
        }
        Ok((embedding.finish()?, samples, used))
    }
}
