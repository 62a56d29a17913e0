//! Training examples: random pieces of recordings, changed at random, as features.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use shared::data::augment::{Augmenter, Formants, Speed, spec_augment};
use shared::data::{
    AudioCache, Loader, LoaderOptions, Position, SpeakerIndex, random_crop, to_f32,
};
use shared::dsp::{SpeechDetector, SpeechDetectorConfig};
use shared::rng::Stream;
use shared::{Error, Result};

use super::config::{Stage, TrainConfig};
use crate::frontend::Frontend;

/// One example.
#[derive(Clone, Debug)]
pub struct Example {
    /// `[bands, frames]` in row-major order.
    pub features: Vec<f32>,
    /// Number of the speaker, each speed and each factor of the formants counting as further
    /// speakers.
    pub label: u32,
}

/// All that examples are made from.
pub struct TrainingData {
    config: TrainConfig,
    frontend: Frontend,
    recordings: AudioCache,
    /// The samples of each recording that are used.
    speech: Vec<Vec<Range<usize>>>,
    /// Recordings of each speaker.
    speakers: Vec<Vec<usize>>,
    augmenter: Option<Augmenter>,
    speeds: Vec<Speed>,
    formants: Vec<Formants>,
}

impl TrainingData {
    /// Examples from `recordings`, whose speakers `index` numbers; with recorded `noises` and
    /// `impulse_responses` at the front-end's rate to augment with. Recordings that could not be
    /// read are left out.
    ///
    /// # Errors
    /// When a recording has no speaker, or fewer than two speakers are left.
    pub fn new(
        config: TrainConfig,
        recordings: AudioCache,
        index: &SpeakerIndex,
        noises: Vec<Vec<f32>>,
        impulse_responses: Vec<Vec<f32>>,
    ) -> Result<Self> {
        let frontend = Frontend::new(config.frontend.clone())?;
        let mut speakers = vec![vec![]; index.names().len()];
        for (number, utterance) in recordings.utterances().iter().enumerate() {
            let speaker = utterance.speaker.as_deref().and_then(|name| index.index(name));
            let members =
                speaker.and_then(|speaker| speakers.get_mut(speaker)).ok_or_else(|| {
                    Error::Argument(format!("recording {} has no speaker", utterance.id))
                })?;
            if recordings.samples_of(number).is_some_and(|samples| samples > 0) {
                members.push(number);
            }
        }
        speakers.retain(|members| !members.is_empty());
        if speakers.len() < 2 {
            return Err(Error::Argument(
                "training needs readable recordings of at least two speakers".into(),
            ));
        }
        let speech = (0..recordings.len())
            .into_par_iter()
            .map(|number| used_samples(&recordings, number, config.detect_speech))
            .collect::<Result<_>>()?;
        let augmenter = config
            .augmentation
            .clone()
            .map(|augmentation| {
                Augmenter::new(augmentation, frontend.rate_hz(), noises, impulse_responses)
            })
            .transpose()?;
        let speeds = config.speeds.iter().map(|speed| Speed::new(*speed)).collect::<Result<_>>()?;
        let mel = &config.frontend.log_mel.mel;
        let formants = config
            .formants
            .iter()
            .map(|factor| Formants::new(*factor, mel, frontend.rate_hz()))
            .collect::<Result<_>>()?;
        Ok(Self { config, frontend, recordings, speech, speakers, augmenter, speeds, formants })
    }

    /// Classes to tell apart: speakers times speeds times factors of the formants.
    pub fn classes(&self) -> usize {
        self.speakers.len() * self.speeds.len() * self.formants.len()
    }

    /// The classes of the examples of an epoch of `stage`.
    fn labels(&self, stage: &Stage) -> Vec<usize> {
        let weights: Vec<f64> = self
            .speakers
            .iter()
            .map(|members| (members.len() as f64).powf(stage.balance))
            .collect();
        let each = (self.config.examples_per_speaker * self.speakers.len()) as f64
            / weights.iter().sum::<f64>();
        let counts: Vec<usize> =
            weights.iter().map(|weight| (weight * each).round().max(1.0) as usize).collect();
        let rounds = counts.iter().copied().max().unwrap_or(0);
        let classes = 0..self.classes();
        (0..rounds)
            .flat_map(|round| {
                let count = |class: &usize| counts.get(class % counts.len()).copied();
                classes.clone().filter(move |class| count(class) > Some(round))
            })
            .collect()
    }

    /// The front-end that makes the features.
    pub fn frontend(&self) -> &Frontend {
        &self.frontend
    }

    /// Batches of stage number `stage` from `position` on, prepared in the background.
    ///
    /// # Errors
    /// When there is no such stage; as [`Loader::new`].
    pub fn loader(self: &Arc<Self>, stage: usize, position: Position) -> Result<Loader<Example>> {
        let labels = self.labels(self.config.stage(stage)?);
        let batch = self.config.batch;
        let options = LoaderOptions {
            items: labels.len(),
            batch,
            drop_last: true,
            shuffle_seed: Some(self.config.seed),
            epochs: None,
            workers: rayon::current_num_threads(),
            ahead: 3 * batch,
            skip_failures: false,
        };
        let data = Arc::clone(self);
        Loader::new(options, position, move |epoch, index| {
            let label = labels.get(index).copied().unwrap_or(0);
            data.example(stage, epoch * labels.len() as u64 + index as u64, label)
        })
    }

    /// Example `number` of `stage`, of class `label`; nothing but these decides what it is.
    ///
    /// # Errors
    /// When a recording that is not in memory cannot be read again.
    pub fn example(&self, stage: usize, number: u64, label: usize) -> Result<Example> {
        let settings = self.config.stage(stage)?;
        let crop_samples = settings.crop_samples(self.frontend.rate_hz());
        let purpose = format!("training example of stage {stage}");
        let mut stream = Stream::new(self.config.seed, &purpose, number);
        let (copy, speaker) = (label / self.speakers.len(), label % self.speakers.len());
        let (formants, speed) = (copy / self.speeds.len(), copy % self.speeds.len());
        let mut samples = self.piece(speaker, speed, crop_samples, &mut stream)?;
        // A draw that cannot fail is not made.
        let mut chosen = || settings.augmented >= 1.0 || stream.uniform() < settings.augmented;
        let augmenter = self.augmenter.as_ref().filter(|_| chosen());
        if let Some(augmenter) = augmenter {
            augmenter.apply(&mut samples, &mut stream, |length, stream| {
                let other = stream.below(self.speakers.len());
                self.piece(other, speed, length, stream).ok()
            });
        }
        let mut features = self.frontend.log_bands(&samples)?;
        if let Some(formants) = self.formants.get(formants) {
            formants.apply(&mut features);
        }
        self.frontend.normalise(&mut features);
        if let Some(mask) = settings.mask {
            spec_augment(&mut features, self.frontend.bands(), mask, &mut stream);
        }
        Ok(Example { features, label: label as u32 })
    }

    /// A random piece of a random recording of `speaker`, played at `speed`.
    fn piece(
        &self,
        speaker: usize,
        speed: usize,
        length: usize,
        stream: &mut Stream,
    ) -> Result<Vec<f32>> {
        let nothing = || Error::Argument(format!("no speaker {speaker} at speed {speed}"));
        let members = self.speakers.get(speaker).ok_or_else(nothing)?;
        let speed = self.speeds.get(speed).ok_or_else(nothing)?;
        let recording = members.get(stream.below(members.len())).ok_or_else(nothing)?;
        let speech = self.speech.get(*recording).ok_or_else(nothing)?;
        let samples = joined(&self.recordings.read(*recording)?, speech);
        let mut piece = speed.apply(&random_crop(&samples, speed.input_samples(length), 0, stream));
        piece.truncate(length);
        Ok(piece)
    }
}

/// Which samples of recording `number` are used: with `detect_speech` those in which somebody
/// speaks, or all when nobody is found to. None of an unreadable recording.
pub(super) fn used_samples(
    recordings: &AudioCache,
    number: usize,
    detect_speech: bool,
) -> Result<Vec<Range<usize>>> {
    let Some(length) = recordings.samples_of(number) else { return Ok(vec![]) };
    let everything: Vec<Range<usize>> = std::iter::once(0..length).collect();
    if !detect_speech {
        return Ok(everything);
    }
    let mut detector = SpeechDetector::new(SpeechDetectorConfig::default(), recordings.rate_hz())?;
    detector.push(&to_f32(&recordings.read(number)?), |_| Ok(()))?;
    let rate_hz = f64::from(recordings.rate_hz());
    let place = |seconds: f64| ((seconds * rate_hz).round() as usize).min(length);
    let speech: Vec<Range<usize>> = detector
        .finish(|_| Ok(()))?
        .segments
        .iter()
        .map(|segment| place(segment.start_s)..place(segment.end_s))
        .collect();
    Ok(if speech.is_empty() { everything } else { speech })
}

/// The `ranges` of `samples` one after the other, as numbers in +-1.
pub(super) fn joined(samples: &[i16], ranges: &[Range<usize>]) -> Vec<f32> {
    let ranges = ranges.iter().map(|range| samples.get(range.clone()).unwrap_or_default());
    ranges.flat_map(to_f32).collect()
}

#[cfg(test)]
mod tests {
    use shared::data::{Manifest, Utterance};
    use shared::limits::Limits;
    use shared::media::audio::{Waveform, write_wav};

    use super::*;

    const RATE_HZ: u32 = 16_000;

    /// A second of silence, then one of noise in bursts.
    fn recording() -> Vec<f32> {
        let mut stream = Stream::new(1, "recording", 0);
        (0..2 * RATE_HZ)
            .map(|t| match t >= RATE_HZ && t / 2000 % 2 == 0 {
                true => (0.1 * stream.normal()) as f32,
                false => 0.0,
            })
            .collect()
    }

    /// Two speakers, of whom the first has four recordings and the second one.
    fn data(stage: &str) -> TrainingData {
        let folder = tempfile::tempdir().unwrap();
        let utterances: Vec<Utterance> = (0..5)
            .map(|number| {
                let path = folder.path().join(format!("{number}.wav"));
                let waveform = Waveform { samples: recording(), rate_hz: RATE_HZ, channels: 1 };
                write_wav(&path, &waveform, false).unwrap();
                let speaker = Some(if number < 4 { "a" } else { "b" }.to_owned());
                Utterance { id: number.to_string(), path, speaker, ..Utterance::default() }
            })
            .collect();
        let config = serde_json::from_str(&format!(
            r#"{{"examples_per_speaker": 6, "speeds": [1.0, 0.9], "augmentation": null, "stages": [{stage}]}}"#
        ));
        let manifest = Manifest { source: folder.path().into(), utterances };
        let index = manifest.speakers().unwrap();
        let limits = Limits::default();
        let (cache, failures) = AudioCache::new(manifest.utterances, RATE_HZ, 1 << 20, &limits);
        assert!(failures.is_empty());
        TrainingData::new(config.unwrap(), cache, &index, vec![], vec![]).unwrap()
    }

    fn stage(more: &str) -> String {
        format!(
            r#"{{"steps": 1, "crop_s": 0.5, "margin": [0, 0],
                 "schedule": {{"kind": "constant", "lr": 0.1}}{more}}}"#
        )
    }

    #[test]
    fn speakers_have_the_share_of_examples_that_the_stage_says() {
        for (balance, [a, b]) in
            [("", [6, 6]), (r#", "balance": 0.5"#, [8, 4]), (r#", "balance": 1"#, [10, 2])]
        {
            let data = data(&stage(balance));
            let labels = data.labels(data.config.stage(0).unwrap());
            let count = |class| labels.iter().filter(|label| **label == class).count();
            // Classes 2 and 3 are the speakers at the other speed.
            let expected = [a, b, a, b];
            assert_eq!([0, 1, 2, 3].map(count), expected.map(|c: i32| c as usize), "{balance}");
        }
    }

    #[test]
    fn examples_are_cut_from_speech_and_depend_on_their_number_only() {
        let data = data(&stage(""));
        let used = used_samples(&data.recordings, 0, true).unwrap();
        assert!(used.iter().all(|range| range.start > 12_000), "{used:?}");
        let all: Vec<usize> =
            used_samples(&data.recordings, 0, false).unwrap().into_iter().flatten().collect();
        assert!(all.into_iter().eq(0..32_000));
        let example = |number| data.example(0, number, 0).unwrap().features;
        assert_eq!(example(3), example(3));
        assert_ne!(example(3), example(4));
        assert_eq!(joined(&[1, 2, 3, 4], &[0..1, 2..4]), to_f32(&[1, 3, 4]));
    }
}
