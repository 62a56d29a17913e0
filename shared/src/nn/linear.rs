//! Linear layer.

use candle_core::Tensor;

use super::functional::{self, Activation};
use super::{Init, Weights};
use crate::Result;

/// `x W^T + b` over the last dimension. Parameters: `weight` `[O, I]`, `bias` `[O]`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer from `inputs` to `outputs` features, initialised as in PyTorch.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(weights: &Weights, inputs: usize, outputs: usize, bias: bool) -> Result<Self> {
        let init = Init::fan_in(inputs);
        let weight = weights.parameter("weight", (outputs, inputs), init)?;
        let bias = bias.then(|| weights.parameter("bias", outputs, init)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// The output `[.., O]` for `x` `[.., I]`.
    ///
    /// # Errors
    /// When the last dimension of `x` is not the layer's number of inputs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Activation::Identity)
    }

    /// The output after `activation`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_with(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        functional::linear(x, &self.weight, self.bias.as_ref(), activation)
    }

    /// The weight `[O, I]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias `[O]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}
