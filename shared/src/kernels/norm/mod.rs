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

pub use batch::{BatchStatistics, batch_norm_eval, batch_norm_train};
pub use group::{GroupNormOptions, group_norm, group_norm_with};
pub use layer::layer_norm;
pub use positions::group_norm_of_positions;
pub use residual::{add_layer_norm, layer_norm_of_sum};

use candle_core::Tensor;

use crate::{Error, Result};

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
