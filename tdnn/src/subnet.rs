//! One network of plain layers: trained by itself, or copied out of a supernet for use.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use shared::nn::functional::{Activation, ConvOptions, attentive_statistics};
use shared::nn::{BatchNorm1d, Conv1d, Linear, Weights};
use shared::{Error, Result};

use crate::architecture::{
    ATTENTION_CHANNELS, Block as BlockShape, NetworkConfig, RES2_SCALE, SE_REDUCTION,
};
use crate::layers::{res2, squeeze_excite, trunk};

/// Added to the variance by every batch norm.
pub const BATCH_NORM_EPS: f64 = 1e-5;
/// Share of a batch in the running statistics.
pub const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// Dilation of the Res2 convolutions of block `index`, which stays the same at every depth.
pub(crate) fn dilation(index: usize) -> usize {
    index + 2
}

/// Stride-1 convolution that keeps the number of frames.
pub(crate) fn same_padding(
    kernel: usize,
    dilation: usize,
    activation: Activation,
) -> ConvOptions<1> {
    let padding = (kernel - 1) / 2 * dilation;
    ConvOptions {
        dilation: [dilation],
        padding: [(padding, padding)],
        activation,
        ..ConvOptions::default()
    }
}

/// Features to embedding with fixed depth, widths and kernels.
pub struct Subnet {
    config: NetworkConfig,
    layer1: ConvReluNorm,
    blocks: Vec<Block>,
    catconv: Conv1d,
    attention: [Conv1d; 2],
    bnpool: BatchNorm1d,
    linear: Linear,
    bnembed: BatchNorm1d,
}

impl Subnet {
    /// The network of `config` with the parameters of `weights`.
    ///
    /// # Errors
    /// When plain layers of these widths do not exist; see [`Weights::check`] for what did not fit.
    pub fn new(config: NetworkConfig, weights: &Weights) -> Result<Self> {
        let architecture = &config.architecture;
        architecture.check_plain()?;
        let (trunk, cat) = (architecture.trunk(), architecture.cat());
        let pointwise = |name: &str, input, output, activation| {
            let options = same_padding(1, 1, activation);
            Conv1d::new(&weights.at(name), input, output, [1], false, options)
        };
        let layer1 = ConvReluNorm::new(
            &weights.at("layer1"),
            [config.features, trunk],
            architecture.stem_kernel(),
            1,
        )?;
        let blocks = (architecture.blocks().iter().enumerate())
            .map(|(i, shape)| Block::new(&weights.at("blocks").at(i), trunk, *shape, dilation(i)))
            .collect::<Result<_>>()?;
        let catconv = pointwise("catconv", trunk * architecture.depth(), cat, Activation::Relu)?;
        let attention = [
            pointwise("pooling.linear1", cat, ATTENTION_CHANNELS, Activation::Tanh)?,
            pointwise("pooling.linear2", ATTENTION_CHANNELS, cat, Activation::Identity)?,
        ];
        let bnpool = batch_norm(&weights.at("bnpool"), 2 * cat)?;
        let linear = Linear::new(&weights.at("linear"), 2 * cat, config.embedding, true)?;
        let bnembed = batch_norm(&weights.at("bnembed"), config.embedding)?;
        Ok(Self { layer1, blocks, catconv, attention, bnpool, linear, bnembed, config })
    }

    /// The network of `config` with exactly `tensors`; `origin` names them in errors.
    ///
    /// # Errors
    /// [`Error::Tensors`] when tensors are missing, unexpected or of another shape.
    pub fn from_tensors(
        config: NetworkConfig,
        tensors: BTreeMap<String, Tensor>,
        origin: &Path,
        trainable: bool,
        device: &Device,
    ) -> Result<(Self, Weights)> {
        let weights = Weights::loaded(tensors, origin, trainable, DType::F32, device);
        let network = Self::new(config, &weights)?;
        weights.check(false)?;
        Ok((network, weights))
    }

    /// The network's size.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// The embeddings `[B, embedding]`, not normalised, of features `[B, features, T]`. With
    /// `train`, batch norms use the batch's statistics and update their running ones.
    ///
    /// # Errors
    /// When the shape is wrong or, with `train`, a batch of one leaves no statistics.
    pub fn forward(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        check_features(features, self.config.features)?;
        let stem = self.layer1.forward(features, train)?;
        let x = trunk(stem, self.blocks.len(), |i, x| self.blocks[i].forward(x, train))?;
        let x = self.catconv.forward(&x)?;
        let [hidden, scores] = &self.attention;
        let pooled = attentive_statistics(&x, &scores.forward(&hidden.forward(&x)?)?)?;
        let pooled = self.bnpool.forward(&pooled, train)?;
        self.bnembed.forward(&self.linear.forward(&pooled)?, train)
    }
}

/// Fails unless `x` is `[B, features, T]` with at least one frame.
pub(crate) fn check_features(x: &Tensor, features: usize) -> Result<()> {
    match x.dims() {
        &[batch, bands, frames] if batch > 0 && bands == features && frames > 0 => Ok(()),
        dims => Err(Error::shape("features", format!("[B, {features}, T]"), dims)),
    }
}

pub(crate) fn batch_norm(weights: &Weights, channels: usize) -> Result<BatchNorm1d> {
    BatchNorm1d::new(weights, channels, BATCH_NORM_EPS, BATCH_NORM_MOMENTUM)
}

/// Convolution, ReLU, batch norm, in this order.
struct ConvReluNorm {
    conv: Conv1d,
    bn: BatchNorm1d,
}

impl ConvReluNorm {
    fn new(
        weights: &Weights,
        [input, output]: [usize; 2],
        kernel: usize,
        dilation: usize,
    ) -> Result<Self> {
        let options = same_padding(kernel, dilation, Activation::Relu);
        let conv = Conv1d::new(&weights.at("conv"), input, output, [kernel], false, options)?;
        Ok(Self { conv, bn: batch_norm(&weights.at("bn"), output)? })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        if train {
            return self.bn.forward(&self.conv.forward(x)?, true);
        }
        self.conv.forward_norm(x, &self.bn)
    }
}

/// SE-Res2 block without its residual.
struct Block {
    first: ConvReluNorm,
    res2: Vec<ConvReluNorm>,
    last: ConvReluNorm,
    reduce: Linear,
    expand: Linear,
}

impl Block {
    fn new(weights: &Weights, trunk: usize, shape: BlockShape, dilation: usize) -> Result<Self> {
        let (mid, split) = (shape.mid, shape.split());
        let reduced = trunk / SE_REDUCTION;
        let convs = weights.at("resconv").at("convs");
        Ok(Self {
            first: ConvReluNorm::new(&weights.at("first_conv"), [trunk, mid], 1, 1)?,
            res2: (0..RES2_SCALE - 1)
                .map(|j| ConvReluNorm::new(&convs.at(j), [split; 2], shape.kernel, dilation))
                .collect::<Result<_>>()?,
            last: ConvReluNorm::new(&weights.at("last_conv"), [mid, trunk], 1, 1)?,
            reduce: Linear::new(&weights.at("se.reduce"), trunk, reduced, true)?,
            expand: Linear::new(&weights.at("se.expand"), reduced, trunk, true)?,
        })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let x = self.first.forward(x, train)?;
        let x = res2(&x, |j, x| self.res2[j].forward(x, train))?;
        let x = self.last.forward(&x, train)?;
        squeeze_excite(&x, |means| {
            let reduced = self.reduce.forward_with(means, Activation::Relu)?;
            self.expand.forward_with(&reduced, Activation::Sigmoid)
        })
    }
}

#[cfg(test)]
mod tests {
    use shared::rng::Stream;

    use super::*;
    use crate::cost;

    fn config() -> NetworkConfig {
        NetworkConfig {
            features: 10,
            embedding: 12,
            architecture: "2.16.24.16.3.1.5.20".parse().unwrap(),
        }
    }

    fn noise(shape: [usize; 3]) -> Tensor {
        let mut stream = Stream::new(2, "noise", 0);
        let values: Vec<f32> =
            (0..shape.iter().product::<usize>()).map(|_| stream.normal() as f32).collect();
        Tensor::from_vec(values, &shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn has_the_counted_parameters_and_trains_all_of_them() {
        let weights = Weights::fresh(1, DType::F32, &Device::Cpu);
        let network = Subnet::new(config(), &weights).unwrap();
        let variables = weights.variables();
        let count: usize = variables.iter().map(|parameter| parameter.var.elem_count()).sum();
        assert_eq!(count as u64, cost::parameters(&config()));

        let embeddings = network.forward(&noise([3, 10, 23]), true).unwrap();
        assert_eq!(embeddings.dims(), [3, 12]);
        // Not the plain sum, which the last batch norm keeps constant.
        let gradients = embeddings.powf(3.0).unwrap().sum_all().unwrap().backward().unwrap();
        for parameter in variables {
            assert!(gradients.get(&parameter.var).is_some(), "{}", parameter.name);
        }
    }

    #[test]
    fn items_of_a_batch_do_not_meet_in_evaluation() {
        let weights = Weights::fresh(3, DType::F32, &Device::Cpu);
        let network = Subnet::new(config(), &weights).unwrap();
        let x = noise([3, 10, 23]);
        let together: Vec<Vec<f32>> = network.forward(&x, false).unwrap().to_vec2().unwrap();
        for (i, row) in together.iter().enumerate() {
            let alone = network.forward(&x.narrow(0, i, 1).unwrap(), false).unwrap();
            let alone: Vec<f32> = alone.flatten_all().unwrap().to_vec1().unwrap();
            for (a, b) in row.iter().zip(alone) {
                assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} {b}");
            }
        }
    }

    #[test]
    fn wrong_inputs_and_weights_are_refused() {
        let weights = Weights::fresh(1, DType::F32, &Device::Cpu);
        let network = Subnet::new(config(), &weights).unwrap();
        for shape in [[3, 9, 23], [3, 10, 0], [0, 10, 23]] {
            let x = Tensor::zeros(&shape, DType::F32, &Device::Cpu).unwrap();
            assert!(network.forward(&x, false).is_err(), "{shape:?}");
        }
        assert!(network.forward(&noise([10, 23, 1]).squeeze(2).unwrap(), false).is_err());
        assert!(network.forward(&noise([1, 10, 23]), true).is_err());

        let mut tensors = weights.state();
        tensors.remove("bnpool.bias");
        let origin = Path::new("some.safetensors");
        let refused = Subnet::from_tensors(config(), tensors, origin, false, &Device::Cpu);
        let message = refused.err().unwrap().to_string();
        assert!(message.contains("some.safetensors") && message.contains("bnpool.bias"));
    }
}
