//! Recognisers: an encoder, a head on top of it, and what the head's classes stand for.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use shared::Result;
use shared::nn::functional::log_softmax;
use shared::nn::{Dropout, Linear, Weights};

use crate::config::NetworkConfig;
use crate::heads::{LayerMixture, RecurrentHead, RecurrentSize};
use crate::network::{Encoded, Network};
use crate::speech_encoder::Output;
use crate::vocabulary::Vocabulary;

/// Prefix of the encoder's tensors.
pub const NETWORK: &str = "network";

/// What of the encoder a head hears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Features {
    /// The final output.
    #[default]
    Last,
    /// A learned mean of all hidden states, as in SUPERB.
    Mixture,
}

/// The layers between the encoder and the classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum HeadConfig {
    /// One linear layer.
    #[default]
    Linear,
    /// Bidirectional LSTMs between two linear layers, as in SUPERB.
    Recurrent {
        /// Features after the first linear layer.
        projected: usize,
        /// Hidden features of an LSTM in each direction.
        hidden: usize,
        /// Number of LSTMs.
        layers: usize,
    },
}

/// A recogniser's sizes and its classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecogniserConfig {
    /// The encoder.
    pub network: NetworkConfig,
    /// What the head hears of it.
    pub features: Features,
    /// The head.
    pub head: HeadConfig,
    /// What the classes stand for.
    pub vocabulary: Vocabulary,
}

enum HeadLayers {
    Linear(Linear),
    Recurrent(RecurrentHead),
}

/// What a recogniser has on top of its encoder. Parameters: `mixture.weights` and those of the layers
/// below `head`.
pub struct Head {
    mixture: Option<LayerMixture>,
    layers: HeadLayers,
}

impl Head {
    fn new(config: &RecogniserConfig, weights: &Weights) -> Result<Self> {
        let RecogniserConfig { network, features, head, vocabulary } = config;
        let (inputs, classes) = (network.subnet.embed_dim(), vocabulary.classes());
        let states = network.subnet.depth() + 1;
        let mixture = || LayerMixture::new(&weights.at("mixture"), states);
        let mixture = (*features == Features::Mixture).then(mixture).transpose()?;
        let weights = weights.at("head");
        let layers = match *head {
            HeadConfig::Linear => HeadLayers::Linear(Linear::new(&weights, inputs, classes, true)?),
            HeadConfig::Recurrent { projected, hidden, layers } => {
                let size = RecurrentSize { inputs, projected, hidden, layers, classes };
                HeadLayers::Recurrent(RecurrentHead::new(&weights, size)?)
            }
        };
        Ok(Self { mixture, layers })
    }

    /// The logits `[B, T, classes]` for an encoder's results, of which `frames[b]` frames count; `dropout`
    /// leaves out some of the features.
    ///
    /// # Errors
    /// When the results are of another encoder, or the shapes do not fit.
    pub fn logits(
        &self,
        encoded: &Encoded,
        frames: &[usize],
        dropout: Option<&Dropout>,
    ) -> Result<Tensor> {
        let mut features = match &self.mixture {
            Some(mixture) => mixture.forward(&encoded.hidden_states)?,
            None => encoded.x.clone(),
        };
        if let Some(dropout) = dropout {
            features = dropout.forward(&features, "head")?;
        }
        match &self.layers {
            HeadLayers::Linear(head) => head.forward(&features),
            HeadLayers::Recurrent(head) => head.forward(&features, frames, dropout),
        }
    }
}

impl Output for Head {
    /// Logarithms of the classes' probabilities, `[B, T, classes]`.
    fn select(&self, encoded: &Encoded, frames: &[usize]) -> Result<Tensor> {
        log_softmax(&self.logits(encoded, frames, None)?, 2)
    }
}

/// A network that gives each frame a distribution over the classes of a vocabulary, one of which is
/// CTC's blank (Graves et al. 2006). Parameters: those of [`Network`] below `network`, and those of
/// [`Head`].
pub struct Recogniser {
    /// The encoder.
    pub network: Network,
    /// What is on top of it.
    pub head: Head,
    /// What the classes stand for.
    pub vocabulary: Vocabulary,
}

impl Recogniser {
    /// The recogniser of `config`.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn new(config: &RecogniserConfig, weights: &Weights) -> Result<Self> {
        Ok(Self {
            network: Network::new(config.network.clone(), &weights.at(NETWORK))?,
            head: Head::new(config, weights)?,
            vocabulary: config.vocabulary.clone(),
        })
    }

    /// Frames of so many samples.
    pub fn frames(&self, samples: usize) -> usize {
        self.network.config().encoder.extractor.frames(samples)
    }
}
