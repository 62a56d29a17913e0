//! What the elements of a product go through before they leave the cache.

use candle_core::{DType, Tensor};

use super::activation::{Activation, activate_in_place};
use super::norm::{ChannelNorm, GivenNorm};
use super::real::Real;
use super::rows::Rows;
use super::to_compute_dtype;
use super::vectorised::vectorised;
use crate::{Error, Result};

/// What follows the activation of a convolution or linear layer: `norm(y) + residual`. It is computed
/// together with the layer, unless something needs a gradient.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct After<'a> {
    pub norm: Option<GivenNorm<'a>>,
    /// In the shape of the output.
    pub residual: Option<&'a Tensor>,
}

impl After<'_> {
    /// Fails unless it fits an output of shape `dims`.
    pub fn check(&self, dims: &[usize]) -> Result<()> {
        self.norm.map_or(Ok(()), |norm| norm.check(dims))?;
        match self.residual {
            Some(residual) if residual.dims() != dims => {
                let expected = format!("that of the output, {dims:?}");
                Err(Error::shape("residual", expected, residual.dims()))
            }
            _ => Ok(()),
        }
    }

    /// Whether a gradient flows to what it reads.
    pub fn is_tracked(&self) -> bool {
        self.norm.is_some_and(|norm| norm.is_tracked())
            || self.residual.is_some_and(Tensor::track_op)
    }

    /// The same as operations of their own.
    pub fn apply(&self, y: Tensor) -> Result<Tensor> {
        let y = self.norm.map_or(Ok(y.clone()), |norm| norm.apply(&y))?;
        match self.residual {
            Some(residual) => Ok((y.contiguous()? + residual.to_dtype(y.dtype())?)?),
            None => Ok(y),
        }
    }

    /// The same for kernels, in `f32`.
    pub fn ending(&self) -> Result<Ending> {
        let norm = self.norm.map(|norm| norm.of_channels()).transpose()?;
        let residual = self.residual.map(|residual| -> Result<Tensor> {
            Ok(to_compute_dtype("residual", residual)?.to_dtype(DType::F32)?.contiguous()?)
        });
        Ok(Ending { norm, residual: residual.transpose()? })
    }
}

/// [`After`] as kernels read it.
#[derive(Default)]
pub(crate) struct Ending {
    norm: Option<Vec<ChannelNorm<f32>>>,
    /// Contiguous, in `f32`.
    residual: Option<Tensor>,
}

impl Ending {
    /// Calls `work` with all that follows a product.
    pub fn with<R>(
        &self,
        activation: Activation,
        work: impl FnOnce(Epilogue) -> candle_core::Result<R>,
    ) -> candle_core::Result<R> {
        let epilogue = Epilogue { activation, norm: self.norm.as_deref(), residual: None };
        match &self.residual {
            Some(residual) => Rows::of(residual, 0, |rows| {
                work(Epilogue { residual: Some(rows.row(0)), ..epilogue })
            }),
            None => work(epilogue),
        }
    }
}

/// All that follows a product: `norm(activation(y)) + residual`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    pub activation: Activation,
    /// Of each channel.
    pub norm: Option<&'a [ChannelNorm<f32>]>,
    /// In the order of the output.
    pub residual: Option<&'a [f32]>,
}

impl From<Activation> for Epilogue<'_> {
    fn from(activation: Activation) -> Self {
        Self { activation, ..Self::default() }
    }
}

impl Epilogue<'_> {
    /// Finishes neighbouring elements of the output, from number `start` on, all of `channel`.
    pub fn finish(&self, elements: &mut [f32], channel: usize, start: usize) {
        activate_in_place(self.activation, elements);
        if let Some(norm) = self.norm {
            normalise(elements, norm[channel]);
        }
        if let Some(residual) = self.residual {
            add(&residual[start..][..elements.len()], elements);
        }
    }
}

vectorised! {
    fn normalise<T: Real>(elements: &mut [T], norm: ChannelNorm<T>) {
        let ChannelNorm { pivot, scale, shift } = norm;
        elements.iter_mut().for_each(|y| *y = (*y - pivot) * scale + shift);
    }

    fn add<T: Real>(x: &[T], sum: &mut [T]) {
        sum.iter_mut().zip(x).for_each(|(sum, &x)| *sum += x);
    }
}
