//! A model as one file: safetensors whose metadata holds all that is needed to use it.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use shared::checkpoint::{self, Checkpoint, data_hash, safetensors};
use shared::limits::Limits;
use shared::nn::Weights;
use shared::rng::Stream;
use shared::{Error, Result};

use crate::config::{NetworkConfig, RATE_HZ, SupernetConfig};
use crate::cost;
use crate::hugging_face::{self, Imported};
use crate::network::{Conditions, Network, check_count};
use crate::published::{self, Published};
use crate::recogniser::{self, Features, Recogniser, RecogniserConfig};
use crate::space::SpaceName;
use crate::speech_encoder::ChunkConfig;
use crate::subnet::Subnet;
use crate::supernet::{Supernet, part_of_network};
use crate::transcriber::DecodingConfig;
use crate::vocabulary::Vocabulary;

/// Metadata entry that holds the card.
const CARD: &str = "lighthubert";
/// Version of the card that this program writes and reads.
const VERSION: u32 = 1;
/// Least cosine between the features of the self-test and those in the card.
const SELF_TEST_COSINE: f64 = 0.999;

/// What kind of model it is, and its sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Sizes {
    /// All subnets at once.
    Supernet {
        /// Sizes of the largest.
        config: SupernetConfig,
        /// The search space that it was trained for, where it is known.
        space: Option<SpaceName>,
    },
    /// One network.
    Network {
        /// Its sizes.
        config: NetworkConfig,
    },
    /// A network with a head that recognises speech.
    Recogniser {
        /// Its sizes and classes.
        config: Box<RecogniserConfig>,
    },
}

/// What a written model is checked by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// SHA-256 of the tensors, see [`data_hash`].
    pub tensors_sha256: String,
    /// What the self-test must give: the mean of the final output over time, of the network that
    /// is meant when none is named.
    pub self_test: Vec<f32>,
}

/// What a model file says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCard {
    version: u32,
    /// Kind and sizes.
    pub sizes: Sizes,
    /// How long recordings are cut for it.
    pub chunks: ChunkConfig,
    /// How a recogniser's results are best turned into text, found on a development set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoding: Option<DecodingConfig>,
    /// How the model came about.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub provenance: serde_json::Map<String, serde_json::Value>,
    /// There once the model was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Seal>,
}

/// A model in memory.
#[derive(Clone, Debug)]
pub struct ModelFile {
    /// What it says about itself.
    pub card: ModelCard,
    /// Its tensors, under the names of [`Network`], [`Supernet`] or [`Recogniser`].
    pub tensors: BTreeMap<String, Tensor>,
    /// What was left out when it was read from a file of another form, a sentence each.
    pub notes: Vec<String>,
    /// Where it was read from, for messages.
    path: PathBuf,
}

impl ModelFile {
    /// A model of `tensors` as they are.
    pub fn new(sizes: Sizes, tensors: BTreeMap<String, Tensor>) -> Self {
        let chunks = ChunkConfig::default();
        let card = ModelCard {
            version: VERSION,
            sizes,
            chunks,
            decoding: None,
            provenance: serde_json::Map::new(),
            seal: None,
        };
        Self { card, tensors, notes: vec![], path: "model".into() }
    }

    /// The model at `path`: a file of this program, a checkpoint of LightHuBERT or HuBERT (see
    /// [`published`]), or a folder in Hugging Face's layout (see [`hugging_face`]).
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when it is none of these, of a later version, or damaged;
    /// [`Error::NonFinite`].
    pub fn read(path: &Path, limits: &Limits) -> Result<Self> {
        let model = if path.is_dir() {
            if !hugging_face::is_model(path) {
                return Err(Error::checkpoint(path, "no model: the folder has no config.json"));
            }
            Self::of_hugging_face(hugging_face::read(path, limits)?)
        } else {
            let checkpoint = checkpoint::read(path, limits)?;
            match checkpoint.metadata.contains_key(CARD) {
                true => Self::of_checkpoint(checkpoint, path)?,
                false => Self::of_published(published::of_checkpoint(checkpoint, path)?)?,
            }
        };
        Ok(Self { path: path.to_path_buf(), ..model })
    }

    /// The model in `bytes`, the content of a file of this program; `name` is for messages.
    ///
    /// # Errors
    /// As [`ModelFile::read`].
    pub fn from_bytes(bytes: &[u8], name: &Path, limits: &Limits) -> Result<Self> {
        Self::of_checkpoint(checkpoint::read_bytes(bytes, name, limits)?, name)
    }

    /// Writes the model to the file `path`, whole or not at all, with matrices and kernels as `storage`
    /// (f32, f16 or bf16). Vectors, which are few and reach further, stay f32.
    ///
    /// # Errors
    /// [`Error::Exists`] when the file is there and `force` is not given; [`Error::Io`]; when the
    /// tensors are not the model's, or its features are not finite.
    pub fn write(&self, path: &Path, storage: DType, force: bool) -> Result<()> {
        if ![DType::F32, DType::F16, DType::BF16].contains(&storage) {
            let found = storage.as_str();
            return Err(Error::Argument(format!(
                "models are stored as f32, f16 or bf16, not {found}"
            )));
        }
        let stored = |(name, tensor): (&String, &Tensor)| {
            let dtype = if tensor.rank() >= 2 { storage } else { DType::F32 };
            Ok((name.clone(), tensor.detach().to_device(&Device::Cpu)?.to_dtype(dtype)?))
        };
        let tensors: BTreeMap<String, Tensor> =
            self.tensors.iter().map(stored).collect::<Result<_>>()?;
        let tensors_sha256 = data_hash(&tensors)?;
        let mut model = Self { tensors, ..self.clone() };
        let self_test = self_test_features(&model.network(None, &Device::Cpu)?)?;
        model.card.seal = Some(Seal { tensors_sha256, self_test });
        let card = serde_json::to_string(&model.card)
            .map_err(|error| Error::Argument(format!("model card: {error}")))?;
        let metadata = BTreeMap::from([(CARD.to_string(), card)]);
        safetensors::write(path, &model.tensors, &metadata, force)
    }

    /// The network with frozen weights, ready for use on `device`: of a supernet `subnet`, or
    /// [`ModelFile::default_subnet`].
    ///
    /// # Errors
    /// [`Error::Tensors`] when the tensors are not the model's; [`Error::Argument`] when the subnet is
    /// not within the supernet, or the model is a network already.
    pub fn network(&self, subnet: Option<&Subnet>, device: &Device) -> Result<Network> {
        let (config, tensors) = self.plain(subnet)?;
        Ok(Network::from_tensors(config, tensors, &self.path, false, device)?.0)
    }

    /// Sizes and tensors of [`ModelFile::network`].
    ///
    /// # Errors
    /// As [`ModelFile::network`].
    pub fn plain(
        &self,
        subnet: Option<&Subnet>,
    ) -> Result<(NetworkConfig, BTreeMap<String, Tensor>)> {
        let (config, tensors) = match &self.card.sizes {
            Sizes::Network { config } => (config, self.tensors.clone()),
            Sizes::Recogniser { config } => {
                let prefix = format!("{}.", recogniser::NETWORK);
                let within = |(name, tensor): (&String, &Tensor)| {
                    Some((name.strip_prefix(&prefix)?.to_owned(), tensor.clone()))
                };
                (&config.network, self.tensors.iter().filter_map(within).collect())
            }
            Sizes::Supernet { .. } => {
                let subnet = subnet.cloned().unwrap_or_else(|| self.default_subnet());
                return self.supernet(&Device::Cpu)?.materialise(&subnet);
            }
        };
        match subnet {
            None => Ok((config.clone(), tensors)),
            Some(subnet) => part_of_network(config, &tensors, subnet),
        }
    }

    /// A model of one network: of a supernet `subnet`, or [`ModelFile::default_subnet`]; of a network or
    /// recogniser its part of these sizes, see [`part_of_network`]. A recogniser keeps its head,
    /// prediction heads stay only with `keep_heads`.
    ///
    /// # Errors
    /// As [`ModelFile::network`]; when the recogniser's head hears all layers and some would be gone.
    pub fn extract(&self, subnet: Option<&Subnet>, keep_heads: bool) -> Result<Self> {
        let (mut config, mut tensors) = self.plain(subnet)?;
        if !keep_heads {
            config.encoder.heads.counts.fill(0);
            tensors.retain(|name, _| !name.starts_with("layer_pred_heads."));
        }
        let sizes = match &self.card.sizes {
            Sizes::Recogniser { config: whole } => {
                let is_shorter = config.subnet.depth() < whole.network.subnet.depth();
                if whole.features == Features::Mixture && is_shorter {
                    return Err(Error::Argument(
                        "the head of this recogniser hears all layers: layer_num cannot be changed"
                            .into(),
                    ));
                }
                let prefix = format!("{}.", recogniser::NETWORK);
                let named = |(name, tensor)| (format!("{prefix}{name}"), tensor);
                tensors = tensors.into_iter().map(named).collect();
                let head = self.tensors.iter().filter(|(name, _)| !name.starts_with(&prefix));
                tensors.extend(head.map(|(name, tensor)| (name.clone(), tensor.clone())));
                let config = RecogniserConfig { network: config, ..(**whole).clone() };
                Sizes::Recogniser { config: Box::new(config) }
            }
            _ => Sizes::Network { config },
        };
        let mut model = Self::new(sizes, tensors);
        model.card.chunks = self.card.chunks;
        model.card.decoding = self.card.decoding;
        model.card.provenance = self.card.provenance.clone();
        Ok(model)
    }

    /// The supernet with frozen weights.
    ///
    /// # Errors
    /// When the model is one network; [`Error::Tensors`].
    pub fn supernet(&self, device: &Device) -> Result<Supernet> {
        match &self.card.sizes {
            Sizes::Supernet { config, .. } => {
                let tensors = self.tensors.clone();
                Ok(Supernet::from_tensors(config.clone(), tensors, &self.path, device)?.0)
            }
            Sizes::Network { .. } | Sizes::Recogniser { .. } => {
                Err(Error::Argument(format!("{}: is no supernet", self.path.display())))
            }
        }
    }

    /// What the classes of a recogniser stand for; `None` of other models.
    pub fn vocabulary(&self) -> Option<&Vocabulary> {
        match &self.card.sizes {
            Sizes::Recogniser { config } => Some(&config.vocabulary),
            _ => None,
        }
    }

    /// The recogniser with frozen weights.
    ///
    /// # Errors
    /// When the model is none; [`Error::Tensors`].
    pub fn recogniser(&self, device: &Device) -> Result<Recogniser> {
        let Sizes::Recogniser { config } = &self.card.sizes else {
            return Err(Error::Argument(format!(
                "{}: has no head that recognises speech; make a recogniser of it with `lighthubert \
                 finetune`",
                self.path.display()
            )));
        };
        check_count(&self.path, &self.tensors, cost::plain_parameters(&config.network))?;
        let tensors = self.tensors.clone();
        let weights = Weights::loaded(tensors, &self.path, false, DType::F32, device);
        let recogniser = Recogniser::new(config, &weights)?;
        weights.check(false)?;
        Ok(recogniser)
    }

    /// The subnet that is meant when none is named: the one whose results are published, the largest
    /// where none is; of one network, itself.
    pub fn default_subnet(&self) -> Subnet {
        match &self.card.sizes {
            Sizes::Network { config } => config.subnet.clone(),
            Sizes::Recogniser { config } => config.network.subnet.clone(),
            Sizes::Supernet { config, space } => {
                let published = space.map(SpaceName::default_subnet);
                let fitting = published.filter(|subnet| subnet.check_within(config).is_ok());
                fitting.unwrap_or_else(|| config.largest())
            }
        }
    }

    /// The cosine between the features that the model gives for a synthetic signal and those that
    /// were stored with it; `None` for a model that this program did not write.
    ///
    /// # Errors
    /// [`Error::Argument`] when it is below 0.999: this build or device does not compute what the
    /// model was made with.
    pub fn self_test(&self, device: &Device) -> Result<Option<f64>> {
        let Some(seal) = &self.card.seal else { return Ok(None) };
        let found = self_test_features(&self.network(None, device)?)?;
        let sum = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let expected = &seal.self_test;
        let cosine = sum(&found, expected) / (sum(&found, &found) * sum(expected, expected)).sqrt();
        // Written so that NaN fails.
        if cosine >= SELF_TEST_COSINE && found.len() == expected.len() {
            return Ok(Some(cosine));
        }
        Err(Error::Argument(format!(
            "self-test of the model: the features have a cosine of {cosine:.4} with the expected ones, \
             where {SELF_TEST_COSINE} is needed; do not trust this build's features"
        )))
    }

    fn of_hugging_face(imported: Imported) -> Self {
        let sizes = Sizes::Network { config: imported.config };
        Self { notes: imported.notes, ..Self::new(sizes, imported.tensors) }
    }

    /// A supernet; HuBERT, which has no subnets, as the network that it is.
    fn of_published(published: Published) -> Result<Self> {
        let Published { supernet, space, notes, .. } = published;
        let config = supernet.config().clone();
        if space.is_none() && config.encoder.heads.is_empty() {
            let (config, tensors) = supernet.materialise(&config.largest())?;
            return Ok(Self { notes, ..Self::new(Sizes::Network { config }, tensors) });
        }
        let tensors = supernet.tensors().clone();
        Ok(Self { notes, ..Self::new(Sizes::Supernet { config, space }, tensors) })
    }

    fn of_checkpoint(checkpoint: Checkpoint, path: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::checkpoint(path, reason);
        let card = checkpoint.metadata.get(CARD).ok_or_else(|| {
            wrong(format!("no speech encoder: the metadata entry {CARD:?} is missing"))
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
        let hash = card.seal.as_ref().map(|seal| seal.tensors_sha256.as_str());
        if hash != Some(&data_hash(&checkpoint.tensors)?) {
            return Err(wrong("damaged: the tensors are not those that were written".into()));
        }
        checkpoint::check_finite(&checkpoint.tensors, path)?;
        let (tensors, notes) = (checkpoint.tensors, checkpoint.notes);
        Ok(Self { card, tensors, notes, path: path.to_path_buf() })
    }
}

/// The mean final output over one second of noise whose loudness rises and falls four times.
fn self_test_features(network: &Network) -> Result<Vec<f32>> {
    let samples = RATE_HZ as usize;
    let mut stream = Stream::new(0, "self-test", 0);
    let signal: Vec<f32> = (0..samples)
        .map(|t| {
            let phase = t as f64 / samples as f64 * 4.0 * std::f64::consts::TAU;
            ((1.0 - phase.cos()) * stream.normal()) as f32
        })
        .collect();
    let source = Tensor::from_vec(signal, (1, samples), network.device())?;
    let features = network.forward(&source, &Conditions::default())?.x;
    let mean: Vec<f32> = features.mean(1)?.squeeze(0)?.to_vec1()?;
    match mean.iter().all(|value| value.is_finite()) {
        true => Ok(mean),
        false => Err(Error::NonFinite { what: "a feature of the self-test".into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ExtractorMode;
    use crate::tiny;

    fn model() -> ModelFile {
        let supernet = tiny::supernet(ExtractorMode::LayerNorm);
        let config = supernet.config().clone();
        ModelFile::new(Sizes::Supernet { config, space: None }, supernet.tensors().clone())
    }

    #[test]
    fn a_file_holds_the_whole_model() {
        let folder = tempfile::tempdir().unwrap();
        for storage in [DType::F32, DType::F16, DType::BF16] {
            let path = folder.path().join(format!("{}.safetensors", storage.as_str()));
            let written = model();
            written.write(&path, storage, false).unwrap();
            assert!(matches!(written.write(&path, storage, false), Err(Error::Exists { .. })));
            let read = ModelFile::read(&path, &Limits::default()).unwrap();
            assert_eq!(read.card.sizes, written.card.sizes);
            assert_eq!(read.tensors["post_extract_proj.weight"].dtype(), storage);
            assert_eq!(read.tensors["mask_emb"].dtype(), DType::F32);
            assert!(read.self_test(&Device::Cpu).unwrap() > Some(0.999_99));
            let subnet = Subnet::new(64, read.default_subnet().layers()[..6].to_vec());
            let (config, tensors) = read.plain(Some(&subnet)).unwrap();
            let plain = ModelFile::new(Sizes::Network { config }, tensors);
            plain.write(&path, storage, true).unwrap();
            let plain = ModelFile::read(&path, &Limits::default()).unwrap();
            assert_eq!(plain.default_subnet(), subnet);
            assert!(plain.network(None, &Device::Cpu).is_ok());
            // A network has parts, too, which are no larger than it is.
            let mut layers = subnet.layers()[..3].to_vec();
            layers.iter_mut().for_each(|layer| layer.ffn = 32);
            let part = plain.extract(Some(&Subnet::new(64, layers.clone())), false).unwrap();
            let tensor = |model: &ModelFile, name: &str| -> Vec<Vec<f32>> {
                model.tensors[name].to_dtype(DType::F32).unwrap().to_vec2().unwrap()
            };
            let whole = tensor(&plain, "encoder.layers.2.fc1.weight");
            assert_eq!(tensor(&part, "encoder.layers.1.fc1.weight"), whole[..32]);
            assert!(part.network(None, &Device::Cpu).is_ok());
            layers[1].ffn = 100_000;
            let refused = plain.extract(Some(&Subnet::new(64, layers)), false).unwrap_err();
            assert!(refused.to_string().contains("ffn_embed of layer 1 is 100000"), "{refused}");
            assert!(plain.network(Some(&read.default_subnet()), &Device::Cpu).is_err());
        }
    }

    #[test]
    fn damaged_and_foreign_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let model = model();
        let refusal = || ModelFile::read(&path, &Limits::default()).unwrap_err().to_string();
        safetensors::write(&path, &BTreeMap::new(), &BTreeMap::new(), true).unwrap();
        assert!(refusal().contains("no speech encoder"));
        model.write(&path, DType::F32, true).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(refusal().contains("damaged"));
        let mut newer = model.clone();
        newer.card.version = 2;
        newer.write(&path, DType::F32, true).unwrap();
        assert!(refusal().contains("version 2"));
        // A card that promises far more than the file holds.
        let mut larger = model.clone();
        if let Sizes::Supernet { config, .. } = &mut larger.card.sizes {
            config.ffn_embed_dim = 65_536;
        }
        assert!(larger.network(None, &Device::Cpu).err().unwrap().to_string().contains("numbers"));
    }

    #[test]
    fn another_network_fails_the_self_test() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        model().write(&path, DType::F32, false).unwrap();
        let mut other = ModelFile::read(&path, &Limits::default()).unwrap();
        for (name, tensor) in &mut other.tensors {
            if name.ends_with("fc2.weight") {
                *tensor = tensor.neg().unwrap();
            }
        }
        assert!(other.self_test(&Device::Cpu).is_err());
    }
}
