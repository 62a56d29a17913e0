//! Linear map with elastic inputs and outputs.

use candle_core::Tensor;
use shared::Result;
use shared::nn::functional::{Activation, linear};
use shared::nn::{Init, Weights};

use super::Channels;

/// Linear map with bias of which rows and columns can be selected.
pub struct DynamicLinear {
    weight: Tensor,
    bias: Tensor,
}

impl DynamicLinear {
    /// The layer with parameters `linear.weight` and `linear.bias`.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(weights: &Weights, input: usize, output: usize) -> Result<Self> {
        let (weights, init) = (weights.at("linear"), Init::fan_in(input));
        Ok(Self {
            weight: weights.parameter("weight", (output, input), init)?,
            bias: weights.parameter("bias", output, init)?,
        })
    }

    /// Weight and bias of the selected part.
    ///
    /// # Errors
    /// When the selection is not a part of the layer.
    pub fn effective_weight(
        &self,
        input: &Channels,
        output: &Channels,
    ) -> Result<(Tensor, Tensor)> {
        let weight = input.select(&output.select(&self.weight, 0)?, 1)?;
        Ok((weight, output.select(&self.bias, 0)?))
    }

    /// The selected part applied to `x` `[B, I]`, then `activation`: `[B, O]`.
    ///
    /// # Errors
    /// When the selection is not a part of the layer or `x` does not have its inputs.
    pub fn forward(
        &self,
        x: &Tensor,
        input: &Channels,
        output: &Channels,
        activation: Activation,
    ) -> Result<Tensor> {
        let (weight, bias) = self.effective_weight(input, output)?;
        linear(x, &weight, Some(&bias), activation)
    }
}
