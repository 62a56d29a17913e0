//! Normalisation: `(x - mean) / sqrt(variance + eps) * weight + bias`, with the mean and variance
//! of a channel over the batch, of a group of channels, or of the last dimension.
//!
//! Variances are biased (divided by the number of elements). They are computed about the mean of
//! each piece of a row, and the pieces are merged in f64, so that a large mean costs no accuracy.

mod batch;
mod group;
mod layer;
mod moments;
mod positions;
mod residual;
mod row_sets;

pub(crate) use batch::GivenNorm;
pub use batch::{BatchStatistics, batch_norm_eval, batch_norm_train};
pub use group::{GroupNormOptions, group_norm, group_norm_with};
pub use layer::layer_norm;
pub use positions::group_norm_of_positions;
pub use residual::{add_layer_norm, layer_norm_of_sum};

use candle_core::Tensor;

use crate::kernels::real::Real;
use crate::{Error, Result};

/// How the elements of a channel are normalised: `(x - pivot) scale + shift`. The pivot is the
/// mean, and what rounding takes away from it, which matters next to a small deviation, is in the
/// shift.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChannelNorm<T> {
    pub pivot: T,
    pub scale: T,
    pub shift: T,
}

impl<T: Real> ChannelNorm<T> {
    /// For `(x - mean) inverse_std weight + bias`.
    fn new(mean: f64, inverse_std: f64, weight: f64, bias: f64) -> Self {
        let pivot = T::from_f64(mean);
        let scale = weight * inverse_std;
        let shift = bias - (mean - pivot.to_f64()) * scale;
        Self { pivot, scale: T::from_f64(scale), shift: T::from_f64(shift) }
    }
}

/// The vector, or one of constant numbers where there is none, of `channels` elements in the dtype of
/// `x`, contiguous.
fn vector(
    name: &str,
    vector: Option<&Tensor>,
    constant: f64,
    channels: usize,
    x: &Tensor,
) -> Result<Tensor> {
    match vector {
        Some(vector) if vector.dims() == [channels] => {
            Ok(vector.to_dtype(x.dtype())?.contiguous()?)
        }
        Some(vector) => Err(Error::shape(name, format!("[{channels}]"), vector.dims())),
        None => Ok(Tensor::full(constant, channels, x.device())?.to_dtype(x.dtype())?),
    }
}
