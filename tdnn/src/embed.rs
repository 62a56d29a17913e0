//! From samples to embeddings.

use std::collections::BTreeMap;

use candle_core::Device;
use serde::{Deserialize, Serialize};
use shared::{Error, Result};

use crate::frontend::Frontend;
use crate::subnet::Subnet;

/// Most samples to which recordings are repeated: more than an hour.
const LARGEST_REPEATED_SAMPLES: usize = 1 << 26;

/// Most frames that go through the network at once.
const BATCH_FRAMES: usize = 1 << 13;

/// How recordings are cut for the network. Lengths are in samples at the front-end's rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowConfig {
    /// Shorter recordings are refused.
    pub min_samples: usize,
    /// Shorter recordings are repeated from their start up to this length; 0 leaves them.
    pub repeat_below_samples: usize,
    /// Longer recordings are cut into windows of half to all of this length, whose embeddings are
    /// averaged.
    pub window_samples: usize,
}

impl Default for WindowConfig {
    /// At 16 kHz: at least 0.25 s, repeated up to 3 s as the published results have it, windows
    /// of at most 30 s.
    fn default() -> Self {
        Self { min_samples: 4_000, repeat_below_samples: 48_001, window_samples: 480_000 }
    }
}

/// Turns recordings into embeddings of length 1.
///
/// The embeddings of several networks, each of length 1, are set side by side, so that the cosine of
/// two recordings is the mean of the networks' cosines: what single networks get wrong by chance
/// averages out.
pub struct Embedder {
    frontend: Frontend,
    networks: Vec<Subnet>,
    windows: WindowConfig,
    device: Device,
}

impl Embedder {
    /// An embedder of `networks` behind `frontend`.
    ///
    /// # Errors
    /// When there is no network, the front-end's bands are not a network's features, windows are too
    /// short for the front-end, or recordings are to be repeated for too long.
    pub fn new(
        frontend: Frontend,
        networks: Vec<Subnet>,
        windows: WindowConfig,
        device: Device,
    ) -> Result<Self> {
        if networks.is_empty() {
            return Err(Error::Argument("an embedder needs a network".into()));
        }
        for features in networks.iter().map(|network| network.config().features) {
            if frontend.bands() != features {
                return Err(Error::Argument(format!(
                    "the network takes {features} features a frame, the front-end gives {}",
                    frontend.bands()
                )));
            }
        }
        let shortest = frontend.min_samples();
        if windows.min_samples < shortest || windows.window_samples / 2 < windows.min_samples {
            return Err(Error::Argument(format!(
                "windows: min_samples must be at least {shortest} and at most half of \
                 window_samples"
            )));
        }
        if windows.repeat_below_samples > LARGEST_REPEATED_SAMPLES {
            return Err(Error::Argument(format!(
                "windows: repeat_below_samples must be at most {LARGEST_REPEATED_SAMPLES}"
            )));
        }
        Ok(Self { frontend, networks, windows, device })
    }

    /// The front-end.
    pub fn frontend(&self) -> &Frontend {
        &self.frontend
    }

    /// How recordings are cut.
    pub fn windows(&self) -> &WindowConfig {
        &self.windows
    }

    /// Numbers in an embedding.
    pub fn dimension(&self) -> usize {
        self.networks.iter().map(|network| network.config().embedding).sum()
    }

    /// The embedding of a recording with samples in +-1 at the front-end's rate.
    ///
    /// # Errors
    /// [`Error::TooShort`]; [`Error::NoSpeech`] for constant samples; [`Error::NonFinite`].
    pub fn embed(&self, samples: &[f32]) -> Result<Vec<f32>> {
        let mut recording = self.start();
        recording.push(samples)?;
        recording.finish()
    }

    /// The embedding of each recording, each what [`Embedder::embed`] gives it, within rounding.
    /// Recordings of the same length are computed together.
    ///
    /// # Errors
    /// Those of the first recording that cannot be embedded.
    pub fn embed_all<S: AsRef<[f32]> + Sync>(&self, recordings: &[S]) -> Result<Vec<Vec<f32>>> {
        let mut embeddings = vec![vec![]; recordings.len()];
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, recording) in recordings.iter().enumerate() {
            let samples = recording.as_ref();
            if samples.len() <= self.windows.window_samples {
                self.check(samples)?;
                by_length.entry(samples.len()).or_default().push(i);
            } else {
                embeddings[i] = self.embed(samples)?;
            }
        }
        for (length, members) in by_length {
            let frames = self.frontend.frames(length.max(self.windows.repeat_below_samples));
            for group in members.chunks((BATCH_FRAMES / frames.max(1)).max(1)) {
                let group_samples: Vec<&[f32]> =
                    group.iter().map(|i| recordings[*i].as_ref()).collect();
                for (i, embedding) in group.iter().zip(self.embed_windows(&group_samples)?) {
                    embeddings[*i] = embedding;
                }
            }
        }
        Ok(embeddings)
    }

    /// Starts the embedding of a recording that arrives in blocks, in memory for two windows.
    pub fn start(&self) -> StreamingEmbedding<'_> {
        StreamingEmbedding {
            embedder: self,
            waiting: vec![],
            sum: vec![0.0; self.dimension()],
            samples: 0,
            voiced: false,
        }
    }

    /// The unit-length embeddings of windows of equal length.
    fn embed_windows(&self, windows: &[&[f32]]) -> Result<Vec<Vec<f32>>> {
        let length = self.windows.repeat_below_samples;
        let repeated: Vec<Vec<f32>> = windows
            .iter()
            .filter(|window| window.len() < length)
            .map(|window| window.iter().copied().cycle().take(length).collect())
            .collect();
        let features = match repeated.is_empty() {
            true => self.frontend.batch(windows, &self.device)?,
            false => self.frontend.batch(&repeated, &self.device)?,
        };
        let mut side_by_side = vec![vec![]; windows.len()];
        for network in &self.networks {
            let embeddings: Vec<Vec<f32>> = network.forward(&features, false)?.to_vec2()?;
            for (all, embedding) in side_by_side.iter_mut().zip(embeddings) {
                all.extend(unit(embedding)?);
            }
        }
        match self.networks.len() {
            1 => Ok(side_by_side),
            _ => side_by_side.into_iter().map(unit).collect(),
        }
    }

    /// Fails when `samples` cannot be embedded.
    fn check(&self, samples: &[f32]) -> Result<()> {
        let need_samples = self.windows.min_samples;
        if samples.len() < need_samples {
            return Err(Error::TooShort { have_samples: samples.len(), need_samples });
        }
        if !samples.iter().all(|sample| sample.is_finite()) {
            return Err(Error::NonFinite { what: "a sample of the recording".into() });
        }
        if is_constant(samples) {
            return Err(self.no_speech(samples.len()));
        }
        Ok(())
    }

    fn no_speech(&self, samples: usize) -> Error {
        Error::NoSpeech { duration_s: samples as f64 / f64::from(self.frontend.rate_hz()) }
    }
}

/// A recording on its way to an embedding; see [`Embedder::start`].
pub struct StreamingEmbedding<'a> {
    embedder: &'a Embedder,
    waiting: Vec<f32>,
    /// Sum of the windows' embeddings, each times its length.
    sum: Vec<f64>,
    samples: usize,
    voiced: bool,
}

impl StreamingEmbedding<'_> {
    /// Takes the next samples; how they are cut into blocks makes no difference.
    ///
    /// # Errors
    /// [`Error::NonFinite`].
    pub fn push(&mut self, samples: &[f32]) -> Result<()> {
        if !samples.iter().all(|sample| sample.is_finite()) {
            return Err(Error::NonFinite { what: "a sample of the recording".into() });
        }
        self.samples += samples.len();
        let window = self.embedder.windows.window_samples;
        for block in samples.chunks(window) {
            self.waiting.extend_from_slice(block);
            // A whole window more stays behind, so that the last ones are never short.
            while self.waiting.len() >= 2 * window {
                self.add(0..window)?;
                self.waiting.drain(..window);
            }
        }
        Ok(())
    }

    /// The embedding of all samples taken.
    ///
    /// # Errors
    /// [`Error::TooShort`]; [`Error::NoSpeech`] when all samples are the same.
    pub fn finish(mut self) -> Result<Vec<f32>> {
        let windows = &self.embedder.windows;
        if self.samples < windows.min_samples {
            return Err(Error::TooShort {
                have_samples: self.samples,
                need_samples: windows.min_samples,
            });
        }
        let length = self.waiting.len();
        if length <= windows.window_samples {
            self.add(0..length)?;
        } else {
            self.add(0..length / 2)?;
            self.add(length / 2..length)?;
        }
        if !self.voiced {
            return Err(self.embedder.no_speech(self.samples));
        }
        unit(self.sum.iter().map(|value| *value as f32).collect())
    }

    /// Adds the embedding of a window of the waiting samples, unless it is digital silence.
    fn add(&mut self, range: std::ops::Range<usize>) -> Result<()> {
        let window = &self.waiting[range];
        if is_constant(window) {
            return Ok(());
        }
        for embedding in self.embedder.embed_windows(&[window])? {
            for (sum, value) in self.sum.iter_mut().zip(embedding) {
                *sum += f64::from(value) * window.len() as f64;
            }
        }
        self.voiced = true;
        Ok(())
    }
}

/// `vector` scaled to length 1.
fn unit(mut vector: Vec<f32>) -> Result<Vec<f32>> {
    let norm = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if !norm.is_finite() {
        return Err(Error::NonFinite { what: "the embedding".into() });
    }
    let scale = 1.0 / norm.max(1e-12);
    vector.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
    Ok(vector)
}

fn is_constant(samples: &[f32]) -> bool {
    samples.windows(2).all(|pair| pair[0] == pair[1])
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use shared::nn::Weights;
    use shared::rng::Stream;

    use super::*;
    use crate::architecture::NetworkConfig;
    use crate::frontend::FrontendConfig;

    fn embedder() -> Embedder {
        embedder_of(&[1])
    }

    /// An embedder of random networks, one for each seed.
    fn embedder_of(seeds: &[u64]) -> Embedder {
        let network = |seed: &u64| {
            let config = NetworkConfig::published("1.16.16.3.3.24".parse().unwrap());
            Subnet::new(config, &Weights::fresh(*seed, DType::F32, &Device::Cpu)).unwrap()
        };
        let windows =
            WindowConfig { min_samples: 1_000, repeat_below_samples: 2_000, window_samples: 6_000 };
        let frontend = Frontend::new(FrontendConfig::default()).unwrap();
        let networks = seeds.iter().map(network).collect();
        Embedder::new(frontend, networks, windows, Device::Cpu).unwrap()
    }

    fn noise(index: u64, count: usize) -> Vec<f32> {
        let mut stream = Stream::new(4, "noise", index);
        (0..count).map(|_| 0.1 * stream.normal() as f32).collect()
    }

    fn assert_close(a: &[f32], b: &[f32]) {
        assert_eq!(a.len(), b.len());
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
    }

    #[test]
    fn embeddings_have_length_one_and_repeat_short_recordings() {
        let embedder = embedder();
        let short = noise(0, 1_500);
        let embedding = embedder.embed(&short).unwrap();
        assert_eq!(embedding.len(), embedder.dimension());
        let norm: f32 = embedding.iter().map(|value| value * value).sum();
        assert!((norm - 1.0).abs() < 1e-5);
        let repeated: Vec<f32> = short.iter().copied().cycle().take(2_000).collect();
        assert_close(&embedder.embed(&repeated).unwrap(), &embedding);
    }

    #[test]
    fn the_cosine_of_several_networks_is_the_mean_of_theirs() {
        let recordings = [noise(0, 3_000), noise(1, 4_500)];
        let cosine = |seeds: &[u64]| {
            let embedder = embedder_of(seeds);
            let [a, b] = recordings.each_ref().map(|samples| embedder.embed(samples).unwrap());
            assert_eq!(a.len(), embedder.dimension());
            a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>()
        };
        let mean = [3, 4, 5].map(|seed| cosine(&[seed])).iter().sum::<f32>() / 3.0;
        assert!((cosine(&[3, 4, 5]) - mean).abs() < 1e-5);
    }

    #[test]
    fn a_batch_gives_what_its_recordings_give_alone() {
        let embedder = embedder();
        let lengths = [3_000, 1_500, 3_000, 20_000, 3_000, 6_000];
        let recordings: Vec<Vec<f32>> =
            lengths.iter().enumerate().map(|(i, count)| noise(i as u64, *count)).collect();
        let together = embedder.embed_all(&recordings).unwrap();
        for (recording, embedding) in recordings.iter().zip(together) {
            assert_close(&embedder.embed(recording).unwrap(), &embedding);
        }
    }

    #[test]
    fn long_recordings_are_averaged_over_windows_however_they_arrive() {
        let embedder = embedder();
        // 20 000 samples: windows of 6 000 and 6 000, then the remaining 8 000 in halves.
        let samples = noise(7, 20_000);
        let mut expected = vec![0.0f64; embedder.dimension()];
        for range in [0..6_000, 6_000..12_000, 12_000..16_000, 16_000..20_000] {
            let weight = range.len() as f64;
            let embedding = embedder.embed(&samples[range]).unwrap();
            expected.iter_mut().zip(embedding).for_each(|(e, v)| *e += weight * f64::from(v));
        }
        let expected = unit(expected.into_iter().map(|value| value as f32).collect()).unwrap();
        let whole = embedder.embed(&samples).unwrap();
        assert_close(&whole, &expected);
        for block in [1, 999, 6_000, 13_000] {
            let mut stream = embedder.start();
            for samples in samples.chunks(block) {
                stream.push(samples).unwrap();
                assert!(stream.waiting.len() <= 12_000);
            }
            assert_eq!(stream.finish().unwrap(), whole, "{block}");
        }
    }

    #[test]
    fn what_cannot_be_embedded_is_explained() {
        let embedder = embedder();
        for count in [0, 1, 999] {
            let refused = embedder.embed(&noise(0, count));
            assert!(matches!(refused, Err(Error::TooShort { need_samples: 1_000, .. })), "{count}");
        }
        for count in [1_000, 30_000] {
            let silent = vec![0.25; count];
            assert!(matches!(embedder.embed(&silent), Err(Error::NoSpeech { .. })));
            let mut broken = noise(0, count);
            broken[count - 1] = f32::NAN;
            assert!(matches!(embedder.embed(&broken), Err(Error::NonFinite { .. })));
            assert!(embedder.embed_all(&[broken]).is_err());
        }
        // Silence of a whole window beside speech is left out.
        let speech = noise(1, 6_000);
        let padded = [&[0.0; 6_000][..], &speech, &noise(2, 6_000)].concat();
        assert!(embedder.embed(&padded).is_ok());
    }
}
