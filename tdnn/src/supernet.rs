//! The supernet: one set of weights, a network for every architecture within the largest.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use shared::Result;
use shared::nn::functional::Activation;
use shared::nn::{BatchNorm1d, Weights};

use crate::architecture::{ATTENTION_CHANNELS, Architecture, NetworkConfig, SE_REDUCTION};
use crate::dynamic::{
    Channels, ConvSelection, DynamicAttentivePooling, DynamicBatchNorm1d, DynamicBlock,
    DynamicConv1d, DynamicConvReluNorm, DynamicLinear, DynamicRes2,
};
use crate::layers::trunk;
use crate::subnet::{batch_norm, check_features, dilation};

/// Receives intermediate activations by name; see [`Supernet::forward_observed`].
pub type Observer<'a> = &'a dyn Fn(&str, &Tensor);

/// A network whose depth, widths and kernels are chosen at each call.
pub struct Supernet {
    config: NetworkConfig,
    layer1: DynamicConvReluNorm,
    blocks: Vec<DynamicBlock>,
    catconv: DynamicConv1d,
    pooling: DynamicAttentivePooling,
    bnpool: DynamicBatchNorm1d,
    linear: DynamicLinear,
    bnembed: BatchNorm1d,
}

/// The channels that an architecture selects at the ends of the supernet.
struct Selections {
    stem: ConvSelection,
    aggregation: ConvSelection,
    pooled: Channels,
    statistics: Channels,
}

impl Supernet {
    /// The supernet whose largest network is that of `config`.
    ///
    /// # Errors
    /// As [`Weights::parameter`]; see [`Weights::check`] for what did not fit.
    pub fn new(config: NetworkConfig, weights: &Weights) -> Result<Self> {
        let largest = &config.architecture;
        let (trunk, cat) = (largest.trunk(), largest.cat());
        Ok(Self {
            layer1: DynamicConvReluNorm::new(
                &weights.at("layer1"),
                config.features,
                trunk,
                largest.stem_kernel(),
                1,
            )?,
            blocks: (largest.blocks().iter().enumerate())
                .map(|(i, shape)| {
                    DynamicBlock::new(&weights.at("blocks").at(i), trunk, *shape, dilation(i))
                })
                .collect::<Result<_>>()?,
            catconv: DynamicConv1d::new(
                &weights.at("catconv"),
                trunk * largest.depth(),
                cat,
                1,
                1,
            )?,
            pooling: DynamicAttentivePooling::new(&weights.at("pooling"), cat, ATTENTION_CHANNELS)?,
            bnpool: DynamicBatchNorm1d::new(&weights.at("bnpool"), 2 * cat)?,
            linear: DynamicLinear::new(&weights.at("linear"), 2 * cat, config.embedding)?,
            bnembed: batch_norm(&weights.at("bnembed"), config.embedding)?,
            config,
        })
    }

    /// Size of the largest network.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// The embeddings `[B, embedding]`, not normalised, of features `[B, features, T]`, by the
    /// network of `architecture`. With `train`, batch norms use the batch's statistics; see
    /// [`DynamicBatchNorm1d`] for which running ones follow.
    ///
    /// # Errors
    /// When the architecture is not within the largest, the shape is wrong or, with `train`, a
    /// batch of one leaves no statistics.
    pub fn forward(
        &self,
        features: &Tensor,
        architecture: &Architecture,
        train: bool,
    ) -> Result<Tensor> {
        self.forward_observed(features, architecture, train, &|_, _| ())
    }

    /// [`Supernet::forward`], which shows `observe` what passes between its parts: `layer1`,
    /// `block{i}` (without the residual), `catconv`, `pooling`, `bnpool`, `linear`, `bnembed`.
    ///
    /// # Errors
    /// As [`Supernet::forward`].
    pub fn forward_observed(
        &self,
        features: &Tensor,
        architecture: &Architecture,
        train: bool,
        observe: Observer,
    ) -> Result<Tensor> {
        let seen = |name: &str, x: Tensor| {
            observe(name, &x);
            x
        };
        check_features(features, self.config.features)?;
        let Selections { stem, aggregation, pooled, statistics } = self.selections(architecture)?;
        let x = seen("layer1", self.layer1.forward(features, &stem, train)?);
        let shapes = architecture.blocks();
        let x = trunk(x, shapes.len(), |i, x| {
            Ok(seen(&format!("block{i}"), self.blocks[i].forward(x, shapes[i], train)?))
        })?;
        let x = seen("catconv", self.catconv.forward(&x, &aggregation, Activation::Relu)?);
        let x = seen("pooling", self.pooling.forward(&x, &pooled)?);
        let x = seen("bnpool", self.bnpool.forward(&x, &statistics, train)?);
        let x = self.linear.forward(&x, &statistics, &Channels::All, Activation::Identity)?;
        let x = seen("linear", x);
        Ok(seen("bnembed", self.bnembed.forward(&x, train)?))
    }

    /// The plain network of `architecture`: its size and its tensors under the names of
    /// [`crate::Subnet`], copied out of the supernet. Counters of batches start at 0, but for the
    /// last batch norm's, which is copied whole.
    ///
    /// # Errors
    /// When the architecture is not within the largest or has no plain layers.
    pub fn materialise(
        &self,
        architecture: &Architecture,
    ) -> Result<(NetworkConfig, BTreeMap<String, Tensor>)> {
        architecture.check_plain()?;
        let Selections { stem, aggregation, pooled, statistics } = self.selections(architecture)?;
        let mut tensors = PlainTensors::default();
        tensors.conv_relu_norm("layer1", &self.layer1, &stem)?;
        for (i, (block, shape)) in self.blocks.iter().zip(architecture.blocks()).enumerate() {
            let name = |part: &str| format!("blocks.{i}.{part}");
            let [first, last] = block.selections(architecture.trunk(), shape.mid);
            tensors.conv_relu_norm(&name("first_conv"), &block.first_conv, &first)?;
            let split = DynamicRes2::selection(shape.split(), shape.kernel);
            for (j, conv) in block.resconv.convs.iter().enumerate() {
                tensors.conv_relu_norm(&name(&format!("resconv.convs.{j}")), conv, &split)?;
            }
            tensors.conv_relu_norm(&name("last_conv"), &block.last_conv, &last)?;
            let trunk = Channels::First(architecture.trunk());
            let reduced = Channels::First(architecture.trunk() / SE_REDUCTION);
            tensors.linear(&name("se.reduce"), &block.se.reduce, &trunk, &reduced)?;
            tensors.linear(&name("se.expand"), &block.se.expand, &reduced, &trunk)?;
        }
        tensors.insert("catconv.weight", &self.catconv.effective_weight(&aggregation)?)?;
        let [hidden, scores] = self.pooling.effective_weights(&pooled)?;
        tensors.insert("pooling.linear1.weight", &hidden)?;
        tensors.insert("pooling.linear2.weight", &scores)?;
        tensors.batch_norm("bnpool", &self.bnpool, &statistics)?;
        tensors.linear("linear", &self.linear, &statistics, &Channels::All)?;
        tensors.whole_batch_norm("bnembed", &self.bnembed)?;
        let config = NetworkConfig { architecture: architecture.clone(), ..self.config.clone() };
        Ok((config, tensors.0))
    }

    fn selections(&self, architecture: &Architecture) -> Result<Selections> {
        let largest = &self.config.architecture;
        architecture.check_within(largest)?;
        let trunk = Channels::First(architecture.trunk());
        let cat = Channels::First(architecture.cat());
        // The aggregation's stored inputs are one slab of the full trunk a block; those of the
        // blocks that are left out come last.
        let slabs =
            Channels::first_of_slabs(architecture.depth(), largest.trunk(), architecture.trunk());
        Ok(Selections {
            stem: ConvSelection {
                input: Channels::All,
                output: trunk,
                kernel: Some(architecture.stem_kernel()),
            },
            aggregation: ConvSelection::pointwise(slabs, cat.clone()),
            pooled: cat,
            // Means, then deviations.
            statistics: Channels::first_of_slabs(2, largest.cat(), architecture.cat()),
        })
    }
}

/// The tensors of a plain network, collected by name.
#[derive(Default)]
struct PlainTensors(BTreeMap<String, Tensor>);

impl PlainTensors {
    fn insert(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        self.0.insert(name.to_string(), tensor.detach().copy()?.contiguous()?);
        Ok(())
    }

    fn conv_relu_norm(
        &mut self,
        name: &str,
        layer: &DynamicConvReluNorm,
        selection: &ConvSelection,
    ) -> Result<()> {
        self.insert(&format!("{name}.conv.weight"), &layer.conv.effective_weight(selection)?)?;
        self.batch_norm(&format!("{name}.bn"), &layer.bn, &selection.output)
    }

    fn batch_norm(
        &mut self,
        name: &str,
        layer: &DynamicBatchNorm1d,
        channels: &Channels,
    ) -> Result<()> {
        let vectors = layer.vectors(channels)?;
        self.insert(&format!("{name}.weight"), &vectors.weight)?;
        self.insert(&format!("{name}.bias"), &vectors.bias)?;
        self.insert(&format!("{name}.running_mean"), &vectors.mean)?;
        self.insert(&format!("{name}.running_var"), &vectors.variance)?;
        let unused = Tensor::zeros((), DType::I64, vectors.weight.device())?;
        self.insert(&format!("{name}.num_batches_tracked"), &unused)
    }

    fn whole_batch_norm(&mut self, name: &str, layer: &BatchNorm1d) -> Result<()> {
        self.insert(&format!("{name}.weight"), &layer.weight)?;
        self.insert(&format!("{name}.bias"), &layer.bias)?;
        self.insert(&format!("{name}.running_mean"), &layer.running_mean)?;
        self.insert(&format!("{name}.running_var"), &layer.running_var)?;
        self.insert(&format!("{name}.num_batches_tracked"), &layer.num_batches_tracked)
    }

    fn linear(
        &mut self,
        name: &str,
        layer: &DynamicLinear,
        input: &Channels,
        output: &Channels,
    ) -> Result<()> {
        let (weight, bias) = layer.effective_weight(input, output)?;
        self.insert(&format!("{name}.weight"), &weight)?;
        self.insert(&format!("{name}.bias"), &bias)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;
    use shared::rng::Stream;

    use super::*;
    use crate::Subnet;

    fn noise(shape: [usize; 3], index: u64) -> Tensor {
        let mut stream = Stream::new(5, "noise", index);
        let values: Vec<f32> =
            (0..shape.iter().product::<usize>()).map(|_| stream.normal() as f32).collect();
        Tensor::from_vec(values, &shape, &Device::Cpu).unwrap()
    }

    fn supernet() -> (Supernet, Weights) {
        let config = NetworkConfig {
            features: 10,
            embedding: 12,
            architecture: "3.32.32.24.40.5.3.5.7.24".parse().unwrap(),
        };
        let weights = Weights::fresh(7, DType::F32, &Device::Cpu);
        (Supernet::new(config, &weights).unwrap(), weights)
    }

    #[test]
    fn plain_copies_equal_their_paths() {
        let (supernet, weights) = supernet();
        // Transforms other than identities, and statistics other than 0 and 1.
        for parameter in weights.variables() {
            if parameter.name.contains(".k") {
                let (rows, columns) = parameter.var.dims2().unwrap();
                let change = (noise([1, rows, columns], 1).squeeze(0).unwrap() * 0.3).unwrap();
                parameter.var.set(&(parameter.var.as_tensor() + change).unwrap()).unwrap();
            }
        }
        let largest = supernet.config().architecture.clone();
        supernet.forward(&noise([4, 10, 30], 2), &largest, true).unwrap();
        let x = noise([2, 10, 17], 3);
        for path in ["3.32.32.24.40.5.3.5.7.24", "2.12.16.24.3.1.3.19", "3.28.8.8.40.1.3.1.3.24"] {
            let path: Architecture = path.parse().unwrap();
            let (config, tensors) = supernet.materialise(&path).unwrap();
            let origin = Path::new("copy");
            let (subnet, _) =
                Subnet::from_tensors(config, tensors, origin, false, &Device::Cpu).unwrap();
            let elastic = supernet.forward(&x, &path, false).unwrap();
            let plain = subnet.forward(&x, false).unwrap();
            let difference = (elastic - &plain).unwrap().abs().unwrap().max_all().unwrap();
            let largest = plain.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() <= 1e-5 * largest, "{path}");
        }
    }

    #[test]
    fn paths_outside_the_supernet_are_refused() {
        let (supernet, _) = supernet();
        let x = noise([2, 10, 17], 0);
        for path in ["4.32.32.24.40.8.5.3.5.7.1.24", "1.40.32.5.3.24", "1.32.32.5.5.24"] {
            let path: Architecture = path.parse().unwrap();
            assert!(supernet.forward(&x, &path, false).is_err(), "{path}");
            assert!(supernet.materialise(&path).is_err(), "{path}");
        }
        // The elastic network needs no whole groups, a plain one does.
        let odd: Architecture = "1.30.29.5.3.24".parse().unwrap();
        assert!(supernet.forward(&x, &odd, false).is_ok());
        assert!(supernet.materialise(&odd).is_err());
    }
}
