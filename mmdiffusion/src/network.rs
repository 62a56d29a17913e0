//! Either network, and what can be said of it without its weights.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use shared::checkpoint::LoadReport;
use shared::nn::{Precision, Weights};
use shared::{Error, Result};

use crate::config::{DiffusionFlags, Flags, SuperResolutionConfig, UnetConfig};
use crate::{CoupledUnet, SuperResolutionUnet};

/// Settings of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "settings", rename_all = "snake_case", deny_unknown_fields)]
pub enum NetworkConfig {
    /// Of the coupled network.
    Coupled(UnetConfig),
    /// Of the super-resolution network.
    SuperResolution(SuperResolutionConfig),
}

/// A network.
#[derive(Clone, Debug)]
pub enum Network {
    /// The coupled network.
    Coupled(Box<CoupledUnet>),
    /// The super-resolution network.
    SuperResolution(Box<SuperResolutionUnet>),
}

impl Network {
    /// The network with its weights in the one form that the products read: less memory, and no
    /// gradients.
    ///
    /// # Errors
    /// When the network can be trained.
    pub fn compact(self) -> Result<Self> {
        Ok(match self {
            Self::Coupled(network) => Self::Coupled(Box::new(network.compact()?)),
            Self::SuperResolution(network) => Self::SuperResolution(Box::new(network.compact()?)),
        })
    }
}

impl NetworkConfig {
    /// What kind of network it is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Coupled(_) => "coupled network of picture and sound",
            Self::SuperResolution(_) => "super-resolution network",
        }
    }

    /// The settings of the network that has tensors of such names, and its diffusion, from published
    /// flags; those not given are the published models'.
    ///
    /// # Errors
    /// When the names are those of neither network; as [`UnetConfig::from_flags`].
    pub fn of_tensors<'a>(
        names: impl IntoIterator<Item = &'a String>,
        mut flags: Flags,
    ) -> Result<(Self, DiffusionFlags)> {
        let known = |name: &String| match name.split('.').next() {
            Some("middle_blocks") => Some(true),
            Some("middle_block") => Some(false),
            _ => None,
        };
        match names.into_iter().find_map(known) {
            Some(true) => {
                for (name, value) in [("num_head_channels", "64"), ("resblock_updown", "True")] {
                    flags.entry(name).or_insert(value.into());
                }
                let (config, diffusion) = UnetConfig::from_flags(flags)?;
                Ok((Self::Coupled(config), diffusion))
            }
            Some(false) => {
                let (config, diffusion) = SuperResolutionConfig::from_flags(flags)?;
                Ok((Self::SuperResolution(config), diffusion))
            }
            None => Err(Error::Argument(
                "no weights of MM-Diffusion: neither tensors of a coupled network \
                 (middle_blocks.*) nor of a super-resolution network (middle_block.*)"
                    .into(),
            )),
        }
    }

    /// The network, whose convolutions compute in `precision`. Whether `weights` had all tensors,
    /// [`Weights::check`] tells.
    ///
    /// # Errors
    /// As [`CoupledUnet::new`].
    pub fn build(&self, weights: &Weights, precision: Precision) -> Result<Network> {
        Ok(match self {
            Self::Coupled(config) => {
                Network::Coupled(Box::new(CoupledUnet::new(config, weights, precision)?))
            }
            Self::SuperResolution(config) => {
                let network = SuperResolutionUnet::new(config, weights, precision)?;
                Network::SuperResolution(Box::new(network))
            }
        })
    }

    /// The network with frozen weights at random, to measure it.
    ///
    /// # Errors
    /// As [`CoupledUnet::new`].
    pub fn random(&self, precision: Precision, device: &Device) -> Result<Network> {
        // An empty checkpoint leaves all tensors as they are at the start of a training.
        let origin = Path::new("random weights");
        let weights = Weights::loaded(BTreeMap::new(), origin, false, DType::F32, device);
        self.build(&weights, precision)
    }

    /// The network's tensors by name: all 0, without taking memory.
    ///
    /// # Errors
    /// When no network can be built with these settings.
    pub fn shapes(&self) -> Result<BTreeMap<String, Tensor>> {
        let weights = Weights::shapes();
        self.build(&weights, Precision::F32)?;
        Ok(weights.state())
    }

    /// How `tensors` fit the network.
    ///
    /// # Errors
    /// When no network can be built with these settings.
    pub fn report(&self, tensors: &BTreeMap<String, Tensor>) -> Result<LoadReport> {
        let expected = self.shapes()?;
        let mut report = LoadReport::default();
        for (name, tensor) in &expected {
            match tensors.get(name) {
                None => report.missing.push(name.clone()),
                Some(found) if found.dims() != tensor.dims() => {
                    let dims = (tensor.dims().to_vec(), found.dims().to_vec());
                    report.misshapen.push((name.clone(), dims.0, dims.1));
                }
                Some(_) => report.loaded.push(name.clone()),
            }
        }
        let unexpected = tensors.keys().filter(|name| !expected.contains_key(*name));
        report.unexpected = unexpected.cloned().collect();
        Ok(report)
    }

    /// Number of parameters.
    ///
    /// # Errors
    /// When no network can be built with these settings.
    pub fn parameters(&self) -> Result<u64> {
        Ok(self.shapes()?.values().map(|tensor| tensor.elem_count() as u64).sum())
    }
}
