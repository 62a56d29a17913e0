//! Layers under the names and in the precision of a network.

use candle_core::Tensor;
use shared::Result;
use shared::nn::functional::{
    Activation, ConvOptions, GroupNormOptions, activate, group_norm_with,
};
use shared::nn::{Conv1d, Conv2d, Conv3d, GroupNorm, Init, Linear, Precision, Weights};

use crate::config::NORM_GROUPS;

/// Added to the variance by group norms.
const NORM_EPS: f64 = 1e-5;

/// Makes the layers below one name of a network.
#[derive(Clone)]
pub struct Layers {
    weights: Weights,
    precision: Precision,
}

impl Layers {
    /// Layers with `weights` that compute in `precision`; linear layers, of which little depends, in
    /// f32.
    pub fn new(weights: &Weights, precision: Precision) -> Self {
        Self { weights: weights.clone(), precision }
    }

    /// Those below `name`.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { weights: self.weights.at(name), ..self.clone() }
    }

    /// The name below which they are.
    pub fn name(&self) -> &str {
        self.weights.prefix()
    }

    /// The same, which begin as 0.
    pub fn zero(&self) -> Self {
        Self { weights: self.weights.with_init(Init::Constant(0.0)), ..self.clone() }
    }

    /// A linear layer.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn linear(&self, inputs: usize, outputs: usize) -> Result<Linear> {
        Linear::new(&self.weights, inputs, outputs, true)
    }

    /// A convolution over time, padded to keep the length.
    ///
    /// # Errors
    /// In narrow precision, when the weights can be trained.
    pub fn conv1d(
        &self,
        [inputs, outputs]: [usize; 2],
        kernel: usize,
        dilation: usize,
    ) -> Result<Conv1d> {
        let padding = dilation * (kernel / 2);
        let options = ConvOptions {
            dilation: [dilation],
            padding: [(padding, padding)],
            ..ConvOptions::default()
        };
        Conv1d::new(&self.weights, inputs, outputs, [kernel], true, options)?
            .with_precision(self.precision)
    }

    /// A convolution over pictures, padded so that steps of 1 keep the size.
    ///
    /// # Errors
    /// In narrow precision, when the weights can be trained.
    pub fn conv2d(
        &self,
        [inputs, outputs]: [usize; 2],
        kernel: usize,
        stride: usize,
    ) -> Result<Conv2d> {
        let padding = (kernel / 2, kernel / 2);
        let options =
            ConvOptions { stride: [stride; 2], padding: [padding; 2], ..ConvOptions::default() };
        Conv2d::new(&self.weights, inputs, outputs, [kernel; 2], true, options)?
            .with_precision(self.precision)
    }

    /// A convolution over videos, padded to keep the size.
    ///
    /// # Errors
    /// In narrow precision, when the weights can be trained.
    pub fn conv3d(&self, [inputs, outputs]: [usize; 2], kernel: usize) -> Result<Conv3d> {
        let padding = (kernel / 2, kernel / 2);
        let options = ConvOptions { padding: [padding; 3], ..ConvOptions::default() };
        Conv3d::new(&self.weights, inputs, outputs, [kernel; 3], true, options)?
            .with_precision(self.precision)
    }

    /// A group norm of 32 groups.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn norm(&self, channels: usize) -> Result<GroupNorm> {
        GroupNorm::new(&self.weights, NORM_GROUPS, channels, NORM_EPS)
    }
}

/// `activation(norm(x) (1 + scale) + shift)` of `x [B, C, ..]`, or `[B, F, C, ..]` with `has_frames`;
/// scale and shift `[B, C]` are 0 where there is none.
///
/// # Errors
/// When the shapes do not fit.
pub fn normalise(
    x: &Tensor,
    norm: &GroupNorm,
    has_frames: bool,
    scale_shift: Option<&[Tensor; 2]>,
    activation: Activation,
) -> Result<Tensor> {
    let options = GroupNormOptions {
        groups: norm.groups,
        weight: Some(&norm.weight),
        bias: Some(&norm.bias),
        eps: norm.eps,
        has_frames,
        scale: scale_shift.map(|[scale, _]| scale),
        shift: scale_shift.map(|[_, shift]| shift),
        activation,
    };
    group_norm_with(x, &options)
}

/// What the time does to the features of a residual block.
pub enum Modulation {
    /// Scale and shift `[B, C]` after the norm.
    ScaleShift([Tensor; 2]),
    /// A shift `[B, C]` before the norm.
    Shift(Tensor),
}

/// Makes the modulation of a residual block.
#[derive(Clone, Debug)]
pub struct Modulator {
    linear: Linear,
    channels: usize,
    scales: bool,
}

impl Modulator {
    /// From an embedding of `width` numbers to `channels`; with `scales`, they are scaled, too.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(layers: &Layers, width: usize, channels: usize, scales: bool) -> Result<Self> {
        let outputs = if scales { 2 * channels } else { channels };
        Ok(Self { linear: layers.linear(width, outputs)?, channels, scales })
    }

    /// The activation of an embedding, which all blocks share.
    ///
    /// # Errors
    /// When the embedding is not of a floating dtype.
    pub fn activate(embedding: &Tensor) -> Result<Tensor> {
        activate(embedding, Activation::Silu)
    }

    /// The modulation by an embedding `[B, width]`, after [`Modulator::activate`].
    ///
    /// # Errors
    /// When the embedding has another width.
    pub fn forward(&self, embedding: &Tensor) -> Result<Modulation> {
        let vectors = self.linear.forward(embedding)?;
        if !self.scales {
            return Ok(Modulation::Shift(vectors));
        }
        let half = |i: usize| vectors.narrow(1, i * self.channels, self.channels);
        Ok(Modulation::ScaleShift([half(0)?, half(1)?]))
    }
}

/// Vectors `[B, C]` with as many dimensions as `rank`, the channels at `axis`.
pub(crate) fn along(vectors: &Tensor, axis: usize, rank: usize) -> Result<Tensor> {
    let (batch, channels) = vectors.dims2()?;
    let mut dims = vec![1; rank];
    (dims[0], dims[axis]) = (batch, channels);
    Ok(vectors.reshape(dims)?)
}
