//! The files that the authors publish: the weights of a network, without its settings.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::path::Path;

use candle_core::DType;
use shared::checkpoint::{self, LoadReport};
use shared::limits::Limits;
use shared::{Error, Result};

use crate::config::Flags;
use crate::model_file::{ModelCard, ModelFile};
use crate::network::NetworkConfig;

/// A published file as a model.
#[derive(Clone, Debug)]
pub struct PublishedModel {
    /// The model.
    pub model: ModelFile,
    /// The tensors of the file against those of the network.
    pub report: LoadReport,
    /// What was left out of the file, a sentence each.
    pub notes: Vec<String>,
}

/// The network in a published `.pt` file, coupled or super-resolution, as the names of its tensors
/// tell, with the settings in published `flags`: those not given are the published models'. Matrices
/// and kernels are to be stored as `storage`.
///
/// # Errors
/// [`Error::Checkpoint`] when the file cannot be read or holds no such network; [`Error::Argument`]
/// when the flags make no sense; [`Error::Tensors`] when tensors are missing, unexpected or of another
/// shape; [`Error::NonFinite`].
pub fn read(path: &Path, flags: Flags, storage: DType, limits: &Limits) -> Result<PublishedModel> {
    let checkpoint = checkpoint::read(path, limits)?;
    checkpoint::check_finite(&checkpoint.tensors, path)?;
    let tensors = checkpoint.tensors;
    let (network, diffusion) = NetworkConfig::of_tensors(tensors.keys(), flags)
        .map_err(|error| Error::checkpoint(path, error.to_string()))?;
    let report = network.report(&tensors)?;
    if !report.fits(false) {
        return Err(Error::Tensors { path: path.to_path_buf(), report: report.to_string() });
    }
    let mut card = ModelCard::new(network, diffusion);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    card.provenance.insert("converted_from".into(), name.into());
    let model = ModelFile::new(card, &tensors, storage)?;
    Ok(PublishedModel { model, report, notes: checkpoint.notes })
}
