//! Convolution with elastic channels and an elastic kernel.

use candle_core::{D, Tensor};
use shared::nn::functional::{Activation, conv1d, matmul};
use shared::nn::{Init, Weights};
use shared::{Error, Result};

use super::Channels;
use crate::subnet::same_padding;

/// The active part of a [`DynamicConv1d`].
#[derive(Clone, Debug)]
pub struct ConvSelection {
    /// Input channels.
    pub input: Channels,
    /// Output channels.
    pub output: Channels,
    /// Kernel size; `None` for the stored one.
    pub kernel: Option<usize>,
}

impl ConvSelection {
    /// A part of a 1x1 convolution.
    pub fn pointwise(input: Channels, output: Channels) -> Self {
        Self { input, output, kernel: None }
    }
}

/// Convolution of stride 1 that keeps the number of frames, without bias. A kernel smaller than
/// the stored one is made from it by chained learned maps: each drops the two outer taps and
/// multiplies the rest by a square matrix (`k75`, `k53`, `k31`), the same for all channels.
pub struct DynamicConv1d {
    weight: Tensor,
    /// Matrices for kernels K-2, K-4, .. 1.
    transforms: Vec<Tensor>,
    dilation: usize,
}

impl DynamicConv1d {
    /// The layer with parameters `conv.weight` and the transforms that kernels below `kernel` need
    /// (initially identities).
    ///
    /// # Errors
    /// When the kernel is not 1, 3, 5 or 7.
    pub fn new(
        weights: &Weights,
        input: usize,
        output: usize,
        kernel: usize,
        dilation: usize,
    ) -> Result<Self> {
        if ![1, 3, 5, 7].contains(&kernel) {
            return Err(Error::Argument(format!("kernel {kernel} is none of 1, 3, 5, 7")));
        }
        let init = Init::fan_in(input * kernel);
        let weight = weights.at("conv").parameter("weight", (output, input, kernel), init)?;
        let transforms = (1..kernel)
            .rev()
            .filter(|smaller| smaller % 2 == 1)
            .map(|k| weights.parameter(&format!("k{}{k}", k + 2), (k, k), Init::Identity))
            .collect::<Result<_>>()?;
        Ok(Self { weight, transforms, dilation })
    }

    /// Input channels, output channels and kernel of the whole layer.
    ///
    /// # Errors
    /// None for a layer made by [`DynamicConv1d::new`].
    pub fn size(&self) -> Result<(usize, usize, usize)> {
        let (output, input, kernel) = self.weight.dims3()?;
        Ok((input, output, kernel))
    }

    /// The weight `[O, I, K]` that the selected part convolves with; differentiable in the stored
    /// weight and the transforms.
    ///
    /// # Errors
    /// When the selection is not a part of the layer.
    pub fn effective_weight(&self, selection: &ConvSelection) -> Result<Tensor> {
        let stored = self.weight.dim(D::Minus1)?;
        let wanted = selection.kernel.unwrap_or(stored);
        if wanted > stored || wanted.is_multiple_of(2) {
            return Err(Error::Argument(format!(
                "kernel {wanted} was chosen from a layer of kernel {stored}"
            )));
        }
        let rows = selection.output.select(&self.weight, 0)?;
        let mut weight = selection.input.select(&rows, 1)?;
        for transform in self.transforms.iter().take((stored - wanted) / 2) {
            let taps = transform.dim(0)?;
            let (output, input, _) = weight.dims3()?;
            let inner = weight.narrow(2, 1, taps)?.reshape((output * input, taps))?;
            weight = matmul(&inner, transform)?.reshape((output, input, taps))?;
        }
        Ok(weight)
    }

    /// The convolution of `x` `[B, I, T]` with the selected part, then `activation`: `[B, O, T]`.
    ///
    /// # Errors
    /// When the selection is not a part of the layer or `x` does not have its input channels.
    pub fn forward(
        &self,
        x: &Tensor,
        selection: &ConvSelection,
        activation: Activation,
    ) -> Result<Tensor> {
        let weight = self.effective_weight(selection)?;
        let options = same_padding(weight.dim(D::Minus1)?, self.dilation, activation);
        conv1d(x, &weight, None, &options)
    }
}
