//! A model as one file: safetensors whose metadata holds all that is needed to use it.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use shared::checkpoint::{self, Checkpoint, data_hash, safetensors};
use shared::limits::Limits;
use shared::nn::{Precision, Weights};
use shared::{Error, Result};

use crate::config::DiffusionFlags;
use crate::network::{Network, NetworkConfig};
use crate::{CoupledUnet, SuperResolutionUnet};

/// Metadata entry that holds the card.
const CARD: &str = "mmdiffusion";
/// Version of the card that this program writes and reads.
const VERSION: u32 = 1;

/// What a model file says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCard {
    version: u32,
    /// Which network it is, and its settings.
    pub network: NetworkConfig,
    /// The diffusion that it was trained for.
    pub diffusion: DiffusionFlags,
    /// Frames a second of the video that it was trained on.
    pub frames_per_second: f64,
    /// Sampling rate of the sound that it was trained on.
    pub rate_hz: u32,
    /// How the model came about.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub provenance: serde_json::Map<String, serde_json::Value>,
    /// SHA-256 of the tensors, see [`data_hash`].
    tensors_sha256: String,
}

impl ModelCard {
    /// The card of a network trained as the published ones: on 10 frames and 16000 samples a second.
    pub fn new(network: NetworkConfig, diffusion: DiffusionFlags) -> Self {
        Self {
            version: VERSION,
            network,
            diffusion,
            frames_per_second: 10.0,
            rate_hz: 16_000,
            provenance: serde_json::Map::new(),
            tensors_sha256: String::new(),
        }
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
    /// The network's tensors, in the dtype in which they are stored.
    pub tensors: BTreeMap<String, Tensor>,
    /// Where it was read from, for messages.
    pub(crate) path: PathBuf,
}

impl ModelFile {
    /// A model of `tensors` to be written with matrices and kernels as `storage` (f32, f16 or bf16).
    /// Vectors, which are few and reach further, stay f32.
    ///
    /// # Errors
    /// [`Error::Tensors`] when the tensors are not the network's.
    pub fn new(
        mut card: ModelCard,
        tensors: &BTreeMap<String, Tensor>,
        storage: DType,
    ) -> Result<Self> {
        if ![DType::F32, DType::F16, DType::BF16].contains(&storage) {
            return Err(Error::Argument(format!(
                "models are stored as f32, f16 or bf16, not {}",
                storage.as_str()
            )));
        }
        let path = PathBuf::from("model");
        check_tensors(&card.network, tensors, &path)?;
        let stored = tensors.iter().map(|(name, tensor)| {
            let dtype = if tensor.rank() >= 2 { storage } else { DType::F32 };
            Ok((name.clone(), tensor.detach().to_device(&Device::Cpu)?.to_dtype(dtype)?))
        });
        let tensors: BTreeMap<String, Tensor> = stored.collect::<Result<_>>()?;
        card.tensors_sha256 = data_hash(&tensors)?;
        Ok(Self { card, tensors, path })
    }

    /// The model in the file `path`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when it is no model of this program, of a later version, or damaged;
    /// [`Error::Tensors`] when its tensors are not those of the network in its card;
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
        safetensors::write(path, &self.tensors, &metadata, force)
    }

    /// The network with frozen weights, whose convolutions compute in `precision`. The file's tensors
    /// are let go one by one, so that they are never in memory twice.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn into_network(self, precision: Precision, device: &Device) -> Result<Network> {
        let Self { card, tensors, path } = self;
        let weights = Weights::loaded(tensors, &path, false, DType::F32, device);
        let network = card.network.build(&weights, precision)?;
        weights.check(false)?;
        Ok(network)
    }

    /// [`ModelFile::into_network`] for what should be a coupled network.
    ///
    /// # Errors
    /// Also [`Error::Checkpoint`] when it is another one.
    pub fn into_coupled(self, precision: Precision, device: &Device) -> Result<CoupledUnet> {
        let wrong = self.is_not("coupled network of picture and sound");
        match self.into_network(precision, device)? {
            Network::Coupled(network) => Ok(*network),
            Network::SuperResolution(_) => Err(wrong),
        }
    }

    /// [`ModelFile::into_network`] for what should be a super-resolution network.
    ///
    /// # Errors
    /// Also [`Error::Checkpoint`] when it is another one.
    pub fn into_super_resolution(
        self,
        precision: Precision,
        device: &Device,
    ) -> Result<SuperResolutionUnet> {
        let wrong = self.is_not("super-resolution network");
        match self.into_network(precision, device)? {
            Network::SuperResolution(network) => Ok(*network),
            Network::Coupled(_) => Err(wrong),
        }
    }

    fn is_not(&self, expected: &str) -> Error {
        let found = self.card.network.kind();
        Error::checkpoint(&self.path, format!("expected a {expected}, found a {found}"))
    }

    fn of_checkpoint(checkpoint: Checkpoint, path: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::checkpoint(path, reason);
        let card = checkpoint.metadata.get(CARD).ok_or_else(|| {
            wrong(format!(
                "no model of MM-Diffusion: the metadata entry {CARD:?} is missing; published \
                 weights need `mmdiffusion convert` first"
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
        let rate = card.frames_per_second;
        if !(rate > 0.0 && rate.is_finite() && card.rate_hz > 0) {
            return Err(wrong(format!("{rate} frames and {} samples a second", card.rate_hz)));
        }
        if data_hash(&checkpoint.tensors)? != card.tensors_sha256 {
            return Err(wrong("damaged: the tensors are not those that were written".into()));
        }
        checkpoint::check_finite(&checkpoint.tensors, path)?;
        check_tensors(&card.network, &checkpoint.tensors, path)?;
        Ok(Self { card, tensors: checkpoint.tensors, path: path.to_path_buf() })
    }
}

/// Fails unless `tensors` are exactly those of the network.
fn check_tensors(
    network: &NetworkConfig,
    tensors: &BTreeMap<String, Tensor>,
    path: &Path,
) -> Result<()> {
    let report = network.report(tensors)?;
    if report.fits(false) {
        return Ok(());
    }
    Err(Error::Tensors { path: path.to_path_buf(), report: report.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SuperResolutionConfig, UnetConfig};

    fn coupled() -> NetworkConfig {
        NetworkConfig::Coupled(UnetConfig {
            video_size: [2, 3, 4, 4],
            num_channels: 32,
            num_head_channels: Some(16),
            num_res_blocks: 1,
            channel_mult: vec![1, 1],
            cross_attention_resolutions: vec![2],
            cross_attention_windows: vec![1],
            ..UnetConfig::published()
        })
    }

    fn enlarging() -> NetworkConfig {
        NetworkConfig::SuperResolution(SuperResolutionConfig {
            num_channels: 32,
            channel_mult: vec![1],
            num_res_blocks: 1,
            ..SuperResolutionConfig::default()
        })
    }

    fn model(network: NetworkConfig, storage: DType) -> ModelFile {
        let weights = Weights::fresh(1, DType::F32, &Device::Cpu);
        network.build(&weights, Precision::F32).unwrap();
        let card = ModelCard::new(network, DiffusionFlags::default());
        ModelFile::new(card, &weights.state(), storage).unwrap()
    }

    #[test]
    fn a_file_holds_the_whole_model() {
        let folder = tempfile::tempdir().unwrap();
        for (i, network) in [coupled(), enlarging()].into_iter().enumerate() {
            for storage in [DType::F32, DType::F16, DType::BF16] {
                let path = folder.path().join(format!("{i}{}.safetensors", storage.as_str()));
                let written = model(network.clone(), storage);
                written.write(&path, false).unwrap();
                assert!(matches!(written.write(&path, false), Err(Error::Exists { .. })));
                let read = ModelFile::read(&path, &Limits::default()).unwrap();
                assert_eq!(read.card, written.card);
                assert_eq!(read.tensors["time_embed.0.weight"].dtype(), storage);
                assert_eq!(read.tensors["time_embed.0.bias"].dtype(), DType::F32);
                let bytes = std::fs::read(&path).unwrap();
                let embedded = ModelFile::from_bytes(&bytes, &path, &Limits::default()).unwrap();
                assert_eq!(embedded.card, read.card);
                read.into_network(Precision::F32, &Device::Cpu).unwrap();
            }
        }
    }

    #[test]
    fn the_networks_are_not_mistaken_for_each_other() {
        let (precision, device) = (Precision::F32, &Device::Cpu);
        assert!(model(coupled(), DType::F32).into_coupled(precision, device).is_ok());
        assert!(model(enlarging(), DType::F32).into_super_resolution(precision, device).is_ok());
        let error = model(enlarging(), DType::F32).into_coupled(precision, device).unwrap_err();
        assert!(error.to_string().contains("found a super-resolution network"), "{error}");
        assert!(model(coupled(), DType::F32).into_super_resolution(precision, device).is_err());
    }

    #[test]
    fn damaged_and_foreign_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let model = model(coupled(), DType::F32);
        let refusal = || ModelFile::read(&path, &Limits::default()).unwrap_err().to_string();

        safetensors::write(&path, &model.tensors, &BTreeMap::new(), true).unwrap();
        assert!(refusal().contains("no model of MM-Diffusion"));

        model.write(&path, true).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(refusal().contains("damaged"));

        let mut newer = model.clone();
        newer.card.version = 2;
        newer.write(&path, true).unwrap();
        assert!(refusal().contains("version 2"));

        let mut other = model.clone();
        if let NetworkConfig::Coupled(config) = &mut other.card.network {
            config.num_channels = 64;
        }
        other.write(&path, true).unwrap();
        let refusal = refusal();
        let expected = "audio_out.0.GroupNorm.bias: expected [64], found [32]";
        assert!(refusal.contains(expected), "{refusal}");
    }
}
