//! A model as one file: safetensors whose metadata holds all that is needed to use it.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use shared::checkpoint::{self, Checkpoint, data_hash, safetensors};
use shared::eval::verification::Calibration;
use shared::limits::Limits;
use shared::rng::Stream;
use shared::{Error, Result};

use crate::architecture::NetworkConfig;
use crate::cost;
use crate::embed::{Embedder, WindowConfig};
use crate::embeddings::Embeddings;
use crate::ensemble;
use crate::frontend::{Frontend, FrontendConfig};
use crate::score::Scoring;
use crate::subnet::Subnet;

/// Metadata entry that holds the card.
const CARD: &str = "tdnn";
/// Tensor that holds the cohort.
const COHORT: &str = "cohort";
/// Version of the card that this program writes and reads.
const VERSION: u32 = 1;
/// Least cosine between the embedding of the self-test and the one in the card.
const SELF_TEST_COSINE: f64 = 0.999;
/// Length of the self-test's signal.
const SELF_TEST_SAMPLES: usize = 16_000;

/// What a model file says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCard {
    version: u32,
    /// Size of the network.
    pub network: NetworkConfig,
    /// Sizes of the further networks of an ensemble, see [`Embedder`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<NetworkConfig>,
    /// The features that it was trained on.
    pub frontend: FrontendConfig,
    /// How recordings are cut for it.
    pub windows: WindowConfig,
    /// From cosine to log-likelihood ratio, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// How scores are made; what is calibrated.
    #[serde(default)]
    pub scoring: Scoring,
    /// Batches that the batch norms were recalibrated on after the network left its supernet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recalibration_batches: Option<usize>,
    /// SHA-256 of the list of training data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_data_sha256: Option<String>,
    /// How the model came about: steps, settings, measured error rates.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub provenance: serde_json::Map<String, serde_json::Value>,
    /// SHA-256 of the tensors, see [`data_hash`].
    tensors_sha256: String,
    /// The embedding that the self-test must give.
    self_test: Vec<f32>,
}

impl ModelCard {
    /// The card of a network with nothing known but its size and front-end.
    pub fn new(network: NetworkConfig, frontend: FrontendConfig, windows: WindowConfig) -> Self {
        Self {
            version: VERSION,
            network,
            further: vec![],
            frontend,
            windows,
            calibration: None,
            scoring: Scoring::default(),
            recalibration_batches: None,
            training_data_sha256: None,
            provenance: serde_json::Map::new(),
            tensors_sha256: String::new(),
            self_test: vec![],
        }
    }

    /// The sizes of all networks.
    pub fn networks(&self) -> impl Iterator<Item = &NetworkConfig> {
        std::iter::once(&self.network).chain(&self.further)
    }

    /// SHA-256 of the tensors, see [`data_hash`].
    pub fn tensors_sha256(&self) -> &str {
        &self.tensors_sha256
    }
}

/// A model file in memory.
#[derive(Clone, Debug)]
pub struct ModelFile {
    /// What it says about itself.
    pub card: ModelCard,
    /// The networks' tensors, in the dtype in which they are stored. Names of further networks begin
    /// with `further.0.`, `further.1.` and so on.
    pub tensors: BTreeMap<String, Tensor>,
    /// Other speakers, by whom the scores are normalised where [`ModelCard::scoring`] says so.
    pub cohort: Option<Embeddings>,
    /// Where it was read from, for messages.
    pub(crate) path: PathBuf,
}

impl ModelFile {
    /// A model of `tensors` (the state of a [`Subnet`]) to be written with matrices and kernels as
    /// `storage` (f32, f16 or bf16). Vectors, which are few and reach further, stay f32.
    ///
    /// # Errors
    /// When the tensors are not the network's, or the embedding of the self-test is not finite.
    pub fn new(
        card: ModelCard,
        tensors: &BTreeMap<String, Tensor>,
        storage: DType,
    ) -> Result<Self> {
        if ![DType::F32, DType::F16, DType::BF16].contains(&storage) {
            return Err(Error::Argument(format!(
                "models are stored as f32, f16 or bf16, not {}",
                storage.as_str()
            )));
        }
        let tensors: BTreeMap<String, Tensor> = tensors
            .iter()
            .map(|(name, tensor)| {
                let dtype = match tensor.dtype() {
                    dtype if dtype.is_int() => dtype,
                    _ if tensor.rank() >= 2 => storage,
                    _ => DType::F32,
                };
                Ok((name.clone(), tensor.detach().to_device(&Device::Cpu)?.to_dtype(dtype)?))
            })
            .collect::<Result<_>>()?;
        Self::of_tensors(card, tensors)
    }

    /// A model of `tensors` as they are.
    pub(crate) fn of_tensors(
        mut card: ModelCard,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        card.tensors_sha256 = data_hash(&tensors)?;
        let mut model = Self { card, tensors, cohort: None, path: "model".into() };
        model.card.self_test = model.embedder(&Device::Cpu)?.embed(&self_test_signal())?;
        Ok(model)
    }

    /// The model in the file `path`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when it is no model of this program, of a later version, or damaged;
    /// [`Error::NonFinite`].
    pub fn read(path: &Path, limits: &Limits) -> Result<Self> {
        Self::of_checkpoint(checkpoint::read(path, limits)?, path)
    }

    /// The model in `bytes`, the content of a model file; `name` is for messages.
    ///
    /// # Errors
    /// As [`ModelFile::read`].
    pub fn from_bytes(bytes: &[u8], name: &Path, limits: &Limits) -> Result<Self> {
        Self::of_checkpoint(checkpoint::read_bytes(bytes, name, limits)?, name)
    }

    /// Writes the model to the file `path`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Exists`] when the file is there and `force` is not given; [`Error::Io`].
    pub fn write(&self, path: &Path, force: bool) -> Result<()> {
        let card = serde_json::to_string(&self.card)
            .map_err(|error| Error::Argument(format!("model card: {error}")))?;
        let metadata = BTreeMap::from([(CARD.to_string(), card)]);
        let mut tensors = self.tensors.clone();
        if let Some(cohort) = &self.cohort {
            tensors.insert(COHORT.to_string(), cohort.to_tensor()?);
        }
        safetensors::write(path, &tensors, &metadata, force)
    }

    /// The networks with frozen weights and their front-end, ready for use on `device`.
    ///
    /// # Errors
    /// [`Error::Tensors`] when the tensors are not those of the networks in the card,
    /// [`Error::Checkpoint`] when its front-end or windows make no sense.
    pub fn embedder(&self, device: &Device) -> Result<Embedder> {
        let ModelCard { frontend, windows, .. } = &self.card;
        let path = &self.path;
        let networks = ensemble::split(&self.card, &self.tensors);
        let count = networks.len();
        let origin = |place| match count {
            1 => path.clone(),
            _ => format!("{}, network {}", path.display(), place + 1).into(),
        };
        let networks = (networks.into_iter().enumerate())
            .map(|(place, (config, own))| {
                Ok(Subnet::from_tensors(config, own, &origin(place), false, device)?.0)
            })
            .collect::<Result<_>>()?;
        Frontend::new(frontend.clone())
            .and_then(|frontend| Embedder::new(frontend, networks, windows.clone(), device.clone()))
            .map_err(|error| Error::checkpoint(path, error.to_string()))
    }

    /// The cosine between the embedding that `embedder` gives for a synthetic signal and the one
    /// that was stored with the model.
    ///
    /// # Errors
    /// [`Error::Argument`] when it is below 0.999: this build or device does not compute what the
    /// model was made with.
    pub fn self_test(&self, embedder: &Embedder) -> Result<f64> {
        let found = embedder.embed(&self_test_signal())?;
        let pairs = found.iter().zip(&self.card.self_test);
        let cosine: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        if cosine < SELF_TEST_COSINE || found.len() != self.card.self_test.len() {
            return Err(Error::Argument(format!(
                "self-test of the model: the embedding has a cosine of {cosine:.4} with the \
                 expected one, where {SELF_TEST_COSINE} is needed; do not trust this build's scores"
            )));
        }
        Ok(cosine)
    }

    fn of_checkpoint(mut checkpoint: Checkpoint, path: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::checkpoint(path, reason);
        let card = checkpoint.metadata.get(CARD).ok_or_else(|| {
            wrong(format!(
                "no speaker model: the metadata entry {CARD:?} is missing; published weights need \
                 `tdnn convert` first"
            ))
        })?;
        let version = serde_json::from_str::<serde_json::Value>(card)
            .ok()
            .and_then(|card| card.get("version")?.as_u64())
            .ok_or_else(|| wrong("the model card is malformed".into()))?;
        if version != u64::from(VERSION) {
            return Err(wrong(format!(
                "model card of version {version}, this program reads version {VERSION}"
            )));
        }
        let card: ModelCard = serde_json::from_str(card)
            .map_err(|error| wrong(format!("the model card is malformed: {error}")))?;
        let cohort = checkpoint.tensors.remove(COHORT);
        if data_hash(&checkpoint.tensors)? != card.tensors_sha256 {
            return Err(wrong("damaged: the tensors are not those that were written".into()));
        }
        checkpoint::check_finite(&checkpoint.tensors, path)?;
        let numbers: usize = checkpoint.tensors.values().map(Tensor::elem_count).sum();
        check_size(&card, numbers).map_err(wrong)?;
        let cohort = cohort
            .map(|rows| Embeddings::of_tensor(&card.tensors_sha256, &rows))
            .transpose()
            .map_err(|error| wrong(format!("cohort: {error}")))?;
        Ok(Self { card, tensors: checkpoint.tensors, cohort, path: path.to_path_buf() })
    }
}

/// Fails when a file of so many `numbers` cannot hold the networks of `card`. Memory is set aside for
/// missing tensors before they are reported, which is why only little may be missing.
fn check_size(card: &ModelCard, numbers: usize) -> Result<(), String> {
    const MOST_MISSING: usize = 16;
    let most = numbers.saturating_mul(MOST_MISSING);
    let mut needed = 0u64;
    for network in card.networks() {
        let ends = network.features.saturating_add(network.embedding);
        let size = if ends <= most { cost::parameters(network) } else { u64::MAX };
        needed = needed.saturating_add(size);
    }
    if needed <= most as u64 {
        return Ok(());
    }
    Err(format!("{numbers} numbers are too few for the networks of the sizes in the model card"))
}

/// One second of noise whose loudness rises and falls four times.
fn self_test_signal() -> Vec<f32> {
    let mut stream = Stream::new(0, "self-test", 0);
    (0..SELF_TEST_SAMPLES)
        .map(|t| {
            let phase = t as f64 / SELF_TEST_SAMPLES as f64 * 4.0 * std::f64::consts::TAU;
            (0.1 * (1.0 - phase.cos()) * stream.normal()) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use shared::nn::Weights;

    use super::*;

    fn card() -> ModelCard {
        let network = NetworkConfig::published("1.16.16.3.3.24".parse().unwrap());
        let mut card = ModelCard::new(network, FrontendConfig::default(), WindowConfig::default());
        card.calibration = Some(Calibration { slope: 20.0, offset: -5.0 });
        card.scoring = Scoring::AdaptiveSNorm { top: 300 };
        card
    }

    fn model(storage: DType) -> ModelFile {
        let weights = Weights::fresh(6, DType::F32, &Device::Cpu);
        Subnet::new(card().network, &weights).unwrap();
        ModelFile::new(card(), &weights.state(), storage).unwrap()
    }

    #[test]
    fn a_file_holds_the_whole_model() {
        let folder = tempfile::tempdir().unwrap();
        for storage in [DType::F32, DType::F16, DType::BF16] {
            let path = folder.path().join(format!("{}.safetensors", storage.as_str()));
            let written = model(storage);
            written.write(&path, false).unwrap();
            assert!(matches!(written.write(&path, false), Err(Error::Exists { .. })));
            let read = ModelFile::read(&path, &Limits::default()).unwrap();
            assert_eq!(read.card, written.card);
            assert_eq!(read.card.scoring, Scoring::AdaptiveSNorm { top: 300 });
            assert_eq!(read.tensors["layer1.conv.weight"].dtype(), storage);
            assert_eq!(read.tensors["layer1.bn.running_var"].dtype(), DType::F32);
            let bytes = std::fs::read(&path).unwrap();
            let embedded = ModelFile::from_bytes(&bytes, &path, &Limits::default()).unwrap();
            assert_eq!(embedded.card, read.card);
            let embedder = read.embedder(&Device::Cpu).unwrap();
            assert!(read.self_test(&embedder).unwrap() > 0.999_99);
        }
    }

    #[test]
    fn another_network_fails_the_self_test() {
        let (model, mut other) = (model(DType::F32), model(DType::F32));
        for (name, tensor) in &mut other.tensors {
            if name.ends_with("conv.weight") {
                *tensor = tensor.neg().unwrap();
            }
        }
        assert!(model.self_test(&other.embedder(&Device::Cpu).unwrap()).is_err());
    }

    #[test]
    fn damaged_and_foreign_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let model = model(DType::F32);
        let refusal = || ModelFile::read(&path, &Limits::default()).unwrap_err().to_string();

        safetensors::write(&path, &model.tensors, &BTreeMap::new(), true).unwrap();
        assert!(refusal().contains("no speaker model"));

        model.write(&path, true).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(refusal().contains("damaged"));

        let mut newer = model.clone();
        newer.card.version = 2;
        newer.write(&path, true).unwrap();
        assert!(refusal().contains("version 2"));
    }
}
