//! Layers that hold the weights of the largest network and compute with a part of them.

mod batch_norm;
mod block;
mod conv;
mod linear;
mod pooling;
mod selection;

pub use batch_norm::{BatchNormVectors, DynamicBatchNorm1d};
pub use block::{DynamicBlock, DynamicConvReluNorm, DynamicRes2, DynamicSqueezeExcite};
pub use conv::{ConvSelection, DynamicConv1d};
pub use linear::DynamicLinear;
pub use pooling::DynamicAttentivePooling;
pub use selection::Channels;
