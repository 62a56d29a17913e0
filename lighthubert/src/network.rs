//! A whole network.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use shared::checkpoint::LoadReport;
use shared::nn::{Dropout, Init, LayerNorm, Linear, Weights};
use shared::{Error, Result};

use crate::config::{NORM_EPS, NetworkConfig};
use crate::cost;
use crate::extractor::ConvExtractor;
use crate::padding::{PaddingRule, frame_padding};
use crate::positional::PositionalConv;
use crate::subnet::Window;
use crate::transformer::TransformerLayer;

/// A speech encoder of plain layers. Names of its tensors are those of published checkpoints, layers
/// numbered from 0 and weight norm resolved.
pub struct Network {
    config: NetworkConfig,
    extractor: ConvExtractor,
    extractor_norm: LayerNorm,
    projection: Linear,
    mask_embedding: Tensor,
    positional: PositionalConv,
    norm: LayerNorm,
    layers: Vec<TransformerLayer>,
    heads: Vec<Option<Linear>>,
}

/// What a [`Network`] reads besides signals.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conditions<'a> {
    /// Samples of each item of the batch, the rest being padding; all where there is none.
    pub lengths: Option<&'a [usize]>,
    /// How the frames of these lengths are counted.
    pub rule: PaddingRule,
    /// Frames that are masked, `[B, T]` (`u8`): those that are not 0.
    pub frame_mask: Option<&'a Tensor>,
    /// Channels that are 0 for all frames, `[B, E]` (`u8`): those that are not 0.
    pub channel_mask: Option<&'a Tensor>,
    /// What training leaves out at random.
    pub regularisation: Option<&'a Regularisation>,
}

/// What training leaves out at random, in the places of the published program but one: the weights of
/// the attention, which are never in memory as a whole.
#[derive(Clone, Debug)]
pub struct Regularisation {
    /// Of what enters the encoder.
    pub features: Dropout,
    /// Of the sum with positions, and of what attention and feed-forward blocks add.
    pub hidden: Dropout,
    /// Of the hidden units of feed-forward blocks.
    pub activation: Dropout,
    /// Layers that are left out altogether.
    pub skipped_layers: Vec<usize>,
    /// Whether the extractor stays as it is.
    pub freeze_extractor: bool,
}

/// What a [`Network`] makes of signals.
pub struct Encoded {
    /// The final output, `[B, T, E]`.
    pub x: Tensor,
    /// What enters the encoder, masked and with padding at 0, and each layer's output: `[B, T, E]`.
    /// Outputs at padding are of no meaning.
    pub hidden_states: Vec<Tensor>,
    /// Each layer's feed-forward output before its residual connection, `[B, T, E]`.
    pub layer_results: Vec<Tensor>,
    /// Each layer's predictions, `[B, T, size]`.
    pub predictions: Vec<Vec<Tensor>>,
    /// Which frames are padding, `[B, T]` (`u8`); none without lengths.
    pub padding: Option<Tensor>,
    /// The extractor's output, `[B, C, T]`.
    pub extracted: Tensor,
}

impl Encoded {
    /// The mean square of the extractor's output, which training may penalise.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn features_penalty(&self) -> Result<Tensor> {
        Ok(self.extracted.sqr()?.mean_all()?)
    }

    /// The same, through which no gradient goes.
    pub fn detach(&self) -> Self {
        let detach = |tensors: &[Tensor]| tensors.iter().map(Tensor::detach).collect::<Vec<_>>();
        Self {
            x: self.x.detach(),
            hidden_states: detach(&self.hidden_states),
            layer_results: detach(&self.layer_results),
            predictions: self.predictions.iter().map(|of_layer| detach(of_layer)).collect(),
            padding: self.padding.clone(),
            extracted: self.extracted.detach(),
        }
    }
}

impl Network {
    /// The network of `config`.
    ///
    /// # Errors
    /// When the configuration makes no sense; as [`Weights::parameter`]; see [`Weights::check`] for
    /// what did not fit.
    pub fn new(config: NetworkConfig, weights: &Weights) -> Result<Self> {
        config.check()?;
        let NetworkConfig { encoder, subnet } = &config;
        let (embed, channels) = (subnet.embed_dim(), encoder.extractor.channels());
        let at_encoder = weights.at("encoder");
        let layers = subnet.layers().iter().enumerate().map(|(i, shape)| {
            TransformerLayer::new(encoder, embed, shape, &at_encoder.at("layers").at(i))
        });
        let heads = encoder.heads.counts.iter().enumerate().map(|(i, count)| {
            let weights = weights.at("layer_pred_heads").at(i);
            let head = || Linear::new(&weights, embed, encoder.heads.size * count, false);
            (*count > 0).then(head).transpose()
        });
        Ok(Self {
            extractor: ConvExtractor::new(&encoder.extractor, &weights.at("feature_extractor"))?,
            extractor_norm: LayerNorm::new(&weights.at("layer_norm"), channels, NORM_EPS)?,
            projection: Linear::new(&weights.at("post_extract_proj"), channels, embed, true)?,
            mask_embedding: weights.parameter("mask_emb", embed, Init::Uniform { bound: 1.0 })?,
            positional: PositionalConv::new(
                &encoder.positional,
                embed,
                &at_encoder.at("pos_conv"),
            )?,
            norm: LayerNorm::new(&at_encoder.at("layer_norm"), embed, NORM_EPS)?,
            layers: layers.collect::<Result<_>>()?,
            heads: heads.collect::<Result<_>>()?,
            config,
        })
    }

    /// The network with the given tensors, and what came of matching these. With `trainable` they
    /// are variables; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Tensors`] when they are not exactly the network's.
    pub fn from_tensors(
        config: NetworkConfig,
        tensors: BTreeMap<String, Tensor>,
        path: &Path,
        trainable: bool,
        device: &Device,
    ) -> Result<(Self, Weights, LoadReport)> {
        config.check()?;
        let heads = &config.encoder.heads;
        let heads = heads.counts.iter().sum::<usize>() * heads.size * config.subnet.embed_dim();
        check_count(path, &tensors, cost::plain_parameters(&config) + heads as u64)?;
        let weights = Weights::loaded(tensors, path, trainable, DType::F32, device);
        let network = Self::new(config, &weights)?;
        let report = weights.check(false)?;
        Ok((network, weights, report))
    }

    /// Its sizes.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Where its weights are.
    pub fn device(&self) -> &Device {
        self.mask_embedding.device()
    }

    /// The convolutional extractor.
    pub fn extractor(&self) -> &ConvExtractor {
        &self.extractor
    }

    /// What the network makes of signals `[B, n]` at [`crate::RATE_HZ`], normalised already where its
    /// configuration says so.
    ///
    /// # Errors
    /// [`Error::TooShort`]; when the shapes do not fit.
    pub fn forward(&self, source: &Tensor, conditions: &Conditions) -> Result<Encoded> {
        let regularisation = conditions.regularisation;
        let mut extracted = self.extractor.forward(source)?;
        if regularisation.is_some_and(|it| it.freeze_extractor) {
            extracted = extracted.detach();
        }
        let (batch, _, frames) = extracted.dims3()?;
        let padding = self.padding(source, frames, conditions)?;
        let x = self.extractor_norm.forward(&extracted.transpose(1, 2)?)?;
        let mut x = self.projection.forward(&x)?;
        if let Some(regularisation) = regularisation {
            x = regularisation.features.forward(&x, "features")?;
        }
        if let Some(mask) = conditions.frame_mask {
            check_mask("frame mask", mask, [batch, frames])?;
            let masked = self.mask_embedding.broadcast_as(x.shape())?;
            x = mask.unsqueeze(2)?.broadcast_as(x.shape())?.where_cond(&masked, &x)?;
        }
        if let Some(mask) = conditions.channel_mask {
            check_mask("channel mask", mask, [batch, self.config.subnet.embed_dim()])?;
            x = zeroed(&x, &mask.unsqueeze(1)?)?;
        }
        if let Some(padding) = &padding {
            x = zeroed(&x, &padding.unsqueeze(2)?)?;
        }
        let (x, hidden_states, layer_results) = self.encode(x, padding.as_ref(), regularisation)?;
        let predictions = self.predict(&x, &hidden_states)?;
        Ok(Encoded { x, hidden_states, layer_results, predictions, padding, extracted })
    }

    /// The final output, what `x` `[B, T, E]` and each layer give, and the layer results.
    fn encode(
        &self,
        x: Tensor,
        padding: Option<&Tensor>,
        regularisation: Option<&Regularisation>,
    ) -> Result<(Tensor, Vec<Tensor>, Vec<Tensor>)> {
        let is_first = self.config.encoder.layer_norm_first;
        let position = self.positional.forward(&x.transpose(1, 2)?)?.transpose(1, 2)?;
        let mut hidden_states = vec![x];
        let mut layer_results = vec![];
        let mut x = (&hidden_states[0] + position)?;
        if !is_first {
            x = self.norm.forward(&x)?;
        }
        if let Some(regularisation) = regularisation {
            x = regularisation.hidden.forward(&x, "positions")?;
        }
        let frames = x.dim(1)?;
        let (mut x, padding) = self.filled_up(x, padding)?;
        let cut = |x: &Tensor| x.narrow(1, 0, frames);
        for (number, layer) in self.layers.iter().enumerate() {
            if regularisation.is_some_and(|it| it.skipped_layers.contains(&number)) {
                let nothing = x.zeros_like()?;
                hidden_states.push(cut(&x)?);
                layer_results.push(cut(&nothing)?);
                continue;
            }
            let regularisation = regularisation.map(|it| (it, number));
            let output = layer.forward(&x, padding.as_ref(), regularisation)?;
            hidden_states.push(cut(&output.x)?);
            layer_results.push(cut(&output.layer_result)?);
            x = output.x;
        }
        let x = cut(&x)?;
        let x = if is_first { self.norm.forward(&x)? } else { x };
        Ok((x, hidden_states, layer_results))
    }

    /// `x` and its padding with as many more frames, which are padding, as make a multiple of
    /// [`crate::EncoderConfig::sequence_multiple`]. Only sliding windows see a difference.
    fn filled_up(&self, x: Tensor, padding: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        let (batch, frames, _) = x.dims3()?;
        let rest = frames.next_multiple_of(self.config.encoder.sequence_multiple) - frames;
        let is_seen = self.config.subnet.layers().iter().any(|it| it.window != Window::Global);
        if rest == 0 || !is_seen {
            return Ok((x, padding.cloned()));
        }
        let padding = match padding {
            Some(padding) => padding.clone(),
            None => Tensor::zeros((batch, frames), DType::U8, x.device())?,
        };
        let more = Tensor::ones((batch, rest), DType::U8, x.device())?;
        Ok((x.pad_with_zeros(1, 0, rest)?, Some(Tensor::cat(&[&padding, &more], 1)?)))
    }

    /// The predictions of each layer: of a head on the last layer alone, from the final output.
    fn predict(&self, x: &Tensor, hidden_states: &[Tensor]) -> Result<Vec<Vec<Tensor>>> {
        let config = &self.config.encoder.heads;
        let outputs = hidden_states.iter().skip(1);
        let predictions = self.heads.iter().zip(outputs).map(|(head, output)| match head {
            None => Ok(vec![]),
            Some(head) => {
                let input = if config.is_last_only() { x } else { output };
                let all = head.forward(input)?;
                let count = all.dim(2)? / config.size;
                let part = |i| Ok(all.narrow(2, i * config.size, config.size)?);
                (0..count).map(part).collect()
            }
        });
        predictions.collect()
    }

    fn padding(
        &self,
        source: &Tensor,
        frames: usize,
        conditions: &Conditions,
    ) -> Result<Option<Tensor>> {
        let (batch, samples) = source.dims2()?;
        let Some(lengths) = conditions.lengths else { return Ok(None) };
        if lengths.len() != batch {
            return Err(Error::Argument(format!(
                "{} lengths for a batch of {batch} signals",
                lengths.len()
            )));
        }
        let extractor = &self.config.encoder.extractor;
        let valid =
            |length: &usize| conditions.rule.valid_frames(*length, samples, frames, extractor);
        let valid: Vec<usize> = lengths.iter().map(valid).collect();
        Ok(Some(frame_padding(&valid, frames, source.device())?))
    }
}

/// Fails when `tensors` hold far fewer numbers than are needed. Memory is set aside for missing tensors
/// before they are reported, which is why only some may be missing.
pub(crate) fn check_count(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    needed: u64,
) -> Result<()> {
    const MOST_MISSING: u64 = 4;
    let found: usize = tensors.values().map(Tensor::elem_count).sum();
    if needed <= MOST_MISSING * found as u64 {
        return Ok(());
    }
    let reason = format!("{found} numbers where the model needs {needed}");
    Err(Error::checkpoint(path, reason))
}

/// `x` with 0 where `mask`, of a shape that broadcasts to that of `x`, is not 0.
fn zeroed(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let zeros = x.zeros_like()?;
    Ok(mask.broadcast_as(x.shape())?.where_cond(&zeros, x)?)
}

fn check_mask(what: &str, mask: &Tensor, dims: [usize; 2]) -> Result<()> {
    if mask.dims() == dims && mask.dtype() == DType::U8 {
        return Ok(());
    }
    Err(Error::shape(what, format!("{dims:?} of u8"), mask.dims()))
}
