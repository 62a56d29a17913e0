//! What is put on top of the encoder: SUPERB's mixture of layers, recogniser and classifier.

use candle_core::Tensor;
use shared::nn::functional::softmax;
use shared::nn::{Dropout, Init, Linear, Lstm, Weights};
use shared::{Error, Result};

/// A learned mean of the encoder's hidden states. Parameter: `weights [L]`, whose softmax weighs the
/// layers.
#[derive(Clone, Debug)]
pub struct LayerMixture {
    weights: Tensor,
}

impl LayerMixture {
    /// A mixture of `layers` hidden states, at first with equal weights.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(weights: &Weights, layers: usize) -> Result<Self> {
        Ok(Self { weights: weights.parameter("weights", layers, Init::Constant(0.0))? })
    }

    /// The mean `[B, T, C]` of the hidden states, each `[B, T, C]`.
    ///
    /// # Errors
    /// When there are not as many states as weights, or their shapes differ.
    pub fn forward(&self, states: &[Tensor]) -> Result<Tensor> {
        let layers = self.weights.elem_count();
        if states.len() != layers || layers == 0 {
            let actual = states.len();
            let reason = format!("{actual} hidden states for a mixture of {layers} layers");
            return Err(Error::Argument(reason));
        }
        let shares = softmax(&self.weights, 0)?;
        let weighted = states.iter().zip(0..).map(|(state, layer)| {
            Ok(state.broadcast_mul(&shares.narrow(0, layer, 1)?.to_dtype(state.dtype())?)?)
        });
        let weighted: Vec<Tensor> = weighted.collect::<Result<_>>()?;
        let Some((first, rest)) = weighted.split_first() else {
            return Err(Error::Argument("a mixture needs at least one layer".into()));
        };
        rest.iter().try_fold(first.clone(), |sum, state| Ok((sum + state)?))
    }
}

/// Sizes of a [`RecurrentHead`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecurrentSize {
    /// Features of the encoder.
    pub inputs: usize,
    /// Features after the first linear layer.
    pub projected: usize,
    /// Hidden features of an LSTM in each direction.
    pub hidden: usize,
    /// Number of bidirectional LSTMs.
    pub layers: usize,
    /// Classes, the blank included.
    pub classes: usize,
}

impl RecurrentSize {
    /// SUPERB's recogniser: two LSTMs of 1024 features in each direction.
    pub fn superb(inputs: usize, classes: usize) -> Self {
        Self { inputs, projected: 1024, hidden: 1024, layers: 2, classes }
    }
}

/// A recogniser of bidirectional LSTMs between two linear layers: `projector`, `rnns.0`, .., `linear`.
#[derive(Clone, Debug)]
pub struct RecurrentHead {
    projector: Linear,
    recurrent: Vec<Lstm>,
    linear: Linear,
}

impl RecurrentHead {
    /// A head of the given size.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(weights: &Weights, size: RecurrentSize) -> Result<Self> {
        let projector = Linear::new(&weights.at("projector"), size.inputs, size.projected, true)?;
        let mut features = size.projected;
        let mut recurrent = Vec::with_capacity(size.layers);
        for layer in 0..size.layers {
            let weights = weights.at("rnns").at(layer);
            recurrent.push(Lstm::new(&weights, features, size.hidden, true)?);
            features = 2 * size.hidden;
        }
        let linear = Linear::new(&weights.at("linear"), features, size.classes, true)?;
        Ok(Self { projector, recurrent, linear })
    }

    /// Logits `[B, T, classes]` for `features [B, T, inputs]`, of which `lengths[b]` frames count;
    /// `dropout` leaves out some of the features between the LSTMs.
    ///
    /// # Errors
    /// When the shapes do not fit, or a length is above T.
    pub fn forward(
        &self,
        features: &Tensor,
        lengths: &[usize],
        dropout: Option<&Dropout>,
    ) -> Result<Tensor> {
        let mut states = self.projector.forward(features)?;
        for (number, layer) in self.recurrent.iter().enumerate() {
            if let (Some(dropout), 1..) = (dropout, number) {
                states = dropout.forward(&states, &format!("head.{}", number - 1))?;
            }
            states = layer.forward(&states, lengths)?;
        }
        self.linear.forward(&states)
    }
}

/// A classifier of utterances: a linear layer, the mean over time, another linear layer: `projector` and
/// `linear`.
#[derive(Clone, Debug)]
pub struct UtteranceClassifier {
    projector: Linear,
    linear: Linear,
}

impl UtteranceClassifier {
    /// A classifier of `inputs` features with `projected` features in the middle.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(weights: &Weights, inputs: usize, projected: usize, classes: usize) -> Result<Self> {
        Ok(Self {
            projector: Linear::new(&weights.at("projector"), inputs, projected, true)?,
            linear: Linear::new(&weights.at("linear"), projected, classes, true)?,
        })
    }

    /// Logits `[B, classes]` for `features [B, T, inputs]`, of which `lengths[b]` frames count.
    ///
    /// # Errors
    /// When the shapes do not fit, or a length is 0 or above T.
    pub fn forward(&self, features: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let (batch, frames, _) = features.dims3()?;
        if lengths.len() != batch || lengths.iter().any(|it| *it == 0 || *it > frames) {
            let reason = format!("lengths {lengths:?} for {batch} utterances of {frames} frames");
            return Err(Error::Argument(reason));
        }
        let shares: Vec<f64> = lengths
            .iter()
            .flat_map(|length| {
                (0..frames).map(|frame| if frame < *length { 1.0 / *length as f64 } else { 0.0 })
            })
            .collect();
        let shares = Tensor::from_vec(shares, (batch, frames, 1), features.device())?;
        let projected = self.projector.forward(features)?;
        let shares = shares.to_dtype(projected.dtype())?;
        self.linear.forward(&projected.broadcast_mul(&shares)?.sum(1)?)
    }
}
