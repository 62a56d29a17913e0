//! Model files: PyTorch checkpoints in, safetensors in and out, training state.
//!
//! [`read`] takes any supported file, told by its content. Nothing in a file is ever executed, and
//! every size that a file claims is checked against the file itself and [`Limits`] before memory
//! is allocated.

mod element;
mod inspect;
mod mapped;
mod report;
pub mod safetensors;
mod state;
mod value;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

pub use inspect::{NonFinite, check_finite, data_hash, finite_report};
pub use report::LoadReport;
pub use state::{StateFolder, TrainingState};
pub use value::Value;

use crate::Result;
use crate::limits::Limits;

/// Most tensors in a file; the largest models have some thousands.
const MAX_TENSORS: usize = 1 << 17;

/// Most dimensions of a tensor, as PyTorch has it.
const MAX_DIMENSIONS: usize = 64;

/// The format of a checkpoint file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON header and raw tensors.
    Safetensors,
}

/// What a checkpoint file holds.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// How the file is built.
    pub format: Format,
    /// All tensors, on the CPU. Those of nested dictionaries and lists have dotted names, e.g.
    /// `state_dict.layer1.weight` or `optimizer.state.0.exp_avg`.
    pub tensors: BTreeMap<String, Tensor>,
    /// The whole tree of values, tensors included; an empty dictionary for safetensors.
    pub values: Value,
    /// Metadata of a safetensors file.
    pub metadata: BTreeMap<String, String>,
    /// What was left out or changed, a sentence each.
    pub notes: Vec<String>,
}

impl Checkpoint {
    /// The tensors below `prefix` and a dot, without these: `tensors_under("state_dict")`.
    pub fn tensors_under(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let strip = |name: &String| Some(name.strip_prefix(prefix)?.strip_prefix('.')?.to_string());
        self.tensors
            .iter()
            .filter_map(|(name, tensor)| Some((strip(name)?, tensor.clone())))
            .collect()
    }
}

/// Returns the content of the checkpoint `path`.
///
/// # Errors
/// As [`safetensors::read`].
pub fn read(path: &Path, limits: &Limits) -> Result<Checkpoint> {
    safetensors::read(path, limits)
}
