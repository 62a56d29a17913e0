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

#[cfg(test)]
pub(crate) mod tests {
    use candle_core::{DType, Device};
    use shared::nn::functional::{CtcOptions, ctc_loss, ctc_mean};
    use shared::rng::Stream;
    use shared::train::Gradients;

    use super::*;
    use crate::config::{
        ConvLayer, EncoderConfig, ExtractorConfig, ExtractorMode, HeadsConfig, PositionalConfig,
    };
    use crate::network::{Conditions, Regularisation};
    use crate::padding::PaddingRule;
    use crate::subnet::{LayerShape, Subnet, Window};

    /// A recogniser of two layers that hears a frame every 20 samples.
    pub(crate) fn tiny(
        mode: ExtractorMode,
        layer_norm_first: bool,
        head: HeadConfig,
    ) -> RecogniserConfig {
        let layer = |channels, kernel, stride| ConvLayer { channels, kernel, stride };
        let encoder = EncoderConfig {
            extractor: ExtractorConfig {
                mode,
                layers: vec![layer(8, 10, 5), layer(12, 6, 4)],
                bias: false,
            },
            positional: PositionalConfig { kernel: 4, groups: 4, depth: 1, inner_width: None },
            layer_norm_first,
            heads: HeadsConfig { size: 8, counts: vec![0; 2] },
            ..EncoderConfig::published()
        };
        let layer = |heads| LayerShape { heads, ffn: 24, window: Window::Global };
        let features = match head {
            HeadConfig::Linear => Features::Last,
            HeadConfig::Recurrent { .. } => Features::Mixture,
        };
        RecogniserConfig {
            network: NetworkConfig { encoder, subnet: Subnet::new(16, vec![layer(1), layer(2)]) },
            features,
            head,
            vocabulary: Vocabulary::of_texts(["ab c"]).unwrap(),
        }
    }

    const RECURRENT: HeadConfig = HeadConfig::Recurrent { projected: 6, hidden: 5, layers: 2 };

    fn signals(lengths: &[usize], dtype: DType) -> Tensor {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut samples = vec![0.0f32; lengths.len() * longest];
        for (item, (row, length)) in samples.chunks_mut(longest).zip(lengths).enumerate() {
            Stream::new(3, "signal", item as u64).fill_normal(&mut row[..*length]);
        }
        let samples = Tensor::from_vec(samples, (lengths.len(), longest), &Device::Cpu).unwrap();
        samples.to_dtype(dtype).unwrap()
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        const STEP: f64 = 1e-5;
        let lengths = [170, 301, 260];
        let labels = vec![vec![2, 3], vec![4, 4, 1, 2], vec![]];
        for mode in [ExtractorMode::LayerNorm, ExtractorMode::Default] {
            for (layer_norm_first, head) in [(false, HeadConfig::Linear), (true, RECURRENT)] {
                let config = tiny(mode, layer_norm_first, head);
                let weights = Weights::fresh(5, DType::F64, &Device::Cpu);
                let recogniser = Recogniser::new(&config, &weights).unwrap();
                let source = signals(&lengths, DType::F64);
                let dropout = |rate| Dropout::new(rate, 1, &[7, 9, 8]).unwrap();
                let regularisation = Regularisation {
                    features: dropout(0.1),
                    hidden: dropout(0.2),
                    activation: dropout(0.3),
                    skipped_layers: vec![],
                    freeze_extractor: false,
                };
                let frames = lengths.map(|length| recogniser.frames(length));
                let longest = frames.iter().copied().max().unwrap();
                let mask = |width: usize, period: usize| {
                    let places = (0..3 * width).map(|place| u8::from(place % period == 0));
                    Tensor::from_iter(places, &Device::Cpu).unwrap().reshape((3, width)).unwrap()
                };
                let (frame_mask, channel_mask) = (mask(longest, 5), mask(16, 7));
                let conditions = Conditions {
                    lengths: Some(&lengths),
                    rule: PaddingRule::Exact,
                    frame_mask: Some(&frame_mask),
                    channel_mask: Some(&channel_mask),
                    regularisation: Some(&regularisation),
                };
                let loss = || {
                    let encoded = recogniser.network.forward(&source, &conditions).unwrap();
                    let dropout = dropout(0.1);
                    let logits = recogniser.head.logits(&encoded, &frames, Some(&dropout)).unwrap();
                    let losses = ctc_loss(&logits, &frames, &labels, CtcOptions::default());
                    ctc_mean(&losses.unwrap(), &labels).unwrap()
                };
                let parameters = weights.variables();
                let gradients = Gradients::of(&loss(), &parameters).unwrap();
                let mut stream = Stream::new(1, "places", 0);
                for (index, parameter) in parameters.iter().enumerate() {
                    let (name, var) = (&parameter.name, &parameter.var);
                    let values: Vec<f64> = var.flatten_all().unwrap().to_vec1().unwrap();
                    // A mixture of layers does not hear the norm after the last layer.
                    let is_heard = name != "network.encoder.layer_norm.weight"
                        && name != "network.encoder.layer_norm.bias"
                        || !layer_norm_first;
                    let gradient: Vec<f64> = match gradients.get(index).unwrap() {
                        Some(gradient) => gradient.flatten_all().unwrap().to_vec1().unwrap(),
                        None if !is_heard => vec![0.0; values.len()],
                        None => panic!("no gradient of {name}"),
                    };
                    for _ in 0..3 {
                        let place = stream.below(values.len());
                        let at = |change: f64| -> f64 {
                            let mut values = values.clone();
                            values[place] += change;
                            let values = Tensor::from_vec(values, var.shape(), &Device::Cpu);
                            var.set(&values.unwrap()).unwrap();
                            loss().to_scalar().unwrap()
                        };
                        let expected = (at(STEP) - at(-STEP)) / (2.0 * STEP);
                        at(0.0);
                        let found = gradient[place];
                        let bound = 1e-6 + 1e-4 * expected.abs();
                        assert!(
                            (found - expected).abs() < bound,
                            "{mode:?} {name}[{place}]: {found} {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn padding_changes_nothing() {
        let config = tiny(ExtractorMode::LayerNorm, true, RECURRENT);
        let weights = Weights::fresh(5, DType::F32, &Device::Cpu);
        let recogniser = Recogniser::new(&config, &weights).unwrap();
        let lengths = [170, 301, 260];
        let found = |lengths: &[usize], source: &Tensor| {
            let conditions = Conditions {
                lengths: Some(lengths),
                rule: PaddingRule::Exact,
                ..Conditions::default()
            };
            let frames: Vec<usize> = lengths.iter().map(|it| recogniser.frames(*it)).collect();
            let encoded = recogniser.network.forward(source, &conditions).unwrap();
            recogniser.head.select(&encoded, &frames).unwrap()
        };
        let source = signals(&lengths, DType::F32);
        let together = found(&lengths, &source);
        for (item, length) in lengths.into_iter().enumerate() {
            let alone = source.narrow(0, item, 1).unwrap().narrow(1, 0, length).unwrap();
            let alone = found(&[length], &alone);
            let frames = recogniser.frames(length);
            let part = together.narrow(0, item, 1).unwrap().narrow(1, 0, frames).unwrap();
            let far = (part - alone).unwrap().abs().unwrap().max_all().unwrap();
            assert!(far.to_scalar::<f32>().unwrap() < 1e-5);
        }
    }
}
