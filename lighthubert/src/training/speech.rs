//! Recordings and what is said in them.

use std::sync::{Arc, Mutex, PoisonError};

use shared::data::augment::{Augmenter, Speed};
use shared::data::{AudioCache, Loader, LoaderOptions, Position, ReadFailure, Utterance, to_f32};
use shared::eval::wer::Normaliser;
use shared::limits::Limits;
use shared::rng::Stream;
use shared::{Error, Result};

use super::batches::{Batches, Plan};
use super::config::FinetuneConfig;
use super::start::Start;
use crate::config::RATE_HZ;
use crate::signal::SignalStatistics;

/// Decoded recordings beyond this are read from their files again each time.
const CACHE_BYTES: u64 = 4 << 30;
/// Silence between two utterances in one example.
const GAP_S: [f64; 2] = [0.05, 0.3];

/// Recordings with the texts that are said in them.
pub struct TranscribedSpeech {
    recordings: AudioCache,
    /// Texts as they are learned and compared.
    texts: Vec<String>,
    /// Why recordings could not be used.
    pub left_out: LeftOut,
}

/// Utterances that cannot be used.
#[derive(Debug, Default)]
pub struct LeftOut {
    /// Number of those without a text.
    pub without_text: usize,
    /// Those that could not be read.
    pub unreadable: Vec<ReadFailure>,
}

/// An example: a signal and the classes that are said in it.
#[derive(Clone, Debug)]
pub(super) struct Example {
    pub samples: Vec<f32>,
    pub labels: Vec<u32>,
}

impl TranscribedSpeech {
    /// The utterances that have a text, decoded, with their texts in the form of `normaliser`.
    pub fn read(utterances: Vec<Utterance>, normaliser: Normaliser, limits: &Limits) -> Self {
        let before = utterances.len();
        let with_text: Vec<Utterance> =
            utterances.into_iter().filter(|it| it.text.is_some()).collect();
        let text = |it: &Utterance| normaliser.apply(it.text.as_deref().unwrap_or_default());
        let texts: Vec<String> = with_text.iter().map(text).collect();
        let without_text = before - with_text.len();
        let (recordings, unreadable) = AudioCache::new(with_text, RATE_HZ, CACHE_BYTES, limits);
        Self { recordings, texts, left_out: LeftOut { without_text, unreadable } }
    }

    /// The texts.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(String::as_str)
    }

    /// Number of recordings, unreadable ones included.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether there is no recording.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Length of all readable recordings.
    pub fn duration_s(&self) -> f64 {
        (0..self.len()).filter_map(|number| self.length_s(number)).sum()
    }

    fn length_s(&self, number: usize) -> Option<f64> {
        Some(self.recordings.samples_of(number)? as f64 / f64::from(RATE_HZ))
    }

    /// The text of recording `number`.
    pub(super) fn text(&self, number: usize) -> &str {
        self.texts.get(number).map_or("", String::as_str)
    }

    /// The samples of recording `number`; `None` where it could not be read.
    pub(super) fn samples(&self, number: usize) -> Result<Option<Vec<f32>>> {
        match self.recordings.samples_of(number) {
            Some(_) => Ok(Some(to_f32(&self.recordings.read(number)?))),
            None => Ok(None),
        }
    }
}

/// The batches of an epoch, each the examples that it is made of.
type Epoch = Arc<Vec<Vec<Plan>>>;

/// Makes the examples of a training run, each anew in every epoch.
pub(super) struct Examples {
    config: FinetuneConfig,
    speech: Arc<TranscribedSpeech>,
    labels: Vec<Vec<u32>>,
    /// What stands between two utterances.
    space: Vec<u32>,
    normalise: bool,
    augmenter: Option<Augmenter>,
    speeds: Vec<Speed>,
    batches: Batches,
    /// The latest epoch that was planned.
    planned: Mutex<Option<(u64, Epoch)>>,
}

impl Examples {
    /// Examples of `speech` for the recogniser of `start`, with recorded noises and impulse responses to
    /// augment with. Also says which recordings are not used, a sentence each.
    ///
    /// # Errors
    /// When no recording is left.
    pub fn new(
        config: &FinetuneConfig,
        speech: &Arc<TranscribedSpeech>,
        start: &Start,
        [noises, impulse_responses]: [Vec<Vec<f32>>; 2],
    ) -> Result<(Self, Vec<String>)> {
        let speeds: Vec<Speed> =
            config.speeds.iter().map(|speed| Speed::new(*speed)).collect::<Result<_>>()?;
        let fastest = config.speeds.iter().copied().fold(1.0, f64::max);
        let (mut labels, mut usable, mut notes) = (vec![], vec![], vec![]);
        for number in 0..speech.len() {
            let classes = start.recogniser.vocabulary.encode(speech.text(number));
            let length_s = speech.length_s(number);
            let name =
                || speech.recordings.utterances().get(number).map_or("", |it| it.id.as_str());
            labels.push(classes.as_ref().map_or_else(|_| vec![], Vec::clone));
            let Some(length_s) = length_s else { continue };
            let samples = (length_s / fastest * f64::from(RATE_HZ)) as usize;
            let frames = start.recogniser.frames(samples);
            match classes {
                Err(error) => notes.push(format!("left out: {}: {error}", name())),
                Ok(classes) if frames < needed_frames(&classes) => notes.push(format!(
                    "left out: {}: {length_s:.2} s give {frames} frames at the highest speed, too few \
                     for its text, which needs {}",
                    name(),
                    needed_frames(&classes)
                )),
                Ok(_) if length_s > config.longest_s => notes.push(format!(
                    "left out: {}: {length_s:.1} s, longer than longest_s, {}",
                    name(),
                    config.longest_s
                )),
                Ok(_) => usable.push((number, length_s)),
            }
        }
        if usable.is_empty() {
            let reason = "no recording with a text that can be learned from".to_owned();
            return Err(Error::Argument(notes.into_iter().next().unwrap_or(reason)));
        }
        let augmentation = config.augmentation.clone();
        let augmenter = augmentation
            .map(|augmentation| Augmenter::new(augmentation, RATE_HZ, noises, impulse_responses))
            .transpose()?;
        let examples = Self {
            config: config.clone(),
            speech: speech.clone(),
            labels,
            space: start.recogniser.vocabulary.delimiter().into_iter().collect(),
            normalise: start.config.network.encoder.normalise,
            augmenter,
            speeds: speeds.clone(),
            batches: Batches::new(config.clone(), speeds, usable),
            planned: Mutex::new(None),
        };
        Ok((examples, notes))
    }

    /// Number of recordings that examples are made of.
    pub fn count(&self) -> usize {
        self.batches.count()
    }

    /// Batches from `position` on, prepared in the background.
    ///
    /// # Errors
    /// As [`Loader::new`].
    pub fn loader(self: &Arc<Self>, position: Position) -> Result<Loader<Vec<Example>>> {
        let options = LoaderOptions {
            items: self.batches.per_epoch(),
            batch: 1,
            drop_last: false,
            shuffle_seed: Some(self.config.seed),
            epochs: None,
            workers: 2,
            ahead: 3,
            skip_failures: false,
        };
        let examples = Arc::clone(self);
        Loader::new(options, position, move |epoch, number| {
            let plans = examples.plans(epoch);
            let plans = plans.get(number).map(Vec::as_slice).unwrap_or_default();
            plans.iter().map(|plan| examples.example(plan)).collect()
        })
    }

    /// The batches of an epoch.
    fn plans(&self, epoch: u64) -> Epoch {
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        match &*planned {
            Some((known, plans)) if *known == epoch => plans.clone(),
            _ => {
                let plans = Arc::new(self.batches.of_epoch(epoch));
                *planned = Some((epoch, plans.clone()));
                plans
            }
        }
    }

    fn example(&self, plan: &Plan) -> Result<Example> {
        let mut stream = Stream::new(self.config.seed, "fine-tuning example", plan.number);
        let mut samples = self.played(plan.recording, plan.speed)?;
        let mut labels = self.labels_of(plan.recording).to_vec();
        if let Some(follower) = plan.follower {
            let [shortest_s, longest_s] = GAP_S;
            let gap_s = shortest_s + (longest_s - shortest_s) * stream.uniform();
            let gap = samples.len() + (gap_s * f64::from(RATE_HZ)) as usize;
            samples.resize(gap, 0.0);
            samples.extend(self.played(follower, plan.speed)?);
            let more = self.labels_of(follower);
            if !labels.is_empty() && !more.is_empty() {
                labels.extend(&self.space);
            }
            labels.extend(more);
        }
        let chosen = self.config.augmented >= 1.0 || stream.uniform() < self.config.augmented;
        if let Some(augmenter) = self.augmenter.as_ref().filter(|_| chosen) {
            // Other voices may be anybody's; a short one is repeated.
            augmenter.apply(&mut samples, &mut stream, |length, stream| {
                let voice = self.speech.samples(stream.below(self.speech.len())).ok()??;
                Some(voice.into_iter().cycle().take(length).collect())
            });
        }
        Ok(Example { samples: prepared(samples, self.normalise), labels })
    }

    fn played(&self, recording: usize, speed: usize) -> Result<Vec<f32>> {
        let samples = self.speech.samples(recording)?.unwrap_or_default();
        Ok(match self.speeds.get(speed) {
            Some(speed) => speed.apply(&samples),
            None => samples,
        })
    }

    fn labels_of(&self, recording: usize) -> &[u32] {
        self.labels.get(recording).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Fewest frames in which CTC can place `labels`: one each, and a blank between equal ones.
fn needed_frames(labels: &[u32]) -> usize {
    let repeated = labels.iter().zip(labels.iter().skip(1)).filter(|(a, b)| a == b).count();
    (labels.len() + repeated).max(1)
}

/// A signal as an encoder takes it.
pub(super) fn prepared(samples: Vec<f32>, normalise: bool) -> Vec<f32> {
    match normalise {
        true => SignalStatistics::of(&samples).standardisation().apply(&samples).collect(),
        false => samples,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_neighbours_need_a_frame_between_them() {
        for (labels, frames) in
            [(&[][..], 1), (&[4], 1), (&[4, 4], 3), (&[4, 5, 4], 3), (&[4, 4, 4, 1], 6)]
        {
            assert_eq!(needed_frames(labels), frames, "{labels:?}");
        }
    }
}
