//! The layers that models use, and the weights that they are made of.

mod conv;
mod dropout;
pub mod functional;
mod kept;
mod linear;
mod lstm;
mod norm;
mod weights;

pub use conv::{Conv, Conv1d, Conv2d, Conv3d, ConvTranspose1d};
pub use dropout::Dropout;
pub use functional::Precision;
pub use linear::Linear;
pub use lstm::Lstm;
pub use norm::{BatchNorm1d, GroupNorm, LayerNorm};
pub use weights::{Init, Parameter, Weights};
