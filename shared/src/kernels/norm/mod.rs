//! Normalisation: `(x - mean) / sqrt(variance + eps) * weight + bias`, with the mean and variance
//! of a channel over the batch, of a group of channels, or of the last dimension.
//!
//! Variances are biased (divided by the number of elements). They are computed about the mean of
//! each piece of a row, and the pieces are merged in f64, so that a large mean costs no accuracy.

mod batch;
mod moments;
mod row_sets;

pub use batch::{BatchStatistics, batch_norm_eval, batch_norm_train};
