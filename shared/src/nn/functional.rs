//! The differentiable functions that models and layers are made of.

pub use crate::kernels::activation::{Activation, activate};
pub use crate::kernels::conv::{
    ConvOptions, ConvTranspose1dOptions, conv_transpose1d, conv1d, conv2d, conv3d,
};
pub use crate::kernels::linear::{linear, matmul};
pub use crate::kernels::norm::{BatchStatistics, batch_norm_eval, batch_norm_train};
pub use crate::kernels::softmax::softmax;
