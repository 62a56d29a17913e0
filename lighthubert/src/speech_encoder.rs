//! From samples to features, for recordings of any length and number.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use shared::data::length_buckets;
use shared::{Error, Result};

use crate::config::ExtractorMode;
use crate::network::{Conditions, Encoded, Network};
use crate::padding::PaddingRule;
use crate::signal::{SignalStatistics, Standardisation};

/// Most recordings in a batch.
const BATCH_ITEMS: usize = 64;

/// How long recordings are cut. Lengths are in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkConfig {
    /// Longer recordings are cut into windows of this length, which overlap.
    pub window_frames: usize,
    /// Frames at either end of a window that are only heard, not used, where the recording goes on.
    pub context_frames: usize,
}

impl Default for ChunkConfig {
    /// Windows of 30 s, of which 20 s are used.
    fn default() -> Self {
        Self { window_frames: 1500, context_frames: 250 }
    }
}

/// Which of a network's features are wanted.
#[derive(Clone, Debug, PartialEq)]
pub enum Layers {
    /// The final output, `[T, E]`.
    Last,
    /// One hidden state, `[T, E]`: 0 is what enters the transformer, `i` what its layer `i` gives.
    One(usize),
    /// All hidden states, `[L + 1, T, E]`.
    All,
    /// The sum of all hidden states, each times a weight, `[T, E]`.
    Weighted(Vec<f64>),
}

/// What is wanted of every frame.
pub trait Output {
    /// What an encoder's results for a batch, of which `frames[b]` frames count, come to: a leading
    /// dimension for the items, the last one but one for the frames.
    ///
    /// # Errors
    /// When there is no such thing.
    fn select(&self, encoded: &Encoded, frames: &[usize]) -> Result<Tensor>;
}

impl Output for Layers {
    fn select(&self, encoded: &Encoded, _frames: &[usize]) -> Result<Tensor> {
        let states = &encoded.hidden_states;
        match self {
            Self::Last => Ok(encoded.x.clone()),
            Self::One(layer) => states.get(*layer).cloned().ok_or_else(|| {
                let last = states.len().saturating_sub(1);
                Error::Argument(format!(
                    "no hidden state {layer}: they are counted from 0 to {last}"
                ))
            }),
            Self::All => Ok(Tensor::stack(states, 1)?),
            Self::Weighted(weights) => weighted_sum(states, weights),
        }
    }
}

fn weighted_sum(states: &[Tensor], weights: &[f64]) -> Result<Tensor> {
    if states.len() != weights.len() {
        return Err(Error::Argument(format!(
            "{} weights for {} hidden states",
            weights.len(),
            states.len()
        )));
    }
    let terms = states.iter().zip(weights).map(|(state, weight)| Ok(state.affine(*weight, 0.0)?));
    terms
        .reduce(|sum: Result<Tensor>, term| Ok((sum? + term?)?))
        .unwrap_or_else(|| Err(Error::Argument("there are no hidden states".into())))
}

/// Turns recordings at [`crate::RATE_HZ`] into features.
///
/// Recordings up to [`ChunkConfig::window_frames`] are encoded whole. Of longer ones, attention
/// reaches to the ends of overlapping windows only, so that features differ from those of the whole
/// recording; the extractor's frames and, but for an instance norm, all that does not attend are the
/// same.
pub struct SpeechEncoder {
    network: Network,
    chunks: ChunkConfig,
    device: Device,
}

impl SpeechEncoder {
    /// An encoder by `network`, whose weights are on `device`.
    ///
    /// # Errors
    /// When the contexts leave nothing of a window.
    pub fn new(network: Network, chunks: ChunkConfig, device: Device) -> Result<Self> {
        let ChunkConfig { window_frames, context_frames } = chunks;
        if context_frames.saturating_mul(2) >= window_frames || window_frames > 1 << 20 {
            return Err(Error::Argument(format!(
                "windows of {window_frames} frames with {context_frames} of context at either end: \
                 expected at most {} frames, more than both contexts together",
                1 << 20
            )));
        }
        Ok(Self { network, chunks, device })
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Frames of a recording of so many samples.
    pub fn frames(&self, samples: usize) -> usize {
        self.network.config().encoder.extractor.frames(samples)
    }

    /// The features of a recording.
    ///
    /// # Errors
    /// [`Error::TooShort`]; [`Error::NonFinite`]; when there is no such layer.
    pub fn encode(&self, samples: &[f32], output: &dyn Output) -> Result<Tensor> {
        let mut stream = self.start(&SignalStatistics::of(samples), output);
        let mut parts = vec![];
        let mut keep = |part| {
            parts.push(part);
            Ok(())
        };
        stream.push(samples, &mut keep)?;
        stream.finish(&mut keep)?;
        let time = parts.first().map_or(0, |part| part.rank().saturating_sub(2));
        Ok(Tensor::cat(&parts, time)?)
    }

    /// The features of each recording, each what [`Self::encode`] gives it, within rounding.
    /// Recordings of similar length are computed together; behind an instance norm, whose statistics
    /// would see the padding, only those of the same length.
    ///
    /// # Errors
    /// Those of the first recording that cannot be encoded.
    pub fn encode_all<S: AsRef<[f32]>>(
        &self,
        recordings: &[S],
        output: &dyn Output,
    ) -> Result<Vec<Tensor>> {
        let extractor = &self.network.config().encoder.extractor;
        let samples_of = |i: usize| recordings.get(i).map(AsRef::as_ref).unwrap_or_default();
        let lengths: Vec<usize> = recordings.iter().map(|it| it.as_ref().len()).collect();
        let window = extractor.samples_of_frames(self.chunks.window_frames + 1);
        let mut features: Vec<(usize, Tensor)> = vec![];
        for bucket in length_buckets(&lengths, BATCH_ITEMS, window) {
            let is_alike = |a: &usize, b: &usize| {
                extractor.mode == ExtractorMode::LayerNorm || lengths.get(*a) == lengths.get(*b)
            };
            for batch in bucket.chunk_by(is_alike) {
                let samples: Vec<&[f32]> = batch.iter().map(|i| samples_of(*i)).collect();
                let found = match samples.as_slice() {
                    [one] => vec![self.encode(one, output)?],
                    _ => self.encode_batch(&samples, output)?,
                };
                features.extend(batch.iter().copied().zip(found));
            }
        }
        features.sort_by_key(|(i, _)| *i);
        Ok(features.into_iter().map(|(_, features)| features).collect())
    }

    /// Starts the encoding of a recording with these statistics that arrives in blocks, in memory for
    /// a window.
    pub fn start<'a>(
        &'a self,
        statistics: &SignalStatistics,
        output: &'a dyn Output,
    ) -> EncodingStream<'a> {
        let standardisation = self.standardisation(statistics);
        EncodingStream { encoder: self, output, standardisation, waiting: vec![], heard_frames: 0 }
    }

    fn standardisation(&self, statistics: &SignalStatistics) -> Standardisation {
        match self.network.config().encoder.normalise {
            true => statistics.standardisation(),
            false => Standardisation::NONE,
        }
    }

    /// The features of recordings that are no longer than a window.
    fn encode_batch(&self, recordings: &[&[f32]], output: &dyn Output) -> Result<Vec<Tensor>> {
        let lengths: Vec<usize> = recordings.iter().map(|samples| samples.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let extractor = &self.network.config().encoder.extractor;
        if let Some(have_samples) = lengths.iter().copied().find(|it| extractor.frames(*it) == 0) {
            return Err(Error::TooShort {
                have_samples,
                need_samples: extractor.receptive_samples(),
            });
        }
        let mut source = Vec::with_capacity(recordings.len() * longest);
        for samples in recordings {
            check_finite(samples)?;
            let standardisation = self.standardisation(&SignalStatistics::of(samples));
            source.extend(standardisation.apply(samples));
            source.resize(source.len() + longest - samples.len(), 0.0);
        }
        let source = Tensor::from_vec(source, (recordings.len(), longest), &self.device)?;
        let is_padded = lengths.iter().any(|length| *length != longest);
        let conditions = Conditions {
            lengths: is_padded.then_some(&lengths),
            rule: PaddingRule::Exact,
            ..Conditions::default()
        };
        let frames: Vec<usize> = lengths.iter().map(|length| extractor.frames(*length)).collect();
        let features = output.select(&self.network.forward(&source, &conditions)?, &frames)?;
        let time = features.rank().saturating_sub(3);
        let item = |(i, frames): (usize, &usize)| Ok(features.get(i)?.narrow(time, 0, *frames)?);
        frames.iter().enumerate().map(item).collect()
    }
}

/// A recording on its way to features; see [`SpeechEncoder::start`].
pub struct EncodingStream<'a> {
    encoder: &'a SpeechEncoder,
    output: &'a dyn Output,
    standardisation: Standardisation,
    /// Standardised samples from the start of the next window on.
    waiting: Vec<f32>,
    /// Frames at the start of the next window whose features are given out already.
    heard_frames: usize,
}

impl EncodingStream<'_> {
    /// Takes the next samples, and gives `take` the features, as [`Layers`] has them, of each piece
    /// that is complete. How the samples are cut into blocks makes no difference.
    ///
    /// # Errors
    /// [`Error::NonFinite`]; when there is no such layer; those of `take`.
    pub fn push(
        &mut self,
        samples: &[f32],
        take: &mut dyn FnMut(Tensor) -> Result<()>,
    ) -> Result<()> {
        check_finite(samples)?;
        let ChunkConfig { window_frames, context_frames } = self.encoder.chunks;
        let extractor = &self.encoder.network.config().encoder.extractor;
        let window = extractor.samples_of_frames(window_frames);
        let used_frames = window_frames - 2 * context_frames;
        for block in samples.chunks(window.max(1)) {
            self.waiting.extend(self.standardisation.apply(block));
            // A frame more stays behind, so that there is always a last window.
            while extractor.frames(self.waiting.len()) > window_frames {
                let end = window_frames - context_frames;
                take(self.encode(window, self.heard_frames..end)?)?;
                let passed =
                    if self.heard_frames == 0 { end - context_frames } else { used_frames };
                self.waiting.drain(..passed * extractor.hop_samples());
                self.heard_frames = context_frames;
            }
        }
        Ok(())
    }

    /// Gives `take` the rest of the features.
    ///
    /// # Errors
    /// [`Error::TooShort`]; as [`Self::push`].
    pub fn finish(self, take: &mut dyn FnMut(Tensor) -> Result<()>) -> Result<()> {
        let extractor = &self.encoder.network.config().encoder.extractor;
        let (samples, frames) = (self.waiting.len(), extractor.frames(self.waiting.len()));
        if frames == 0 {
            let need_samples = extractor.receptive_samples();
            return Err(Error::TooShort { have_samples: samples, need_samples });
        }
        take(self.encode(samples, self.heard_frames..frames)?)
    }

    /// The features of some frames of a window.
    fn encode(&self, samples: usize, frames: std::ops::Range<usize>) -> Result<Tensor> {
        let window = self.waiting.get(..samples).unwrap_or(&self.waiting);
        let source = Tensor::from_slice(window, (1, window.len()), &self.encoder.device)?;
        let encoded = self.encoder.network.forward(&source, &Conditions::default())?;
        let heard = encoded.x.dim(1)?;
        let features = self.output.select(&encoded, &[heard])?.squeeze(0)?;
        let time = features.rank().saturating_sub(2);
        Ok(features.narrow(time, frames.start, frames.len())?)
    }
}

fn check_finite(samples: &[f32]) -> Result<()> {
    match samples.iter().all(|sample| sample.is_finite()) {
        true => Ok(()),
        false => Err(Error::NonFinite { what: "a sample of the recording".into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny;

    fn encoder(mode: ExtractorMode, chunks: ChunkConfig) -> SpeechEncoder {
        SpeechEncoder::new(tiny::network(mode), chunks, Device::Cpu).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn batches_give_what_single_recordings_give() {
        for mode in [ExtractorMode::LayerNorm, ExtractorMode::Default] {
            let encoder = encoder(mode, ChunkConfig::default());
            let lengths = [7000, 400, 3333, 7000, 12_345];
            let recordings: Vec<Vec<f32>> =
                lengths.iter().enumerate().map(|(i, n)| tiny::noise(*n, i as u64)).collect();
            for layers in [Layers::Last, Layers::All, Layers::One(3)] {
                let together = encoder.encode_all(&recordings, &layers).unwrap();
                for (recording, found) in recordings.iter().zip(&together) {
                    let alone = encoder.encode(recording, &layers).unwrap();
                    assert!(difference(found, &alone) < 1e-4, "{mode:?} {layers:?}");
                }
            }
            let error = encoder.encode_all(&[&recordings[0][..], &[0.0; 399]], &Layers::Last);
            assert!(matches!(error, Err(Error::TooShort { have_samples: 399, need_samples: 400 })));
        }
    }

    #[test]
    fn layers_are_chosen_and_weighted() {
        let encoder = encoder(ExtractorMode::LayerNorm, ChunkConfig::default());
        let samples = tiny::noise(5000, 0);
        let features = |layers| encoder.encode(&samples, &layers).unwrap();
        let all = features(Layers::All);
        assert_eq!(all.dims(), [13, 15, 64]);
        let states: Vec<Tensor> = (0..13).map(|i| features(Layers::One(i))).collect();
        assert_eq!(difference(&all, &Tensor::stack(&states, 0).unwrap()), 0.0);
        assert_eq!(difference(&features(Layers::Last), &states[12]), 0.0);
        let mut weights = vec![0.0; 13];
        (weights[2], weights[7]) = (0.25, -2.0);
        let expected = ((&states[2] * 0.25).unwrap() - (&states[7] * 2.0).unwrap()).unwrap();
        assert!(difference(&features(Layers::Weighted(weights)), &expected) < 1e-5);
        assert!(encoder.encode(&samples, &Layers::One(13)).is_err());
        assert!(encoder.encode(&samples, &Layers::Weighted(vec![1.0; 12])).is_err());
    }

    #[test]
    fn long_recordings_are_cut_into_overlapping_windows() {
        let chunks = ChunkConfig { window_frames: 50, context_frames: 10 };
        let encoder = encoder(ExtractorMode::LayerNorm, chunks);
        // The input of the transformer does not depend on windows, as it attends to nothing.
        let whole = encoder_of_long_windows();
        for frames in [50, 51, 79, 80, 81, 110, 173] {
            let samples = tiny::noise(400 + (frames - 1) * 320 + 7, frames as u64);
            let found = encoder.encode(&samples, &Layers::One(0)).unwrap();
            assert!(difference(&found, &whole.encode(&samples, &Layers::One(0)).unwrap()) < 1e-5);
            // Blocks make no difference.
            let features = encoder.encode(&samples, &Layers::Last).unwrap();
            let mut stream = encoder.start(&SignalStatistics::of(&samples), &Layers::Last);
            let mut parts = vec![];
            let mut keep = |part| {
                parts.push(part);
                Ok(())
            };
            for block in samples.chunks(777) {
                stream.push(block, &mut keep).unwrap();
            }
            stream.finish(&mut keep).unwrap();
            assert_eq!(difference(&features, &Tensor::cat(&parts, 0).unwrap()), 0.0, "{frames}");
        }
    }

    fn encoder_of_long_windows() -> SpeechEncoder {
        encoder(ExtractorMode::LayerNorm, ChunkConfig { window_frames: 1000, context_frames: 0 })
    }

    #[test]
    fn unusable_settings_and_samples_are_refused() {
        let network = tiny::network(ExtractorMode::LayerNorm);
        let chunks = ChunkConfig { window_frames: 20, context_frames: 10 };
        assert!(SpeechEncoder::new(network, chunks, Device::Cpu).is_err());
        let encoder = encoder_of_long_windows();
        let mut samples = tiny::noise(1000, 0);
        samples[500] = f32::NAN;
        assert!(matches!(encoder.encode(&samples, &Layers::Last), Err(Error::NonFinite { .. })));
        assert!(matches!(encoder.encode(&[], &Layers::Last), Err(Error::TooShort { .. })));
        assert!(encoder.encode(&[0.0; 800], &Layers::Last).is_ok());
    }
}
