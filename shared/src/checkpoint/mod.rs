//! Model files: PyTorch checkpoints in, safetensors in and out, training state.
//!
//! [`read`] takes any supported file, told by its content. Nothing in a file is ever executed, and
//! every size that a file claims is checked against the file itself and [`Limits`] before memory
//! is allocated.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod convert;
mod element;
mod inspect;
mod mapped;
mod pickle;
mod report;
pub mod safetensors;
mod state;
mod torch;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use candle_core::Tensor;

pub use convert::convert;
pub use inspect::{NonFinite, check_finite, data_hash, finite_report};
pub use report::LoadReport;
pub use state::{StateFolder, TrainingState};
pub use value::Value;

use crate::limits::Limits;
use crate::{Error, Result};
use mapped::FileBytes;

/// Most tensors in a file; the largest models have some thousands.
const MAX_TENSORS: usize = 1 << 17;

/// Most dimensions of a tensor, as PyTorch has it.
const MAX_DIMENSIONS: usize = 64;

/// The format of a checkpoint file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON header and raw tensors.
    Safetensors,
    /// PyTorch 1.6 and later: a zip archive.
    TorchZip,
    /// PyTorch 0.1.10 to 1.5: pickle streams and raw storages.
    TorchStream,
    /// PyTorch before 0.1.10: a tar archive.
    TorchTar,
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

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "PyTorch (zip archive)",
            Self::TorchStream => "PyTorch (stream, before 1.6)",
            Self::TorchTar => "PyTorch (tar archive, before 0.1.10)",
        })
    }
}

/// Returns the content of the checkpoint `path`, whatever its name, in any supported [`Format`].
///
/// # Errors
/// [`Error::Checkpoint`] when the file is in no supported format, truncated or malformed, or when
/// a tensor's elements would come from an unknown function; [`Error::Limit`]; [`Error::Io`].
pub fn read(path: &Path, limits: &Limits) -> Result<Checkpoint> {
    read_bytes(&FileBytes::open(path, limits)?, path, limits)
}

/// Returns the content of a checkpoint that is in memory, such as a model that a binary embeds;
/// `path` stands for it in messages.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(bytes: &[u8], path: &Path, limits: &Limits) -> Result<Checkpoint> {
    match detect(bytes, path)? {
        Format::Safetensors => safetensors::read_bytes(bytes, path, limits),
        format => torch::read(bytes, format, path, limits),
    }
}

/// The beginning of a name out of a file, fit to be shown.
fn shown(name: &str) -> String {
    const MAX_CHARS: usize = 80;
    let mut shown = name.chars().take(MAX_CHARS).collect::<String>().escape_debug().to_string();
    if name.len() > shown.len() {
        shown.push_str("..");
    }
    shown
}

/// The format of a file, by its first bytes.
fn detect(bytes: &[u8], path: &Path) -> Result<Format> {
    let (tar_start, tar_magic) = torch::TAR_MAGIC;
    let has =
        |start: usize, magic: &[u8]| bytes.get(start..).is_some_and(|rest| rest.starts_with(magic));
    if has(8, b"{") {
        return Ok(Format::Safetensors);
    }
    if has(0, torch::ZIP_MAGIC) {
        return Ok(Format::TorchZip);
    }
    if has(tar_start, tar_magic) {
        return Ok(Format::TorchTar);
    }
    if matches!(bytes, [0x80, 2..=5, ..]) {
        return Ok(Format::TorchStream);
    }
    let reason = if bytes.is_empty() {
        "is empty; copy or download it again"
    } else if has(0, b"version https://git-lfs") {
        "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    } else if has(0, b"<") {
        "is a web page, not a checkpoint; the download went wrong"
    } else if has(0, b"\x1f\x8b") {
        "is compressed with gzip; unpack it first"
    } else {
        "is neither a PyTorch checkpoint nor a safetensors file, or its beginning is damaged"
    };
    Err(Error::checkpoint(path, reason))
}
