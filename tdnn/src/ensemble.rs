//! Several networks in one model file: an ensemble.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::collections::BTreeMap;

use candle_core::Tensor;
use shared::{Error, Result};

use crate::architecture::NetworkConfig;
use crate::model_file::{ModelCard, ModelFile};

/// What the names of the tensors of network `place` begin with.
fn prefix(place: usize) -> String {
    place.checked_sub(1).map_or_else(String::new, |further| format!("further.{further}."))
}

/// Size and tensors of each network. Tensors that belong to none are with the first, which will refuse
/// them.
pub(crate) fn split(
    card: &ModelCard,
    tensors: &BTreeMap<String, Tensor>,
) -> Vec<(NetworkConfig, BTreeMap<String, Tensor>)> {
    let mut first = tensors.clone();
    let mut networks = vec![];
    for (place, config) in card.networks().enumerate().skip(1) {
        let prefix = prefix(place);
        let own = first.extract_if(.., |name, _| name.starts_with(&prefix));
        let own = own.map(|(name, tensor)| (name.replacen(&prefix, "", 1), tensor)).collect();
        networks.push((config.clone(), own));
    }
    networks.insert(0, (card.network.clone(), first));
    networks
}

impl ModelFile {
    /// The ensemble of the networks of `models`, see [`Embedder`](crate::Embedder). What depends on
    /// scores, calibration and cohort, is not known of it.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no model, or their front-ends or windows differ.
    pub fn combined(models: &[Self]) -> Result<Self> {
        let first = models
            .first()
            .ok_or_else(|| Error::Argument("there are no models to combine".into()))?;
        let ModelCard { network, frontend, windows, training_data_sha256, .. } = &first.card;
        let mut card = ModelCard::new(network.clone(), frontend.clone(), windows.clone());
        if models.iter().all(|model| model.card.training_data_sha256 == *training_data_sha256) {
            card.training_data_sha256.clone_from(training_data_sha256);
        }
        let mut tensors = BTreeMap::new();
        let mut provenance = vec![];
        for model in models {
            if (&model.card.frontend, &model.card.windows) != (frontend, windows) {
                return Err(Error::Argument(format!(
                    "{} has another front-end or other windows than {}; the networks of an ensemble \
                     must hear the same",
                    model.path.display(),
                    first.path.display()
                )));
            }
            for (config, own) in split(&model.card, &model.tensors) {
                let prefix = prefix(if tensors.is_empty() { 0 } else { card.further.len() + 1 });
                if !tensors.is_empty() {
                    card.further.push(config);
                }
                let own = own.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor));
                tensors.extend(own);
            }
            provenance.push(model.card.provenance.clone().into());
        }
        card.provenance.insert("networks".into(), serde_json::Value::Array(provenance));
        Self::of_tensors(card, tensors)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use shared::limits::Limits;
    use shared::nn::Weights;

    use super::*;
    use crate::embed::WindowConfig;
    use crate::frontend::FrontendConfig;
    use crate::subnet::Subnet;

    fn model(architecture: &str, seed: u64) -> ModelFile {
        let network = NetworkConfig::published(architecture.parse().unwrap());
        let weights = Weights::fresh(seed, DType::F32, &Device::Cpu);
        Subnet::new(network.clone(), &weights).unwrap();
        let card = ModelCard::new(network, FrontendConfig::default(), WindowConfig::default());
        ModelFile::new(card, &weights.state(), DType::F16).unwrap()
    }

    fn embedding(model: &ModelFile) -> Vec<f32> {
        let signal: Vec<f32> = (0..20_000).map(|t| (t as f32 * 0.1).sin()).collect();
        model.embedder(&Device::Cpu).unwrap().embed(&signal).unwrap()
    }

    #[test]
    fn networks_stay_what_they_are_in_an_ensemble_of_ensembles() {
        let [a, b, c] = [("1.16.16.3.3.24", 1), ("1.24.24.3.1.24", 2), ("1.16.16.3.3.24", 3)]
            .map(|(architecture, seed)| model(architecture, seed));
        let pair = ModelFile::combined(&[a.clone(), b.clone()]).unwrap();
        let all = ModelFile::combined(&[pair, c.clone()]).unwrap();
        let path = tempfile::tempdir().unwrap().path().join("all.safetensors");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        all.write(&path, false).unwrap();
        let read = ModelFile::read(&path, &Limits::default()).unwrap();
        let expected: Vec<f32> = [a, b, c].iter().flat_map(embedding).collect();
        let found = embedding(&read);
        assert_eq!(found.len(), expected.len());
        let scale = 3f32.sqrt();
        assert!(found.iter().zip(expected).all(|(f, e)| (f * scale - e).abs() < 1e-5));
    }

    #[test]
    fn what_is_not_an_ensemble_is_refused() {
        let mut a = model("1.16.16.3.3.24", 1);
        assert!(ModelFile::combined(&[]).is_err());
        let b = model("1.16.16.3.3.24", 2);
        a.card.frontend.pre_emphasis = 0.5;
        let refused = ModelFile::combined(&[a.clone(), b.clone()]).unwrap_err().to_string();
        assert!(refused.contains("another front-end"), "{refused}");
        // A further network that the card does not name, and one without tensors.
        let mut ensemble = ModelFile::combined(&[b.clone(), b.clone()]).unwrap();
        let further = ensemble.card.further.clone();
        ensemble.card.further.clear();
        assert!(ensemble.embedder(&Device::Cpu).is_err());
        ensemble.card.further = [further.clone(), further].concat();
        assert!(ensemble.embedder(&Device::Cpu).is_err());
    }
}
