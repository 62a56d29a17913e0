//! Linear layer.

use std::sync::Arc;

use candle_core::Tensor;

use super::functional::{Activation, Precision};
use super::kept::Kept;
use super::{Init, Weights};
use crate::Result;
use crate::kernels::epilogue::After;
use crate::kernels::linear::{Packed, linear_with};

/// `x W^T + b` over the last dimension. Parameters: `weight` `[O, I]`, `bias` `[O]`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    /// Shared by the layer's clones.
    kept: Arc<Kept<Packed>>,
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
        Ok(Self { weight, bias, kept: Arc::default() })
    }

    /// The layer with its products computed in `precision`. Only layers that cannot be trained
    /// compute in less than `f32`; they give no gradient to their input either.
    ///
    /// # Errors
    /// When the precision is a narrow one and weight or bias are variables.
    pub fn with_precision(self, precision: Precision) -> Result<Self> {
        let kept = Arc::new(Kept::new(precision, &self.weight, self.bias.as_ref())?);
        Ok(Self { kept, ..self })
    }

    /// What the products are computed in.
    pub fn precision(&self) -> Precision {
        self.kept.precision()
    }

    /// The output `[.., O]` for `x` `[.., I]`.
    ///
    /// # Errors
    /// When the last dimension of `x` is not the layer's number of inputs; in narrow precision, when
    /// `x` needs a gradient.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Activation::Identity)
    }

    /// The output after `activation`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_with(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.apply(x, activation, After::default())
    }

    /// The output plus `residual` of the same shape: where nothing needs a gradient, in one pass.
    ///
    /// # Errors
    /// As [`Linear::forward`], and when the shapes differ.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let after = After { residual: Some(residual), ..After::default() };
        self.apply(x, Activation::Identity, after)
    }

    fn apply(&self, x: &Tensor, activation: Activation, after: After) -> Result<Tensor> {
        let Self { weight, bias, kept } = self;
        let packed = kept.get(weight, |precision| Packed::new(weight, precision))?;
        linear_with(x, weight, packed, bias.as_ref(), activation, after)
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
