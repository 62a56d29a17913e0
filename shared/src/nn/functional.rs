//! The differentiable functions that models and layers are made of.

pub use crate::kernels::activation::{Activation, activate};
pub use crate::kernels::attention::{
    AttentionOptions, Channels, TokenLayout, Window, multi_head_attention,
    scaled_dot_product_attention,
};
pub use crate::kernels::attentive_statistics::attentive_statistics;
pub use crate::kernels::conv::{
    ConvOptions, ConvTranspose1dOptions, conv_add, conv_transpose1d, conv1d, conv2d, conv3d,
};
pub use crate::kernels::ctc::{CtcOptions, ctc_loss, ctc_mean};
pub use crate::kernels::linear::{linear, linear_add, matmul};
pub use crate::kernels::lstm::{Direction, lstm};
pub use crate::kernels::narrow::Precision;
pub use crate::kernels::norm::{
    BatchStatistics, GroupNormOptions, add_layer_norm, batch_norm_eval, batch_norm_train,
    group_norm, group_norm_of_positions, group_norm_with, layer_norm, layer_norm_of_sum,
};
pub use crate::kernels::pool::{avg_pool1d, avg_pool2d};
pub use crate::kernels::softmax::{log_softmax, softmax};
pub use crate::kernels::upsample::upsample_nearest;
