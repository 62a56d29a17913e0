//! A recogniser about to be trained.

use std::path::Path;

use candle_core::{DType, Device};
use shared::checkpoint::LoadReport;
use shared::nn::Weights;
use shared::{Error, Result};

use super::config::FinetuneConfig;
use super::filterbank;
use crate::model_file::{ModelFile, Sizes};
use crate::recogniser::{NETWORK, Recogniser, RecogniserConfig};
use crate::subnet::Subnet;
use crate::vocabulary::Vocabulary;

/// A recogniser and its weights, which training changes.
pub struct Start {
    /// Its sizes and classes.
    pub config: RecogniserConfig,
    /// The recogniser.
    pub recogniser: Recogniser,
    /// Its weights.
    pub weights: Weights,
    /// What came of taking them from a model, if that was asked for.
    pub report: Option<LoadReport>,
}

impl Start {
    /// A recogniser that begins at random.
    ///
    /// # Errors
    /// When the settings have no network, or one that makes no sense.
    pub fn random(
        config: &FinetuneConfig,
        vocabulary: Vocabulary,
        device: &Device,
    ) -> Result<Self> {
        let network = config.network.clone().ok_or_else(|| {
            Error::Argument(
                "fine-tuning begins with a model (--init), or with the `network` of the settings at \
                 random: there is neither"
                    .into(),
            )
        })?;
        let (features, head) = (config.features, config.head);
        let sizes = RecogniserConfig { network, features, head, vocabulary };
        let weights = Weights::fresh(config.seed, DType::F32, device);
        let recogniser = Recogniser::new(&sizes, &weights)?;
        if config.filterbank {
            let extractor = &sizes.network.encoder.extractor;
            filterbank::fill(extractor, &weights.at(NETWORK).at("feature_extractor"))?;
        }
        Ok(Self { config: sizes, recogniser, weights, report: None })
    }

    /// A recogniser whose encoder is that of `model`, of a supernet its `subnet`, without prediction heads.
    /// A model that is a recogniser of the same classes and form gives its head, too.
    ///
    /// # Errors
    /// [`Error::Tensors`] when the tensors do not fit; as [`ModelFile::plain`].
    pub fn of_model(
        config: &FinetuneConfig,
        vocabulary: Vocabulary,
        model: &ModelFile,
        subnet: Option<&Subnet>,
        device: &Device,
    ) -> Result<Self> {
        if config.network.is_some() {
            return Err(Error::Argument(
                "the settings say of which sizes the network is, which --init says already; leave \
                 `network` out"
                    .into(),
            ));
        }
        let (mut network, tensors) = model.plain(subnet)?;
        network.encoder.heads.counts.fill(0);
        let (features, head) = (config.features, config.head);
        let sizes = RecogniserConfig { network, features, head, vocabulary };
        let is_same = match &model.card.sizes {
            Sizes::Recogniser { config } => **config == sizes,
            _ => false,
        };
        let tensors = match is_same {
            true => model.tensors.clone(),
            false => tensors
                .into_iter()
                .filter(|(name, _)| !name.starts_with("layer_pred_heads."))
                .map(|(name, tensor)| (format!("{NETWORK}.{name}"), tensor))
                .collect(),
        };
        let origin = Path::new("the model of --init");
        let weights = Weights::loaded(tensors, origin, true, DType::F32, device);
        let recogniser = Recogniser::new(&sizes, &weights)?;
        // What only a head lacks begins at random.
        let is_new = |name: &String| !is_same && !name.starts_with(&format!("{NETWORK}."));
        let only_new = weights.report().missing.iter().all(is_new);
        let report = weights.check(only_new)?;
        Ok(Self { config: sizes, recogniser, weights, report: Some(report) })
    }
}
