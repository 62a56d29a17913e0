//! The positional convolution: where in the utterance a frame is.

use candle_core::Tensor;
use shared::Result;
use shared::nn::functional::{Activation, ConvOptions, activate, group_norm_of_positions};
use shared::nn::{Conv1d, Weights};

use crate::config::{NORM_EPS, PositionalConfig};

/// One grouped convolution and GELU, or several with a layer norm over the channels in between. The
/// number of frames stays: of an even kernel, the further tap looks back.
pub struct PositionalConv {
    convs: Vec<Conv1d>,
    has_norms: bool,
}

impl PositionalConv {
    /// The layer for an encoder of the given width, with parameters `{i}.weight` and `{i}.bias`, or,
    /// when there are several convolutions, `{i}.0.weight` and `{i}.0.bias`.
    ///
    /// # Errors
    /// When the groups do not divide the widths; as [`Weights::parameter`].
    pub fn new(config: &PositionalConfig, width: usize, weights: &Weights) -> Result<Self> {
        let (kernel, has_norms) = (config.kernel_each(), config.depth > 1);
        let convs = config.widths(width).into_iter().enumerate().map(|(i, (inputs, outputs))| {
            let weights = if has_norms { weights.at(i).at(0) } else { weights.at(i) };
            let activation = if has_norms { Activation::Identity } else { Activation::Gelu };
            let options = ConvOptions {
                padding: [(kernel / 2, (kernel - 1) / 2)],
                groups: config.groups,
                activation,
                ..Default::default()
            };
            Conv1d::new(&weights, inputs, outputs, [kernel], true, options)
        });
        Ok(Self { convs: convs.collect::<Result<_>>()?, has_norms })
    }

    /// The output `[B, E, T]` for `x` `[B, E, T]`.
    ///
    /// # Errors
    /// When `x` has another number of channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.convs.iter().try_fold(x.clone(), |x, conv| {
            let y = conv.forward(&x)?;
            if !self.has_norms {
                return Ok(y);
            }
            let y = group_norm_of_positions(&y.unsqueeze(1)?, 1, None, None, NORM_EPS)?;
            activate(&y.squeeze(1)?, Activation::Gelu)
        })
    }
}
