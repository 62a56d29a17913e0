//! The supernet: one set of weights, a network for every subnet.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use shared::checkpoint::LoadReport;
use shared::nn::{Init, Weights};
use shared::{Error, Result};

use crate::config::{NetworkConfig, SUPERNET_LAYERS, SupernetConfig};
use crate::cost;
use crate::network::{Network, check_count};
use crate::subnet::{Subnet, Units, ffn_units};

/// The weights of the largest network, of which each subnet uses a part.
///
/// A subnet is a plain [`Network`] whose weights are slices of the supernet's. Made by
/// [`Supernet::network`], it is for training: gradients reach the supernet. Made of what
/// [`Supernet::materialise`] copies, it is for use by itself.
pub struct Supernet {
    config: SupernetConfig,
    /// By their names in published checkpoints.
    tensors: BTreeMap<String, Tensor>,
}

impl Supernet {
    /// The supernet with parameters under the names of published checkpoints. The positional
    /// convolution's weight is given by `encoder.pos_conv.0.weight_g` and `weight_v`.
    ///
    /// # Errors
    /// When the configuration makes no sense; as [`Weights::parameter`]; see [`Weights::check`] for
    /// what did not fit.
    pub fn new(config: SupernetConfig, weights: &Weights) -> Result<Self> {
        config.check()?;
        let mut tensors = BTreeMap::new();
        for (name, shape) in config.plain_shapes()? {
            if config.encoder.positional.depth == 1 && name == POSITIONAL_WEIGHT {
                let (&[_, inputs, kernel], Some((at, _))) = (&shape[..], name.rsplit_once('.'))
                else {
                    return Err(Error::shape(name, "[E, E/G, K]", &shape));
                };
                // As in HuBERT: deviation sqrt(4 / (K E)) before the weight is normalised.
                let deviation = 2.0 / ((kernel * config.embed_dim) as f64).sqrt();
                let norm = deviation * ((inputs * config.embed_dim) as f64).sqrt();
                let at = weights.at(at);
                let magnitude = at.parameter("weight_g", (1, 1, kernel), Init::Constant(norm))?;
                tensors.insert(POSITIONAL_MAGNITUDE.into(), magnitude);
                let direction = at.parameter("weight_v", shape, Init::Normal { std: deviation })?;
                tensors.insert(POSITIONAL_DIRECTION.into(), direction);
            } else {
                let init = init(&name, &shape);
                let tensor = weights.parameter(&name, shape, init)?;
                tensors.insert(name, tensor);
            }
        }
        Ok(Self { config, tensors })
    }

    /// The supernet with the given tensors, frozen, and what came of matching these; `path` is for
    /// messages.
    ///
    /// # Errors
    /// [`Error::Tensors`] when they are not exactly the supernet's.
    pub fn from_tensors(
        config: SupernetConfig,
        tensors: BTreeMap<String, Tensor>,
        path: &Path,
        device: &Device,
    ) -> Result<(Self, LoadReport)> {
        config.check()?;
        check_count(path, &tensors, cost::parameters(&config, &config.largest()))?;
        let weights = Weights::loaded(tensors, path, false, DType::F32, device);
        let supernet = Self::new(config, &weights)?;
        let report = weights.check(false)?;
        Ok((supernet, report))
    }

    /// All tensors, by their names in published checkpoints.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// Sizes of the largest network.
    pub fn config(&self) -> &SupernetConfig {
        &self.config
    }

    /// The network of `subnet`, made of slices: gradients reach the supernet's weights, with zeros
    /// outside the slices.
    ///
    /// # Errors
    /// When the subnet is not within the supernet.
    pub fn network(&self, subnet: &Subnet) -> Result<Network> {
        let (config, tensors) = self.slices(subnet)?;
        let weights = Weights::derived(tensors, Path::new("supernet"));
        let network = Network::new(config, &weights)?;
        weights.check(false)?;
        Ok(network)
    }

    /// The plain network of `subnet`: its sizes, and its tensors under the names of [`Network`], which
    /// later training of the supernet does not change.
    ///
    /// # Errors
    /// When the subnet is not within the supernet.
    pub fn materialise(
        &self,
        subnet: &Subnet,
    ) -> Result<(NetworkConfig, BTreeMap<String, Tensor>)> {
        let (config, tensors) = self.slices(subnet)?;
        // What is trained changes in place, what is frozen can be shared.
        let copy = |(name, tensor): (String, Tensor)| {
            let copy = match tensor.track_op() {
                true => tensor.detach().force_contiguous()?,
                false => tensor.contiguous()?,
            };
            Ok((name, copy))
        };
        Ok((config, tensors.into_iter().map(copy).collect::<Result<_>>()?))
    }

    /// The weight `[E, E/G, K]` of the positional convolution of the largest network: the direction at
    /// the length that the magnitude says, for each tap (Salimans and Kingma 2016, equation 2).
    ///
    /// # Errors
    /// When there is no such weight, because there are several convolutions.
    pub fn positional_weight(&self) -> Result<Tensor> {
        let direction = self.tensor(POSITIONAL_DIRECTION)?;
        let norm = direction.sqr()?.sum_keepdim((0, 1))?.sqrt()?;
        let factor = (self.tensor(POSITIONAL_MAGNITUDE)? / norm)?;
        Ok(direction.broadcast_mul(&factor)?)
    }

    fn slices(&self, subnet: &Subnet) -> Result<(NetworkConfig, BTreeMap<String, Tensor>)> {
        let config = self.config.network(subnet)?;
        let kept = subnet.kept_layers()?;
        let mut slices = BTreeMap::new();
        for (name, shape) in plain_shapes(&config)? {
            let tensor = if self.config.encoder.positional.depth == 1 && name == POSITIONAL_WEIGHT {
                // The weight is formed whole: a slice of the direction has another length.
                leading(&self.positional_weight()?, &shape)?
            } else if let Some((layer, part)) = numbered(&name, LAYERS) {
                let stored =
                    format!("{LAYERS}{}.{part}", kept.get(layer).copied().unwrap_or(layer));
                let units = match subnet.layers().get(layer) {
                    Some(layer) => ffn_units(&self.config, subnet.embed_dim(), layer.ffn)?,
                    None => Units::First(0),
                };
                slice_of_layer(self.tensor(&stored)?, part, &units, &shape)?
            } else if let Some((head, part)) = numbered(&name, HEADS) {
                // Heads are counted from the last layer, which every subnet has one of.
                let head = head + SUPERNET_LAYERS - subnet.depth();
                leading(self.tensor(&format!("{HEADS}{head}.{part}"))?, &shape)?
            } else {
                leading(self.tensor(&name)?, &shape)?
            };
            slices.insert(name, tensor);
        }
        Ok((config, slices))
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        let missing = || Error::Argument(format!("the supernet has no tensor {name}"));
        self.tensors.get(name).ok_or_else(missing)
    }
}

/// The part of a plain network that has the sizes of `subnet`: of its layers, evenly spread ones, and of
/// these the leading heads and hidden units, without prediction heads. `tensors` are those of
/// [`Network`]. Only networks that were trained with layers left out (LayerDrop, Fan et al. 2020) bear
/// this well.
///
/// # Errors
/// [`Error::Argument`] naming the size that is not within the network.
pub fn part_of_network(
    config: &NetworkConfig,
    tensors: &BTreeMap<String, Tensor>,
    subnet: &Subnet,
) -> Result<(NetworkConfig, BTreeMap<String, Tensor>)> {
    let whole = &config.subnet;
    let wrong = |name: &str, found: usize, expected: String| {
        Err(Error::Argument(format!("subnet: {name} is {found}, expected {expected}")))
    };
    if subnet.embed_dim() != whole.embed_dim() {
        return wrong("embed_dim", subnet.embed_dim(), whole.embed_dim().to_string());
    }
    if !(1..=whole.depth()).contains(&subnet.depth()) {
        return wrong("layer_num", subnet.depth(), format!("1 to {}", whole.depth()));
    }
    let kept = |layer: usize| layer * whole.depth() / subnet.depth();
    for (i, layer) in subnet.layers().iter().enumerate() {
        let Some(most) = whole.layers().get(kept(i)) else { continue };
        for (name, found, most) in
            [("heads_num", layer.heads, most.heads), ("ffn_embed", layer.ffn, most.ffn)]
        {
            if !(1..=most).contains(&found) {
                return wrong(&format!("{name} of layer {i}"), found, format!("1 to {most}"));
            }
        }
    }
    let mut encoder = config.encoder.clone();
    encoder.heads.counts = vec![0; subnet.depth()];
    let config = NetworkConfig { encoder, subnet: subnet.clone() };
    let part = |(name, shape): (String, Vec<usize>)| {
        let stored = match numbered(&name, LAYERS) {
            Some((layer, part)) => format!("{LAYERS}{}.{part}", kept(layer)),
            None => name.clone(),
        };
        let missing = || Error::Argument(format!("the network has no tensor {stored}"));
        let tensor = tensors.get(&stored).ok_or_else(missing)?;
        Ok((name, leading(tensor, &shape)?.contiguous()?))
    };
    let tensors = plain_shapes(&config)?.into_iter().map(part).collect::<Result<_>>()?;
    Ok((config, tensors))
}

const LAYERS: &str = "encoder.layers.";
const HEADS: &str = "layer_pred_heads.";
const POSITIONAL_WEIGHT: &str = "encoder.pos_conv.0.weight";
const POSITIONAL_MAGNITUDE: &str = "encoder.pos_conv.0.weight_g";
const POSITIONAL_DIRECTION: &str = "encoder.pos_conv.0.weight_v";

impl SupernetConfig {
    /// Name and shape of every tensor of the largest network as a plain one.
    fn plain_shapes(&self) -> Result<BTreeMap<String, Vec<usize>>> {
        plain_shapes(&self.network(&self.largest())?)
    }
}

/// Name and shape of every tensor of a plain network.
fn plain_shapes(config: &NetworkConfig) -> Result<BTreeMap<String, Vec<usize>>> {
    let weights = Weights::shapes();
    Network::new(config.clone(), &weights)?;
    let shape = |(name, tensor): (String, Tensor)| (name, tensor.dims().to_vec());
    Ok(weights.state().into_iter().map(shape).collect())
}

/// How a fresh tensor of the supernet is filled: as in BERT, norms at the identity.
fn init(name: &str, shape: &[usize]) -> Init {
    let is_norm = name.contains("layer_norm") || name.contains(".2.");
    match (name.ends_with("bias"), is_norm, shape.len()) {
        _ if name == "mask_emb" => Init::Uniform { bound: 1.0 },
        (true, ..) => Init::Constant(0.0),
        (_, true, _) => Init::Constant(1.0),
        // Kaiming's normal for convolutions, whose number of inputs is the product of the rest.
        (_, _, 3) => {
            Init::Normal { std: (2.0 / shape[1..].iter().product::<usize>() as f64).sqrt() }
        }
        _ => Init::Normal { std: 0.02 },
    }
}

/// The number and the rest of a name such as `encoder.layers.3.fc1.weight`.
fn numbered<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (number, part) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((number.parse().ok()?, part))
}

/// The part of a layer's tensor that has the given shape; of a feed-forward block, these hidden units.
fn slice_of_layer(tensor: &Tensor, part: &str, units: &Units, shape: &[usize]) -> Result<Tensor> {
    let axis = match part {
        "fc1.weight" | "fc1.bias" => 0,
        "fc2.weight" => 1,
        _ => return leading(tensor, shape),
    };
    let Units::Index(units) = units else { return leading(tensor, shape) };
    let index = Tensor::new(units.as_slice(), tensor.device())?;
    leading(&tensor.index_select(&index, axis)?, shape)
}

/// The leading part of `tensor` that has the given shape.
fn leading(tensor: &Tensor, shape: &[usize]) -> Result<Tensor> {
    shape.iter().enumerate().try_fold(tensor.clone(), |part, (axis, &size)| {
        Ok(if part.dim(axis)? == size { part } else { part.narrow(axis, 0, size)? })
    })
}
